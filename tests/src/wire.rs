//! As much of the wire as a link needs to know where one message ends: written from `docs/wire.md`, not from the code.

/// Bytes of a frame's head.
pub const HEAD: usize = 16;

/// Kinds of frames at which a test may want to cut the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "docs/wire.md has the meanings")]
pub enum Kind {
    Hello = 1,
    Welcome = 2,
    Preflight = 3,
    Accept = 4,
    Populated = 6,
    Rejoin = 7,
    Fate = 8,
    Pages = 16,
    Zeros = 17,
    Push = 18,
    Request = 20,
    Placed = 21,
    Packed = 23,
    PackedPush = 24,
    RoundEnd = 32,
    RoundDone = 33,
    Missing = 34,
    State = 35,
    Hashes = 36,
    Verified = 37,
    Ready = 38,
    Commit = 39,
    Running = 40,
    NotRunning = 41,
    Complete = 42,
    Clock = 43,
    Finish = 48,
    Figures = 49,
    Settled = 50,
    Bye = 51,
    Alive = 63,
}

/// The number of a frame's kind, and the length of its payload; `None` when this is no frame.
pub(crate) fn head(head: &[u8; HEAD]) -> Option<(u8, u64)> {
    let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    (head[0..2] == *b"VM").then_some((head[3], length.into()))
}
