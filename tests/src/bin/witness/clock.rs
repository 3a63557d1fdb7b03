//! The guest's clocks: never back, together, and a timer that ticks as often as the clock says.

use std::io;
use std::time::Duration;

use rustix::io::read;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use crate::says::{Seconds, corrupt};

/// The timer's period.
const TICK_NS: i64 = 100_000_000;
/// Clocks that nobody sets keep their distance. A vCPU that loses its CPU between two readings is the reader's problem:
/// readings are repeated until they took no longer than this.
const TOGETHER_NS: i64 = 1_000_000;
/// Readings of each clock between two ticks.
const READINGS: u32 = 200;

/// One moment, by three clocks, ns.
#[derive(Clone, Copy)]
struct Moment {
    realtime: i64,
    monotonic: i64,
    boottime: i64,
}

/// Goes on until it is killed. Besides its line a second it says the time at every tick, for who holds it against the
/// host's: see [`follow`](crate::follow).
pub(crate) fn run() -> io::Result<()> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty())?;
    let period = Timespec { tv_sec: 0, tv_nsec: TICK_NS };
    let before = Moment::now();
    timerfd_settime(
        &timer,
        TimerfdTimerFlags::empty(),
        &Itimerspec { it_interval: period, it_value: period },
    )?;
    let mut last = Moment::now();
    let began = (before.monotonic, last.monotonic);
    let distance = (last.realtime - last.monotonic, last.boottime - last.monotonic);
    let (mut ticks, mut largest) = (0, 0);
    let mut seconds = Seconds::new("clock");
    loop {
        let early = Moment::now().monotonic;
        let mut expirations = [0; 8];
        read(&timer, &mut expirations)?;
        ticks += i64::from_le_bytes(expirations);
        let now = never_back(last);
        timer_keeps_time(ticks, began, early, now.monotonic);
        let apart = (now.realtime - now.monotonic - distance.0)
            .abs()
            .max((now.boottime - now.monotonic - distance.1).abs());
        if apart > 2 * TOGETHER_NS {
            corrupt("clock", &format!("the clocks moved apart by {apart} ns: {now}"));
        }
        largest = largest.max(now.monotonic - last.monotonic);
        last = now;
        println!("inner at {}", reading(ClockId::Monotonic));
        seconds.tell(|| format!("{}, {ticks} ticks, largest gap {} ms", Moment::now(), largest / 1_000_000));
    }
}

/// Reads the clocks again and again; says when one went back.
fn never_back(mut last: Moment) -> Moment {
    for _ in 0..READINGS {
        let now = Moment::now();
        for (clock, before, after) in [
            ("the date", last.realtime, now.realtime),
            ("the monotonic clock", last.monotonic, now.monotonic),
            ("the clock since boot", last.boottime, now.boottime),
        ] {
            if after < before {
                corrupt("clock", &format!("{clock} went back by {} ns", before - after));
            }
        }
        last = now;
    }
    last
}

/// The timer has ticked as often as there were periods: between its start, which lay in `began`, and the reading of the
/// ticks, which lay between `early` and `late`. One tick may be on its way.
fn timer_keeps_time(ticks: i64, began: (i64, i64), early: i64, late: i64) {
    let (least, most) = ((early - began.1) / TICK_NS - 1, (late - began.0) / TICK_NS);
    if !(least..=most).contains(&ticks) {
        corrupt("clock", &format!("the timer ticked {ticks} times instead of {least} to {most}"));
    }
}

impl Moment {
    /// Three readings near each other.
    fn now() -> Self {
        loop {
            let [monotonic, realtime, boottime, after] =
                [ClockId::Monotonic, ClockId::Realtime, ClockId::Boottime, ClockId::Monotonic].map(reading);
            if after - monotonic <= TOGETHER_NS {
                return Self { realtime, monotonic, boottime };
            }
        }
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "monotonic {} realtime {}", self.monotonic, self.realtime)
    }
}

/// A clock, ns.
pub(crate) fn reading(clock: ClockId) -> i64 {
    let now = Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}
