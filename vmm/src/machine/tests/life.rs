//! Booting, ending, being dropped; and what is refused.

use std::path::PathBuf;

use rustix::thread::{CpuSet, sched_getaffinity};

use super::*;
use crate::memory::layout::Layout;
use crate::vcpu;

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn the_demo_guest_boots_and_speaks() {
    for cpus in [1, 2] {
        let (machine, ends) = busy(cpus);
        assert!(machine.console().wait_for("[000001]", LONG));
        let telemetry = works_on(&machine, cpus, 1000);
        assert_eq!((telemetry.corruptions, telemetry.vcpus.len()), (0, cpus as usize));
        assert!(ends.try_recv().is_err());
    }
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn dropping_a_running_machine_ends_its_threads() {
    let (machine, _ends) = busy(2);
    let board = Arc::downgrade(machine.board());
    let started = Instant::now();
    drop(machine);
    assert!(board.upgrade().is_none());
    assert!(started.elapsed() < Duration::from_secs(2));
}

/// A kernel of a few bytes at 1 MiB, entered through its PVH note.
pub(super) fn tiny_kernel(code: &[u8]) -> Vec<u8> {
    elf_kernel(code, 4)
}

/// The same with its note in a segment of kind `note_kind`: entered as Linux is when that is no note's.
fn elf_kernel(code: &[u8], note_kind: u32) -> Vec<u8> {
    const ENTRY: u32 = 0x10_0000;
    let note = [
        &4_u32.to_le_bytes()[..],
        &4_u32.to_le_bytes(),
        &18_u32.to_le_bytes(),
        b"Xen\0",
        &ENTRY.to_le_bytes(),
    ]
    .concat();
    let (note_at, code_at) = (64 + 2 * 56_u64, 64 + 2 * 56 + 20_u64);
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2_u16, 62].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend(1_u32.to_le_bytes());
    elf.extend([u64::from(ENTRY), 64, 0].iter().flat_map(|v| v.to_le_bytes()));
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 2, 0, 0, 0].iter().flat_map(|v| v.to_le_bytes()));
    let mut segment = |kind: u32, at: u64, start: u64, bytes: u64| {
        elf.extend([kind, 7].iter().flat_map(|v| v.to_le_bytes()));
        elf.extend([at, start, start, bytes, bytes, 1].iter().flat_map(|v| v.to_le_bytes()));
    };
    segment(1, code_at, u64::from(ENTRY), code.len() as u64);
    segment(note_kind, note_at, 0, note.len() as u64);
    elf.extend(note);
    elf.extend(code);
    elf
}

pub(super) fn run_kernel(image: &[u8]) -> Result<(Vec<u8>, GuestEnd), MachineError> {
    run_kernel_with(image, None, "")
}

fn run_kernel_with(
    image: &[u8],
    initramfs: Option<PathBuf>,
    typed: &str,
) -> Result<(Vec<u8>, GuestEnd), MachineError> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image).unwrap();
    let (hooks, ends) = hooks();
    let config = MachineConfig { kernel: Kernel::File(file.path().into()), initramfs, ..config(1, "word") };
    let machine = Machine::boot(&config, hooks)?.resume();
    assert_eq!(machine.console().input(typed.as_bytes()), typed.len());
    let end = ends.recv_timeout(LONG).expect("the guest ends");
    let output = machine.console().recent();
    drop(pause(machine));
    Ok((output, end))
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_that_ends_by_itself_is_named() {
    // mov dx, 0x3f8; mov al, 'A'; out dx, al; then the way out.
    let hello = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'A', 0xee];
    let out = |port: u16, value: u8| {
        let [low, high] = port.to_le_bytes();
        [&hello[..], &[0x66, 0xba, low, high, 0xb0, value, 0xee, 0xf4]].concat()
    };
    let triple_fault = [&hello[..], &[0x0f, 0x01, 0x1d, 0, 0, 0, 0, 0x0f, 0x0b]].concat(); // lidt [0]; ud2
    for (code, end) in [
        (out(0x605, 0x20), End::Shutdown),
        (out(0x64, 0xfe), End::Reset),
        (out(0xcf9, 6), End::Reset),
        (triple_fault, End::TripleFault),
    ] {
        let (output, ended) = run_kernel(&tiny_kernel(&code)).unwrap();
        assert_eq!((output.as_slice(), ended), (&b"A"[..], GuestEnd { vcpu: 0, end }));
    }
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn linux_entry_and_initramfs_are_where_the_boot_protocol_says() {
    let initramfs = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(initramfs.path(), "initramfs").unwrap();
    let path = || Some(initramfs.path().to_path_buf());
    #[rustfmt::skip]
    let linux64: &[u8] = &[
        0x8b, 0x9e, 0x28, 0x02, 0, 0, // mov ebx, [rsi + 0x228]: command line
        0x8b, 0x8e, 0x18, 0x02, 0, 0, // mov ecx, [rsi + 0x218]: initramfs
        0x66, 0xba, 0xf8, 0x03,       // mov dx, 0x3f8
        0x48, 0x8a, 0x03, 0xee,       // mov al, [rbx] (64-bit code only); out dx, al
        0x48, 0x8a, 0x01, 0xee,       // mov al, [rcx]; out dx, al
        0x66, 0xba, 0x05, 0x06, 0xb0, 0x20, 0xee, // mov dx, 0x605; mov al, 0x20; out dx, al
    ];
    let (output, ended) = run_kernel_with(&elf_kernel(linux64, 6), path(), "").unwrap();
    assert_eq!((output.as_slice(), ended.end), (&b"wi"[..], End::Shutdown));
    #[rustfmt::skip]
    let pvh: &[u8] = &[
        0x8b, 0x4b, 0x10,             // mov ecx, [ebx + 16]: module list
        0x8b, 0x09,                   // mov ecx, [ecx]
        0x8b, 0x5b, 0x18,             // mov ebx, [ebx + 24]: command line
        0x66, 0xba, 0xf8, 0x03,       // mov dx, 0x3f8
        0x8a, 0x03, 0xee,             // mov al, [ebx]; out dx, al
        0x8a, 0x01, 0xee,             // mov al, [ecx]; out dx, al
        0x66, 0xba, 0x05, 0x06, 0xb0, 0x20, 0xee, // mov dx, 0x605; mov al, 0x20; out dx, al
    ];
    let (output, ended) = run_kernel_with(&elf_kernel(pvh, 4), path(), "").unwrap();
    assert_eq!((output.as_slice(), ended.end), (&b"wi"[..], End::Shutdown));
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn what_is_typed_reaches_the_guest() {
    #[rustfmt::skip]
    let echo: &[u8] = &[
        0x66, 0xba, 0xfd, 0x03, // again: mov dx, 0x3fd
        0xec, 0xa8, 0x01,       // in al, dx; test al, 1
        0x74, 0xf7,             // jz again
        0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
        0xec, 0xee,             // in al, dx; out dx, al
        0x3c, b'.',             // cmp al, '.'
        0x75, 0xed,             // jne again
        0x66, 0xba, 0x05, 0x06, 0xb0, 0x20, 0xee, // mov dx, 0x605; mov al, 0x20; out dx, al
    ];
    let text = "more than the sixty-four bytes that the serial port's own queue can hold at one time, and to the end.";
    let (output, ended) = run_kernel_with(&tiny_kernel(echo), None, text).unwrap();
    assert_eq!((String::from_utf8(output).unwrap().as_str(), ended.end), (text, End::Shutdown));
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn kernels_that_cannot_boot_are_named_with_the_way_out() {
    let message = |image: &[u8]| run_kernel(image).unwrap_err().to_string();
    let kernel = tiny_kernel(&[0xf4; 100]);
    assert!(message(b"").contains("is empty"));
    assert!(message(b"#!/bin/sh").contains("is neither an ELF file nor a bzImage: give a bzImage"));
    assert!(message(b"MZ rest").contains("an EFI program without"));
    assert!(message(&kernel[..kernel.len() - 1]).contains("is truncated or damaged"));
    assert!(message(&kernel[..100]).contains("is truncated or damaged"));
    let mut big = kernel.clone();
    big[64 + 40..64 + 48].copy_from_slice(&(1_u64 << 30).to_le_bytes());
    assert!(message(&big).contains("give the guest more memory"), "{}", message(&big));
    let missing = MachineConfig { kernel: Kernel::File("/nonexistent/vmlinux".into()), ..config(1, "") };
    let error = Machine::boot(&missing, Console::new()).unwrap_err().to_string();
    assert!(error.starts_with("cannot read kernel /nonexistent/vmlinux: "), "{error}");
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn cut_and_random_kernels_never_panic() {
    let ram = GuestRam::new(Layout::for_bytes(64 << 20).unwrap()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = MachineConfig { kernel: Kernel::File(file.path().into()), ..config(1, "") }.boot();
    // What comes after the last segment nobody loads. e_phnum, then p_offset and p_filesz of each.
    let number = |at: usize| u64::from_le_bytes(*guest::IMAGE[at..].first_chunk().unwrap()) as usize;
    let segments = (0..usize::from(guest::IMAGE[0x38])).map(|nth| 64 + nth * 56);
    let end = segments.map(|at| number(at + 8) + number(at + 32)).max().unwrap();
    for at in (0..200).chain((200..end).step_by(4096)) {
        std::fs::write(file.path(), &guest::IMAGE[..at]).unwrap();
        assert!(crate::boot::load(&ram, &config, 1, 1, &[]).is_err(), "cut at {at}");
        let mut damaged = guest::IMAGE.to_vec();
        damaged[at] ^= 0xff;
        std::fs::write(file.path(), &damaged).unwrap();
        let _ = crate::boot::load(&ram, &config, 1, 1, &[]);
    }
}

/// Choices that this host's KVM cannot give, each with the feature that it shows all the same: a few of them.
fn not_to_be_had() -> Vec<(vcpu::Feature, CpuChoice)> {
    let kvm = KvmHost::open().unwrap();
    let always = vcpu::always_shown(&kvm, &vcpu::offer(&kvm, 1).unwrap()).unwrap();
    let choices = always.iter().filter_map(|one| Some((*one, format!("-{}", one.name()?).parse().ok()?)));
    choices.take(5).collect()
}

/// A host says beforehand what its KVM will say when the machine is built.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_without_a_feature_that_is_always_shown_is_refused_before_a_machine_is_built() {
    let supply = supply();
    let shape = Machine::boot(&config(1, ""), Console::new()).unwrap().description();
    for (feature, choice) in not_to_be_had() {
        let cpu = choice.cpu(&supply.cpu(1), 1, 1 << 30).unwrap();
        let without = MachineDescription { cpu, ..shape.clone() };
        let reasons = without.unsupported(&supply, &CpuChoice::default());
        let said = format!("KVM here shows every guest {feature}, which the guest lacks");
        assert!(reasons.contains(&said), "{reasons:#?}");
        assert!(Machine::blank(&without, Console::new()).is_err(), "{feature}");
    }
}

/// The same on a KVM that shows something to all.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_feature_that_is_shown_to_all_is_said_to_be_lacking_from_a_guest() {
    let mut supply = supply();
    let shape = Machine::boot(&config(1, ""), Console::new()).unwrap().description();
    assert_eq!(shape.unsupported(&supply, &CpuChoice::default()), [""; 0]);
    let feature = vcpu::Feature::named("xsaves").unwrap();
    let choice: CpuChoice = "x86-64-v1".parse().unwrap();
    let without = MachineDescription { cpu: choice.cpu(&supply.cpu(1), 1, 1 << 30).unwrap(), ..shape };
    supply.shown_to_all = vec![feature];
    let reasons = without.unsupported(&supply, &CpuChoice::default());
    assert_eq!(reasons, [format!("KVM here shows every guest {feature}, which the guest lacks")]);
}

/// Some KVMs show features whatever is asked. Where there is none, there is nothing to refuse.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_feature_that_cannot_be_hidden_is_refused_by_name() {
    for (feature, cpu) in not_to_be_had() {
        let error = Machine::boot(&MachineConfig { cpu, ..config(1, "") }, Console::new()).unwrap_err();
        let MachineError::Cpu(vcpu::CpuError::Shows(shown)) = &error else { panic!("{error}") };
        assert!(shown.contains(&feature) && error.to_string().contains(&feature.to_string()), "{error}");
    }
}

/// Told so, the machine's vCPU keeps to these cores in the end: each time it is told it has some milliseconds to go there.
fn keeps_to<Life>(machine: &Machine<Life>, cores: Option<&CpuSet>) {
    let deadline = Instant::now() + LONG;
    while machine.vcpus().kept() != [Some(cores.copied())] {
        assert!(Instant::now() < deadline, "{:?}", machine.vcpus().kept());
        machine.vcpus().keep_to(cores);
    }
}

/// Asked so, the machine's vCPU tells a core of these in the end.
fn is_at<Life>(machine: &Machine<Life>, cores: &CpuSet) {
    let deadline = Instant::now() + LONG;
    let is_at = |told: CpuSet| told.count() == 1 && scheduling::common(&told, cores) == told;
    while !is_at(machine.vcpus().are_on()) {
        assert!(Instant::now() < deadline);
    }
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn vcpus_go_where_they_are_told_whether_they_run_or_not_and_work_on() {
    let (mut machine, ends) = busy(1);
    let all = sched_getaffinity(None).unwrap();
    let first = scheduling::only((0..CpuSet::MAX_CPU).find(|core| all.is_set(*core)).unwrap());
    for _ in 0..20 {
        keeps_to(&machine, Some(&first));
        keeps_to(&machine, None);
        machine.vcpus().send_to(&first);
        let deadline = Instant::now() + LONG;
        while machine.vcpus().kept() != [Some(None)] {
            // It was late.
            assert!(Instant::now() < deadline, "{:?}", machine.vcpus().kept());
            machine.vcpus().send_to(&first);
        }
        is_at(&machine, &all);
        let paused = pause(machine);
        keeps_to(&paused, Some(&first));
        is_at(&paused, &first);
        machine = paused.resume();
        // Said before the order to run is taken, it does not take that away.
        machine.vcpus().keep_to(None);
        keeps_to(&machine, None);
    }
    works_on(&machine, 1, 1000);
    assert!(ends.try_recv().is_err());
}
