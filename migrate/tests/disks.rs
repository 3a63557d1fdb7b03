//! A disk of the guest that hangs: the migration fails within its time limits, says so, and the guest stays.

mod sim;

use std::time::{Duration, Instant};

use migrate::channel::memory::Place;
use migrate::journal::Journals;
use migrate::options::{Mode, Options};
use migrate::progress::Silent;
use migrate::report::Outcome;
use migrate::source::Route;
use migrate::{Cancel, Receiver};
use sim::attempt::{Attempt, short};
use sim::{DiskUse, Habit, Runners, Sim, SimHost, options, reported};

/// Moves a guest whose disk hangs there, and cancels when that is said.
fn move_with_a_hanging_disk(disk: DiskUse, options: &Options, cancel_after: Option<Duration>) -> String {
    let (place, cancel) = (Place::new(), Cancel::new());
    let deadlines = short(Duration::from_millis(300));
    let (runners, habit) = (Runners::default(), Habit::default());
    let guest = Sim::booted(habit, runners.clone());
    *guest.broken.disk.lock().expect("no panic") = Some(disk);
    let host = SimHost::new(habit, &runners);
    let receiver = Receiver::over(Box::new(place.clone()), deadlines);
    let began = Instant::now();
    let (report, arrival) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.receive(&host, &Silent));
        if let Some(after) = cancel_after {
            let cancel = &cancel;
            scope.spawn(move || {
                std::thread::sleep(after);
                cancel.cancel("enough").expect("before commit");
            });
        }
        let route = Route { dial: &place, deadlines, journals: Journals::nowhere() };
        let report = reported(&*guest, options, route, &cancel, &Silent);
        (report, receiving.join().expect("no panic"))
    });
    assert!(began.elapsed() < Duration::from_secs(3), "{disk:?}: {:?}", began.elapsed());
    let attempt = Attempt { report, arrival, runners, guest, host };
    attempt.check("a disk hangs");
    assert_eq!(attempt.report.outcome, Outcome::Kept, "{disk:?}");
    attempt.report.reason.expect("a reason")
}

#[test]
fn a_disk_that_hangs_keeps_the_guest_within_the_time_limits_and_is_named() {
    let uses = [
        (Mode::Precopy, DiskUse::Settle { running: true }, "cannot settle the guest's disks: the disk hangs"),
        (
            Mode::Postcopy,
            DiskUse::Settle { running: true },
            "cannot settle the guest's disks: the disk hangs",
        ),
        (Mode::Hybrid, DiskUse::Settle { running: false }, "cannot settle the guest's disks: the disk hangs"),
        (
            Mode::Stopcopy,
            DiskUse::Settle { running: false },
            "cannot settle the guest's disks: the disk hangs",
        ),
        (Mode::Precopy, DiskUse::HandOver, "cannot hand over the guest's disks: the disk hangs"),
        (Mode::Postcopy, DiskUse::HandOver, "cannot hand over the guest's disks: the disk hangs"),
    ];
    for (mode, disk, expected) in uses {
        // The pause has a limit of its own, of 0.6 s here, but where all of memory is copied in it.
        let max_downtime = Duration::from_millis(300);
        let options = Options { max_downtime, timeout: Some(Duration::from_secs(2)), ..options(mode) };
        let reason = move_with_a_hanging_disk(disk, &options, None);
        assert!(reason.contains(expected), "{mode:?}, {disk:?}: {reason}");
    }
}

#[test]
fn a_cancel_ends_the_wait_for_a_disk() {
    for disk in [DiskUse::Settle { running: true }, DiskUse::Settle { running: false }, DiskUse::HandOver] {
        let reason =
            move_with_a_hanging_disk(disk, &options(Mode::Precopy), Some(Duration::from_millis(100)));
        assert!(reason.contains("cancelled: enough"), "{disk:?}: {reason}");
    }
}
