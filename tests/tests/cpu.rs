//! Proves that a guest's CPU is the operator's choice, goes with the guest, and is checked before anything moves: a host
//! whose guests may have less refuses it, names every bit, and disturbs nothing.

use migrate::client::types::Life;
use tests::{Guest, Journey, World};

/// What every KVM can hide: it makes these itself. (Some show guests most of the host's CPU, whatever is asked.)
const LESS: &str = "host,-kvmclock2,-tsc-deadline,-kvm-pv-eoi";

/// Each feature that is less, as it is named.
const LESS_BY_NAME: [&str; 4] = [
    "tsc-deadline (CPUID 0x1.0 ECX bit 24)",
    "kvmclock2 (CPUID 0x40000001.0 EAX bit 3)",
    "kvm-pv-eoi (CPUID 0x40000001.0 EAX bit 6)",
    "kvmclock-stable (CPUID 0x40000001.0 EAX bit 24)",
];

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_host_whose_guests_may_have_less_refuses_by_name_and_the_guest_stays() {
    let world = World::alone();
    let mut journey = Journey::begin(&world, Guest::BUSY.cpus(2));
    let small = world.receive_at_most("small", LESS);
    for mode in ["precopy", "postcopy"] {
        let ending = journey.attempt(&small.address(), &format!("--mode {mode}"));
        let reason = ending.kept();
        for name in LESS_BY_NAME {
            assert!(reason.contains(&format!("guests here may not have {name}")), "{name}: {reason}");
        }
        assert_eq!(reason.matches("guests here may").count(), LESS_BY_NAME.len(), "and no others: {reason}");
        let report = ending.report();
        assert_eq!(
            (report.traffic.pages, report.switchover.is_none()),
            (0, true),
            "refused before RAM moves"
        );
    }
    small.wait_until(Life::Waiting);
    assert_eq!(small.console(), b"");
    journey.goes_on();
    journey.hop("--mode precopy --verify");
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_with_less_moves_there_and_back() {
    let world = World::alone();
    let mut journey = Journey::begin(&world, Guest::BUSY.cpus(2).cpu(LESS));
    for (name, most) in [("small", LESS), ("large", "host"), ("again", LESS)] {
        let next = world.receive_at_most(name, most);
        let _ = journey.attempt(&next.address(), "--mode hybrid --verify").moved();
        journey.arrive(next);
    }
    // It took its CPU along: a host that allows less than that still refuses.
    let smaller = world.receive_at_most("smaller", &format!("{LESS},-x2apic"));
    let reason = journey.attempt(&smaller.address(), "--mode precopy").kept();
    assert_eq!(reason.matches("guests here may not have").count(), 1, "{reason}");
    assert!(reason.contains("x2apic (CPUID 0x1.0 ECX bit 21)"), "{reason}");
    journey.goes_on();
}

/// What `vmm` says on standard error when it fails with this status.
fn refused<'a>(world: &World, code: i32, line: impl IntoIterator<Item = &'a str>) -> String {
    let output = world.ask("vmm", line);
    assert_eq!(output.code, Some(code), "{}{}", output.out, output.err);
    output.err
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn what_this_host_lacks_is_refused_before_anything_runs() {
    let world = World::quiet();
    let run = ["run", "--memory", "64M", "--cpu"];
    let receive = ["receive", "--listen", "127.0.0.1:0", "--cpu"];
    for command in [run, receive] {
        let words = refused(&world, 1, command.into_iter().chain(["host,+amx-tile,+vmx"]));
        for name in ["amx-tile (CPUID 0x7.0 EDX bit 24)", "vmx (CPUID 0x1.0 ECX bit 5)", "xsave-amx-data"] {
            assert!(words.contains(name), "{name}: {words}");
        }
        assert_eq!(words.trim_end().lines().count(), 1, "one line: {words}");
        let words = refused(&world, 2, command.into_iter().chain(["host,+mmx9"]));
        assert!(words.contains("\"mmx9\"") && words.contains("vmm cpu --names"), "{words}");
    }
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn hosts_are_described_and_compared() {
    let world = World::quiet();
    let ask = |line: &[&str]| {
        let output = world.ask("vmm", line.iter().copied());
        assert_eq!(output.code, Some(0), "{}", output.err);
        output.out
    };
    let words = ask(&["cpu"]);
    for part in ["vendor ", "level ", "features ", " sse2 ", " x2apic "] {
        assert!(words.contains(part), "{part}: {words}");
    }
    assert!(ask(&["cpu", "--names"]).contains("avx512f (CPUID 0x7.0 EBX bit 16)\n"));
    let here = ask(&["cpu", "--json"]);
    std::fs::write(world.path("here.json"), &here).expect("a file");
    // The same host, had it no x2apic.
    let mut other: serde_json::Value = serde_json::from_str(&here).expect("JSON");
    let leaves = other["cpuid"].as_array_mut().expect("leaves");
    let first = leaves.iter_mut().find(|leaf| leaf["function"] == 1).expect("leaf 1");
    first["ecx"] = (first["ecx"].as_u64().expect("a number") & !(1 << 21)).into();
    std::fs::write(world.path("other.json"), other.to_string()).expect("a file");
    let words = ask(&["cpu", "--common", "here.json", "other.json"]);
    assert!(words.contains("level ") && !words.contains(" x2apic "), "{words}");
    let list = words.lines().find_map(|line| line.strip_prefix("run with    --cpu ")).expect("a list");
    assert!(list.starts_with("x86-64-v") && list.contains(",-x2apic"), "{list}");
    // A guest with that CPU runs here.
    let vm = world.run("pooled", Guest::IDLE.cpu(list.to_owned().leak()));
    let _ = vm.works_on();
    // Files that are none.
    std::fs::write(world.path("bad.json"), "{}").expect("a file");
    other["always"] = serde_json::json!(["mmx9"]);
    std::fs::write(world.path("unknown.json"), other.to_string()).expect("a file");
    for file in ["bad.json", "nowhere.json", "unknown.json"] {
        let words = refused(&world, 1, ["cpu", "--common", "here.json", file]);
        assert!(words.contains(file) && words.trim_end().lines().count() == 1, "{words}");
    }
}
