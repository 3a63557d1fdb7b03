//! The endpoints, one function each, in the order of the paths.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::Body as ResponseBody;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::Stream;
use migrate::client::types::{
    MigrateRequest, MigrationStatus, Problem, RecoverRequest, ResolveRequest, Salvage, VmInfo,
};
use migrate::progress::Event;
use tokio::sync::watch;

use super::Vm;
use super::answer::{Answer, Body, Failure, parse, whole};
use super::feed::follow;

/// Largest body of a request. Typing is cut into pieces by whoever types.
pub(super) const MAX_BODY: usize = 64 << 10;

/// What the endpoints share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) vm: Arc<dyn Vm>,
    /// Turns true when the VMM ends: then streams say what they still have, and end.
    pub(super) closing: watch::Receiver<bool>,
}

impl Shared {
    /// Makes a call that may block.
    async fn call<T: Send + 'static>(&self, call: impl FnOnce(&dyn Vm) -> T + Send + 'static) -> Answer<T> {
        let vm = Arc::clone(&self.vm);
        let made = tokio::task::spawn_blocking(move || call(vm.as_ref())).await;
        made.map_err(|error| {
            Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the VMM failed: {error}"))
        })
    }
}

/// The VM and its guest.
#[utoipa::path(get, path = "/vm", responses((status = 200, body = VmInfo)))]
pub(super) async fn info(State(shared): State<Shared>) -> Answer<Json<VmInfo>> {
    shared.call(|vm| vm.info()).await.map(Json)
}

/// Pauses the guest.
#[utoipa::path(post, path = "/vm/pause", responses((status = 204), (status = 409, body = Problem)))]
pub(super) async fn pause(State(shared): State<Shared>) -> Answer<StatusCode> {
    shared.call(|vm| vm.pause()).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Lets a paused guest run on.
#[utoipa::path(post, path = "/vm/resume", responses((status = 204), (status = 409, body = Problem)))]
pub(super) async fn resume(State(shared): State<Shared>) -> Answer<StatusCode> {
    shared.call(|vm| vm.resume()).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Presses the guest's power button. A guest that listens powers off some time later, and its VMM ends; one that does
/// not goes on.
#[utoipa::path(post, path = "/vm/shutdown", responses((status = 204), (status = 409, body = Problem)))]
pub(super) async fn shutdown(State(shared): State<Shared>) -> Answer<StatusCode> {
    shared.call(|vm| vm.shutdown()).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends the guest and its VMM.
#[utoipa::path(post, path = "/vm/stop", responses((status = 204), (status = 409, body = Problem)))]
pub(super) async fn stop(State(shared): State<Shared>) -> Answer<StatusCode> {
    shared.call(|vm| vm.stop()).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// What the guest has said on its console lately, then what it says, until the VMM ends. A client that reads too
/// slowly misses the oldest and is told how much.
#[utoipa::path(get, path = "/console", responses((status = 200, body = [u8], content_type = "application/octet-stream")))]
pub(super) async fn console(State(shared): State<Shared>) -> Answer<Response> {
    let console = shared.call(|vm| vm.console()).await?;
    Ok(streamed("application/octet-stream", follow(console, shared.closing)))
}

/// Types into the guest's console. At most 64 KiB wait until the guest reads them: of what finds no room the first bytes
/// are taken, as many as `taken` says; the others are to be sent again later.
#[utoipa::path(post, path = "/console",
    request_body(content = [u8], content_type = "application/octet-stream", description = "At most 64 KiB"),
    responses((status = 204), (status = 409, body = Problem), (status = 413, body = Problem)))]
pub(super) async fn type_in(State(shared): State<Shared>, body: Body) -> Answer<StatusCode> {
    let bytes = whole(body, MAX_BODY)?;
    let of = bytes.len();
    let taken = shared.call(move |vm| vm.type_in(&bytes)).await?;
    if taken < of { Err(Failure::not_all_taken(taken, of)) } else { Ok(StatusCode::NO_CONTENT) }
}

/// Everything that happens in migrations from now on, one JSON object a line. A client that reads too slowly
/// misses the oldest.
#[utoipa::path(get, path = "/events", responses((status = 200, body = Event, content_type = "application/x-ndjson")))]
pub(super) async fn events(State(shared): State<Shared>) -> Answer<Response> {
    let events = shared.call(|vm| vm.events()).await?;
    Ok(streamed("application/x-ndjson", follow(events, shared.closing)))
}

/// Starts to move the guest to another host. Over when `/events` says `ended`.
#[utoipa::path(post, path = "/migration", request_body = MigrateRequest,
    responses((status = 202), (status = 400, body = Problem), (status = 409, body = Problem), (status = 413, body = Problem)))]
pub(super) async fn migrate(State(shared): State<Shared>, body: Body) -> Answer<StatusCode> {
    let options = parse::<MigrateRequest>(body, MAX_BODY)?.options()?;
    // What will not do is found before anything begins.
    options.protection.identity(&options.to)?;
    shared.call(|vm| vm.start_migration(options)).await??;
    Ok(StatusCode::ACCEPTED)
}

/// The migration that is leaving from here, or the last one that was to.
#[utoipa::path(get, path = "/migration", responses((status = 200, body = MigrationStatus)))]
pub(super) async fn migration(State(shared): State<Shared>) -> Answer<Json<MigrationStatus>> {
    shared.call(|vm| vm.migration()).await.map(Json)
}

/// Gives the migration up: the guest stays. Refused when there is none, and after commit.
#[utoipa::path(delete, path = "/migration", responses((status = 202), (status = 409, body = Problem)))]
pub(super) async fn cancel(State(shared): State<Shared>) -> Answer<StatusCode> {
    shared.call(|vm| vm.cancel_migration()).await??;
    Ok(StatusCode::ACCEPTED)
}

/// Lets the migration go on that waits before it switches over. Refused when none does.
#[utoipa::path(post, path = "/migration/continue", responses((status = 202), (status = 409, body = Problem)))]
pub(super) async fn go_on(State(shared): State<Shared>) -> Answer<StatusCode> {
    shared.call(|vm| vm.continue_migration()).await??;
    Ok(StatusCode::ACCEPTED)
}

/// Calls the destination of a guest in doubt again; of one whose link is lost just now, at once. Over when `/events` says
/// `ended`.
#[utoipa::path(post, path = "/migration/recover", request_body = RecoverRequest,
    responses((status = 202), (status = 400, body = Problem), (status = 409, body = Problem), (status = 413, body = Problem)))]
pub(super) async fn recover(State(shared): State<Shared>, body: Body) -> Answer<StatusCode> {
    let request = parse::<RecoverRequest>(body, MAX_BODY)?.checked()?;
    shared.call(move |vm| vm.recover(request)).await??;
    Ok(StatusCode::ACCEPTED)
}

/// Keeps the memory of a guest that is here in part: an image in the VMM's state directory, and a list of what is missing.
#[utoipa::path(post, path = "/migration/salvage", responses((status = 200, body = Salvage), (status = 409, body = Problem)))]
pub(super) async fn salvage(State(shared): State<Shared>) -> Answer<Json<Salvage>> {
    Ok(Json(shared.call(|vm| vm.salvage()).await??))
}

/// Decides about a guest in doubt, which is paused because another host may be running it.
#[utoipa::path(post, path = "/migration/resolve", request_body = ResolveRequest,
    responses((status = 204), (status = 400, body = Problem), (status = 409, body = Problem), (status = 413, body = Problem)))]
pub(super) async fn resolve(State(shared): State<Shared>, body: Body) -> Answer<StatusCode> {
    let resolution = parse::<ResolveRequest>(body, MAX_BODY)?.resolution;
    shared.call(move |vm| vm.resolve(resolution)).await??;
    Ok(StatusCode::NO_CONTENT)
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn describe() -> Json<utoipa::openapi::OpenApi> {
    Json(super::openapi())
}

fn streamed(
    kind: &'static str,
    bytes: impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static,
) -> Response {
    ([(header::CONTENT_TYPE, kind)], ResponseBody::from_stream(bytes)).into_response()
}
