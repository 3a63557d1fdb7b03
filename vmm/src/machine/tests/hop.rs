//! From one machine into another of this process: the guest goes on.

use vm_memory::GuestMemoryBackend;

use super::*;
use crate::devices::Device;
use crate::state::Stream;

/// Copies all RAM.
fn copy_ram(from: &Machine<Paused>, to: &Machine<Paused>) {
    let bytes = from.ram().layout().bytes() as usize;
    let mut page = vec![0; 1 << 20];
    for at in (0..bytes).step_by(page.len()) {
        from.ram().mmap().read_slice(&mut page, GuestAddress(at as u64)).unwrap();
        if page.iter().any(|byte| *byte != 0) {
            to.ram().mmap().write_slice(&page, GuestAddress(at as u64)).unwrap();
        }
    }
    assert_eq!(to.ram().mmap().num_regions(), 1);
}

fn hop(from: Machine<Paused>, hooks: Hooks) -> Machine<Paused> {
    let description = serde_json::to_string(&from.description()).unwrap();
    let description: MachineDescription = serde_json::from_str(&description).unwrap();
    assert_eq!(description.unsupported(&supply(), &CpuChoice::default()), [""; 0]);
    let mut to = Machine::blank(&description, hooks).unwrap();
    let state = from.save().unwrap();
    copy_ram(&from, &to);
    drop(from);
    to.restore(&state).unwrap();
    to
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn the_guest_goes_on_in_another_machine() {
    for cpus in [1, 2] {
        let (mut machine, _) = busy(cpus);
        for round in 0..5 {
            let before = works_on(&machine, cpus, 500);
            let (hooks, ends) = hooks();
            machine = hop(pause(machine), hooks).resume();
            let after = works_on(&machine, cpus, 2000);
            assert_eq!(after.corruptions, 0, "round {round}: {:?}", after.first_corruption);
            for (vcpu, was) in after.vcpus.iter().zip(&before.vcpus) {
                assert!(vcpu.work > was.work && vcpu.ticks > was.ticks && vcpu.last_tsc > was.last_tsc);
            }
            assert!(ends.try_recv().is_err());
        }
    }
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_state_saved_again_is_the_same() {
    let (machine, _) = busy(2);
    let machine = pause(machine);
    let first = hop(machine, hooks().0);
    let second = hop_without_clocks(&first);
    assert_eq!(registers(&first.save().unwrap(), 2), registers(&second.save().unwrap(), 2));
}

fn hop_without_clocks(from: &Machine<Paused>) -> Machine<Paused> {
    let mut to = Machine::blank(&from.description(), hooks().0).unwrap();
    copy_ram(from, &to);
    to.restore(&from.save().unwrap()).unwrap();
    to
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn kvmclock_stands_still_or_runs_on_between_two_machines() {
    let from = pause(busy(1).0);
    let clock = |state: &[u8]| {
        let stream = Stream::read(state, &super::super::saved::KINDS).unwrap();
        Duration::from_nanos(stream.section(&chips::CLOCK, 0).unwrap().number::<8>(1, "kvmclock").unwrap())
    };
    for policy in [PausedClock::StandsStill, PausedClock::RunsOn] {
        let mut to = Machine::blank(&from.description(), hooks().0).unwrap();
        copy_ram(&from, &to);
        let state = from.save_with(policy).unwrap();
        let saved = Instant::now();
        std::thread::sleep(Duration::from_millis(200));
        let apart = saved.elapsed();
        let restoring = Instant::now();
        to.restore(&state).unwrap();
        let there = to.save().unwrap();
        let passed = clock(&there).checked_sub(clock(&state)).expect("never back");
        // A millisecond for what clocks and their readings may differ by.
        let slack = Duration::from_millis(1);
        match policy {
            PausedClock::StandsStill => assert!(passed <= restoring.elapsed() + slack, "{passed:?}"),
            PausedClock::RunsOn => assert!(passed + slack >= apart, "{passed:?} of {apart:?}"),
        }
    }
}

/// regs, sregs, xsave, xcrs, debugregs of all vCPUs: what no clock changes.
fn registers(state: &[u8], vcpus: u32) -> Vec<Vec<u8>> {
    use crate::state::Stream;
    let kinds = saved::KINDS;
    let stream = Stream::read(state, &kinds).unwrap();
    let of = |vcpu, tag| stream.section(&crate::vcpu::KIND, vcpu).unwrap().optional(tag).unwrap().to_vec();
    (0..vcpus).flat_map(|vcpu| [2, 3, 4, 5, 6].map(|tag| of(vcpu, tag))).collect()
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn what_is_not_a_state_of_this_machine_is_refused_and_changes_nothing() {
    let (machine, _) = busy(1);
    let mut machine = pause(machine);
    let state = machine.save().unwrap();
    let (other, _) = busy(2);
    let error = machine.restore(&pause(other).save().unwrap()).unwrap_err().to_string();
    assert_eq!(error, "saved state is of another machine: number of vCPUs is 0x2, here 0x1");
    for end in (0..state.len()).step_by(97) {
        assert!(machine.restore(&state[..end]).is_err());
    }
    for at in (0..state.len()).step_by(31) {
        let mut damaged = state.clone();
        damaged[at] ^= 0x10;
        assert!(machine.restore(&damaged).is_err(), "flipped at {at}");
    }
    machine.restore(&state).unwrap();
    let machine = machine.resume();
    assert_eq!(works_on(&machine, 1, 1000).corruptions, 0);
}

/// The interrupt controller's line 9 is high in a state saved after the button was pressed, and again after that state
/// was restored: the press is still to be heard.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_pressed_power_button_stays_pressed() {
    let line = |state: &[u8]| {
        let stream = crate::state::Stream::read(state, &saved::KINDS).unwrap();
        let ioapic = stream.section(&chips::CHIPS, 0).unwrap().optional(3).unwrap();
        // irr of kvm_ioapic_state, after the chip's number, and base_address, ioregsel and id.
        u32::from_le_bytes(*ioapic[8 + 16..].first_chunk().unwrap()) >> 9 & 1
    };
    let (machine, _) = busy(1);
    let machine = pause(machine);
    machine.board().power().write(2, &[0, 1]);
    assert_eq!(line(&machine.save().unwrap()), 0);
    machine.press_power_button();
    assert_eq!(line(&machine.save().unwrap()), 1);
    let there = hop(machine, hooks().0);
    assert_eq!(line(&there.save().unwrap()), 1);
    there.board().power().write(0, &[0, 1]);
    assert_eq!(line(&there.save().unwrap()), 0);
    assert_eq!(works_on(&there.resume(), 1, 1000).corruptions, 0);
}

/// Who stands by runs when it is told, whatever else it is told before, and however late.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn vcpus_that_stand_by_obey_any_order() {
    for vcpus in [1, 2] {
        let (machine, _) = busy(vcpus);
        let mut machine = pause(machine);
        for late in [0, 20] {
            machine.stand_by();
            machine.stand_by();
            let state = machine.save().unwrap();
            machine.restore(&state).unwrap();
            machine.stand_by();
            std::thread::sleep(Duration::from_millis(late));
            machine = pause(machine.resume());
        }
        let machine = machine.resume();
        assert_eq!(works_on(&machine, vcpus, 1000).corruptions, 0);
        pause(machine).stand_by();
    }
}

/// Nothing of the guest is executed while vCPUs are made ready to run it, however often and long.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn what_is_made_ready_runs_nothing() {
    for vcpus in [1, 2] {
        let (machine, _) = busy(vcpus);
        let machine = pause(machine);
        let (state, work) = (machine.save().unwrap(), telemetry(&machine, vcpus).unwrap().work());
        for _ in 0..3 {
            machine.vcpus.warm_up().unwrap();
            machine.stand_by();
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(registers(&machine.save().unwrap(), vcpus), registers(&state, vcpus));
        assert_eq!(telemetry(&machine, vcpus).unwrap().work(), work);
        assert_eq!(works_on(&machine.resume(), vcpus, 1000).corruptions, 0);
    }
}

/// Bytes changed under a right checksum: KVM judges them, nobody panics, and the machine still answers.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn any_values_are_applied_or_refused() {
    [1, 2].into_iter().for_each(damaged_states_of);
}

fn damaged_states_of(vcpus: u32) {
    let (machine, _) = busy(vcpus);
    let machine = pause(machine);
    let (state, description) = (machine.save().unwrap(), machine.description());
    let mut blank = Machine::blank(&description, Console::new()).unwrap();
    let mut number = 1_u32;
    for _ in 0..2000 {
        let mut damaged = state.clone();
        for _ in 0..4 {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = 16 + (number >> 8) as usize % (damaged.len() - 16);
            damaged[at] = (number >> 4) as u8;
        }
        crate::state::restamp(&mut damaged);
        let _ = blank.restore(&damaged);
    }
    blank.restore(&state).unwrap();
    copy_ram(&machine, &blank);
    drop(machine);
    let machine = blank.resume();
    assert_eq!(works_on(&machine, vcpus, 1000).corruptions, 0);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_description_says_every_reason_at_once() {
    let machine = Machine::boot(&config(1, ""), Console::new()).unwrap();
    let mut wrong = machine.description();
    wrong.vcpus = 65;
    wrong.memory += 1;
    wrong.msrs.push(0x1234_5678);
    wrong.devices[0].version = 2;
    wrong.state_version = 9;
    let leaf7 = wrong.cpu.cpuid.iter_mut().find(|leaf| leaf.function == 7).unwrap();
    leaf7.edx |= 1 << 24;
    let reasons = wrong.unsupported(&supply(), &CpuChoice::default());
    for part in ["65", "memory size", "0x12345678", "\"serial\" of version 2", "version 9", "amx-tile"] {
        assert!(reasons.iter().any(|reason| reason.contains(part)), "{part} is not in {reasons:#?}");
    }
}

/// Whatever CPU of the host a machine is made on, its CPU is the same.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn two_boots_make_one_cpu() {
    let here = rustix::thread::sched_getaffinity(None).unwrap();
    let checksum_on = |cpu: usize| {
        rustix::thread::sched_setaffinity(None, &scheduling::only(cpu)).unwrap();
        Machine::boot(&config(2, ""), Console::new()).unwrap().description().cpuid_crc()
    };
    let all = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| here.is_set(*cpu));
    let checksums: Vec<_> = all.map(checksum_on).collect();
    assert!(checksums.iter().all(|one| *one == checksums[0]), "{checksums:x?}");
}
