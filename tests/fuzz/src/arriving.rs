//! A whole destination, as a source would speak with it: a real [`Receiver`] over a link in memory, and a machine that
//! ends the process when the handover's promises are broken.
//!
//! The destination is there until the script is over: for a source that calls again, and for the next guest where one has
//! failed. The first byte of an input is the operator's word about a guest that waits at the end.

mod scripts;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use migrate::channel::memory::Place;
use migrate::channel::{Deadlines, Dial};
use migrate::guest::{
    Arriving, Description, Faults, GuestError, HeardClock, Host, Packet, Ram, Rehearsal, Result, Telemetry,
};
use migrate::pages::PageSet;
use migrate::progress::Silent;
use migrate::wire::Role;
use migrate::{Arrival, Receiver};

pub(crate) use self::scripts::seeds;
use crate::guest::{Memory, Touches};
use crate::peer::{self, DEADLINES};
use crate::script::Script;

/// More than this is refused, as a VMM refuses what it has no room for.
const MOST_PAGES: u64 = 64;
const MOST_GFN: u64 = 4096;

/// What the operator says.
const FORCE: u8 = 1;
const LET_GO: u8 = 2;

pub(crate) fn run(input: &[u8]) {
    converse(input, DEADLINES);
}

fn converse(input: &[u8], deadlines: Deadlines) -> Arrival {
    let mut script = Script::new(input);
    let word = script.u8() % 3;
    let place = Place::new();
    let receiver = Receiver::over(Box::new(place.clone()), deadlines);
    let host = Yard::default();
    let over = AtomicBool::new(false);
    let arrival = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let mut arrival = receiver.receive(&host, &Silent);
            while !over.load(Ordering::SeqCst) {
                host.judge(&arrival);
                arrival = match arrival {
                    Arrival::Waits(waiting) | Arrival::Arrived { unheard: Some(waiting), .. } => {
                        receiver.await_source(waiting, deadlines.idle, &Silent)
                    }
                    Arrival::Failed { .. } => receiver.receive(&host, &Silent),
                    Arrival::Arrived { .. } => break,
                };
            }
            arrival
        });
        // What a connection is for its hello says.
        let dial = |_| place.dial(Role::Control, deadlines.connect, &|_| {}).ok();
        peer::follow(script, deadlines.connect, dial);
        over.store(true, Ordering::SeqCst);
        receiver.stop();
        receiving.join().expect("a panic has ended the process")
    });
    host.judge(&arrival);
    match arrival {
        Arrival::Waits(waiting) if word == FORCE => {
            let arrival = receiver.force(waiting).unwrap_or_else(|(waiting, _)| Arrival::Waits(waiting));
            host.judge(&arrival);
            arrival
        }
        Arrival::Waits(waiting) if word == LET_GO => {
            let held = waiting.is_held();
            receiver.let_go(waiting);
            host.judge_left(held);
            Arrival::Failed { reason: "let go of".to_owned() }
        }
        arrival => arrival,
    }
}

/// A host with room for one small guest.
#[derive(Default)]
struct Yard {
    built: Mutex<Option<Arc<Blank>>>,
}

impl Yard {
    /// Nobody needs it here any more: what has run here stays as it is, the rest is thrown away.
    fn judge_left(&self, held: bool) {
        let built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let machine = built.as_ref().expect("a machine that waited");
        let [runs, gone] = [&machine.runs, &machine.gone].map(|flag| flag.load(Ordering::SeqCst));
        assert!(!runs && gone == held, "let go of: runs {runs}, gone {gone}, held {held}");
    }

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
                assert!(!runs && !gone, "{arrival:?}");
                assert_eq!(waiting.is_orphaned(), is(&machine.suspended), "{arrival:?}");
                assert_eq!(waiting.is_held(), !is(&machine.suspended), "{arrival:?}");
                assert_eq!(waiting.missing_pages(), machine.memory.missing(), "{arrival:?}");
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
        let gone = before.is_none_or(|before| before.gone.load(Ordering::SeqCst));
        assert!(gone, "a machine is built beside one that is there");
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
        assert!(self.memory.is_guarded(), "it runs, and finds zeros where pages are missing");
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
        assert!(self.suspended.swap(false, Ordering::SeqCst), "it was not suspended");
        assert!(self.memory.missing() == 0, "it runs on, and pages are missing");
        assert!(!self.runs.swap(true, Ordering::SeqCst), "it runs twice");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_lead_to_the_end() {
        for (name, input) in seeds() {
            let arrival = converse(&input, peer::patient());
            let ended = match &arrival {
                Arrival::Arrived { .. } => "arrived",
                Arrival::Waits(waiting) if waiting.is_held() => "held",
                Arrival::Waits(_) => "orphaned",
                Arrival::Failed { .. } => "failed",
            };
            let expected = match name.as_str() {
                "orphan" => "orphaned",
                "lost" => "held",
                "stranger"
                | "streams"
                | "refused"
                | "held-disowned"
                | "held-asked-when-gone"
                | "held-let-go"
                | "orphan-let-go" => "failed",
                // It may come before the first is put away, and is refused then.
                "another-guest" if ended == "failed" => "failed",
                _ => "arrived",
            };
            assert_eq!(ended, expected, "{name}: {arrival:?}");
        }
    }
}
