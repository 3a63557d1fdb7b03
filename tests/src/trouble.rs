//! What can happen to the link between two VMMs, and where in a conversation.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::Kind;

/// Where the link breaks by itself, or something else happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nowhere.
    Never,
    /// When this many bytes have gone to the destination, over all connections, in the middle of a frame or not.
    AfterBytes(u64),
    /// The same of bytes that have gone to the source.
    AfterBytesBack(u64),
    /// Before a frame of this kind: it does not arrive.
    Before(Kind),
    /// After a frame of this kind: it arrives, and nothing that it causes.
    After(Kind),
}

/// What happens there.
#[derive(Clone)]
pub enum Does {
    /// All connections end; after that time new ones are taken again, or never.
    Break(Option<Duration>),
    /// Nothing gets through for so long; then all of it does.
    Stall(Duration),
    /// From there on each frame, or each piece of what is none, takes so much longer.
    Slow(Duration),
    /// The frame arrives twice. Not in the middle of bytes.
    Repeat,
    /// Bits of one byte change: the byte of this number in the frame, or the next one after that many bytes.
    Damage {
        /// From 0, in the frame.
        byte: usize,
        /// The bits; not 0.
        bits: u8,
    },
    /// Something outside the link, before anything goes on.
    Act(Arc<dyn Fn() + Send + Sync>),
}

/// Something that happens to a link, once.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// Where.
    pub at: Cut,
    /// At which such frame, from 1.
    pub nth: u32,
    /// What.
    pub does: Does,
}

impl fmt::Debug for Does {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Break(None) => write!(f, "break for good"),
            Self::Break(Some(heals)) => write!(f, "break for {heals:?}"),
            Self::Stall(time) => write!(f, "stall for {time:?}"),
            Self::Slow(time) => write!(f, "slow by {time:?}"),
            Self::Repeat => write!(f, "repeat"),
            Self::Damage { byte, bits } => write!(f, "change bits {bits:#04x} of byte {byte}"),
            Self::Act(_) => write!(f, "act"),
        }
    }
}
