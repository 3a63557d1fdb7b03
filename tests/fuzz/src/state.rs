//! Saved states, and what hosts tell each other of machines and CPUs.
//!
//! The first byte of an input chooses: a stream as it is, one whose checksums are made right (else no mutation would get
//! beyond them), the description of a machine, or descriptions of two hosts.

use std::sync::{Arc, LazyLock};

use vm_memory::{Bytes, GuestAddress};
use vmm::config::DiskAccess;
use vmm::fuzzing;
use vmm::machine::MachineDescription;
use vmm::memory::layout::Layout;
use vmm::memory::ram::GuestRam;
use vmm::state::StreamWriter;
use vmm::vcpu::{CpuChoice, HostCpu, Template, common, lacking, missing_features};

use crate::devices;
use crate::script::{Script, counted};

const AS_IT_IS: u8 = 0;
const RESTAMPED: u8 = 1;
const MACHINE: u8 = 2;
const HOSTS: u8 = 3;

const HEADER_BYTES: usize = 16;
const SECTION_BYTES: usize = 32;
/// In a section's head: length of its payload, and checksum.
const LENGTH: usize = 24;
const CHECKSUM: usize = 28;

pub(crate) fn run(input: &[u8]) {
    let mut script = Script::new(input);
    match script.u8() % 4 {
        AS_IT_IS => restore(script.rest()),
        RESTAMPED => {
            let mut stream = script.rest().to_vec();
            restamp(&mut stream);
            restore(&stream);
        }
        MACHINE => machine(script.rest()),
        _ => hosts(script.counted(), script.rest()),
    }
}

/// Makes checksums right, as far as lengths make sense (docs/state.md).
fn restamp(stream: &mut [u8]) {
    let mut rest = stream.get_mut(HEADER_BYTES..).unwrap_or_default();
    while let Some((head, after)) = rest.split_at_mut_checked(SECTION_BYTES) {
        let length: [u8; 4] = head[LENGTH..CHECKSUM].try_into().expect("four bytes");
        let Some((payload, next)) = after.split_at_mut_checked(u32::from_le_bytes(length) as usize) else {
            return;
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head[..CHECKSUM]);
        crc.update(payload);
        head[CHECKSUM..].copy_from_slice(&crc.finalize().to_le_bytes());
        rest = next;
    }
}

fn restore(state: &[u8]) {
    // Only read: one for all inputs.
    static RAM: LazyLock<Arc<GuestRam>> = LazyLock::new(devices::ram);
    let ram = &*RAM;
    let (nic, _network) = devices::nic(ram);
    let (console, _) = devices::console(ram);
    let devices = [
        devices::rng(ram),
        devices::disk(ram, DiskAccess::ReadOnly),
        Arc::clone(nic.transport()),
        Arc::clone(console.transport()),
    ];
    // Page tables that lead everywhere: wherever a vCPU is said to be, the walk goes on.
    let read = |gpa: u64| (gpa < 1 << 40).then_some(gpa.wrapping_mul(0x1_0001) & !0x80 | 7);
    if fuzzing::restore(state, &shape(), &devices, read).is_ok() {
        let again =
            fuzzing::restore(state, &shape(), &devices, |gpa| ram.mmap().read_obj(GuestAddress(gpa)).ok());
        again.expect("what was read once is read again");
    }
}

/// The machine of the seeds.
fn shape() -> MachineDescription {
    serde_json::from_str(SHAPE).expect("a description that can be")
}

const SHAPE: &str = r#"{"state_version":1,"vcpus":1,"memory":16777216,"cpuid":[],"feature_msrs":[],"msrs":[16],
    "tsc_khz":2000000,"tsc_offset":true,"host_tsc":0,"host_realtime_ns":0,"xsave_bytes":4096,"devices":[]}"#;

fn machine(text: &[u8]) {
    let Ok(machine) = serde_json::from_slice::<MachineDescription>(text) else { return };
    let _ = (machine.cpuid_crc(), machine.reboots());
    let here = host().cpu;
    let _ = missing_features(&machine.cpu, &here);
    let _ = missing_features(&here, &machine.cpu);
    chosen(&machine.cpu, machine.vcpus.clamp(1, 64), machine.memory);
    let again = serde_json::to_vec(&machine).expect("a description can be written");
    assert_eq!(serde_json::from_slice::<MachineDescription>(&again).ok(), Some(machine));
}

/// A CPU for every choice out of this one.
fn chosen(offer: &Template, vcpus: u32, memory: u64) {
    let Ok(layout) = Layout::for_bytes(memory) else { return };
    for choice in ["host", "x86-64-v1", "x86-64-v3", "x86-64-v2,+aes,-popcnt"] {
        let choice: CpuChoice = choice.parse().expect("a choice that can be");
        if let Ok(cpu) = choice.cpu(offer, vcpus, layout.end()) {
            let _ =
                (lacking(&cpu, offer), cpu.physical_bits(), cpu.linear_bits(), cpu.performance_counters());
        }
    }
}

fn hosts(one: &[u8], other: &[u8]) {
    let hosts: Vec<_> = [one, other].into_iter().filter_map(|text| HostCpu::read(text).ok()).collect();
    if let Ok(shared) = common(&hosts) {
        for host in &hosts {
            let _ = host.cannot_hide(&shared.cpu);
        }
    }
}

/// A host of no vendor, with a few leaves.
fn host() -> HostCpu {
    HostCpu::read(HOST.as_bytes()).expect("a description that can be")
}

const HOST: &str = r#"{"format":1,"always":[],"feature_msrs":[{"index":266,"value":1}],"cpuid":[
    {"function":0,"index":0,"flags":0,"eax":36,"ebx":1970169159,"ecx":1818588270,"edx":1231384169},
    {"function":1,"index":0,"flags":0,"eax":1,"ebx":0,"ecx":4294967295,"edx":4294967295},
    {"function":7,"index":0,"flags":1,"eax":2,"ebx":4294967295,"ecx":4294967295,"edx":4294967295},
    {"function":11,"index":0,"flags":1,"eax":0,"ebx":1,"ecx":256,"edx":0},
    {"function":13,"index":0,"flags":1,"eax":7,"ebx":576,"ecx":832,"edx":0},
    {"function":13,"index":1,"flags":1,"eax":15,"ebx":832,"ecx":256,"edx":0},
    {"function":13,"index":2,"flags":1,"eax":256,"ebx":576,"ecx":0,"edx":0},
    {"function":2147483648,"index":0,"flags":0,"eax":2147483656,"ebx":0,"ecx":0,"edx":0},
    {"function":2147483649,"index":0,"flags":0,"eax":0,"ebx":0,"ecx":4294967295,"edx":4294967295},
    {"function":2147483656,"index":0,"flags":0,"eax":12334,"ebx":0,"ecx":0,"edx":0}]}"#;

pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let behind = |choice: u8, bytes: &[u8]| [&[choice], bytes].concat();
    let mut seeds: Vec<_> =
        GOLDEN.iter().map(|(name, stream)| (format!("only-{name}"), behind(AS_IT_IS, stream))).collect();
    let whole = whole();
    let hosts = [counted(HOST.as_bytes()), HOST.as_bytes().to_vec()].concat();
    seeds.extend([
        ("whole".to_owned(), behind(AS_IT_IS, &whole)),
        ("whole-restamped".to_owned(), behind(RESTAMPED, &whole)),
        ("machine".to_owned(), behind(MACHINE, SHAPE.as_bytes())),
        ("hosts".to_owned(), behind(HOSTS, &hosts)),
    ]);
    seeds
}

/// The golden files, but for the one of a machine of another shape.
const GOLDEN: [(&str, &[u8]); 9] = [
    ("vcpu", include_bytes!("../../../vmm/tests/golden/vcpu-1.bin")),
    ("chips", include_bytes!("../../../vmm/tests/golden/chips-1.bin")),
    ("clock", include_bytes!("../../../vmm/tests/golden/clock-1.bin")),
    ("serial", include_bytes!("../../../vmm/tests/golden/serial-1.bin")),
    ("power", include_bytes!("../../../vmm/tests/golden/power-1.bin")),
    ("virtio-rng", include_bytes!("../../../vmm/tests/golden/virtio-rng-1.bin")),
    ("virtio-blk", include_bytes!("../../../vmm/tests/golden/virtio-blk-1.bin")),
    ("virtio-net", include_bytes!("../../../vmm/tests/golden/virtio-net-1.bin")),
    ("virtio-console", include_bytes!("../../../vmm/tests/golden/virtio-console-1.bin")),
];

/// The state of a whole machine, of golden sections.
fn whole() -> Vec<u8> {
    let shape = shape();
    let kind = vmm::state::Kind { name: "machine", version: 1, tags: &[1, 2, 3] };
    let mut stream = StreamWriter::new(Vec::new());
    stream.section(&kind, 0, |section| {
        section.required(1, &shape.vcpus.to_le_bytes());
        section.required(2, &shape.memory.to_le_bytes());
        section.required(3, &shape.cpuid_crc().to_le_bytes());
    });
    GOLDEN.iter().for_each(|(_, golden)| stream.append(1, &golden[HEADER_BYTES..]));
    stream.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_states_that_can_be_restored() {
        let ram = devices::ram();
        let (nic, _network) = devices::nic(&ram);
        let (console, _) = devices::console(&ram);
        let devices = [
            devices::rng(&ram),
            devices::disk(&ram, DiskAccess::ReadOnly),
            Arc::clone(nic.transport()),
            Arc::clone(console.transport()),
        ];
        fuzzing::restore(&whole(), &shape(), &devices, |_| None).unwrap();
        let mut spoilt = whole();
        spoilt[CHECKSUM + HEADER_BYTES] ^= 1;
        restamp(&mut spoilt);
        assert!(spoilt == whole());
        assert!(common(&[host(), host()]).is_ok());
    }
}
