//! Numbers that look random and are the same everywhere.

/// A sequence of them: SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) struct Sequence(u64);

impl Sequence {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }
}

/// Spreads every bit over all.
pub(crate) fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A hash of words: any one changed, or two exchanged, change it.
pub(crate) fn hash(words: &[u64]) -> u64 {
    words.iter().fold(words.len() as u64, |hash, word| {
        (hash ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(29)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_seen() {
        let mut sequence = Sequence::new(1);
        let words: Vec<u64> = (0..64).map(|_| sequence.next()).collect();
        let mut swapped = words.clone();
        swapped.swap(3, 4);
        let mut flipped = words.clone();
        flipped[63] ^= 1;
        assert!(hash(&words) != hash(&swapped) && hash(&words) != hash(&flipped));
        assert_eq!(hash(&words), hash(&words.clone()));
    }
}
