//! Reading something wholly, within a time: a peer that sends a byte now and then is as good as silent.
//!
//! The first byte may take as long as silence may last. From it on all must have come within that time again, and as
//! much longer as the slowest network worth using takes for so many bytes. For any kind of link.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

/// Slower is not worth waiting for: a frame of 4 MiB takes four minutes.
const SLOWEST_BYTES_PER_S: u64 = 16 << 10;

/// How long `bytes` may take from the first of them on, on a link that may be silent for `limit`.
#[must_use]
pub fn time_for(bytes: u64, limit: Duration) -> Duration {
    limit + Duration::from_secs(bytes / SLOWEST_BYTES_PER_S)
}

/// Fills `into` with what `read` gives, which waits for it no longer than it is told.
///
/// # Errors
/// `WouldBlock` when `limit` passed before the first byte, `TimedOut` when the [time](time_for) passed after it;
/// `UnexpectedEof` when there is no more. Otherwise as `read`.
pub fn fill(
    mut into: &mut [u8],
    limit: Duration,
    mut read: impl FnMut(&mut [u8], Duration) -> io::Result<usize>,
) -> io::Result<()> {
    let whole = into.len() as u64;
    let mut deadline = None;
    while !into.is_empty() {
        let left = deadline
            .map_or(limit, |deadline: Instant| deadline.saturating_duration_since(Instant::now()).min(limit));
        let begun = deadline.is_some();
        if begun && left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        match read(into, left) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(got) => {
                into = &mut into[got..];
                deadline.get_or_insert_with(|| Instant::now() + time_for(whole, limit));
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && begun => {
                return Err(ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_drips_is_given_up_although_each_byte_comes_in_time() {
        let limit = Duration::from_millis(20);
        let (mut asked, since) = (0, Instant::now());
        let drip = |into: &mut [u8], wait: Duration| {
            assert!(wait <= limit);
            std::thread::sleep(Duration::from_millis(5).min(wait));
            into[0] = 1;
            asked += 1;
            Ok(1)
        };
        let error = fill(&mut [0; 1000], limit, drip).expect_err("it would take five seconds");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(asked > 1 && since.elapsed() >= limit, "{asked}");
    }

    #[test]
    fn more_bytes_may_take_longer() {
        let limit = Duration::from_secs(10);
        assert_eq!(time_for(16, limit), limit);
        assert_eq!(time_for(4 << 20, limit), limit + Duration::from_secs(256));
    }

    #[test]
    fn how_it_failed_tells_whether_anything_had_come() {
        let limit = Duration::from_secs(10);
        let mut silent = [Err(ErrorKind::WouldBlock)].into_iter();
        let mut broken = [Ok(1), Err(ErrorKind::Interrupted), Err(ErrorKind::WouldBlock)].into_iter();
        let mut ended = [Ok(3), Ok(0)].into_iter();
        let reading = |gives: &mut dyn Iterator<Item = Result<usize, ErrorKind>>| {
            let read = |_: &mut [u8], _| gives.next().expect("no more is asked").map_err(io::Error::from);
            fill(&mut [0; 4], limit, read).expect_err("not whole").kind()
        };
        assert_eq!(reading(&mut silent), ErrorKind::WouldBlock);
        assert_eq!(reading(&mut broken), ErrorKind::TimedOut);
        assert_eq!(reading(&mut ended), ErrorKind::UnexpectedEof);
    }
}
