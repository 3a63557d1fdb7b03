//! Connections that stay within one host: what they do not need of a network. To another host nothing changes.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

/// What a connection within this host keeps unread, as the kernel is told (it takes twice as much). Pages that are sent, those
/// under way and those that have landed then stay in a core's cache. Measured in docs/decisions/within-one-host.md.
const SEND_BUFFER_WITHIN: usize = 192 << 10;

/// Lets little wait in a connection whose other end is on this host. To another host nothing changes: that would be too little,
/// and the kernel sizes what waits by the round trip.
pub fn keep_in_cache(socket: &impl AsFd) {
    let socket = SockRef::from(socket);
    if is_within_host(&socket) {
        // Without it everything works as well, only slower.
        let _ = socket.set_send_buffer_size(SEND_BUFFER_WITHIN);
    }
}

/// Before it is connected to `address`: within this host there is no network that others use and none to find the limits of, so
/// what is sent need not be paced, as BBR does by timers (from the handshake on, whatever is chosen afterwards). To another host
/// the choice is that host's administrator's. Measured in docs/decisions/within-one-host.md.
pub(super) fn send_unpaced_within(socket: &Socket, address: SocketAddr) {
    if leads_here(address) {
        // Without it everything works as well. Every Linux has this one.
        let _ = socket.set_tcp_congestion(b"reno");
    }
}

/// Whether an address is of this host. Nothing is sent.
fn leads_here(address: SocketAddr) -> bool {
    let probe = Socket::new(Domain::for_address(address), Type::DGRAM, None);
    probe.is_ok_and(|probe| probe.connect(&address.into()).is_ok() && is_within_host(&probe))
}

/// A connection to `address`, made as a migration makes its own, for who measures what it can do.
///
/// # Errors
/// When nobody answers within `limit`.
pub fn stream_to(address: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    send_unpaced_within(&socket, address);
    socket.connect_timeout(&address.into(), limit)?;
    Ok(socket.into())
}

/// Whether both ends have the same address.
pub(super) fn is_within_host(socket: &Socket) -> bool {
    let ip = |address: io::Result<SockAddr>| address.ok()?.as_socket().map(|it| it.ip());
    ip(socket.local_addr()).is_some_and(|here| ip(socket.peer_addr()) == Some(here))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn little_waits_between_two_ends_on_one_host() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let near = TcpStream::connect(listener.local_addr().expect("an address")).expect("someone listens");
        assert!(is_within_host(&SockRef::from(&near)));
        keep_in_cache(&near);
        // The kernel takes twice of what it is told.
        let buffer = SockRef::from(&near).send_buffer_size().expect("a socket");
        assert_eq!(buffer, 2 * SEND_BUFFER_WITHIN);
    }

    #[test]
    fn what_stays_on_this_host_is_not_paced() {
        for host in ["127.0.0.1:9", "[::1]:9"] {
            let address: SocketAddr = host.parse().expect("an address");
            // Where there is no IPv6 nothing leads there.
            assert!(leads_here(address) || address.is_ipv6(), "{host}");
        }
        // For documentation (RFC 5737): nobody's.
        assert!(!leads_here("192.0.2.1:9".parse().expect("an address")));
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
        let (usual, chosen) = (socket(), socket());
        chosen.set_tcp_congestion(b"reno").expect("this host lets everybody choose it");
        for (host, like) in [("127.0.0.1:9", &chosen), ("192.0.2.1:9", &usual)] {
            let dialled = socket();
            send_unpaced_within(&dialled, host.parse().expect("an address"));
            let [is, ought] = [&dialled, like].map(|socket| socket.tcp_congestion().expect("a socket"));
            assert_eq!(is, ought, "{host}");
        }
    }
}
