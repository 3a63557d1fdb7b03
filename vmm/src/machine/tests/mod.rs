//! Machines with the demo guest, on this host's KVM.
//!
//! Without `/dev/kvm` they are counted as ignored: see `build.rs`.

mod golden;
mod hop;
mod life;
mod pauses;
mod throttle;
mod virtio;

use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use guest::Telemetry;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::config::{Kernel, MemorySize, Vcpus};
use crate::devices::{End, GuestEnd};
use crate::vcpu::CpuChoice;

/// A machine may be handed to another thread.
const _: fn() = || {
    fn can_move<T: Send>() {}
    can_move::<Machine<Paused>>();
    can_move::<Machine<Running>>();
};

const LONG: Duration = Duration::from_secs(30);

fn config(cpus: u32, cmdline: &str) -> MachineConfig {
    let memory = MemorySize::from_bytes(64 << 20).unwrap();
    MachineConfig::demo(memory, Vcpus::new(cpus).unwrap(), cmdline.parse().unwrap())
}

fn supply() -> HostSupply {
    HostSupply::ask(KvmHost::open().unwrap()).unwrap()
}

fn hooks() -> (Hooks, Receiver<GuestEnd>) {
    let (told, ends) = channel();
    let on_end: OnEnd = Arc::new(move |end| drop(told.send(end)));
    (Hooks { console: Console::new(), on_end }, ends)
}

fn telemetry<Life>(machine: &Machine<Life>, cpus: u32) -> Option<Telemetry> {
    let mut span = vec![0; guest::telemetry_span(cpus as usize)];
    machine.ram().mmap().read_slice(&mut span, GuestAddress(guest::TELEMETRY_GPA)).unwrap();
    Telemetry::parse_span(&span).ok()
}

/// Waits until every vCPU has done `more` units of work, and had a timer tick, since this was asked.
fn works_on<Life>(machine: &Machine<Life>, cpus: u32, more: u64) -> Telemetry {
    let deadline = Instant::now() + LONG;
    let mut first: Option<Telemetry> = None;
    while Instant::now() < deadline {
        if let Some(now) = telemetry(machine, cpus).filter(|now| now.state == guest::State::Working) {
            let first = first.get_or_insert_with(|| now.clone());
            let mut pairs = now.vcpus.iter().zip(&first.vcpus);
            if pairs.all(|(now, was)| now.work >= was.work + more && now.ticks > was.ticks) {
                return now;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let console = String::from_utf8_lossy(&machine.console().recent()).into_owned();
    panic!("the guest does not work: {:?}\n{console}", telemetry(machine, cpus));
}

/// A guest that writes memory as fast as it can, at work.
fn busy(cpus: u32) -> (Machine<Running>, Receiver<GuestEnd>) {
    let (hooks, ends) = hooks();
    let machine = Machine::boot(&config(cpus, "dirty ws=8 rate=max fill=8 tick=1"), hooks).unwrap().resume();
    works_on(&machine, cpus, 1000);
    (machine, ends)
}

fn pause(machine: Machine<Running>) -> Machine<Paused> {
    machine.pause().unwrap()
}
