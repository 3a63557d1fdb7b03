//! Ctrl-A, the key that speaks to us instead of to the guest: `Ctrl-A x` leaves, `Ctrl-A Ctrl-A` types one Ctrl-A.
//! With any other key behind it, both go to the guest.

const CTRL_A: u8 = 0x01;

/// Remembers whether the last key was Ctrl-A.
#[derive(Debug, Default)]
pub(super) struct Escape {
    pending: bool,
}

impl Escape {
    /// What of `typed` goes to the guest, and whether to leave then; what is typed after that is nobody's.
    pub(super) fn feed(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut bytes = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            match (std::mem::take(&mut self.pending), byte) {
                (false, CTRL_A) => self.pending = true,
                (false, other) => bytes.push(other),
                (true, b'x' | b'X') => return (bytes, true),
                (true, CTRL_A) => bytes.push(CTRL_A),
                (true, other) => bytes.extend([CTRL_A, other]),
            }
        }
        (bytes, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ctrl_a_x_leaves() {
        let feed = |typed: &[u8]| Escape::default().feed(typed);
        assert_eq!(feed(b"x ls\n"), (b"x ls\n".to_vec(), false));
        assert_eq!(feed(b"a\x01x b"), (b"a".to_vec(), true));
        assert_eq!(feed(b"\x01\x01x"), (b"\x01x".to_vec(), false));
        assert_eq!(feed(b"\x01b"), (b"\x01b".to_vec(), false));
    }

    #[test]
    fn the_two_keys_may_come_apart() {
        let mut escape = Escape::default();
        assert_eq!(escape.feed(b"a\x01"), (b"a".to_vec(), false));
        assert_eq!(escape.feed(b"x"), (vec![], true));
    }
}
