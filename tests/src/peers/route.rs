//! How bytes get from source to destination: over loopback as it is, or over a slow network made on it.

use std::net::{Ipv4Addr, SocketAddr};

use vmm::lab::slow::{Network, SlowLink};

use super::error::PeersError;

/// The way to one destination, as long as this is kept.
#[derive(Debug)]
pub(super) struct Route {
    /// What the source is to dial.
    pub(super) address: SocketAddr,
    slow: Option<SlowLink>,
}

impl Route {
    /// The way to who listens at this address.
    pub(super) fn to(destination: SocketAddr, network: Option<Network>) -> Result<Self, PeersError> {
        let slow = network.map(|network| SlowLink::to(destination, network)).transpose();
        let slow = slow.map_err(PeersError::host("make a slow network"))?;
        Ok(Self { address: slow.as_ref().map_or(destination, SlowLink::address), slow })
    }

    /// The way to who listens at this port of loopback.
    pub(super) fn to_port(port: u16, network: Option<Network>) -> Result<Self, PeersError> {
        Self::to((Ipv4Addr::LOCALHOST, port).into(), network)
    }

    /// Bytes that have gone to the destination, where they are counted.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.slow.as_ref().map(SlowLink::bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_slow_network_counts_what_goes_by_and_loopback_does_not() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let there = listener.local_addr().unwrap();
        let straight = Route::to_port(there.port(), None).unwrap();
        assert_eq!((straight.address, straight.bytes()), (there, None));

        let network = Network { bytes_per_s: 1_000_000, round_trip_us: 1000 };
        let route = Route::to(there, Some(network)).unwrap();
        assert_ne!(route.address, there);
        TcpStream::connect(route.address).unwrap().write_all(b"seven b").unwrap();
        let mut come = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut come).unwrap();
        assert_eq!((come.as_slice(), route.bytes()), (b"seven b".as_slice(), Some(7)));
    }
}
