//! Every limit of the wire, in one place. A peer that exceeds one is refused before anything is allocated.

use std::time::Duration;

/// First two bytes of every frame: `V`, `M`.
pub const MAGIC: u16 = 0x4d56;

/// Version of the frame format.
pub const FRAME_VERSION: u8 = 1;

/// Versions of the conversation this engine speaks, smallest and largest.
pub const VERSIONS: (u32, u32) = (1, 1);

/// Bytes in a frame's head.
pub const HEAD_BYTES: usize = 16;

/// Bytes of one run in a run table.
pub const RUN_BYTES: usize = 12;

/// Runs in one frame of pages: what one `sendmsg` takes with its head (`IOV_MAX` is 1024).
pub const RUNS_PER_FRAME: usize = 512;

/// Pages in one frame: 4 MiB of content.
pub const PAGES_PER_FRAME: u64 = 1024;

/// Data connections of one migration.
pub const STREAMS: u32 = crate::options::MAX_STREAMS;

/// Pages in one pushed frame (post-copy), and runs: 1 MiB, so that nothing waits long behind one.
pub const PAGES_PER_PUSH: u64 = 256;

/// Pages in one packed frame, and runs: it is unpacked as a whole before any of it is used.
pub const PAGES_PER_PACKED: u64 = 64;

/// How far back packed pages of a connection reach, as a power of two: 2 MiB, which is what a reader keeps of each.
pub const PACKED_WINDOW_LOG: u32 = 21;

/// Page requests in one frame.
pub const REQUESTS_PER_FRAME: usize = 64;

/// Words of one bitmap frame: 512 KiB, for 16 GiB of guest.
pub const BITMAP_WORDS: usize = 65_536;

/// Hashes in one frame: 512 KiB, for 256 MiB of guest.
pub const HASHES_PER_FRAME: usize = 65_536;

/// An Ethernet frame: the largest that anyone sends (64 KiB of payload), with room for tags.
pub const PACKET_BYTES: usize = (64 << 10) + 64;

/// Payload of a small control frame.
pub const SMALL_BYTES: usize = 4 << 10;

/// Payload of a large control frame (descriptions, reasons).
pub const CONTROL_BYTES: usize = 1 << 20;

/// The state of everything but RAM.
pub const STATE_BYTES: usize = 16 << 20;

/// RAM regions in a description.
pub const RAM_REGIONS: usize = 64;

/// One past the largest frame number a description may name: 4 TiB of guest-physical addresses,
/// so a page set is at most 130 MiB.
pub const GFN_LIMIT: u64 = 1 << 30;

/// A destination obeys commit no longer than this after it said `ready` or `held`. Longer than any silence that is
/// borne, so that no commit of a live conversation is refused.
pub const PROMISE: Duration = Duration::from_secs(10);

/// A destination waits no longer for a source that does not come back, whatever that asks for.
pub const LONGEST_RECOVERY: Duration = Duration::from_secs(24 * 3600);

/// Characters of text (a reason, a name) that are kept from a peer.
pub const TEXT_CHARS: usize = 1000;
