//! Mutations by a seeded generator: the same seed gives the same inputs.

/// Numbers that code is often wrong about.
const EDGES: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0xfff, 0x1000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, i64::MAX as u64, u64::MAX];

/// Longest input that mutation makes.
pub(super) const MAX_BYTES: usize = 16 << 10;

/// SplitMix64: small, and good enough to choose with.
#[derive(Debug, Clone)]
pub(super) struct Chance(u64);

impl Chance {
    /// From a seed.
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub(super) fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`; 0 where that is 0.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.any() % limit as u64) as usize }
    }
}

/// An input made of those of the corpus.
pub(super) fn mutated(corpus: &[Vec<u8>], chance: &mut Chance) -> Vec<u8> {
    let mut input = corpus.get(chance.below(corpus.len())).cloned().unwrap_or_default();
    for _ in 0..1 << chance.below(5) {
        mutate(&mut input, corpus, chance);
    }
    input.truncate(MAX_BYTES);
    input
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], chance: &mut Chance) {
    let at = chance.below(input.len());
    match chance.below(9) {
        0 => with(input, at, |byte| *byte ^= 1 << (at & 7)),
        1 => {
            let value = chance.any() as u8;
            with(input, at, |byte| *byte = value);
        }
        2 => {
            let by = [1, 0xff, 16, 0xf0][chance.below(4)];
            with(input, at, |byte| *byte = byte.wrapping_add(by));
        }
        3 => {
            let width = 1 << chance.below(4);
            let edge = EDGES[chance.below(EDGES.len())].to_le_bytes();
            input.iter_mut().skip(at).zip(&edge[..width]).for_each(|(byte, new)| *byte = *new);
        }
        4 => {
            let count = 1 + chance.below(16);
            let fresh: Vec<u8> = (0..count).map(|_| chance.any() as u8).collect();
            input.splice(at..at, fresh);
        }
        5 => {
            let end = (at + 1 + chance.below(64)).min(input.len());
            input.drain(at..end);
        }
        6 => {
            let end = (at + 1 + chance.below(256)).min(input.len());
            let piece = input[at..end].to_vec();
            let to = chance.below(input.len());
            input.splice(to..to, piece);
        }
        7 => {
            let Some(other) = corpus.get(chance.below(corpus.len())) else { return };
            let (from, to) = (chance.below(other.len()), chance.below(other.len()));
            let piece = other[from.min(to)..from.max(to)].to_vec();
            let end = if chance.below(2) == 0 { at } else { (at + piece.len()).min(input.len()) };
            input.splice(at..end, piece);
        }
        _ => input.truncate(at),
    }
}

fn with(input: &mut [u8], at: usize, change: impl FnOnce(&mut u8)) {
    if let Some(byte) = input.get_mut(at) {
        change(byte);
    }
}
