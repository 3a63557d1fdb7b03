//! What a filled page holds, computed again from its number whenever it is checked.
//!
//! A page comes in blocks of eight words. The random content is eight xorshift generators side
//! by side, which the compiler turns into SSE2; it makes several GB/s and cannot be compressed.

use crate::args::Filling;
use crate::telemetry::PAGE_SIZE;
use core::ptr::{addr_of, addr_of_mut};

pub(crate) const BLOCK_WORDS: usize = 8;
pub(crate) const BLOCKS: usize = PAGE_SIZE as usize / (BLOCK_WORDS * 8);
pub(crate) type Block = [u64; BLOCK_WORDS];

/// The blocks of a page, in order.
pub(crate) trait Content {
    fn of_page(page: u64) -> Self;
    fn next(&mut self) -> Block;
}

/// Calls `$body` with the type that makes this filling's blocks.
macro_rules! with_content {
    ($filling:expr, $content:ident => $body:expr) => {
        match $filling {
            $crate::args::Filling::Random => {
                type $content = $crate::content::Random;
                $body
            }
            $crate::args::Filling::Text => {
                type $content = $crate::content::Text;
                $body
            }
            $crate::args::Filling::Zero => {
                type $content = $crate::content::Zero;
                $body
            }
        }
    };
}
pub(crate) use with_content;

/// A word that depends on all bits of `seed` (Vigna's splitmix64).
pub(crate) fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// A step of Marsaglia's xorshift; never 0 from a state that is not 0.
#[inline(always)]
pub(crate) fn xorshift(mut x: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^ x << 17
}

pub(crate) struct Random(Block);

impl Content for Random {
    fn of_page(page: u64) -> Self {
        Self(core::array::from_fn(|lane| mix(page * BLOCK_WORDS as u64 + lane as u64) | 1))
    }

    #[inline(always)]
    fn next(&mut self) -> Block {
        for lane in &mut self.0 {
            *lane = xorshift(*lane);
        }
        self.0
    }
}

pub(crate) struct Zero;

impl Content for Zero {
    fn of_page(_page: u64) -> Self {
        Self
    }

    #[inline(always)]
    fn next(&mut self) -> Block {
        [0; BLOCK_WORDS]
    }
}

/// A window on a body of text, with the page's number in place of its third word.
pub(crate) struct Text {
    at: usize,
    number: Option<u64>,
}

const CORPUS_WORDS: usize = 8192;
static mut CORPUS: [u64; CORPUS_WORDS] = [0; CORPUS_WORDS];

const VOCABULARY: [&str; 32] = [
    "the ", "of ", "and ", "to ", "page ", "memory ", "a ", "in ", "that ", "is ", "guest ", "written ",
    "was ", "host ", "with ", "before ", "it ", "stream ", "for ", "as ", "round ", "dirty ", "on ",
    "moved ", "by ", "again ", "this ", "clock ", "not ", "which ", "\n", "state ",
];

/// Writes the text before anyone reads it.
pub(crate) fn prepare(filling: Filling) {
    if filling != Filling::Text {
        return;
    }
    let (mut state, mut word) = (1, [].iter());
    for i in 0..CORPUS_WORDS * 8 {
        let byte = word.next().copied().unwrap_or_else(|| {
            state = xorshift(state);
            word = VOCABULARY[(state >> 32) as usize % VOCABULARY.len()].as_bytes().iter();
            *word.next().expect("no word is empty")
        });
        // SAFETY: within the array; only the boot vCPU knows of it until the plan is published.
        unsafe { addr_of_mut!(CORPUS).cast::<u8>().add(i).write(byte) };
    }
}

impl Content for Text {
    fn of_page(page: u64) -> Self {
        let windows = CORPUS_WORDS - PAGE_SIZE as usize / 8 + 1;
        let digits =
            (0..8).map(|i| u64::from(b"0123456789abcdef"[(page >> (28 - 4 * i)) as usize & 15]) << (8 * i));
        Self { at: mix(page) as usize % windows, number: Some(digits.sum()) }
    }

    #[inline(always)]
    fn next(&mut self) -> Block {
        let at = self.at;
        self.at += BLOCK_WORDS;
        assert!(at + BLOCK_WORDS <= CORPUS_WORDS);
        // SAFETY: within the array, which nobody writes any more.
        let mut block = unsafe { addr_of!(CORPUS).cast::<u64>().add(at).cast::<Block>().read() };
        if let Some(number) = self.number.take() {
            block[2] = number;
        }
        block
    }
}
