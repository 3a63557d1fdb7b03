//! A whole source, as a destination would speak with it: a guest that leaves over a link in memory, and that ends the
//! process when the handover's promises are broken.
//!
//! The first byte of an input chooses the mode and what else is asked for; the rest is the destination's script.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use migrate::Cancel;
use migrate::channel::{Deadlines, Dial, Link, memory};
use migrate::guest::{Departing, Description, Packet, Ram, Rehearsal, Result, Telemetry};
use migrate::journal::Journals;
use migrate::options::{ClockPolicy, InFlightPolicy, Mode, OnTimeout, Options};
use migrate::pages::{PageRun, PageSet};
use migrate::progress::Silent;
use migrate::protection::Protection;
use migrate::report::{Outcome, Postcopy, Report, Verification};
use migrate::source::{Route, migrate_over};
use migrate::wire::limits::VERSIONS;
use migrate::wire::message::{Accept, Figures, Ready, Reason, Refuse, Role, Welcome};
use migrate::wire::{Kind, Message};

use crate::guest::{Memory, regions};
use crate::peer::{self, DEADLINES, Steps, number};
use crate::script::Script;
use crate::seeds;

const MODES: [Mode; 4] = [Mode::Precopy, Mode::Stopcopy, Mode::Postcopy, Mode::Hybrid];
const VERIFY: u8 = 4;
const NICS: u8 = 8;
const TWO_STREAMS: u8 = 16;
const PACED: u8 = 32;
/// Limits as long as the control API takes them.
const VAST: u8 = 64;
/// The destination is called again after the link is lost.
const RECOVERS: u8 = 128;

pub(crate) fn run(input: &[u8]) {
    converse(input, DEADLINES);
}

fn converse(input: &[u8], deadlines: Deadlines) -> Report {
    let mut script = Script::new(input);
    let asked = script.u8();
    let has = |bit| asked & bit != 0;
    let options = Options {
        to: "memory".to_owned(),
        mode: MODES[usize::from(asked % 4)],
        streams: if has(TWO_STREAMS) { 2 } else { 1 },
        max_downtime: if has(VAST) { Duration::from_micros(u64::MAX) } else { deadlines.pause },
        timeout: if has(VAST) { Duration::from_millis(u64::MAX) } else { 8 * deadlines.idle },
        bandwidth: has(PACED).then_some(1 << 30),
        verify: has(VERIFY),
        in_flight: InFlightPolicy::Forward,
        clock: ClockPolicy::Continue,
        on_timeout: if has(VAST) { OnTimeout::Force } else { OnTimeout::Cancel },
        pause_before_switchover: false,
        protection: Protection::None,
        recovery: if has(RECOVERS) { deadlines.idle } else { Duration::ZERO },
    };
    let guest = Resident::new(u32::from(has(NICS)));
    let doors = Doors::default();
    let report = std::thread::scope(|scope| {
        let leaving = scope.spawn(|| {
            let route = Route { dial: &doors, deadlines, journals: Journals::nowhere() };
            let report = migrate_over(&guest, &options, route, &Cancel::new(), &Silent).report;
            doors.close();
            report
        });
        peer::follow(script, deadlines.connect, |connection| doors.wait(connection, deadlines.connect));
        doors.close();
        leaving.join().expect("a panic has ended the process")
    });
    let is = |flag: &AtomicBool| flag.load(Ordering::SeqCst);
    let (runs, released) = (is(&guest.runs), is(&guest.released));
    match report.outcome {
        Outcome::Kept => assert!(runs && !released, "{:?}", report.reason),
        Outcome::Moved => assert!(!runs && released),
        Outcome::Unknown => assert!(!runs && !released, "{:?}", report.reason),
    }
    // What a hostile destination says ends up before people.
    let _ = migrate::cli::words::report(&report);
    report
}

/// Connections that the source has made.
#[derive(Default)]
struct Doors {
    made: Mutex<Made>,
    changed: Condvar,
}

#[derive(Default)]
struct Made {
    links: HashMap<usize, Arc<dyn Link>>,
    data: u32,
    /// The source has ended, or its peer has: what it makes from now on is closed.
    over: bool,
}

impl Doors {
    /// The far end of a connection, if it is made soon.
    fn wait(&self, connection: usize, limit: Duration) -> Option<Arc<dyn Link>> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let absent = |made: &mut Made| !made.over && !made.links.contains_key(&connection);
        let waited = self.changed.wait_timeout_while(made, limit, absent);
        waited.unwrap_or_else(PoisonError::into_inner).0.links.get(&connection).cloned()
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
    runs: AtomicBool,
    released: AtomicBool,
    harvests: AtomicU64,
    packets: AtomicU64,
}

impl Resident {
    fn new(nics: u32) -> Self {
        Self {
            memory: Arc::new(Memory::new(regions())),
            nics,
            runs: AtomicBool::new(true),
            released: AtomicBool::new(false),
            harvests: AtomicU64::new(0),
            packets: AtomicU64::new(0),
        }
    }
}

impl Departing for Resident {
    fn description(&self) -> Description {
        seeds::description(regions(), self.nics)
    }

    fn ram(&self) -> Arc<dyn Ram> {
        Arc::clone(&self.memory) as Arc<dyn Ram>
    }

    fn start_dirty_log(&self) -> Result<()> {
        Ok(())
    }

    /// All of it, then less and less.
    fn harvest(&self) -> Result<PageSet> {
        let mut set = self.memory.all();
        let times = self.harvests.fetch_add(1, Ordering::SeqCst);
        set.remove_run(PageRun { first: 0, count: (8 * times).min(24) });
        Ok(set)
    }

    fn protect(&self, _: &PageSet, window: PageRun) -> Result<()> {
        assert!(window.first.is_multiple_of(64) && window.count.is_multiple_of(64), "{window:?}");
        Ok(())
    }

    fn stop_dirty_log(&self) {}

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

    fn set_epoch(&self, _: u64) {}

    fn first_pages(&self, _: &[u8]) -> Vec<u64> {
        vec![0, 1, self.memory.limit() - 1, u64::MAX]
    }

    fn resume(&self) -> Result<()> {
        assert!(!self.released.load(Ordering::SeqCst), "a guest that was let go of runs");
        self.runs.store(true, Ordering::SeqCst);
        Ok(())
    }

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

pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let of = |name: &str, asked: u8, steps: Steps| {
        let mut bytes = vec![asked];
        bytes.extend(steps.0);
        (name.to_owned(), bytes)
    };
    let refuse = Message::Refuse(Refuse { reasons: vec!["no room".to_owned()] });
    let not_running = Message::NotRunning(Reason { reason: "no".to_owned() });
    let lost = |rounds| ready(accepted(rounds)).wait(0, Kind::Commit);
    vec![
        of("stranger", 0, Steps::default().say(0, &Message::Bye)),
        of("refused", 0, welcomed().say(0, &refuse)),
        of("precopy", 0, end(lost(1))),
        of("stopcopy", 1, end(lost(0))),
        of("postcopy", 2, postcopy(1)),
        of("hybrid", 3, postcopy(2)),
        of("verify", VERIFY | 1, verify()),
        of("packets", NICS | 1, end(lost(0))),
        of("two-streams", TWO_STREAMS | PACED, end(lost(1))),
        of("without-limits", VAST | NICS, end(lost(1))),
        of("in-doubt", 0, lost(1).close(0)),
        of("not-running", 0, lost(1).say(0, &not_running)),
    ]
}

fn welcomed() -> Steps {
    Steps::default()
        .wait(0, Kind::Hello)
        .say(0, &Message::Welcome(Welcome { version: VERSIONS.1 }))
        .wait(0, Kind::Preflight)
}

/// Accepted, and so many rounds done before the pause: words that come before their time wait in the link.
fn accepted(rounds: u32) -> Steps {
    let rehearsal = Rehearsal { save_us: 50, restore_us: 50 };
    let steps = welcomed().say(0, &Message::Accept(Accept { rehearsal }));
    (0..rounds).fold(steps, |steps, round| steps.say(0, &Message::RoundDone { round }))
}

fn ready(steps: Steps) -> Steps {
    steps.wait(0, Kind::State).say(0, &Message::Ready(Ready { restore_us: 400 }))
}

fn end(steps: Steps) -> Steps {
    last_words(steps.say(0, &Message::Running))
}

fn last_words(steps: Steps) -> Steps {
    let telemetry = Telemetry { tsc: 1 << 41, tsc_khz: 2_000_000, work: 1 << 21, ..Telemetry::default() };
    let figures = Figures { telemetry: Some(telemetry) };
    steps
        .wait(0, Kind::Finish)
        .say(0, &Message::Figures(figures.clone()))
        .say(0, &Message::Settled(figures))
        .wait(0, Kind::Bye)
}

fn postcopy(rounds: u32) -> Steps {
    let runs = ready(accepted(rounds))
        .wait(0, Kind::Commit)
        .say(0, &Message::Running)
        .say(3, &Message::Request { gfns: vec![3, 64] });
    let placed = (0..8).fold(runs, |steps, _| steps.say(1, &Message::Placed));
    last_words(placed.say(0, &Message::Complete(Postcopy { missing_pages: 32, ..Postcopy::default() })))
}

fn verify() -> Steps {
    let verification =
        Verification { pages: 32, skipped: 0, mismatched: 0, first_mismatches: Vec::new(), us: 7 };
    let compared = accepted(0).wait(0, Kind::Hashes).say(0, &Message::Verified(verification));
    end(compared.say(0, &Message::Ready(Ready { restore_us: 400 })).wait(0, Kind::Commit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_lead_to_the_end() {
        for (name, input) in seeds() {
            let report = converse(&input, peer::patient());
            let expected = match name.as_str() {
                "stranger" | "refused" | "not-running" => Outcome::Kept,
                "in-doubt" => Outcome::Unknown,
                _ => Outcome::Moved,
            };
            assert_eq!(report.outcome, expected, "{name}: {:?}", report.reason);
        }
    }
}
