//! A place where guests arrive, and a resident as the guest that does.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use migrate::guest::{
    Arriving, Description, Faults, HeardClock, Host, Packet, Ram, Rehearsal, Result, Telemetry,
};
use migrate::pages::PageSet;
use rustix::thread::CpuSet;

use crate::config::{ArrivalConfig, GuestName};
use crate::machine::{Hooks, HostSupply, Machine, MachineDescription, PausedClock};
use crate::memory::layout::Layout;
use crate::memory::userfault::Userfault;
use crate::vcpu::SourceClock;

use super::faults::EngineFaults;
use super::ram::runs_of;
use super::refused;
use super::resident::{Identity, Resident};

/// How often save and restore are rehearsed; each takes well below a millisecond.
const REHEARSALS: u32 = 3;

/// This host, ready for a guest.
pub struct Arrivals {
    supply: HostSupply,
    config: ArrivalConfig,
    hooks: Hooks,
    /// Told of each machine built, before the engine sees it. May refuse it.
    built: Box<dyn Fn(Arc<Resident>) -> Result<()> + Send + Sync>,
    latest: Mutex<Option<Arc<Resident>>>,
}

impl Arrivals {
    /// Machines built here get these hooks.
    pub fn new(
        supply: HostSupply,
        config: ArrivalConfig,
        hooks: Hooks,
        built: impl Fn(Arc<Resident>) -> Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { supply, config, hooks, built: Box::new(built), latest: Mutex::default() }
    }

    /// The resident built last: the guest that has arrived.
    pub fn latest(&self) -> Option<Arc<Resident>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Host for Arrivals {
    fn examine(&self, guest: &Description, postcopy: bool) -> Vec<String> {
        let mut reasons = match self.shape_of(guest) {
            Ok(shape) => shape
                .unsupported(&self.supply, &self.config.cpu)
                .into_iter()
                .chain(too_large(shape.memory))
                .collect(),
            Err(error) => vec![error.to_string()],
        };
        reasons.extend(self.other_taps(guest));
        if postcopy && let Err(error) = Userfault::check() {
            reasons.push(format!("post-copy: {error}; or use --mode precopy"));
        }
        reasons
    }

    fn build(&self, guest: &Description) -> Result<Arc<dyn Arriving>> {
        let machine = Machine::blank(&self.shape_of(guest)?, self.hooks.clone()).map_err(refused)?;
        let identity = Identity { name: guest.name.clone(), uuid: guest.uuid, epoch: guest.epoch };
        let resident = Resident::new(machine, identity);
        (self.built)(Arc::clone(&resident))?;
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&resident));
        Ok(resident)
    }
}

impl Arrivals {
    /// Why the taps of this host are not those for the guest.
    fn other_taps(&self, guest: &Description) -> Option<String> {
        let (taps, nics) = (self.config.taps.len(), guest.nics as usize);
        (taps > 0 && taps != nics).then(|| {
            format!(
                "this host has {taps} taps for a guest's network interfaces, the guest has {nics}: give `vmm receive` \
                 one --net for each, or none"
            )
        })
    }

    /// The machine as it would be here.
    fn shape_of(&self, guest: &Description) -> Result<MachineDescription> {
        let mut shape = shape_of(guest)?;
        for (nic, tap) in shape.nics.iter_mut().zip(&self.config.taps) {
            nic.tap = tap.clone();
        }
        Ok(shape)
    }
}

/// The machine's own description, which the engine carries without looking. Nothing else of what the source says may
/// be used before this has checked it.
fn shape_of(guest: &Description) -> Result<MachineDescription> {
    guest.name.parse::<GuestName>().map_err(refused)?;
    let shape: MachineDescription = serde_json::from_value(guest.machine.clone()).map_err(|error| {
        refused(format!("the source's description of its machine cannot be read: {error}"))
    })?;
    let layout = Layout::for_bytes(shape.memory).map_err(refused)?;
    let same = shape.vcpus == guest.vcpus && shape.nics.len() == guest.nics as usize;
    if !same || runs_of(&layout) != guest.ram {
        return Err(refused(
            "the source's description contradicts itself: vCPUs, RAM or network interfaces differ in its two parts",
        ));
    }
    Ok(shape)
}

/// Why a guest with that much RAM does not fit.
fn too_large(bytes: u64) -> Option<String> {
    let available = memory_available().filter(|available| *available < bytes)?;
    let (has, gives) = (bytes >> 20, available >> 20);
    Some(format!("memory: the guest has {has} MiB, this host has {gives} MiB to give"))
}

/// What Linux believes can be given without swapping, bytes.
#[must_use]
pub fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

impl Arriving for Resident {
    fn ram(&self) -> Arc<dyn Ram> {
        self.engine_ram().expect("a guest that arrives has its memory")
    }

    fn rehearse(&self) -> Rehearsal {
        let once = || {
            let start = Instant::now();
            let state = self.save(PausedClock::StandsStill).ok()?;
            let saved = Instant::now();
            // A blank machine's own state always fits it; were it refused, the real one will say why.
            let _ = self.restore(&state, None);
            let us = |from: Instant, to: Instant| (to - from).as_micros() as u64;
            Some(Rehearsal { save_us: us(start, saved), restore_us: us(saved, Instant::now()) })
        };
        // The first one warms up, and any may be disturbed: what the host can do is the shortest.
        let all = (0..REHEARSALS).filter_map(|_| once());
        all.min_by_key(|one| one.save_us + one.restore_us).unwrap_or_default()
    }

    fn keep_vcpus_to(&self, cores: Option<&CpuSet>) {
        self.with_vcpus(|vcpus| vcpus.keep_to(cores));
    }

    fn catch_faults(&self, missing: &PageSet) -> Result<Arc<dyn Faults>> {
        Ok(Arc::new(EngineFaults::catch(self.guest_ram()?, missing)?))
    }

    fn restore(&self, state: &[u8], source: Option<HeardClock>) -> Result<()> {
        self.restore(state, source.map(|HeardClock { shown_ns, heard }| SourceClock { shown_ns, heard }))
    }

    fn stand_by(&self) {
        self.stand_by();
    }

    fn resume(&self) -> Result<()> {
        // From the order to run on nothing may fail.
        let ram = self.guest_ram()?;
        self.resume()?;
        ram.end_making_ready();
        self.announce();
        Ok(())
    }

    fn deliver_packet(&self, packet: &Packet) {
        self.deliver_packet(packet);
    }

    fn suspend(&self) {
        self.hold();
    }

    fn run_on(&self) -> Result<()> {
        self.run_on()
    }

    fn discard(&self) {
        self.release();
    }

    fn start_dirty_log(&self) -> Result<()> {
        self.start_clean_dirty_log()
    }

    fn harvest(&self) -> Result<PageSet> {
        let mut set = PageSet::new(self.gfn_limit());
        self.harvest(&mut set)?;
        Ok(set)
    }

    fn stop_dirty_log(&self) {
        self.stop_dirty_log();
    }

    fn telemetry(&self) -> Option<Telemetry> {
        self.telemetry()
    }
}
