//! Packed pages: their content compressed, some of it as the difference to what the destination has of them.
//!
//! ```text
//!   | head | run table | begins u8 | deltas u64 | hash u64 | zstd: the pages in the table's order |
//! ```
//!
//! What a connection brings packed is one stream of zstd, flushed at the end of each frame, so that a page that is like one of
//! the frames before costs next to nothing. Its writer may begin it anew with any frame.
//!
//! One invariant: what comes out of a packed frame is the very bytes whose hash is in it, or an error. So neither a
//! mistaken base nor a mistake of the compression can become guest memory.

use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;
use zstd_safe::zstd_sys::ZSTD_EndDirective::ZSTD_e_flush;
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use super::limits::{PACKED_WINDOW_LOG, PAGES_PER_PACKED, RUN_BYTES};
use super::runs::le_u64;
use super::{Admitted, Error, Head, Kind};
use crate::pages::PAGE_SIZE;

/// `begins`, `deltas` and `hash`.
pub const PREFIX_BYTES: usize = 17;

const _: () = assert!(PAGES_PER_PACKED <= u64::BITS as u64, "a bit of `deltas` a page");

/// How pages may be packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// zstd (RFC 8878).
    Zstd,
}

impl Codec {
    /// Its name in `docs/wire.md`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
        }
    }

    /// The one to use of those that a source offers.
    #[must_use]
    pub fn of_offer(offer: &[String]) -> Option<Self> {
        offer.iter().any(|word| word == Self::Zstd.word()).then_some(Self::Zstd)
    }
}

/// Packs the pages of one connection. Its buffers stay.
pub struct Packer {
    context: CCtx<'static>,
    out: Vec<u8>,
    /// The level of the stream that goes on with the next frame; none where that begins one.
    level: Option<i32>,
}

impl Packer {
    /// One that has packed nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self { context: CCtx::create(), out: Vec::new(), level: None }
    }

    /// Appends what follows the run table of a packed frame. `plain` is the pages' content, [`PAGES_PER_PACKED`] at most;
    /// `mixed` the same, but a page whose bit is set in `deltas` XORed with what the destination has of it. `level` is one
    /// of zstd's; where it is not that of the frame before, the stream begins anew. False, and nothing is appended, where
    /// the result is not clearly smaller: a frame of plain content is better then. What is appended must be sent, and in this
    /// order.
    ///
    /// # Panics
    /// When both have not the same length: the caller's bug.
    pub fn pack(&mut self, plain: &[u8], mixed: &[u8], deltas: u64, level: i32, into: &mut Vec<u8>) -> bool {
        assert_eq!(plain.len(), mixed.len());
        let goes_on = self.level.take() == Some(level);
        self.out.resize(plain.len() - plain.len() / 8, 0);
        // What did not fit is in the stream all the same, and the destination will not have it: the next begins anew.
        let Some(bytes) = self.flush(mixed, level, goes_on) else { return false };
        self.level = Some(level);
        into.push(u8::from(!goes_on));
        into.extend_from_slice(&deltas.to_le_bytes());
        into.extend_from_slice(&xxh3_64(plain).to_le_bytes());
        into.extend_from_slice(&self.out[..bytes]);
        true
    }

    /// Packs all of `mixed` into `out`; how many bytes that are, if it fits.
    fn flush(&mut self, mixed: &[u8], level: i32, goes_on: bool) -> Option<usize> {
        if !goes_on {
            self.context.reset(ResetDirective::SessionOnly).ok()?;
            self.context.set_parameter(CParameter::CompressionLevel(level)).ok()?;
            self.context.set_parameter(CParameter::WindowLog(PACKED_WINDOW_LOG)).ok()?;
        }
        let (mut out, mut mixed) = (OutBuffer::around(&mut self.out[..]), InBuffer::around(mixed));
        loop {
            let left = self.context.compress_stream2(&mut out, &mut mixed, ZSTD_e_flush).ok()?;
            if left == 0 {
                return Some(out.pos());
            }
            if out.pos() == out.capacity() {
                return None;
            }
        }
    }
}

impl Default for Packer {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Packer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

/// Bytes that follow the run table of a packed frame with these pages.
///
/// # Errors
/// When a peer of ours would not have sent it: too many pages, or not smaller than plain content.
pub fn body_bytes(head: &Head, pages: &Admitted<'_>) -> Result<usize, Error> {
    let content = pages.pages().saturating_mul(PAGE_SIZE as u64);
    let body = head.length.saturating_sub(pages.runs().len() * RUN_BYTES);
    if pages.pages() > PAGES_PER_PACKED || body <= PREFIX_BYTES || body as u64 >= content {
        let what = format!("{} pages in {body} bytes", pages.pages());
        return Err(Error::Value { kind: head.kind, what });
    }
    Ok(body)
}

/// Unpacks the pages of one connection. Takes memory only when the first come.
#[derive(Default)]
pub struct Unpacker {
    context: Option<DCtx<'static>>,
    /// There is a stream that the next frame may go on with.
    has_stream: bool,
    base: Vec<u8>,
}

impl Unpacker {
    /// Fills `into`, whose length is that of the pages, from the `body` of a frame of this kind. `base` puts into its
    /// second argument what is here of the page at that place of the table.
    ///
    /// # Errors
    /// When `body` is not what [`Packer::pack`] makes of so many pages, or what is here of them is not what it was when
    /// the difference was taken.
    pub fn unpack(
        &mut self,
        kind: Kind,
        body: &[u8],
        into: &mut [u8],
        mut base: impl FnMut(usize, &mut [u8]),
    ) -> Result<(), Error> {
        let wrong = |what: &str| Error::Value { kind, what: what.to_owned() };
        let (prefix, packed) = body.split_at_checked(PREFIX_BYTES).ok_or_else(|| wrong("no content"))?;
        let (begins, deltas, hash) = (prefix[0], le_u64(&prefix[1..9]), le_u64(&prefix[9..]));
        let pages = into.len() / PAGE_SIZE;
        if deltas.checked_shr(pages as u32).unwrap_or(0) != 0 || (deltas != 0 && kind != Kind::Packed) {
            return Err(wrong("differences where there can be none"));
        }
        let goes_on = std::mem::take(&mut self.has_stream);
        if begins > 1 || (begins == 0 && !goes_on) {
            return Err(wrong("it goes on with a stream that there is not"));
        }
        self.inflate(begins == 1, packed, into).map_err(|why| wrong(&format!("its {pages} pages {why}")))?;
        self.base.resize(PAGE_SIZE, 0);
        for (at, page) in into.chunks_exact_mut(PAGE_SIZE).enumerate() {
            if deltas >> at & 1 != 0 {
                base(at, &mut self.base);
                page.iter_mut().zip(&self.base).for_each(|(byte, base)| *byte ^= base);
            }
        }
        if xxh3_64(into) != hash {
            return Err(wrong("its pages are not those that were packed, by their hash"));
        }
        self.has_stream = true;
        Ok(())
    }

    /// Fills `into` from all of `packed`, or says what is wrong.
    fn inflate(&mut self, begins: bool, packed: &[u8], into: &mut [u8]) -> Result<(), String> {
        let failed = |code| format!("cannot be unpacked: {}", zstd_safe::get_error_name(code));
        let context = self.context.get_or_insert_with(DCtx::create);
        if begins {
            context.reset(ResetDirective::SessionOnly).map_err(failed)?;
            // A stream that asks for more memory is refused.
            context.set_parameter(DParameter::WindowLogMax(PACKED_WINDOW_LOG)).map_err(failed)?;
        }
        let (bytes, room) = (packed.len(), into.len());
        let (mut packed, mut into) = (InBuffer::around(packed), OutBuffer::around(into));
        loop {
            let before = (packed.pos(), into.pos());
            if before == (bytes, room) {
                return Ok(());
            }
            context.decompress_stream(&mut into, &mut packed).map_err(failed)?;
            if before == (packed.pos(), into.pos()) {
                let (used, filled) = before;
                return Err(format!("are {room} bytes: {filled} come out of {used} of {bytes}"));
            }
        }
    }
}

impl fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unpacker").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::PageRun;
    use crate::wire::RamMap;
    use crate::wire::runs::put_runs;
    use proptest::prelude::*;

    const LEVEL: i32 = 2;

    /// Pages of a few words each, which can be packed.
    fn pages() -> impl Strategy<Value = Vec<u8>> {
        let page = (any::<u64>(), 0..PAGE_SIZE).prop_map(|(word, upto)| {
            let words = word.to_le_bytes().into_iter().cycle();
            let zeros = std::iter::repeat_n(0, PAGE_SIZE - upto);
            words.take(upto).chain(zeros).collect::<Vec<_>>()
        });
        proptest::collection::vec(page, 1..8).prop_map(|pages| pages.concat())
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut byte = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as u8
        };
        (0..bytes).map(|_| byte()).collect()
    }

    fn mixed(plain: &[u8], base: &[u8], deltas: u64) -> Vec<u8> {
        let of =
            |at: usize, byte: &u8| if deltas >> (at / PAGE_SIZE) & 1 != 0 { byte ^ base[at] } else { *byte };
        plain.iter().enumerate().map(|(at, byte)| of(at, byte)).collect()
    }

    fn unpack(kind: Kind, body: &[u8], pages: usize, base: &[u8]) -> Result<Vec<u8>, Error> {
        let mut into = vec![0x55; pages * PAGE_SIZE];
        let at = |page: usize, into: &mut [u8]| into.copy_from_slice(&base[page * PAGE_SIZE..][..PAGE_SIZE]);
        Unpacker::default().unpack(kind, body, &mut into, at).map(|()| into)
    }

    proptest! {
        #[test]
        fn pages_come_out_as_they_went_in(plain in pages(), bits: u64, seed: u8) {
            let count = plain.len() / PAGE_SIZE;
            let deltas = bits & ((1 << count) - 1);
            let base: Vec<u8> = plain.iter().map(|byte| byte ^ seed).collect();
            let mut body = Vec::new();
            prop_assert!(Packer::new().pack(&plain, &mixed(&plain, &base, deltas), deltas, LEVEL, &mut body));
            prop_assert_eq!(unpack(Kind::Packed, &body, count, &base), Ok(plain.clone()));
            let push = unpack(Kind::PackedPush, &body, count, &base);
            prop_assert_eq!(push.is_ok(), deltas == 0, "what is placed has no base");
        }

        #[test]
        fn another_base_is_noticed(plain in pages(), byte in 0..PAGE_SIZE) {
            let mut base = noise(plain.len());
            let mut body = Vec::new();
            prop_assert!(Packer::new().pack(&plain, &plain, 1, LEVEL, &mut body));
            base[..PAGE_SIZE].fill(0);
            prop_assert!(unpack(Kind::Packed, &body, plain.len() / PAGE_SIZE, &base).is_ok());
            base[byte] ^= 1;
            let error = unpack(Kind::Packed, &body, plain.len() / PAGE_SIZE, &base).unwrap_err();
            prop_assert_eq!(error.to_string(), "packed: its pages are not those that were packed, by their hash");
        }

        #[test]
        fn no_bytes_make_it_panic_or_take_more_than_there_is_room_for(body in proptest::collection::vec(any::<u8>(), 0..300), pages in 1_usize..4) {
            let base = vec![0; pages * PAGE_SIZE];
            prop_assert!(unpack(Kind::Packed, &body, pages, &base).is_err());
        }

        #[test]
        fn a_byte_that_was_changed_is_noticed(plain in pages(), at: prop::sample::Index, bit in 0..8) {
            let mut body = Vec::new();
            prop_assert!(Packer::new().pack(&plain, &plain, 0, LEVEL, &mut body));
            // Which pages are differences: any page may be one, and then has a base.
            let at = 9 + at.index(body.len() - 9);
            body[at] ^= 1_u8 << bit;
            let count = plain.len() / PAGE_SIZE;
            let out = unpack(Kind::Packed, &body, count, &vec![0; plain.len()]);
            // Of zstd's own head a bit may mean nothing.
            prop_assert!(out.is_err() || out == Ok(plain));
        }
    }

    #[test]
    fn what_does_not_shrink_is_not_packed() {
        let (plain, mut body) = (noise(64 * PAGE_SIZE), vec![7]);
        assert!(!Packer::new().pack(&plain, &plain, 0, LEVEL, &mut body));
        assert_eq!(body, [7]);
    }

    /// A stream's frames of a page each, always the same one.
    fn alike(packer: &mut Packer, levels: [i32; 3]) -> Vec<Vec<u8>> {
        let mut page = noise(PAGE_SIZE);
        page[..PAGE_SIZE / 2].fill(0);
        let pack = |level| {
            let mut body = Vec::new();
            assert!(packer.pack(&page, &page, 0, level, &mut body));
            body
        };
        levels.map(pack).to_vec()
    }

    #[test]
    fn a_page_like_one_of_a_frame_before_costs_next_to_nothing() {
        let bodies = alike(&mut Packer::new(), [LEVEL; 3]);
        assert!(bodies[0].len() > PAGE_SIZE / 2 && bodies[2].len() < 64, "{}", bodies[2].len());
        let mut unpacker = Unpacker::default();
        let mut unpack = |body: &[u8]| {
            let mut into = vec![0; PAGE_SIZE];
            unpacker.unpack(Kind::PackedPush, body, &mut into, |_, _| unreachable!()).map(|()| into)
        };
        let pages: Vec<_> = bodies.iter().map(|body| unpack(body).unwrap()).collect();
        assert!(pages[0] == pages[1] && pages[1] == pages[2]);
        assert_eq!(unpack(&bodies[0]), Ok(pages[0].clone()), "it begins anew");
        // What was left out, or refused, ends it.
        assert!(unpack(&bodies[0][..40]).is_err());
        let error = unpack(&bodies[1]).unwrap_err().to_string();
        assert_eq!(error, "packed-push: it goes on with a stream that there is not");
    }

    #[test]
    fn another_level_and_what_did_not_shrink_begin_the_stream_anew() {
        let mut packer = Packer::new();
        let begins = |bodies: Vec<Vec<u8>>| bodies.iter().map(|body| body[0]).collect::<Vec<_>>();
        assert_eq!(begins(alike(&mut packer, [1, 1, 3])), [1, 0, 1]);
        let random = noise(3 * PAGE_SIZE).split_off(PAGE_SIZE);
        assert!(!packer.pack(&random, &random, 0, 3, &mut Vec::new()));
        assert_eq!(begins(alike(&mut packer, [3, 3, 3])), [1, 0, 0]);
    }

    #[test]
    fn a_stream_that_asks_for_more_memory_is_refused() {
        let (plain, mut body) = (vec![0; PAGE_SIZE], vec![1]);
        body.extend([0; 8]);
        body.extend(xxh3_64(&plain).to_le_bytes());
        // Magic; no checksum, no content size; a window of 2^22.
        body.extend([0x28, 0xb5, 0x2f, 0xfd, 0, 12 << 3]);
        // The last block, of one byte that is repeated.
        body.extend([(PAGE_SIZE << 3 & 0xff) as u8 | 3, (PAGE_SIZE >> 5) as u8, (PAGE_SIZE >> 13) as u8, 0]);
        let window = PREFIX_BYTES + 5;
        let refused = unpack(Kind::Packed, &body, 1, &plain).unwrap_err().to_string();
        assert!(refused.contains("too much memory"), "{refused}");
        body[window] = 11 << 3;
        assert_eq!(unpack(Kind::Packed, &body, 1, &plain), Ok(plain));
    }

    #[test]
    fn more_content_than_its_pages_have_is_refused() {
        let (plain, mut body) = (vec![0; 64 * PAGE_SIZE], Vec::new());
        assert!(Packer::new().pack(&plain, &plain, 0, LEVEL, &mut body));
        let error = unpack(Kind::Packed, &body, 2, &plain).unwrap_err().to_string();
        assert!(error.starts_with("packed: its 2 pages are 8192 bytes: 8192 come out of "), "{error}");
        let error = unpack(Kind::Packed, &body, 65, &vec![0; 65 * PAGE_SIZE]).unwrap_err().to_string();
        assert!(error.starts_with("packed: its 65 pages are 266240 bytes: 262144 come out of "), "{error}");
    }

    #[test]
    fn a_packed_frame_is_smaller_than_a_plain_one() {
        let (mut table, mut runs) = (Vec::new(), Vec::new());
        put_runs(&[PageRun { first: 3, count: 2 }], &mut table);
        let ram = vec![PageRun { first: 0, count: 100 }];
        let description = crate::guest::Description {
            name: String::new(),
            uuid: uuid::Uuid::nil(),
            epoch: 0,
            vcpus: 1,
            ram,
            nics: 0,
            machine: serde_json::Value::Null,
        };
        let map = RamMap::of(&description).unwrap();
        let pages = map.admit(Kind::Packed, &table, &mut runs).unwrap();
        let of = |body: usize| body_bytes(&Head::new(Kind::Packed, RUN_BYTES + body, 1), &pages);
        assert_eq!(of(18), Ok(18));
        assert_eq!(of(2 * PAGE_SIZE - 1), Ok(2 * PAGE_SIZE - 1));
        assert_eq!(of(17).unwrap_err().to_string(), "packed: 2 pages in 17 bytes");
        assert!(of(2 * PAGE_SIZE).is_err());
    }
}
