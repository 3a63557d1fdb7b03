//! The messages of the control plane, and the two binary ones of the urgent connection.
//!
//! What one side encodes the other decodes, in one match each. Pages and zero marks are not here: their
//! tables are read by [`RamMap::admit`](super::RamMap::admit), their content goes straight to guest memory.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::limits::{HEAD_BYTES, TEXT_CHARS};
use super::packed::Codec;
use super::rejoin::{Rejoin, Told};
use super::runs::le_u64s;
use super::{Error, Head, Kind};
use crate::guest::{Description, Packet, Rehearsal, Telemetry};
use crate::options::Mode;
use crate::report::{Postcopy, Takeover, Verification};

/// Bit of `round-end`'s argument that marks the last round.
const LAST_ROUND: u64 = 1 << 32;

/// A message.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "docs/wire.md and Kind document each")]
pub enum Message {
    Hello(Hello),
    Welcome(Welcome),
    Preflight(Box<Preflight>),
    Accept(Accept),
    Refuse(Refuse),
    Rejoin(Rejoin),
    Fate(Told),
    Populated { first: u64, words: Vec<u64> },
    Request { gfns: Vec<u64> },
    Placed,
    Packet(Packet),
    RoundEnd { round: u32, last: bool },
    RoundDone { round: u32 },
    Missing { first: u64, words: Vec<u64> },
    Clock { shown_ns: u64 },
    State { after_round: Option<u32>, blob: Vec<u8> },
    Hashes { first: u64, hashes: Vec<u64> },
    Verified(Verification),
    Ready(Ready),
    Commit,
    Running,
    NotRunning(Reason),
    Complete(Postcopy),
    Finish,
    Figures(Figures),
    Settled(Figures),
    Bye,
    Abort(Reason),
    Alive,
}

/// Opens every connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Versions of the conversation the source speaks.
    pub versions: Versions,
    /// What this connection is for.
    pub role: Role,
    /// Which migration, chosen at random by the source.
    pub session: uuid::Uuid,
    /// Number of a data connection, from 0.
    pub index: u32,
    /// How often the source has called again in this session: 0 the first time.
    #[serde(default)]
    pub call: u32,
}

/// A range of versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Smallest.
    pub min: u32,
    /// Largest.
    pub max: u32,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The conversation.
    Control,
    /// Bulk pages.
    Data,
    /// Page requests and their answers.
    Urgent,
    /// Packets sent after the guest.
    Packets,
}

/// The version chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Of the conversation.
    pub version: u32,
}

/// What wants to come, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preflight {
    /// The guest.
    pub description: Description,
    /// How it moves.
    pub mode: Mode,
    /// Data connections.
    pub streams: u32,
    /// Whether all RAM will be compared.
    pub verify: bool,
    /// Whether packets will be sent after the guest.
    #[serde(default)]
    pub packets: bool,
    /// Whether pre-copy may end in post-copy, by what it then names as missing.
    #[serde(default)]
    pub may_postcopy: bool,
    /// How long the source will call again when the link is lost from commit on, ms.
    #[serde(default)]
    pub recovery_ms: u64,
    /// [How](Codec::word) pages may come packed.
    #[serde(default)]
    pub codecs: Vec<String>,
    /// Within one host, if it is a small one: the cores that are the vCPUs', while others are for bulk data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vcpu_cores: Vec<u32>,
}

impl Preflight {
    /// Whether all must be in place for missing pages.
    #[must_use]
    pub fn may_miss(&self) -> bool {
        self.may_postcopy || matches!(self.mode, Mode::Postcopy | Mode::Hybrid)
    }
}

/// It may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// Measured on the machine just built.
    pub rehearsal: Rehearsal,
    /// From when the pre-flight was heard until this is said, µs: what an answer took beyond that is a round trip. Absent: not told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_us: Option<u64>,
    /// How pages may come packed, of what was offered; absent: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codec: Option<Codec>,
}

/// It may not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// Every reason.
    pub reasons: Vec<String>,
}

/// Pages and state are in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// How long the restore took, µs.
    pub restore_us: u64,
}

/// Why a side gives up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// One line.
    pub reason: String,
}

/// What the guest says of itself, and once the destination of the pause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Absent for guests without telemetry.
    pub telemetry: Option<Telemetry>,
    /// What the pause was on the destination: told with the first figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takeover: Option<Takeover>,
}

impl Message {
    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Welcome(_) => Kind::Welcome,
            Self::Preflight(_) => Kind::Preflight,
            Self::Accept(_) => Kind::Accept,
            Self::Refuse(_) => Kind::Refuse,
            Self::Rejoin(_) => Kind::Rejoin,
            Self::Fate(_) => Kind::Fate,
            Self::Populated { .. } => Kind::Populated,
            Self::Request { .. } => Kind::Request,
            Self::Placed => Kind::Placed,
            Self::Packet(_) => Kind::Packet,
            Self::RoundEnd { .. } => Kind::RoundEnd,
            Self::RoundDone { .. } => Kind::RoundDone,
            Self::Missing { .. } => Kind::Missing,
            Self::Clock { .. } => Kind::Clock,
            Self::State { .. } => Kind::State,
            Self::Hashes { .. } => Kind::Hashes,
            Self::Verified(_) => Kind::Verified,
            Self::Ready(_) => Kind::Ready,
            Self::Commit => Kind::Commit,
            Self::Running => Kind::Running,
            Self::NotRunning(_) => Kind::NotRunning,
            Self::Complete(_) => Kind::Complete,
            Self::Finish => Kind::Finish,
            Self::Figures(_) => Kind::Figures,
            Self::Settled(_) => Kind::Settled,
            Self::Bye => Kind::Bye,
            Self::Abort(_) => Kind::Abort,
            Self::Alive => Kind::Alive,
        }
    }

    /// The whole frame.
    ///
    /// # Errors
    /// When the payload is above the kind's limit: a state or description too large to travel.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let (argument, payload) = self.parts();
        let (kind, length) = (self.kind(), payload.len());
        if length > kind.limit() {
            let expected = format!("at most {} can travel", kind.limit());
            return Err(Error::Length { kind, length: length as u64, expected });
        }
        let mut frame = Vec::with_capacity(HEAD_BYTES + length);
        frame.extend_from_slice(&Head::new(kind, length, argument).encode());
        frame.extend_from_slice(&payload);
        Ok(frame)
    }

    /// Argument and payload.
    fn parts(&self) -> (u64, Vec<u8>) {
        match self {
            Self::Hello(body) => (0, json(body)),
            Self::Welcome(body) => (0, json(body)),
            Self::Preflight(body) => (0, json(body)),
            Self::Accept(body) => (0, json(body)),
            Self::Refuse(body) => (0, json(body)),
            Self::Rejoin(body) => (0, json(body)),
            Self::Fate(body) => (0, json(body)),
            Self::Verified(body) => (0, json(body)),
            Self::Ready(body) => (0, json(body)),
            Self::NotRunning(body) | Self::Abort(body) => (0, json(body)),
            Self::Complete(body) => (0, json(body)),
            Self::Figures(body) | Self::Settled(body) => (0, json(body)),
            Self::Populated { first, words } | Self::Missing { first, words } => (*first, le_bytes(words)),
            Self::Hashes { first, hashes } => (*first, le_bytes(hashes)),
            Self::Request { gfns } => (0, le_bytes(gfns)),
            Self::Packet(packet) => (packet.nic.into(), packet.bytes.clone()),
            Self::RoundEnd { round, last } => {
                (u64::from(*round) | if *last { LAST_ROUND } else { 0 }, vec![])
            }
            Self::RoundDone { round } => (u64::from(*round), vec![]),
            Self::Clock { shown_ns } => (*shown_ns, vec![]),
            Self::State { after_round, blob } => (after_round.map_or(0, |r| u64::from(r) + 1), blob.clone()),
            Self::Placed | Self::Commit | Self::Running | Self::Finish | Self::Bye | Self::Alive => {
                (0, vec![])
            }
        }
    }

    /// A message from a checked head and its payload.
    ///
    /// # Errors
    /// When the payload is not what the kind says.
    pub fn decode(head: &Head, payload: &[u8]) -> Result<Self, Error> {
        let argument = head.argument;
        Ok(match head.kind {
            Kind::Hello => Self::Hello(from_json(head, payload)?),
            Kind::Welcome => Self::Welcome(from_json(head, payload)?),
            Kind::Preflight => Self::Preflight(from_json(head, payload)?),
            Kind::Accept => Self::Accept(from_json(head, payload)?),
            Kind::Refuse => Self::Refuse(from_json(head, payload)?),
            Kind::Rejoin => Self::Rejoin(from_json(head, payload)?),
            Kind::Fate => Self::Fate(fate(head, payload)?),
            Kind::Verified => Self::Verified(from_json(head, payload)?),
            Kind::Ready => Self::Ready(from_json(head, payload)?),
            Kind::NotRunning => Self::NotRunning(reason(head, payload)?),
            Kind::Abort => Self::Abort(reason(head, payload)?),
            Kind::Complete => Self::Complete(from_json(head, payload)?),
            Kind::Figures => Self::Figures(from_json(head, payload)?),
            Kind::Settled => Self::Settled(from_json(head, payload)?),
            Kind::Populated => Self::Populated { first: argument, words: words(head, payload)? },
            Kind::Missing => Self::Missing { first: argument, words: words(head, payload)? },
            Kind::Hashes => Self::Hashes { first: argument, hashes: words(head, payload)? },
            Kind::Request => Self::Request { gfns: words(head, payload)? },
            Kind::Placed => Self::Placed,
            Kind::Packet => Self::Packet(packet(head, payload)?),
            Kind::RoundEnd => Self::RoundEnd {
                round: round(head, argument & !LAST_ROUND)?,
                last: argument & LAST_ROUND != 0,
            },
            Kind::RoundDone => Self::RoundDone { round: round(head, argument)? },
            Kind::Clock => Self::Clock { shown_ns: argument },
            Kind::State => Self::State {
                after_round: argument.checked_sub(1).map(|r| round(head, r)).transpose()?,
                blob: payload.to_vec(),
            },
            Kind::Commit => Self::Commit,
            Kind::Running => Self::Running,
            Kind::Finish => Self::Finish,
            Kind::Bye => Self::Bye,
            Kind::Alive => Self::Alive,
            Kind::Pages | Kind::Zeros | Kind::Push | Kind::PushZeros | Kind::Packed | Kind::PackedPush => {
                return Err(Error::Unexpected { got: head.kind, expected: "a message without pages" });
            }
        })
    }
}

/// Text from here for a peer, or from a peer for a person: bounded, on one line.
#[must_use]
pub fn tame(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(TEXT_CHARS).collect()
}

fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("messages are plain data with string keys")
}

fn from_json<T: DeserializeOwned>(head: &Head, payload: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(payload)
        .map_err(|error| Error::Value { kind: head.kind, what: tame(&error.to_string()) })
}

fn reason(head: &Head, payload: &[u8]) -> Result<Reason, Error> {
    let Reason { reason } = from_json(head, payload)?;
    Ok(Reason { reason: tame(&reason) })
}

fn fate(head: &Head, payload: &[u8]) -> Result<Told, Error> {
    let told: Told = from_json(head, payload)?;
    Ok(Told { reason: tame(&told.reason), ..told })
}

fn packet(head: &Head, payload: &[u8]) -> Result<Packet, Error> {
    let number = head.argument;
    let unknown = || Error::Value { kind: head.kind, what: format!("network interface {number}") };
    let nic = u32::try_from(number).map_err(|_| unknown())?;
    Ok(Packet { nic, bytes: payload.to_vec() })
}

fn le_bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn words(head: &Head, payload: &[u8]) -> Result<Vec<u64>, Error> {
    if !payload.len().is_multiple_of(8) {
        let expected = "a multiple of 8 is needed".to_owned();
        return Err(Error::Length { kind: head.kind, length: payload.len() as u64, expected });
    }
    Ok(le_u64s(payload))
}

fn round(head: &Head, number: u64) -> Result<u32, Error> {
    u32::try_from(number)
        .map_err(|_| Error::Value { kind: head.kind, what: format!("round {number} is beyond all counting") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_message() -> impl Strategy<Value = Message> {
        let words = || proptest::collection::vec(any::<u64>(), 0..64);
        prop_oneof![
            any::<(u128, u32)>().prop_map(|(session, index)| Message::Hello(Hello {
                versions: Versions { min: 1, max: 3 },
                role: Role::Data,
                session: uuid::Uuid::from_u128(session),
                index,
                call: 0,
            })),
            any::<(u32, bool)>().prop_map(|(round, last)| Message::RoundEnd { round, last }),
            any::<u32>().prop_map(|round| Message::RoundDone { round }),
            any::<u64>().prop_map(|shown_ns| Message::Clock { shown_ns }),
            (any::<u64>(), words()).prop_map(|(first, words)| Message::Missing { first, words }),
            (any::<u64>(), words()).prop_map(|(first, hashes)| Message::Hashes { first, hashes }),
            words().prop_map(|gfns| Message::Request { gfns }),
            (proptest::option::of(any::<u32>()), proptest::collection::vec(any::<u8>(), 0..100))
                .prop_map(|(after_round, blob)| Message::State { after_round, blob }),
            "[a-z ]{0,50}".prop_map(|reason| Message::Abort(Reason { reason })),
            proptest::collection::vec("[a-z ]{0,50}", 0..5)
                .prop_map(|reasons| Message::Refuse(Refuse { reasons })),
            any::<(u128, u64)>().prop_map(|(guest, epoch)| Message::Rejoin(Rejoin {
                guest: uuid::Uuid::from_u128(guest),
                epoch,
                knows: super::super::rejoin::Knows::Left,
            })),
            ("[a-z ]{0,50}", any::<u64>()).prop_map(|(reason, missing)| Message::Fate(Told {
                fate: super::super::rejoin::Fate::Held,
                missing,
                reason
            })),
            any::<u64>().prop_map(|restore_us| Message::Ready(Ready { restore_us })),
            Just(Message::Placed),
            (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..100))
                .prop_map(|(nic, bytes)| Message::Packet(Packet { nic, bytes })),
            Just(Message::Commit),
            Just(Message::Running),
            Just(Message::Alive),
        ]
    }

    proptest! {
        #[test]
        fn a_message_is_read_as_it_was_written(message in any_message()) {
            let frame = message.encode().expect("small");
            let head = frame[..HEAD_BYTES].try_into().map(|bytes| Head::decode(&bytes)).expect("a head");
            prop_assert_eq!(Message::decode(&head.expect("ours"), &frame[HEAD_BYTES..]), Ok(message));
        }

        #[test]
        fn no_payload_makes_it_panic(at in 0..Kind::ALL.len(), argument: u64, payload in proptest::collection::vec(any::<u8>(), 0..300)) {
            let head = Head { kind: Kind::ALL[at], length: payload.len(), argument };
            let _ = Message::decode(&head, &payload);
        }
    }
}
