//! What plain TCP does over a network that is made here: what was asked for is not always what comes of it, as threads of this host
//! carry every byte.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::raw::{connect_by, round_trip};
use crate::lab::LabError;
use crate::lab::slow::{Network, SlowLink};

/// For how long as much is sent as was asked for.
const SENDING: Duration = Duration::from_millis(500);
/// More pieces say nothing more of a network that is faster than this host.
const MOST_PIECES: f64 = 8192.0;
/// Bytes in one call.
const PIECE: usize = 64 << 10;

/// A network, and what plain TCP does over it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct OverNetwork {
    #[serde(skip)]
    pub(super) network: Network,
    /// By one connection.
    pub(super) bytes_per_s: f64,
    /// One byte there and back, median.
    pub(super) round_trip_us: f64,
}

impl OverNetwork {
    /// Measures it, with nothing else at work.
    pub(super) async fn measure(network: Network) -> Result<Self, LabError> {
        let measuring = tokio::task::spawn_blocking(move || Self::here(network));
        measuring
            .await
            .expect("measuring does not panic")
            .map_err(LabError::host("measure a network made here"))
    }

    fn here(network: Network) -> io::Result<Self> {
        let (near, far) = connect(network)?;
        let bytes_per_s = rate(&near, &far, network)?;
        Ok(Self { network, bytes_per_s, round_trip_us: round_trip(near, far)? })
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        format!(
            "{} (plain TCP over it: {:.2} Gbit/s, {:.2} ms)",
            self.network.describe(),
            self.bytes_per_s * 8.0 / 1e9,
            self.round_trip_us / 1e3
        )
    }
}

/// Both ends of a connection over it; the link lasts as long as they do.
fn connect(network: Network) -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let link = SlowLink::to(listener.local_addr()?, network)?;
    connect_by(link.address(), &listener)
}

/// Bytes a second, from the first that arrives on: on its way it is for a while.
fn rate(near: &TcpStream, far: &TcpStream, network: Network) -> io::Result<f64> {
    let pieces = (network.bytes_per_s as f64 * SENDING.as_secs_f64() / PIECE as f64)
        .ceil()
        .clamp(2.0, MOST_PIECES) as usize;
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let (piece, mut near) = (vec![0; PIECE], near);
            (0..pieces).try_for_each(|_| near.write_all(&piece))
        });
        let (mut piece, mut far) = (vec![0; PIECE], far);
        far.read_exact(&mut piece)?;
        let since = Instant::now();
        (1..pieces).try_for_each(|_| far.read_exact(&mut piece))?;
        let took = since.elapsed();
        sending.join().expect("sending does not panic")?;
        Ok(((pieces - 1) * PIECE) as f64 / took.as_secs_f64())
    })
    .inspect_err(|_: &io::Error| drop(near.shutdown(Shutdown::Both)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_as_slow_and_as_long_as_was_asked() {
        let network = Network { bytes_per_s: 10_000_000, round_trip_us: 20_000 };
        let (near, far) = connect(network).unwrap();
        // To whoever dials, it is another host.
        assert_ne!(near.local_addr().unwrap().ip(), near.peer_addr().unwrap().ip());
        let rate = rate(&near, &far, network).unwrap();
        // The first bytes are not counted, and those after them are there a little later than they could be.
        assert!(rate < 11_000_000.0, "{rate}");
        assert!(round_trip(near, far).unwrap() >= 20_000.0);
        let over = OverNetwork { network, bytes_per_s: 9_900_000.0, round_trip_us: 20_470.0 };
        let said = "0.08 Gbit/s with a round trip of 20 ms (plain TCP over it: 0.08 Gbit/s, 20.47 ms)";
        assert_eq!(over.describe(), said);
    }
}
