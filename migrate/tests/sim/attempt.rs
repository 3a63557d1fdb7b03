//! One attempt to move a guest, and what must be true of it however it ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use migrate::channel::{Deadlines, Dial, Listen};
use migrate::journal::Journals;
use migrate::options::Options;
use migrate::progress::{Observer, Silent};
use migrate::report::{Outcome, Report};
use migrate::source::Route;
use migrate::{Arrival, Cancel, Receiver};

use super::{Habit, Runners, Sim, SimHost, reported};

/// Waits that end early, so that silence is noticed soon.
pub(crate) fn short(silence: Duration) -> Deadlines {
    Deadlines {
        connect: silence,
        idle: silence,
        pause: silence,
        beat: silence / 4,
        settle: Duration::from_millis(1),
    }
}

/// One attempt, with everything that took part.
pub(crate) struct Attempt {
    pub(crate) report: Report,
    pub(crate) arrival: Arrival,
    pub(crate) runners: Runners,
    pub(crate) guest: Arc<Sim>,
    pub(crate) host: SimHost,
}

pub(crate) fn attempt(
    options: &Options,
    deadlines: Deadlines,
    dial: &dyn Dial,
    listen: Box<dyn Listen>,
) -> Attempt {
    attempt_with(options, deadlines, dial, listen, &Cancel::new(), &Silent)
}

pub(crate) fn attempt_with(
    options: &Options,
    deadlines: Deadlines,
    dial: &dyn Dial,
    listen: Box<dyn Listen>,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Attempt {
    attempt_of(Habit::default(), options, deadlines, dial, listen, cancel, observer)
}

/// The same by a guest of this habit.
pub(crate) fn attempt_of(
    habit: Habit,
    options: &Options,
    deadlines: Deadlines,
    dial: &dyn Dial,
    listen: Box<dyn Listen>,
    cancel: &Cancel,
    observer: &dyn Observer,
) -> Attempt {
    let runners = Runners::default();
    let guest = Sim::booted(habit, runners.clone());
    let host = SimHost::new(habit, &runners);
    let receiver = Receiver::over(listen, deadlines);
    let (report, arrival) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.receive(&host, &Silent));
        let report = reported(
            &*guest,
            options,
            Route { dial, deadlines, journals: Journals::nowhere() },
            cancel,
            observer,
        );
        // A source that never came through leaves the destination waiting.
        receiver.stop();
        (report, receiving.join().expect("no panic"))
    });
    Attempt { report, arrival, runners, guest, host }
}

impl Attempt {
    /// The promises, whatever happened.
    pub(crate) fn check(&self, what: &str) {
        let (here, there) = (self.guest.is_running(), self.host.guest().is_some_and(|sim| sim.is_running()));
        let Self { report, arrival, .. } = self;
        let account = format!("{what}: {:?} ({:?}); {arrival:?}", report.outcome, report.reason);
        match report.outcome {
            Outcome::Kept => assert!(here && !there, "{account}"),
            Outcome::Moved => assert!(!here && there && self.guest.is_released(), "{account}"),
            Outcome::Unknown => assert!(!here, "{account}"),
        }
        assert_eq!(there, matches!(arrival, Arrival::Arrived { .. }), "{account}");
        assert_eq!(report.reason.is_some(), report.outcome != Outcome::Moved, "{account}");
        assert!(report.outcome == Outcome::Moved || !self.guest.ram.is_logging(), "{account}");
        let held_back = self.guest.held_back.load(Ordering::SeqCst);
        assert!(report.outcome == Outcome::Moved || held_back == 0, "held back for {held_back} %: {account}");
        for sim in [Some(self.guest.clone()), self.host.guest()].into_iter().flatten() {
            assert!(!sim.is_kept.load(Ordering::SeqCst), "its vCPUs have all cores again: {account}");
            if sim.is_running() {
                sim.wait_steps(20);
                sim.check_all();
            }
            assert_eq!(sim.corruptions(), Vec::<String>::new(), "{account}");
            sim.shut_down();
        }
        assert_eq!(self.runners.count(), 0);
    }
}
