//! A resident as the guest that leaves.

use std::sync::Arc;
use std::time::Duration;

use migrate::guest::{Departing, Description, Packet, Ram, Result, Telemetry};
use migrate::options::ClockPolicy;
use migrate::pages::{PageRun, PageSet};
use rustix::thread::CpuSet;

use crate::machine::PausedClock;
use crate::vcpu::{Vcpus, realtime_ns};

use super::resident::Resident;

impl Departing for Resident {
    fn description(&self) -> Description {
        self.description_now()
    }

    fn ram(&self) -> Arc<dyn Ram> {
        self.engine_ram().expect("a guest that leaves has its memory until it is released")
    }

    fn start_dirty_log(&self) -> Result<()> {
        self.start_dirty_log()
    }

    fn harvest(&self, set: &mut PageSet) -> Result<()> {
        self.harvest(set)
    }

    fn protect(&self, set: &PageSet, window: PageRun) -> Result<()> {
        self.protect(set, window)
    }

    fn stop_dirty_log(&self) {
        self.stop_dirty_log();
    }

    fn throttle(&self, percent: u8, written: u64) -> Result<()> {
        let held = self.with_vcpus(|vcpus| vcpus.throttle(percent, written));
        held.map_or(Ok(()), |held| Ok(held?))
    }

    fn vcpus_are_on(&self) -> CpuSet {
        self.with_vcpus(Vcpus::are_on).unwrap_or_default()
    }

    fn send_vcpus_to(&self, cores: &CpuSet) {
        self.with_vcpus(|vcpus| vcpus.send_to(cores));
    }

    fn settle(&self, go_on: &dyn Fn() -> bool) -> Result<()> {
        self.settle_disks(go_on)
    }

    fn pause(&self) -> Result<()> {
        self.pause()
    }

    fn clock_ns(&self) -> u64 {
        realtime_ns()
    }

    fn save(&self, clock: ClockPolicy) -> Result<Vec<u8>> {
        self.save(match clock {
            ClockPolicy::Continue => PausedClock::StandsStill,
            ClockPolicy::Realtime => PausedClock::RunsOn,
        })
    }

    fn hand_over(&self, go_on: &dyn Fn() -> bool) -> Result<()> {
        // From here on who resumes the guest takes them: the destination, or this side again.
        self.hand_over_disks(go_on)
    }

    fn set_epoch(&self, epoch: u64) {
        self.set_epoch(epoch);
    }

    fn first_pages(&self, state: &[u8]) -> Vec<u64> {
        self.first_pages(state)
    }

    fn resume(&self) -> Result<()> {
        self.resume()
    }

    fn take_packets(&self, wait: Duration, into: &mut Vec<Packet>) {
        self.take_packets(wait, into);
    }

    fn release(&self) {
        self.release();
    }

    fn telemetry(&self) -> Option<Telemetry> {
        self.telemetry()
    }

    fn open_window(&self, wait: Duration) -> bool {
        self.open_window(wait)
    }
}
