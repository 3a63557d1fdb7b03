//! Pausing often; and how long it takes to pause, save, restore and build.

use super::*;

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_survives_a_hundred_pauses() {
    let (mut machine, ends) = busy(2);
    for _ in 0..100 {
        let paused = pause(machine);
        let stopped = telemetry(&paused, 2).unwrap().work();
        assert_eq!(telemetry(&paused, 2).unwrap().work(), stopped);
        machine = paused.resume();
    }
    assert_eq!(works_on(&machine, 2, 5000).corruptions, 0);
    assert!(ends.try_recv().is_err());
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_can_be_paused_before_it_has_run_and_while_it_boots() {
    let (hooks, _ends) = hooks();
    let mut machine = Machine::boot(&config(2, "dirty ws=4 rate=max"), hooks).unwrap();
    for _ in 0..50 {
        machine.save().unwrap();
        let running = machine.resume();
        std::thread::sleep(Duration::from_micros(700));
        machine = pause(running);
    }
    let machine = machine.resume();
    assert_eq!(works_on(&machine, 2, 1000).corruptions, 0);
}

/// `cargo test --release -p vmm --lib -- --ignored --nocapture durations`
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
#[ignore = "prints durations, proves nothing"]
fn durations() {
    for cpus in [1, 2] {
        let (mut machine, _ends) = busy(cpus);
        let description = machine.description();
        let (mut pauses, mut saves, mut restores, mut resumes, mut builds) =
            (vec![], vec![], vec![], vec![], vec![]);
        let mut bytes = 0;
        for _ in 0..100 {
            let paused = timed(&mut pauses, || pause(machine));
            let state = timed(&mut saves, || paused.save().unwrap());
            bytes = state.len();
            let mut blank = timed(&mut builds, || Machine::blank(&description, Console::new()).unwrap());
            // As an arriving machine is rehearsed before the pause.
            let own = blank.save().unwrap();
            blank.restore(&own).unwrap();
            timed(&mut restores, || blank.restore(&state).unwrap());
            drop(blank);
            machine = timed(&mut resumes, || paused.resume());
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("{cpus} vCPUs, state of {bytes} bytes; µs: median, 95 %, most");
        for (what, mut times) in [
            ("pause", pauses),
            ("save", saves),
            ("restore", restores),
            ("resume", resumes),
            ("build", builds),
        ] {
            times.sort_unstable();
            println!("  {what:8} {:6} {:6} {:6}", times[50], times[95], times[99]);
        }
    }
}

fn timed<T>(times: &mut Vec<u128>, what: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = what();
    times.push(start.elapsed().as_micros());
    result
}
