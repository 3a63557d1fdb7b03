//! Proves that a VMM is confined while it hosts a guest, each thread as it should be, and what comes of that for its files.
//!
//! That it can do all it must is what all other tests prove: they run with the same filters.

use std::collections::BTreeMap;
use std::fs;

use tests::{Guest, Journey, Vm, World, until};

/// What the kernel says of a process's threads (proc_pid_status(5)): by name, one field.
fn threads(pid: u32, field: &str) -> BTreeMap<String, String> {
    let field = format!("{field}:");
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let read = |folder: &std::path::Path, file| fs::read_to_string(folder.join(file)).ok();
    let known = tasks.filter_map(|task| {
        let folder = task.expect("a thread").path();
        let (name, status) = (read(&folder, "comm")?, read(&folder, "status")?);
        let value = status.lines().find_map(|line| line.strip_prefix(&field)).expect("a field of status");
        Some((name.trim().to_owned(), value.trim().to_owned()))
    });
    known.collect()
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn every_thread_is_confined_and_those_that_meet_the_guest_most() {
    let world = World::quiet();
    let mut vm = world.run("confined", Guest::IDLE);
    let pid = vm.process().id();
    assert!(threads(pid, "NoNewPrivs").values().all(|value| value == "1"));
    // 2: by filters.
    assert!(threads(pid, "Seccomp").values().all(|value| value == "2"), "{:?}", threads(pid, "Seccomp"));
    // A thread has its name, and then its filter, a moment after it began.
    until("more filters on the threads that meet the guest", || {
        let filters = threads(pid, "Seccomp_filters");
        let number = |name: &str| filters.get(name).map(|number| number.parse::<u32>().expect("a number"));
        let (all, vcpu, console) = (number("vmm")?, number("vcpu0")?, number("console-file")?);
        (vcpu > all && console > all).then_some(())
    });
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_host_keeps_an_arriving_guest_from_files_that_are_not_for_guests() {
    let world = World::quiet();
    for folder in ["ours", "theirs"] {
        fs::create_dir(world.path(folder)).unwrap();
    }
    fs::File::create(world.path("ours/disk.img")).unwrap().set_len(1 << 20).unwrap();
    let mut journey = Journey::begin(&world, Guest::IDLE.disk("ours/disk.img"));
    let line = |folder| ["receive", "--listen", "127.0.0.1:0", "--guest-files", folder];
    let mut there = Vm::start(&world, "strict", &line("theirs"));
    if there.process().err().contains("this kernel has no Landlock") {
        eprintln!("NOT PROVEN: this kernel has no Landlock");
        return;
    }
    let reason = journey.attempt(&there.address(), "--mode precopy").kept();
    assert!(reason.contains("disk.img: Permission denied"), "{reason}");
    journey.goes_on();
    let next = Vm::start(&world, "vm1", &line("ours"));
    let _ = journey.attempt(&next.address(), "--mode precopy").moved();
    journey.arrive(next);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn filters_can_be_left_away_and_only_then_is_the_process_open() {
    let world = World::quiet();
    let line = ["run", "--memory", "64M", "--cmdline", "idle", "--seccomp", "off", "--no-landlock"];
    let mut vm = Vm::start(&world, "open", &line);
    let pid = vm.process().id();
    assert!(threads(pid, "Seccomp").values().all(|value| value == "0"));
    assert!(threads(pid, "NoNewPrivs").values().all(|value| value == "1"));
}
