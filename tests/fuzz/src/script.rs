//! Inputs that say more than one thing: little-endian numbers and counted bytes, read until there are no more.
//!
//! Reading never fails: where the input has ended, numbers are zero and bytes are none. So every input is a script.

/// What is left of an input.
#[derive(Debug, Clone, Copy)]
pub struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    /// From its first byte.
    #[must_use]
    pub fn new(input: &'a [u8]) -> Self {
        Self { rest: input }
    }

    /// Whether there is no more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.rest.is_empty()
    }

    /// So many bytes, or as many as there are.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    /// A number of 8 bits.
    pub fn u8(&mut self) -> u8 {
        self.number::<1>() as u8
    }

    /// A number of 16 bits.
    pub fn u16(&mut self) -> u16 {
        self.number::<2>() as u16
    }

    /// A number of 32 bits.
    pub fn u32(&mut self) -> u32 {
        self.number::<4>() as u32
    }

    /// As many bytes as the 16 bits before them say.
    pub fn counted(&mut self) -> &'a [u8] {
        let count = self.u16();
        self.bytes(count.into())
    }

    fn number<const N: usize>(&mut self) -> u64 {
        let mut wide = [0; 8];
        let taken = self.bytes(N);
        wide[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(wide)
    }
}

/// `bytes` behind their number, as [`Script::counted`] reads them.
#[must_use]
pub fn counted(bytes: &[u8]) -> Vec<u8> {
    let count = u16::try_from(bytes.len()).expect("seeds are small");
    [&count.to_le_bytes()[..], bytes].concat()
}
