//! A whole source, as a destination would speak with it: a guest that leaves over a link in memory, and that ends the
//! process when the handover's promises are broken.
//!
//! The first two bytes of an input choose the mode and what else is asked for; the rest is the destination's script. As long
//! as that goes on and the guest is in doubt, the destination is called again, and at once when it waits for that.

mod scripts;

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use migrate::Cancel;
use migrate::channel::{Deadlines, Dial, Link, memory};
use migrate::guest::{Departing, Description, Packet, Ram, Result, Telemetry};
use migrate::journal::Journals;
use migrate::options::{ClockPolicy, Compression, InFlightPolicy, Mode, OnTimeout, Options};
use migrate::pages::{PageRun, PageSet};
use migrate::progress::Silent;
use migrate::protection::Protection;
use migrate::report::{Outcome, Report};
use migrate::source::{Departure, Disowned, Parted, Route, migrate_over};
use migrate::wire::Role;

pub(crate) use self::scripts::seeds;
use crate::guest::{Memory, regions};
use crate::peer::{self, DEADLINES, number};
use crate::script::Script;
use crate::seeds;

/// The operator does not try for ever.
const MOST_RECOVERIES: u32 = 8;

const MODES: [Mode; 4] = [Mode::Precopy, Mode::Stopcopy, Mode::Postcopy, Mode::Hybrid];
const VERIFY: u16 = 4;
const NICS: u16 = 8;
const TWO_STREAMS: u16 = 16;
const PACED: u16 = 32;
/// Limits as long as the control API takes them.
const VAST: u16 = 64;
/// The destination is called again by itself.
const RECOVERS: u16 = 128;
/// Time is up at once.
const HASTY: u16 = 256;
/// What the operator does in the end, and when time is up.
const FORCED: u16 = 512;
/// The guest's epoch is the last there is.
const LAST_EPOCH: u16 = 1024;

pub(crate) fn run(input: &[u8]) {
    converse(input, DEADLINES);
}

fn converse(input: &[u8], deadlines: Deadlines) -> Report {
    let mut script = Script::new(input);
    let asked = script.u16();
    let has = |bit| asked & bit != 0;
    let options = options(asked, deadlines);
    let guest = Resident::new(u32::from(has(NICS)), if has(LAST_EPOCH) { u64::MAX } else { 0 });
    let doors = Doors::default();
    let departure = std::thread::scope(|scope| {
        let leaving = scope.spawn(|| {
            let route = Route { dial: &doors, deadlines, journals: Journals::nowhere() };
            let departure = migrate_over(&guest, &options, route, &doors.operator(), &Silent);
            let departure = go_on(&guest, departure, &options, &doors, route);
            doors.close();
            departure
        });
        peer::follow(script, deadlines.connect, |connection| doors.wait(connection, deadlines.connect));
        doors.close();
        leaving.join().expect("a panic has ended the process")
    });
    guest.judge(&departure.report);
    if let Some(mut parted) = departure.parted.filter(Parted::is_in_doubt) {
        if has(FORCED) {
            assert!(parted.force(&guest).is_err(), "a commit that has not lapsed may still be obeyed");
            assert!(parted.is_in_doubt());
        } else {
            parted.let_go(&guest).expect("it is in doubt");
        }
        guest.judge(&departure.report);
    }
    departure.report
}

/// As long as somebody may answer, the operator has the destination called again: where there is doubt, or where it may hold
/// a guest that runs here.
fn go_on(
    guest: &Resident,
    mut departure: Departure,
    options: &Options,
    doors: &Doors,
    route: Route<'_>,
) -> Departure {
    let options = &Options { recovery: route.deadlines.idle, ..options.clone() };
    for _ in 0..MOST_RECOVERIES {
        let Some(parted) = departure.parted.take_if(|_| !doors.are_closed()) else { break };
        guest.judge(&departure.report);
        if parted.is_in_doubt() {
            departure = parted.recover(guest, options, route, &doors.operator(), &Silent);
        } else if let Disowned::Unreached(again) = parted.disown(guest, options, route) {
            departure.parted = Some(*again);
        }
    }
    departure
}

fn options(asked: u16, deadlines: Deadlines) -> Options {
    let has = |bit| asked & bit != 0;
    let mode = MODES[usize::from(asked % 4)];
    let on_timeout = match mode {
        Mode::Precopy if has(FORCED) => OnTimeout::Force,
        Mode::Precopy | Mode::Hybrid if has(HASTY) => OnTimeout::Postcopy,
        _ => OnTimeout::Cancel,
    };
    let timeout = match asked & (VAST | HASTY) {
        0 => 8 * deadlines.idle,
        HASTY => Duration::from_millis(5),
        _ => Duration::from_millis(u64::MAX),
    };
    Options {
        to: "memory".to_owned(),
        mode,
        streams: if has(TWO_STREAMS) { 2 } else { 1 },
        max_downtime: match mode {
            _ if has(VAST) => Duration::from_micros(u64::MAX),
            // What is left follows.
            Mode::Hybrid => Duration::from_micros(1),
            _ => deadlines.pause,
        },
        timeout: Some(timeout),
        on_timeout,
        throttle: if has(PACED) && mode == Mode::Precopy { 90 } else { 0 },
        pause_before_switchover: false,
        bandwidth: has(PACED).then_some(1 << 30),
        bandwidth_postcopy: has(PACED).then_some(1 << 30),
        compression: if has(TWO_STREAMS) { Compression::Zstd } else { Compression::Auto },
        delta_cache: 1 << 20,
        verify: has(VERIFY),
        in_flight: InFlightPolicy::Forward,
        clock: ClockPolicy::Continue,
        protection: Protection::None,
        recovery: if has(RECOVERS) { deadlines.idle } else { Duration::ZERO },
    }
}

/// Connections that the source has made.
#[derive(Default)]
struct Doors {
    made: Mutex<Made>,
    changed: Condvar,
    /// The operator of the present migration.
    operator: Mutex<Cancel>,
}

#[derive(Default)]
struct Made {
    links: HashMap<usize, Arc<dyn Link>>,
    data: u32,
    /// The source has ended, or its peer has: what it makes from now on is closed.
    over: bool,
}

impl Doors {
    /// A new one, for another migration or the next attempt at the same.
    fn operator(&self) -> Cancel {
        let mut operator = self.operator.lock().unwrap_or_else(PoisonError::into_inner);
        *operator = Cancel::new();
        operator.clone()
    }

    fn are_closed(&self) -> bool {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).over
    }

    /// The far end of a connection, once, if it is made soon.
    fn wait(&self, connection: usize, limit: Duration) -> Option<Arc<dyn Link>> {
        self.operator.lock().unwrap_or_else(PoisonError::into_inner).call_now(None);
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let absent = |made: &mut Made| !made.over && !made.links.contains_key(&connection);
        let waited = self.changed.wait_timeout_while(made, limit, absent);
        waited.unwrap_or_else(PoisonError::into_inner).0.links.remove(&connection)
    }

    fn close(&self) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.over = true;
        made.links.values().for_each(|link| link.shut(std::net::Shutdown::Both));
        self.changed.notify_all();
    }
}

impl Dial for Doors {
    fn dial(&self, role: Role, _: Duration, told: &dyn Fn(&Arc<dyn Link>)) -> io::Result<Arc<dyn Link>> {
        let (near, far) = memory::pair();
        told(&near);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.over {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        if role == Role::Control {
            // Another call: what is left of the one before is nobody's.
            *made = Made::default();
        }
        let index = if role == Role::Data { made.data } else { 0 };
        made.data += u32::from(role == Role::Data);
        made.links.insert(number(role, index), far);
        self.changed.notify_all();
        Ok(near)
    }

    fn to(&self) -> &str {
        "memory"
    }
}

/// The guest that leaves.
struct Resident {
    memory: Arc<Memory>,
    nics: u32,
    epoch: u64,
    runs: AtomicBool,
    released: AtomicBool,
    harvests: AtomicU64,
    packets: AtomicU64,
}

impl Resident {
    fn new(nics: u32, epoch: u64) -> Self {
        Self {
            memory: Arc::new(Memory::new(regions())),
            nics,
            epoch,
            runs: AtomicBool::new(true),
            released: AtomicBool::new(false),
            harvests: AtomicU64::new(0),
            packets: AtomicU64::new(0),
        }
    }

    /// How it ended is what became of the guest.
    fn judge(&self, report: &Report) {
        let [runs, released] = [&self.runs, &self.released].map(|flag| flag.load(Ordering::SeqCst));
        match report.outcome {
            Outcome::Kept => assert!(runs && !released, "{:?}", report.reason),
            Outcome::Moved => assert!(!runs && released),
            Outcome::Unknown => assert!(!runs && !released, "{:?}", report.reason),
        }
        // What a hostile destination says ends up before people.
        let _ = migrate::cli::words::report(report);
    }
}

impl Departing for Resident {
    fn description(&self) -> Description {
        Description { epoch: self.epoch, ..seeds::description(regions(), self.nics) }
    }

    fn ram(&self) -> Arc<dyn Ram> {
        Arc::clone(&self.memory) as Arc<dyn Ram>
    }

    fn start_dirty_log(&self) -> Result<()> {
        Ok(())
    }

    /// All of it, then less and less.
    fn harvest(&self, set: &mut PageSet) -> Result<()> {
        let mut written = self.memory.all();
        let times = self.harvests.fetch_add(1, Ordering::SeqCst);
        written.remove_run(PageRun { first: 0, count: (8 * times).min(24) });
        set.union(&written);
        Ok(())
    }

    fn protect(&self, _: &PageSet, window: PageRun) -> Result<()> {
        assert!(window.first.is_multiple_of(64) && window.count.is_multiple_of(64), "{window:?}");
        Ok(())
    }

    fn stop_dirty_log(&self) {}

    fn throttle(&self, _: u8, _: u64) -> Result<()> {
        Ok(())
    }

    fn settle(&self, _: &dyn Fn() -> bool) -> Result<()> {
        Ok(())
    }

    fn hand_over(&self, _: &dyn Fn() -> bool) -> Result<()> {
        Ok(())
    }

    fn pause(&self) -> Result<()> {
        self.runs.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn clock_ns(&self) -> u64 {
        1 << 60
    }

    fn save(&self, _: ClockPolicy) -> Result<Vec<u8>> {
        assert!(!self.runs.load(Ordering::SeqCst), "a guest that runs is saved");
        Ok(vec![1; 64])
    }

    fn first_pages(&self, _: &[u8]) -> Vec<u64> {
        vec![0, 1, self.memory.limit() - 1, u64::MAX]
    }

    fn resume(&self) -> Result<()> {
        assert!(!self.released.load(Ordering::SeqCst), "a guest that was let go of runs");
        self.runs.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn set_epoch(&self, _: u64) {}

    fn take_packets(&self, wait: Duration, into: &mut Vec<Packet>) {
        assert!(!self.runs.load(Ordering::SeqCst), "packets of a guest that runs are taken");
        if self.packets.fetch_add(1, Ordering::SeqCst) < 3 {
            into.push(Packet { nic: 0, bytes: vec![2; 60] });
        } else {
            std::thread::sleep(wait.min(Duration::from_millis(1)));
        }
    }

    fn release(&self) {
        let first = !self.released.swap(true, Ordering::SeqCst);
        assert!(first && !self.runs.load(Ordering::SeqCst), "let go of twice, or while it runs");
    }

    fn telemetry(&self) -> Option<Telemetry> {
        Some(Telemetry { tsc: 1 << 40, tsc_khz: 2_000_000, work: 1 << 20, ..Telemetry::default() })
    }

    fn open_window(&self, _: Duration) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_lead_to_the_end() {
        for (name, input) in seeds() {
            let expected = match name.as_str() {
                "stranger" | "refused" | "not-running" | "never-ran" => Outcome::Kept,
                "in-doubt" | "gone" | "missing-nothing-new" | "missing-outside" => Outcome::Unknown,
                _ => Outcome::Moved,
            };
            // How many rounds there are is a matter of time, and the script says how many are answered: on a machine that is
            // busy for a moment one more is asked for, in vain.
            let unanswered =
                |report: &Report| matches!(&report.reason, Some(why) if why.contains("not been heard"));
            let mut report = converse(&input, peer::patient());
            for _ in 0..2 {
                if report.outcome != expected && unanswered(&report) {
                    report = converse(&input, peer::patient());
                }
            }
            assert_eq!(report.outcome, expected, "{name}: {:?}", report.reason);
        }
    }
}
