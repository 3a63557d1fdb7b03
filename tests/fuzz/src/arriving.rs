//! A whole destination, as a source would speak with it: a real [`Receiver`] over a link in memory, and a machine that
//! ends the process when the handover's promises are broken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use migrate::channel::memory::Place;
use migrate::channel::{Deadlines, Dial};
use migrate::guest::{
    Arriving, Description, Faults, GuestError, HeardClock, Host, Packet, Ram, Rehearsal, Result, Telemetry,
};
use migrate::options::Mode;
use migrate::pages::{PAGE_SIZE, PageRun, PageSet};
use migrate::progress::Silent;
use migrate::wire::{Kind, Message, Role};
use migrate::{Arrival, Receiver};

use crate::guest::{Memory, Touches, regions};
use crate::peer::{self, DEADLINES, Steps, number};
use crate::script::Script;
use crate::seeds;

/// More than this is refused, as a VMM refuses what it has no room for.
const MOST_PAGES: u64 = 64;
const MOST_GFN: u64 = 4096;

pub(crate) fn run(input: &[u8]) {
    converse(input, DEADLINES);
}

fn converse(input: &[u8], deadlines: Deadlines) -> Arrival {
    let place = Place::new();
    let receiver = Receiver::over(Box::new(place.clone()), deadlines);
    let host = Yard::default();
    let arrival = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.receive(&host, &Silent));
        // What a connection is for its hello says.
        let dial = |_| place.dial(Role::Control, deadlines.connect, &|_| {}).ok();
        peer::follow(Script::new(input), deadlines.connect, dial);
        receiver.stop();
        receiving.join().expect("a panic has ended the process")
    });
    host.judge(&arrival);
    arrival
}

/// A host with room for one small guest.
#[derive(Default)]
struct Yard {
    built: Mutex<Option<Arc<Blank>>>,
}

impl Yard {
    /// How it ended is what became of the machine.
    fn judge(&self, arrival: &Arrival) {
        let built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(machine) = &*built else {
            assert!(matches!(arrival, Arrival::Failed { .. }), "{arrival:?} without a machine");
            return;
        };
        let is = |flag: &AtomicBool| flag.load(Ordering::SeqCst);
        let (runs, gone) = (is(&machine.runs), is(&machine.gone));
        match arrival {
            Arrival::Arrived { .. } => assert!(runs && !gone && machine.memory.missing() == 0),
            Arrival::Failed { .. } => assert!(!runs && gone, "{arrival:?}"),
            Arrival::Waits(waiting) => {
                assert!(!runs && !gone && waiting.is_held() != is(&machine.suspended), "{arrival:?}");
                assert_eq!(waiting.missing_pages(), machine.memory.missing());
            }
        }
    }
}

impl Host for Yard {
    fn examine(&self, guest: &Description, _: bool) -> Vec<String> {
        let fits = guest.pages() <= MOST_PAGES && guest.gfn_limit() <= MOST_GFN;
        if fits { Vec::new() } else { vec![format!("{} pages have no room", guest.pages())] }
    }

    fn build(&self, guest: &Description) -> Result<Arc<dyn Arriving>> {
        let machine = Arc::new(Blank {
            memory: Arc::new(Memory::new(guest.ram.clone())),
            restored: AtomicBool::new(false),
            runs: AtomicBool::new(false),
            suspended: AtomicBool::new(false),
            gone: AtomicBool::new(false),
        });
        let before = self.built.lock().unwrap_or_else(PoisonError::into_inner).replace(machine.clone());
        assert!(before.is_none(), "two machines are built");
        Ok(machine)
    }
}

/// The machine a guest arrives in.
struct Blank {
    memory: Arc<Memory>,
    restored: AtomicBool,
    runs: AtomicBool,
    suspended: AtomicBool,
    gone: AtomicBool,
}

impl Arriving for Blank {
    fn ram(&self) -> Arc<dyn Ram> {
        Arc::clone(&self.memory) as Arc<dyn Ram>
    }

    fn rehearse(&self) -> Rehearsal {
        Rehearsal { save_us: 50, restore_us: 50 }
    }

    fn catch_faults(&self, missing: &PageSet) -> Result<Arc<dyn Faults>> {
        self.memory.catch(missing);
        Ok(Arc::new(Touches(Arc::clone(&self.memory))))
    }

    /// A state that begins with a zero cannot be restored.
    fn restore(&self, state: &[u8], _: Option<HeardClock>) -> Result<()> {
        assert!(!self.restored.swap(true, Ordering::SeqCst), "restored twice");
        if state.first() == Some(&0) { Err(GuestError("no state".to_owned())) } else { Ok(()) }
    }

    fn resume(&self) -> Result<()> {
        let may = self.restored.load(Ordering::SeqCst) && !self.gone.load(Ordering::SeqCst);
        assert!(may && !self.runs.swap(true, Ordering::SeqCst), "it must not run");
        Ok(())
    }

    fn deliver_packet(&self, packet: &Packet) {
        assert!(packet.bytes.len() <= migrate::wire::limits::PACKET_BYTES);
    }

    fn suspend(&self) {
        self.suspended.store(true, Ordering::SeqCst);
        self.runs.store(false, Ordering::SeqCst);
    }

    fn run_on(&self) -> Result<()> {
        assert!(
            self.suspended.swap(false, Ordering::SeqCst) && self.memory.missing() == 0,
            "it must not run on"
        );
        self.runs.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn discard(&self) {
        assert!(!self.runs.load(Ordering::SeqCst), "a guest that runs is thrown away");
        self.gone.store(true, Ordering::SeqCst);
    }

    fn start_dirty_log(&self) -> Result<()> {
        Ok(())
    }

    fn harvest(&self) -> Result<PageSet> {
        Ok(PageSet::new(self.memory.limit()))
    }

    fn stop_dirty_log(&self) {}

    fn telemetry(&self) -> Option<Telemetry> {
        Some(Telemetry::default())
    }
}

pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let of = |name: &str, steps: Steps| (name.to_owned(), steps.0);
    vec![
        of("stranger", Steps::default().say(0, &Message::Bye)),
        of("streams", Steps::default().say(1, &seeds::hello(Role::Data, 0))),
        of("refused", begun(Mode::Precopy, &[PageRun { first: 0, count: 1 << 20 }], false)),
        of("precopy", end(state(rounds(begun(Mode::Precopy, &regions(), false))))),
        of("stopcopy", end(last_round(begun(Mode::Stopcopy, &regions(), false)))),
        of("verify", verified()),
        of("postcopy", postcopy()),
        of("hybrid", hybrid()),
        of("lost", last_round(begun(Mode::Precopy, &regions(), false)).close(0)),
        of(
            "orphan",
            missing(begun(Mode::Postcopy, &regions(), false))
                .say(0, &Message::Commit)
                .wait(0, Kind::Running)
                .close(3),
        ),
        of("packets", end(packets())),
    ]
}

/// Connections and pre-flight.
fn begun(mode: Mode, ram: &[PageRun], verify: bool) -> Steps {
    begun_with(mode, ram, verify, 0)
}

fn begun_with(mode: Mode, ram: &[PageRun], verify: bool, nics: u32) -> Steps {
    let roles = [(Role::Data, true), (Role::Urgent, matches!(mode, Mode::Postcopy | Mode::Hybrid))];
    let roles = roles.into_iter().chain([(Role::Packets, nics > 0)]).filter(|(_, wanted)| *wanted);
    let asked = Steps::default()
        .say(0, &seeds::hello(Role::Control, 0))
        .wait(0, Kind::Welcome)
        .say(0, &seeds::preflight(mode, ram.to_vec(), verify, nics))
        .wait(0, Kind::Accept);
    roles.fold(asked, |steps, (role, _)| steps.say(number(role, 0), &seeds::hello(role, 0)))
}

fn rounds(steps: Steps) -> Steps {
    let round = |steps: Steps, round| {
        steps.say(1, &Message::RoundEnd { round, last: false }).wait(0, Kind::RoundDone)
    };
    let first = steps
        .say(0, &Message::Populated { first: 0, words: vec![0xff_ffff, 0xff] })
        .pages(1, Kind::Pages, &[[0, 8], [64, 2]])
        .pages(1, Kind::Zeros, &[[8, 16], [66, 6]]);
    let second = round(first, 0).pages(1, Kind::Pages, &[[3, 1]]).pages(1, Kind::Zeros, &[[4, 1]]);
    round(second, 1).pages(0, Kind::Pages, &[[5, 2]])
}

fn state(steps: Steps) -> Steps {
    let clock = steps.say(0, &Message::Clock { shown_ns: 1 << 60 });
    clock.say(0, &Message::State { after_round: None, blob: vec![1; 32] }).wait(0, Kind::Ready)
}

/// The state, and a round that comes on the data connection.
fn last_round(steps: Steps) -> Steps {
    steps
        .say(0, &Message::State { after_round: Some(0), blob: vec![1; 32] })
        .pages(1, Kind::Pages, &[[0, 24]])
        .say(1, &Message::RoundEnd { round: 0, last: true })
        .wait(0, Kind::Ready)
}

fn end(steps: Steps) -> Steps {
    let runs = steps.say(0, &Message::Commit).wait(0, Kind::Running);
    runs.say(0, &Message::Finish).wait(0, Kind::Settled).say(0, &Message::Bye)
}

fn missing(steps: Steps) -> Steps {
    state(steps.say(0, &Message::Missing { first: 0, words: vec![0xff, 1] }))
}

fn postcopy() -> Steps {
    let runs = missing(begun(Mode::Postcopy, &regions(), false)).say(0, &Message::Commit);
    let placed = runs
        .wait(0, Kind::Running)
        .pages(1, Kind::Push, &[[0, 4]])
        .wait(3, Kind::Request)
        .pages(3, Kind::Push, &[[4, 1], [64, 1]])
        .pages(1, Kind::PushZeros, &[[5, 3]])
        .wait(0, Kind::Complete);
    placed.say(0, &Message::Finish).wait(0, Kind::Settled).say(0, &Message::Bye)
}

/// Missing pages are named ahead of the pause.
fn hybrid() -> Steps {
    let named = rounds(begun(Mode::Hybrid, &regions(), false))
        .say(0, &Message::RoundEnd { round: 2, last: false })
        .wait(0, Kind::RoundDone)
        .say(0, &Message::Missing { first: 0, words: vec![0xff] })
        .say(0, &Message::RoundEnd { round: 3, last: false })
        .wait(0, Kind::RoundDone);
    let runs = state(named.say(0, &Message::Missing { first: 64, words: vec![3] }));
    let pushed = runs.pages(1, Kind::Push, &[[0, 8]]).say(0, &Message::Commit).wait(0, Kind::Running);
    let placed = pushed.pages(3, Kind::PushZeros, &[[64, 2]]).wait(0, Kind::Complete);
    placed.say(0, &Message::Finish).wait(0, Kind::Settled).say(0, &Message::Bye)
}

fn verified() -> Steps {
    let zero = u64::from(crc32fast::hash(&[0; PAGE_SIZE]));
    let hashes = |first, count| Message::Hashes { first, hashes: vec![zero; count] };
    let sent = begun(Mode::Precopy, &regions(), true)
        .say(0, &Message::State { after_round: None, blob: vec![1; 32] })
        .say(0, &hashes(0, 24))
        .say(0, &hashes(64, 8));
    end(sent.wait(0, Kind::Verified).wait(0, Kind::Ready))
}

fn packets() -> Steps {
    let packet = |nic| Message::Packet(Packet { nic, bytes: vec![2; 60] });
    last_round(begun_with(Mode::Stopcopy, &regions(), false, 1))
        .say(0, &Message::Commit)
        .wait(0, Kind::Running)
        .say(4, &packet(0))
        .say(4, &packet(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_lead_to_the_end() {
        for (name, input) in seeds() {
            let arrival = converse(&input, peer::patient());
            let ended = match &arrival {
                Arrival::Arrived { .. } => "arrived",
                Arrival::Waits(waiting) if waiting.is_orphaned() => "orphaned",
                Arrival::Waits(_) => "held",
                Arrival::Failed { .. } => "failed",
            };
            let expected = match name.as_str() {
                "orphan" => "orphaned",
                "stranger" | "streams" | "refused" => "failed",
                "lost" => "held",
                _ => "arrived",
            };
            assert_eq!(ended, expected, "{name}: {arrival:?}");
        }
    }
}
