//! Fault injection: guests that are moved on and on while something goes wrong each time.
//!
//! ```text
//! plan     seed and number -> one fault: what, where, to whom; and how the attempt may end
//! lane     one guest on its way through VMM after VMM, with the next destination ready beside it
//! attempt  one move with one fault: the proxy's troubles, and the way out of what they lead to
//! watch    never two runners; nothing kept open
//! tally    counts
//! ```
//! After each attempt: it has ended as `docs/handover.md` has it, no vCPUs of both sides have run at the same time, the guest
//! runs on one side, has lost no line of its console and found no damage in its memory, and nothing is left behind. A guest is
//! used again for as long as it lives. What was only slow, or that nobody ran, is found by deadlines.

mod attempt;
mod lane;
mod plan;
mod tally;
mod watch;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use self::lane::Lane;
pub use self::plan::{End, Fault, Side, Sort};
pub use self::tally::Tally;
use crate::World;

/// What to run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Of all that looks random.
    pub seed: u64,
    /// Faults that are to happen.
    pub faults: u32,
    /// Only those of this sort.
    pub sort: Option<Sort>,
    /// Only this one of the plan; it is of a protected link where the lane says so.
    pub only: Option<u32>,
    /// Lanes side by side, each with a guest of its own. The last of several is inside TLS.
    pub lanes: u32,
    /// Inside TLS, all of them.
    pub protected: bool,
}

impl Run {
    /// Runs it, and says what is wrong as soon as it is.
    ///
    /// # Panics
    /// When the machine cannot run guests.
    #[must_use]
    pub fn run(&self) -> Tally {
        let (next, tally, since) = (AtomicU32::new(0), Mutex::new(Tally::default()), Instant::now());
        let world = World::quiet();
        let lanes: Vec<_> = (0..self.lanes)
            .map(|lane| {
                let last = lane > 0 && lane + 1 == self.lanes && self.sort.is_none();
                Lane::open(world.beside(), self.protected || last)
            })
            .collect();
        thread::scope(|scope| {
            for mut lane in lanes {
                let (next, tally) = (&next, &tally);
                scope.spawn(move || while self.one(&mut lane, next, tally) {});
            }
        });
        let mut tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        tally.time = since.elapsed();
        tally
    }

    /// The next fault. Whether there is to be another.
    fn one(&self, lane: &mut Lane, next: &AtomicU32, tally: &Mutex<Tally>) -> bool {
        let locked = || tally.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.only.unwrap_or_else(|| next.fetch_add(1, Ordering::Relaxed));
        if locked().injected() >= self.faults {
            return false;
        }
        let fault = Fault::planned(self.seed, number, self.sort, lane.is_protected());
        let attempt = catch_unwind(AssertUnwindSafe(|| lane.attempt(&fault)));
        let end = attempt.map_err(|panic| {
            let why = panic.downcast_ref::<String>().cloned();
            let why = why.or_else(|| panic.downcast_ref::<&str>().map(|why| (*why).to_owned()));
            let wrong = format!("{fault}: {}\n  {}", why.unwrap_or_default(), self.again(&fault, lane));
            eprintln!("VIOLATION: {wrong}");
            lane.clear();
            wrong
        });
        locked().count(&fault, end);
        self.only.is_none()
    }

    /// The command that has the same fault again.
    fn again(&self, fault: &Fault, lane: &Lane) -> String {
        let sort = self.sort.map_or_else(String::new, |sort| format!(" --kind {}", sort.word()));
        let protected = if lane.is_protected() { " --protected" } else { "" };
        format!(
            "cargo run -p tests --bin faults -- --seed {} --only {}{sort}{protected}",
            self.seed, fault.number
        )
    }
}
