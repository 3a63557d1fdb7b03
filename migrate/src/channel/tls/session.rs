//! One end of a TLS connection: records to bytes and back, without a socket.

use std::fmt;
use std::io::{self, ErrorKind};

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};

use super::Distrust;
use super::fill::Fill;

/// Plain bytes in a record at most (RFC 8446, 5.1).
const RECORD: usize = 16 << 10;

/// What a record has besides: head, kind, tag.
const RECORD_EXTRA: usize = 22;

/// What may go before what is sealed: a change of keys.
const AHEAD: usize = 256;

/// Room for so many plain bytes as records.
pub(super) const fn sealed(plain: usize) -> usize {
    plain + plain.div_ceil(RECORD) * RECORD_EXTRA + AHEAD
}

/// One end. Both directions share it, so it is locked while bytes are turned into others, and never while a socket is
/// waited for.
pub(super) enum Session {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
    /// It has failed: nothing goes in or out any more.
    Broken,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client(_) => "Client",
            Self::Server(_) => "Server",
            Self::Broken => "Broken",
        })
    }
}

/// Where records have led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The handshake needs more from the peer.
    Shaking,
    /// Bytes may go both ways.
    Open,
}

/// One step of the many in a row.
enum Step {
    /// There may be more.
    Again,
    /// Bytes were opened.
    Opened,
    /// There is no more.
    Stop,
}

impl Session {
    /// Opens records of `from`, as many as `fill` has need of; what it does not take of the last one goes to `rest`, and what
    /// is to be sent to `out`. Says how many bytes of `from` are done with, and where that led.
    pub(super) fn open(
        &mut self,
        from: &mut [u8],
        fill: &mut dyn Fill,
        rest: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<(usize, Stage), rustls::Error> {
        let mut used = 0;
        loop {
            let (discard, step) = self.turn(&mut from[used..], fill, rest, out);
            used += discard;
            match step {
                Ok(Step::Opened) if fill.is_full() => break,
                Ok(Step::Again | Step::Opened) => {}
                Ok(Step::Stop) => break,
                Err(error) => {
                    // What the peer is to hear of it comes next.
                    let _ = self.turn(&mut from[used..], fill, rest, out);
                    *self = Self::Broken;
                    return Err(error);
                }
            }
        }
        Ok((used, if self.is_shaking() { Stage::Shaking } else { Stage::Open }))
    }

    /// Opens records of bytes that come after the handshake.
    pub(super) fn open_more(
        &mut self,
        from: &mut [u8],
        fill: &mut dyn Fill,
        rest: &mut Vec<u8>,
    ) -> io::Result<usize> {
        let mut out = Vec::new();
        let (used, _) = self.open(from, fill, rest, &mut out).map_err(Distrust::of)?;
        // A message of the handshake in pieces would stay in `from`, and only there: sealing, which goes on without it, cannot
        // have that. Nobody has cause to send one.
        let held = !fill.is_full() && holds_record(&from[used..]);
        if held || !out.is_empty() {
            *self = Self::Broken;
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                "it sent what does not belong in a TLS connection",
            ));
        }
        Ok(used)
    }

    /// Seals `plain` into `into`, which has room for it ([`sealed`]). Says how many bytes that made.
    pub(super) fn seal(&mut self, plain: &[u8], into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Client(connection) => {
                encrypt(|| connection.process_tls_records(&mut []).state, plain, into)
            }
            Self::Server(connection) => {
                encrypt(|| connection.process_tls_records(&mut []).state, plain, into)
            }
            Self::Broken => Err(ErrorKind::BrokenPipe.into()),
        }
    }

    fn is_shaking(&self) -> bool {
        match self {
            Self::Client(connection) => connection.is_handshaking(),
            Self::Server(connection) => connection.is_handshaking(),
            Self::Broken => false,
        }
    }

    fn turn(
        &mut self,
        from: &mut [u8],
        fill: &mut dyn Fill,
        rest: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> (usize, Result<Step, rustls::Error>) {
        match self {
            Self::Client(connection) => step(connection.process_tls_records(from), fill, rest, out),
            Self::Server(connection) => step(connection.process_tls_records(from), fill, rest, out),
            Self::Broken => (0, Err(rustls::Error::General("the connection has failed before".to_owned()))),
        }
    }
}

fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    fill: &mut dyn Fill,
    rest: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> (usize, Result<Step, rustls::Error>) {
    let mut discard = status.discard;
    let step = status.state.and_then(|state| match state {
        ConnectionState::ReadTraffic(mut records) => {
            while let Some(record) = records.next_record() {
                let record = record?;
                discard += record.discard;
                let taken = fill.take(record.payload);
                rest.extend_from_slice(&record.payload[taken..]);
            }
            Ok(Step::Opened)
        }
        ConnectionState::EncodeTlsData(mut data) => {
            let start = out.len();
            out.resize(start + sealed(2 * RECORD), 0);
            let length = data.encode(&mut out[start..]);
            let length = length.map_err(|error| rustls::Error::General(error.to_string()))?;
            out.truncate(start + length);
            Ok(Step::Again)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Again)
        }
        ConnectionState::PeerClosed => Ok(Step::Again),
        _ => Ok(Step::Stop),
    });
    (discard, step)
}

/// Asks for the state until one comes in which bytes may be sent.
fn encrypt<'c, 'i, Data: 'c>(
    state: impl FnOnce() -> Result<ConnectionState<'c, 'i, Data>, rustls::Error>,
    plain: &[u8],
    into: &mut [u8],
) -> io::Result<usize> {
    match state().map_err(Distrust::of)? {
        ConnectionState::WriteTraffic(mut traffic) => {
            traffic.encrypt(plain, into).map_err(|error| io::Error::other(error.to_string()))
        }
        // The peer has closed, or the connection has failed.
        _ => Err(ErrorKind::BrokenPipe.into()),
    }
}

/// Whether a whole record is there.
fn holds_record(bytes: &[u8]) -> bool {
    matches!(bytes, [_, _, _, high, low, rest @ ..] if rest.len() >= usize::from(u16::from_be_bytes([*high, *low])))
}
