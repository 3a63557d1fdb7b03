//! What the engine asks of a simulated guest: when it leaves, and when it arrives.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use migrate::guest::{
    Arriving, Departing, Description, Faults, GuestError, HeardClock, Packet, Ram, Rehearsal, Result,
    Telemetry,
};
use migrate::options::ClockPolicy;
use migrate::pages::{PageRun, PageSet};
use rustix::thread::{CpuSet, sched_getaffinity};

use super::ram::SimFaults;
use super::{Broken, DiskUse, Sim};

/// What the source's clock shows: nothing that any other clock would.
const CLOCK_NS: u64 = 0x1234_5678_9abc_def0;

/// Where a guest's vCPU is.
pub(crate) fn first_core() -> CpuSet {
    let all = sched_getaffinity(None).expect("of this thread");
    scheduling::only((0..CpuSet::MAX_CPU).find(|core| all.is_set(*core)).expect("it runs"))
}

impl Departing for Sim {
    fn description(&self) -> Description {
        Description {
            name: "sim".to_owned(),
            uuid: uuid::Uuid::nil(),
            epoch: self.epoch.load(Ordering::SeqCst),
            vcpus: 1,
            ram: vec![PageRun { first: 0, count: self.habit.pages }],
            nics: self.habit.nics,
            machine: serde_json::json!({ "telemetry": self.habit.telemetry }),
        }
    }

    fn ram(&self) -> Arc<dyn Ram> {
        Arc::clone(&self.ram) as Arc<dyn Ram>
    }

    fn start_dirty_log(&self) -> Result<()> {
        self.ram.start_log(true);
        Ok(())
    }

    fn harvest(&self, set: &mut PageSet) -> Result<()> {
        Broken::check(&self.broken.harvest, "harvest")?;
        set.union(&self.ram.harvest());
        Ok(())
    }

    fn protect(&self, set: &PageSet, window: PageRun) -> Result<()> {
        assert!(window.first.is_multiple_of(64) && window.count.is_multiple_of(64), "{window:?}");
        self.ram.protect(set, window);
        if let Some(watched) = self.watched.get() {
            watched(self, set, window);
        }
        Ok(())
    }

    fn stop_dirty_log(&self) {
        self.ram.stop_log();
    }

    fn throttle(&self, percent: u8, _written: u64) -> Result<()> {
        assert!(percent < 100 && self.ram.is_logging() || percent == 0, "{percent} %");
        self.held_back.store(percent.into(), Ordering::SeqCst);
        Ok(())
    }

    fn vcpus_are_on(&self) -> CpuSet {
        first_core()
    }

    fn send_vcpus_to(&self, cores: &CpuSet) {
        assert!(self.is_running() && cores.count() == 1, "one vCPU, which is sent while it runs");
        self.was_sent.get_or_init(|| *cores);
    }

    fn settle(&self, go_on: &dyn Fn() -> bool) -> Result<()> {
        self.broken.hang(DiskUse::Settle { running: self.is_running() }, go_on)?;
        self.settled.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn hand_over(&self, go_on: &dyn Fn() -> bool) -> Result<()> {
        self.broken.hang(DiskUse::HandOver, go_on)?;
        Broken::check(&self.broken.hand_over, "hand-over")?;
        assert!(
            !self.is_running() && self.settled.load(Ordering::SeqCst) >= 2,
            "before the pause, and in it"
        );
        Ok(())
    }

    fn pause(&self) -> Result<()> {
        Broken::check(&self.broken.pause, "pause")?;
        self.pauses.fetch_add(1, Ordering::SeqCst);
        self.held_back.store(0, Ordering::SeqCst);
        self.stop_cpu();
        if let Some(paused) = self.paused.get() {
            paused();
        }
        Ok(())
    }

    fn clock_ns(&self) -> u64 {
        assert!(self.is_running(), "the clock is told before the pause, so that it is not a part of it");
        CLOCK_NS
    }

    fn save(&self, _: ClockPolicy) -> Result<Vec<u8>> {
        Broken::check(&self.broken.save, "save")?;
        assert!(!self.is_running(), "state is saved from a paused guest only");
        // Saving writes guest memory, here for the first time.
        self.ram.touch(self.ram.last());
        let mind = self.mind();
        let words =
            [mind.steps, self.window.load(Ordering::SeqCst)].into_iter().chain(mind.written.iter().copied());
        Ok(words.flat_map(u64::to_le_bytes).collect())
    }

    fn resume(&self) -> Result<()> {
        assert!(!self.is_released(), "a released guest is not resumed");
        self.start_cpu();
        Ok(())
    }

    fn set_epoch(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::SeqCst);
    }

    fn first_pages(&self, _state: &[u8]) -> Vec<u64> {
        vec![0, 1, self.ram.last(), u64::MAX]
    }

    fn take_packets(&self, wait: Duration, into: &mut Vec<Packet>) {
        assert!(!self.is_running(), "packets are taken only where the guest does not run");
        let mut waiting = self.packets();
        if waiting.is_empty() {
            drop(waiting);
            std::thread::sleep(wait);
            waiting = self.packets();
        }
        into.append(&mut waiting);
    }

    fn release(&self) {
        assert!(!self.is_running(), "a running guest is not released");
        self.released.store(true, Ordering::SeqCst);
    }

    fn telemetry(&self) -> Option<Telemetry> {
        self.reading()
    }

    fn open_window(&self, wait: Duration) -> bool {
        self.window.fetch_add(1, Ordering::SeqCst);
        self.habit.telemetry && self.habit.acknowledges_after <= wait
    }
}

impl Arriving for Sim {
    fn ram(&self) -> Arc<dyn Ram> {
        Arc::clone(&self.ram) as Arc<dyn Ram>
    }

    fn rehearse(&self) -> Rehearsal {
        Rehearsal { save_us: 50, restore_us: 50 }
    }

    fn keep_vcpus_to(&self, cores: Option<&CpuSet>) {
        self.is_kept.store(cores.is_some(), Ordering::SeqCst);
        if let Some(cores) = cores {
            self.was_kept.get_or_init(|| *cores);
        }
    }

    fn catch_faults(&self, missing: &PageSet) -> Result<Arc<dyn Faults>> {
        self.told_first.store(missing.len(), Ordering::SeqCst);
        self.ram.catch(missing);
        Ok(Arc::new(SimFaults(Arc::clone(&self.ram))))
    }

    fn restore(&self, state: &[u8], source: Option<HeardClock>) -> Result<()> {
        assert_eq!(source.map(|heard| heard.shown_ns), Some(CLOCK_NS));
        Broken::check(&self.broken.restore, "restore")?;
        let words: Vec<u64> = state
            .chunks_exact(8)
            .map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
            .collect();
        // A restore touches guest memory, as kvmclock does.
        if self.ram.read(0).is_none() {
            return Err(GuestError("stopped in a fault".to_owned()));
        }
        let mut mind = self.mind();
        mind.steps = words[0];
        self.window.store(words[1], Ordering::SeqCst);
        mind.written = words[2..].to_vec();
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        Broken::check(&self.broken.resume, "resume")?;
        self.start_cpu();
        Ok(())
    }

    fn deliver_packet(&self, packet: &Packet) {
        assert!(self.is_running(), "packets are sent after a guest that runs");
        self.packets().push(packet.clone());
    }

    fn suspend(&self) {
        self.ram.stop();
        self.stop_cpu();
    }

    fn run_on(&self) -> Result<()> {
        self.ram.go_on();
        self.start_cpu();
        Ok(())
    }

    fn discard(&self) {
        assert!(!self.is_running(), "a running guest is not thrown away");
        self.shut_down();
    }

    fn start_dirty_log(&self) -> Result<()> {
        self.ram.start_log(false);
        Ok(())
    }

    fn harvest(&self) -> Result<PageSet> {
        Ok(self.ram.harvest())
    }

    fn stop_dirty_log(&self) {
        self.ram.stop_log();
    }

    fn telemetry(&self) -> Option<Telemetry> {
        self.reading()
    }
}
