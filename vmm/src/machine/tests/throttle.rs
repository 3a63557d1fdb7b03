//! Holding vCPUs back.

use super::*;
use crate::memory::dirty::DirtyLog;

/// Whether writes are logged without a fault that could be counted.
fn logs_without_faults() -> bool {
    std::fs::read_to_string("/sys/module/kvm_intel/parameters/pml").is_ok_and(|pml| pml.starts_with('Y'))
}

/// Work in so much time.
fn work_in(machine: &Machine<Running>, time: Duration) -> u64 {
    let work = || telemetry(machine, 1).unwrap().work();
    let before = work();
    std::thread::sleep(time);
    work() - before
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_that_is_held_back_does_less_and_is_paused_all_the_same() {
    let (mut machine, ends) = busy(1);
    let time = Duration::from_millis(300);
    let free = work_in(&machine, time);
    machine.vcpus.throttle(96, 0).unwrap();
    let held_back = work_in(&machine, time);
    assert!(held_back > 0 && held_back < free / 2, "{held_back} instead of {free}");
    machine.vcpus.throttle(0, 0).unwrap();
    let freed = work_in(&machine, time);
    assert!(freed > 2 * held_back, "{freed} after {held_back}");
    for _ in 0..20 {
        machine.vcpus.throttle(99, 0).unwrap();
        std::thread::sleep(Duration::from_millis(3));
        let paused = pause(machine);
        let stopped = telemetry(&paused, 1).unwrap().work();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(telemetry(&paused, 1).unwrap().work(), stopped);
        machine = paused.resume();
    }
    // The last pause has ended it.
    let after = work_in(&machine, time);
    assert!(after > 2 * held_back, "{after} after {held_back}");
    assert_eq!(works_on(&machine, 1, 1000).corruptions, 0);
    machine.vcpus.throttle(99, 0).unwrap();
    drop(machine);
    assert!(ends.try_recv().is_err());
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn who_is_not_held_back_runs_on() {
    let (machine, _ends) = busy(2);
    let work = || telemetry(&machine, 2).unwrap().vcpus.iter().map(|vcpu| vcpu.work).collect::<Vec<_>>();
    machine.vcpus.hold_back(96, Some(vec![true, false])).unwrap();
    let before = work();
    std::thread::sleep(Duration::from_millis(400));
    let did: Vec<u64> = work().iter().zip(before).map(|(after, before)| after - before).collect();
    assert!(did[0] > 0 && did[1] > 3 * did[0], "{did:?}");
}

/// Pages written since they were watched last, which they are anew from now on.
fn written(log: &DirtyLog) -> u64 {
    let mut all = 0;
    let mut words = Vec::new();
    log.read(|first, bits| words.push((first, bits.to_vec()))).unwrap();
    for (first, bits) in words {
        all += bits.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        // The VMM's own writes come word by word, and are not KVM's to forget.
        if bits.len() > 1 {
            log.protect(first, &bits).unwrap();
        }
    }
    all
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn the_host_counts_which_vcpu_writes_what_is_logged() {
    if logs_without_faults() {
        return eprintln!("this host logs writes without faults: all vCPUs are held back");
    }
    let (machine, _ends) = busy(1);
    let log = DirtyLog::new(Arc::clone(machine.board().vm()), Arc::clone(machine.ram()));
    log.start().unwrap();
    written(&log);
    machine.vcpus.new_faults();
    std::thread::sleep(Duration::from_millis(200));
    let faults = machine.vcpus.new_faults();
    let pages = written(&log);
    let [Some(faults)] = faults[..] else { panic!("{faults:?}") };
    assert!(pages > 1000 && faults >= pages / 2, "{faults} faults for {pages} pages");
}
