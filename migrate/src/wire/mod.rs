//! Bytes to messages and back: pure, no sockets. `docs/wire.md` describes every byte.
//!
//! ```text
//!   | head 16 bytes: magic version kind length argument | payload: length bytes |
//!     frame.rs                                            message.rs (control), runs.rs, packed.rs (pages)
//! ```
//!
//! One invariant: nothing from the peer is believed before it is bounded. A length is checked before
//! memory is taken for it, a page run against the map of RAM before it is used, and an unknown message is
//! refused by name.

pub mod frame;
pub mod limits;
pub mod message;
pub mod packed;
pub mod rejoin;
pub mod runs;

pub use frame::{Head, Kind};
pub use message::{Hello, Message, Preflight, Role};
pub use packed::Codec;
pub use runs::{Admitted, RamMap};

/// Why bytes from a peer are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The first bytes are not ours.
    #[error("not a migration: the frame starts with {found:#06x}, not {:#06x}", limits::MAGIC)]
    Magic {
        /// What came instead.
        found: u16,
    },
    /// A frame format of another age.
    #[error("frame version {found}, and only {} is known here", limits::FRAME_VERSION)]
    FrameVersion {
        /// What came.
        found: u8,
    },
    /// No such kind.
    #[error("unknown message kind {0}")]
    Kind(u8),
    /// Longer than the kind allows, or not of the length its argument says.
    #[error("{kind} of {length} bytes; {expected}")]
    Length {
        /// Which message.
        kind: Kind,
        /// Its announced length.
        length: u64,
        /// What would have been right.
        expected: String,
    },
    /// A value that cannot be.
    #[error("{kind}: {what}")]
    Value {
        /// Which message.
        kind: Kind,
        /// What is wrong.
        what: String,
    },
    /// A message that does not belong here.
    #[error("unexpected {got}, while waiting for {expected}")]
    Unexpected {
        /// What came.
        got: Kind,
        /// What would have been right.
        expected: &'static str,
    },
}
