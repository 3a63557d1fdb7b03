//! Who speaks: the control socket serves the user that the VMM runs as, and root.
//!
//! The socket's mode says so already. But a mode can be changed by mistake, and a directory on the way can be too open,
//! so the kernel is asked who connected (SO_PEERCRED, unix(7)), once a connection.

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{Extension, Request};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use tokio::net::UnixListener;

use super::answer::{Answer, Failure};

/// The user at the other end of a connection; `None` when the kernel does not say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|peer| peer.uid()))
    }
}

/// Refuses every request of another user, whatever it asks for. Refusals are told on the VMM's standard error.
pub(super) async fn only_owner(
    Extension(ConnectInfo(Peer(peer))): Extension<ConnectInfo<Peer>>,
    request: Request,
    next: Next,
) -> Answer<Response> {
    let owner = rustix::process::geteuid().as_raw();
    if peer.is_some_and(|peer| serves(owner, peer)) {
        return Ok(next.run(request).await);
    }
    let who = peer.map_or_else(|| "an unknown user".to_owned(), |peer| format!("user {peer}"));
    eprintln!(
        "vmm: refused {} {} on the control socket: it came from {who}",
        request.method(),
        request.uri().path()
    );
    let why = format!("this VMM belongs to user {owner} and serves that user and root only, not {who}");
    Err(Failure::new(StatusCode::FORBIDDEN, why))
}

/// Whether a VMM of user `owner` does as user `peer` says. Root can do as it likes with the process anyway.
fn serves(owner: u32, peer: u32) -> bool {
    peer == owner || peer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_and_root_are_served() {
        assert!(serves(1000, 1000) && serves(1000, 0) && serves(0, 0));
        assert!(!serves(1000, 1001) && !serves(0, 65534));
    }
}
