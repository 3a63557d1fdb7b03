//! The head of a frame: what is coming, how much of it, and whether that is allowed.

use std::fmt;

use super::Error;
use super::limits::{
    BITMAP_WORDS, CONTROL_BYTES, FRAME_VERSION, HASHES_PER_FRAME, HEAD_BYTES, MAGIC, PACKET_BYTES,
    PAGES_PER_FRAME, PAGES_PER_PACKED, PAGES_PER_PUSH, REQUESTS_PER_FRAME, RUN_BYTES, RUNS_PER_FRAME,
    SMALL_BYTES, STATE_BYTES,
};
use crate::pages::PAGE_SIZE;

/// The head of a frame, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// What the payload is.
    pub kind: Kind,
    /// Bytes of payload, within the kind's limit.
    pub length: usize,
    /// Meaning depends on the kind.
    pub argument: u64,
}

impl Head {
    /// The head of a frame with these values.
    #[must_use]
    pub fn new(kind: Kind, length: usize, argument: u64) -> Self {
        Self { kind, length, argument }
    }

    /// Its bytes.
    ///
    /// # Panics
    /// When the length is above the kind's limit: the sender's bug.
    #[must_use]
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        assert!(self.length <= self.kind.limit(), "{} of {} bytes is over its limit", self.kind, self.length);
        let mut bytes = [0; HEAD_BYTES];
        bytes[0..2].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[2] = FRAME_VERSION;
        bytes[3] = self.kind as u8;
        bytes[4..8].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.argument.to_le_bytes());
        bytes
    }

    /// Reads a head and checks it. A frame that passes may be read into memory.
    ///
    /// # Errors
    /// When a peer of ours would not have sent it.
    pub fn decode(bytes: &[u8; HEAD_BYTES]) -> Result<Self, Error> {
        let magic = u16::from_le_bytes([bytes[0], bytes[1]]);
        if magic != MAGIC {
            return Err(Error::Magic { found: magic });
        }
        if bytes[2] != FRAME_VERSION {
            return Err(Error::FrameVersion { found: bytes[2] });
        }
        let kind = Kind::from_byte(bytes[3]).ok_or(Error::Kind(bytes[3]))?;
        let length = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        if length > kind.limit() {
            let expected = format!("at most {} are allowed", kind.limit());
            return Err(Error::Length { kind, length: length as u64, expected });
        }
        let mut argument = [0; 8];
        argument.copy_from_slice(&bytes[8..16]);
        Ok(Self { kind, length, argument: u64::from_le_bytes(argument) })
    }

    /// For frames with a run table: bytes of the table. The content follows it.
    ///
    /// # Errors
    /// When the number of runs is over the limit, zero, or does not fit the length.
    pub fn table_bytes(&self) -> Result<usize, Error> {
        let runs = usize::try_from(self.argument).unwrap_or(usize::MAX);
        let bytes = runs.saturating_mul(RUN_BYTES);
        if runs == 0 || runs > self.kind.runs() || bytes > self.length {
            let what = format!("a table of {} runs in {} bytes", self.argument, self.length);
            return Err(Error::Value { kind: self.kind, what });
        }
        Ok(bytes)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $word:literal, $limit:expr;)*) => {
        /// What a frame is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Kind { $($(#[$doc])* $name = $number,)* }

        impl Kind {
            /// Every kind there is.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            /// The kind with this number.
            #[must_use]
            pub fn from_byte(byte: u8) -> Option<Self> {
                match byte { $($number => Some(Kind::$name),)* _ => None }
            }

            /// Its name in `docs/wire.md`.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Kind::$name => $word,)* }
            }

            /// Most bytes of payload.
            #[must_use]
            pub fn limit(self) -> usize {
                match self { $(Kind::$name => $limit,)* }
            }
        }
    };
}

/// A table of the most runs, and so many pages of content.
const fn bulk(runs: usize, pages: u64) -> usize {
    runs * RUN_BYTES + pages as usize * PAGE_SIZE
}

kinds! {
    /// First frame of every connection.
    Hello = 1, "hello", SMALL_BYTES;
    /// Version chosen.
    Welcome = 2, "welcome", SMALL_BYTES;
    /// What wants to come.
    Preflight = 3, "preflight", CONTROL_BYTES;
    /// It may.
    Accept = 4, "accept", CONTROL_BYTES;
    /// It may not, and why.
    Refuse = 5, "refuse", CONTROL_BYTES;
    /// Pages that round 0 will send: a hint.
    Populated = 6, "populated", BITMAP_WORDS * 8;
    /// The source has come back, and what it knows.
    Rejoin = 7, "rejoin", SMALL_BYTES;
    /// What became of the guest, to a source that has come back.
    Fate = 8, "fate", SMALL_BYTES;
    /// Pages with content.
    Pages = 16, "pages", bulk(RUNS_PER_FRAME, PAGES_PER_FRAME);
    /// Pages that are zero.
    Zeros = 17, "zeros", bulk(RUNS_PER_FRAME, 0);
    /// Pages with content, to be placed (post-copy).
    Push = 18, "push", bulk(PAGES_PER_PUSH as usize, PAGES_PER_PUSH);
    /// Zero pages, to be placed (post-copy).
    PushZeros = 19, "push-zeros", bulk(RUNS_PER_FRAME, 0);
    /// Pages the guest waits for.
    Request = 20, "request", REQUESTS_PER_FRAME * 8;
    /// A pushed frame's pages are in place: another may follow.
    Placed = 21, "placed", 0;
    /// A packet that came for the guest where it ran before.
    Packet = 22, "packet", PACKET_BYTES;
    /// Pages with content, packed.
    Packed = 23, "packed", bulk(PAGES_PER_PACKED as usize, PAGES_PER_PACKED);
    /// Pages with content, packed, to be placed (post-copy).
    PackedPush = 24, "packed-push", bulk(PAGES_PER_PACKED as usize, PAGES_PER_PACKED);
    /// This connection has sent its part of a round.
    RoundEnd = 32, "round-end", 0;
    /// All of the round has landed.
    RoundDone = 33, "round-done", 0;
    /// Pages that will come only after the guest runs.
    Missing = 34, "missing", BITMAP_WORDS * 8;
    /// The state of everything but RAM.
    State = 35, "state", STATE_BYTES;
    /// Hashes of RAM.
    Hashes = 36, "hashes", HASHES_PER_FRAME * 8;
    /// The comparison's result.
    Verified = 37, "verified", CONTROL_BYTES;
    /// Pages and state are in place.
    Ready = 38, "ready", SMALL_BYTES;
    /// The guest is yours.
    Commit = 39, "commit", 0;
    /// It runs here.
    Running = 40, "running", 0;
    /// It could not be started here and never ran here.
    NotRunning = 41, "not-running", SMALL_BYTES;
    /// No page is missing any more.
    Complete = 42, "complete", SMALL_BYTES;
    /// What the source's clock shows.
    Clock = 43, "clock", 0;
    /// All is done; the last figures, please.
    Finish = 48, "finish", 0;
    /// The guest's figures now.
    Figures = 49, "figures", SMALL_BYTES;
    /// … and after it has settled.
    Settled = 50, "settled", SMALL_BYTES;
    /// Goodbye.
    Bye = 51, "bye", 0;
    /// The speaker gives up.
    Abort = 62, "abort", SMALL_BYTES;
    /// The speaker lives.
    Alive = 63, "alive", 0;
}

impl Kind {
    /// Whether the content is [packed](super::packed).
    #[must_use]
    pub fn is_packed(self) -> bool {
        matches!(self, Kind::Packed | Kind::PackedPush)
    }

    /// Most runs in the kind's table; 0 for kinds without one.
    #[must_use]
    pub fn runs(self) -> usize {
        match self {
            Kind::Pages | Kind::Zeros | Kind::PushZeros => RUNS_PER_FRAME,
            Kind::Push => PAGES_PER_PUSH as usize,
            Kind::Packed | Kind::PackedPush => PAGES_PER_PACKED as usize,
            _ => 0,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_sixteen_bytes_are_a_bounded_head_or_an_error(bytes in any::<[u8; HEAD_BYTES]>()) {
            if let Ok(head) = Head::decode(&bytes) {
                prop_assert!(head.length <= head.kind.limit());
                let _ = head.table_bytes();
            }
        }

        #[test]
        fn a_head_is_read_as_it_was_written(at in 0..Kind::ALL.len(), length in 0_usize..1 << 20, argument: u64) {
            let kind = Kind::ALL[at];
            let head = Head::new(kind, length.min(kind.limit()), argument);
            prop_assert_eq!(Head::decode(&head.encode()), Ok(head));
        }
    }

    #[test]
    fn the_document_lists_every_kind() {
        let document = include_str!("../../../docs/wire.md");
        for kind in Kind::ALL {
            let row = format!("| {} | `{}` |", *kind as u8, kind);
            assert!(document.contains(&row), "docs/wire.md lacks the row {row}");
        }
    }

    #[test]
    fn a_head_over_its_limit_is_refused() {
        let mut bytes = Head::new(Kind::Commit, 0, 0).encode();
        bytes[4] = 1;
        let error = Head::decode(&bytes).expect_err("commit has no payload");
        assert_eq!(error.to_string(), "commit of 1 bytes; at most 0 are allowed");
    }
}
