//! Serving the API until the VMM ends.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::api::Shared;
use super::peer::{self, Peer};
use super::routes::router;
use super::{ControlSocket, Vm};

/// At the end, how long clients may take to read what they are still owed: above all the last event.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves the API on a claimed socket until `ended`; then tells every stream what is left to tell, removes the
/// socket, and returns.
///
/// # Errors
/// When the socket cannot be listened on.
pub async fn serve(
    socket: ControlSocket,
    vm: Arc<dyn Vm>,
    ended: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = UnixListener::from_std(socket.listener.try_clone()?)?;
    let (close, closing) = watch::channel(false);
    let mut closed = closing.clone();
    let goodbye = async move {
        // An error means that the sender is gone: the VMM ends too.
        let _ = closed.wait_for(|&closed| closed).await;
    };
    let router = router(Shared { vm, closing }).layer(middleware::from_fn(peer::only_owner));
    let service = router.into_make_service_with_connect_info::<Peer>();
    let serving = axum::serve(listener, service).with_graceful_shutdown(goodbye).into_future();
    tokio::pin!(serving);
    tokio::select! {
        result = &mut serving => return result,
        () = ended => {}
    }
    drop(socket);
    close.send_replace(true);
    match tokio::time::timeout(FAREWELL, serving).await {
        Ok(result) => result,
        Err(_) => Ok(()),
    }
}
