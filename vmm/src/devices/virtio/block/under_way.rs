//! Work on storage that may never end, and the end of the waiting for it.
//!
//! A thread that the kernel holds in a system call on a disk cannot be called back. So the work is done by a thread of
//! its own, and who asked for it stops waiting when that is asked. There is never more than one: what is asked for while
//! an earlier one hangs waits for that first.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often who waits asks whether to go on. Work that ends wakes it at once.
const STEP: Duration = Duration::from_millis(10);

/// Of one disk.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<Option<Work>>);

/// A thread at work.
#[derive(Debug)]
struct Work {
    since: Instant,
    outcome: Receiver<io::Result<()>>,
}

/// It was asked not to wait any longer, so long after the work that hangs was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hangs(pub(super) Duration);

impl UnderWay {
    /// Does `work` and waits until it is done, as long as `go_on` says so. What it came to.
    ///
    /// # Errors
    /// [`Hangs`]: it, or what was begun earlier, goes on without anyone waiting.
    pub(super) fn finish(
        &self,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
        go_on: &dyn Fn() -> bool,
    ) -> Result<io::Result<()>, Hangs> {
        let mut present = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(earlier) = present.as_ref() {
            // It may have begun before what is asked for now: it does not do for it.
            let _ = earlier.wait(go_on)?;
            *present = None;
        }
        let started = match Work::start(work) {
            Ok(started) => started,
            Err(error) => return Ok(Err(error)),
        };
        let outcome = present.insert(started).wait(go_on)?;
        *present = None;
        Ok(outcome)
    }
}

impl Work {
    fn start(work: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (done, outcome) = sync_channel(1);
        let since = Instant::now();
        // Nobody may be waiting any more.
        let body = move || drop(done.send(work()));
        std::thread::Builder::new().name("disk-sync".into()).spawn(body)?;
        Ok(Self { since, outcome })
    }

    fn wait(&self, go_on: &dyn Fn() -> bool) -> Result<io::Result<()>, Hangs> {
        loop {
            match self.outcome.recv_timeout(STEP) {
                Ok(outcome) => return Ok(outcome),
                Err(RecvTimeoutError::Timeout) if go_on() => {}
                Err(RecvTimeoutError::Timeout) => return Err(Hangs(self.since.elapsed())),
                Err(RecvTimeoutError::Disconnected) => {
                    return Ok(Err(io::Error::other("its thread has died of a defect")));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_disk_that_hangs_is_waited_for_only_as_long_as_is_said_and_never_twice() {
        let under_way = UnderWay::default();
        let (end, hang) = channel::<()>();
        let began = Instant::now();
        let for_ms = |ms| move || began.elapsed() < Duration::from_millis(ms);
        let hanging = move || hang.recv().map_err(io::Error::other);
        let Hangs(first) = under_way.finish(hanging, &for_ms(50)).unwrap_err();
        let refused = || -> io::Result<()> { panic!("begun although the disk hangs") };
        let Hangs(second) = under_way.finish(refused, &for_ms(100)).unwrap_err();
        assert!(first >= Duration::from_millis(50) && second >= Duration::from_millis(100), "{second:?}");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        end.send(()).unwrap();
        let failing = || Err(io::Error::other("broken"));
        let outcome = under_way.finish(failing, &for_ms(10_000)).unwrap();
        assert_eq!(
            outcome.unwrap_err().to_string(),
            "broken",
            "it is of use again, and its own outcome is told"
        );
        under_way.finish(|| Ok(()), &|| false).unwrap().unwrap();
    }
}
