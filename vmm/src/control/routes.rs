//! Which request goes where, and the description of it all.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode, Uri};
use axum::routing::{MethodRouter, delete, get, post};
use utoipa::OpenApi;

use super::answer::Failure;
use super::api::{self, MAX_BODY, Shared};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "VMM control API",
        description = "One virtual machine and its migrations, over HTTP/1.1 on a Unix socket."
    ),
    paths(
        api::info,
        api::pause,
        api::resume,
        api::shutdown,
        api::stop,
        api::console,
        api::type_in,
        api::events,
        api::migrate,
        api::migration,
        api::cancel,
        api::go_on,
        api::recover,
        api::resolve,
        api::salvage,
        api::describe,
    )
)]
struct Description;

/// The API's description: what `GET /openapi.json` answers.
#[must_use]
pub fn openapi() -> utoipa::openapi::OpenApi {
    Description::openapi()
}

/// Every route. A list and not a router, so that a test can hold it against [`openapi`].
pub(super) fn routes() -> Vec<(Method, &'static str, MethodRouter<Shared>)> {
    vec![
        (Method::GET, "/vm", get(api::info)),
        (Method::POST, "/vm/pause", post(api::pause)),
        (Method::POST, "/vm/resume", post(api::resume)),
        (Method::POST, "/vm/shutdown", post(api::shutdown)),
        (Method::POST, "/vm/stop", post(api::stop)),
        (Method::GET, "/console", get(api::console)),
        (Method::POST, "/console", post(api::type_in)),
        (Method::GET, "/events", get(api::events)),
        (Method::POST, "/migration", post(api::migrate)),
        (Method::GET, "/migration", get(api::migration)),
        (Method::DELETE, "/migration", delete(api::cancel)),
        (Method::POST, "/migration/continue", post(api::go_on)),
        (Method::POST, "/migration/recover", post(api::recover)),
        (Method::POST, "/migration/resolve", post(api::resolve)),
        (Method::POST, "/migration/salvage", post(api::salvage)),
        (Method::GET, "/openapi.json", get(api::describe)),
    ]
}

pub(super) fn router(shared: Shared) -> Router {
    let routes = routes().into_iter();
    routes
        .fold(Router::new(), |router, (_, path, handler)| router.route(path, handler))
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

async fn unknown(uri: Uri) -> Failure {
    Failure::new(StatusCode::NOT_FOUND, format!("there is no {}: see /openapi.json", uri.path()))
}

async fn not_allowed(method: Method, uri: Uri) -> Failure {
    Failure::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not take {method}: see /openapi.json", uri.path()),
    )
}
