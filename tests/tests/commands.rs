//! Proves that the commands `vmm` and `migrate` have manners: exit statuses, one line where one line will do, names and
//! values where something is wrong, and nothing done before it is known to be possible.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::Command;

use migrate::client::types::Life;
use rustix::process::Signal;
use tests::{Guest, Output, World, until};

/// The words that a failed command said: one line, and it failed with this status.
fn refusal(output: &Output, code: i32) -> &str {
    assert_eq!(output.code, Some(code), "{}{}", output.out, output.err);
    assert_eq!(output.err.trim_end().lines().count(), 1, "one line: {}", output.err);
    output.err.trim_end()
}

#[test]
fn no_vm_is_one_line() {
    let world = World::quiet();
    let words = world.ask("migrate", ["--to", "127.0.0.1:9"]);
    assert!(refusal(&words, 2).contains("no VM is running"), "{}", words.err);
    let list = world.ask("vmm", ["list"]);
    assert_eq!(list.code, Some(0), "{}", list.err);
}

#[test]
fn wrong_values_are_named() {
    let world = World::quiet();
    let migrate = |words: &str, says: &str| {
        let output = world.ask("migrate", words.split(' '));
        assert_eq!(output.code, Some(2), "{}", output.err);
        assert!(output.err.contains(says), "{words}: {}", output.err);
    };
    migrate("--to h:1 --max-downtime 300", "'300'");
    migrate("--to h:1 --timeout soon", "'soon'");
    migrate("--to h:1 --bandwidth 10X", "'10X'");
    migrate("--to h:1 --streams 99", "'99'");
    migrate("--to h:1 --mode live", "'live'");
    let vmm = |words: &str, says: &str| {
        let output = world.ask("vmm", words.split(' '));
        assert_eq!(output.code, Some(2), "{words}: {}", output.err);
        assert!(output.err.contains(says), "{words}: {}", output.err);
    };
    vmm("run --memory 12", "12");
    vmm("run --memory 63M", "63M");
    vmm("run --cpus 0", "0");
    vmm("run --name ../x", "../x");
    let output = world.ask("vmm", ["receive", "--listen", "nowhere"]);
    assert!(refusal(&output, 1).contains("nowhere"), "{}", output.err);
}

#[test]
fn the_guest_is_an_elf_file() {
    let world = World::quiet();
    let output = world.command("vmm", ["guest-image"]).output().expect("vmm starts");
    assert!(output.status.success() && output.stdout.starts_with(b"\x7fELF"));
    assert_eq!(output.stdout, guest::IMAGE);
}

#[test]
fn a_host_without_kvm_is_told_so() {
    // A program cannot be started while another thread's child still has it open from the copying.
    let world = World::alone();
    let mut command = world.command("vmm", ["run", "--name", "none", "--memory", "64M"]);
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        let Some(unprivileged) = as_nobody(&world) else {
            // print! would be captured.
            let words = b"SKIPPED: a_host_without_kvm_is_told_so: only root can become a user without KVM\n";
            return drop(io::stderr().write_all(words));
        };
        command = unprivileged;
    }
    let output = world.start(command, "vmm").end();
    assert!(refusal(&output, 1).contains("/dev/kvm"), "{}", output.err);
}

/// A command that tries to run a guest as a user who may not; `None` when there is no such user, or this one is not root.
fn as_nobody(world: &World) -> Option<Command> {
    const NOBODY: u32 = 65534;
    let others = fs::metadata("/dev/kvm").ok()?.permissions().mode() & 0o006;
    let program = world.path("vmm");
    fs::copy(tests::binary("vmm"), &program).expect("a copy");
    fs::create_dir(world.runtime().path()).expect("a folder");
    fs::set_permissions(world.folder(), fs::Permissions::from_mode(0o711)).expect("a folder of this test");
    fs::set_permissions(world.runtime().path(), fs::Permissions::from_mode(0o700))
        .expect("a folder of this test");
    chown(world.runtime().path(), Some(NOBODY), None).ok().filter(|()| others == 0)?;
    let mut command = Command::new(program);
    command.args(["run", "--name", "none", "--memory", "64M"]).env("VMM_RUNTIME_DIR", world.runtime().path());
    command.uid(NOBODY).gid(NOBODY);
    Some(command)
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn several_vms_need_a_name() {
    let world = World::quiet();
    let [one, two] = ["one", "two"].map(|name| world.run(name, Guest::IDLE));
    let output = world.ask("migrate", ["--to", "127.0.0.1:9"]);
    let words = refusal(&output, 2);
    assert!(words.contains("one") && words.contains("two"), "{words}");
    let output = world.ask("migrate", ["--to", "127.0.0.1:9", "--vm", "three"]);
    let words = refusal(&output, 2);
    assert!(words.contains("three") && words.contains("one") && words.contains("two"), "{words}");
    drop((one, two));
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_vm_is_listed_paused_resumed_and_stopped() {
    let world = World::quiet();
    let mut vm = world.run("alone", Guest::IDLE);
    let mut waiting = world.receive("waits");
    let tell = |words: &str| {
        let output = world.ask("vmm", words.split(' '));
        assert_eq!(output.code, Some(0), "{words}: {}", output.err);
        output.out
    };
    let list = tell("list");
    for word in ["alone", "running", "waits", "waiting"] {
        assert!(list.contains(word), "{word}: {list}");
    }
    let address = waiting.address();
    assert!(waiting.process().err().contains(&address), "the address is said");
    tell("pause alone");
    vm.wait_until(Life::Paused);
    assert!(tell("list").contains("paused") && vm.stands_still());
    let output = world.ask("migrate", ["--vm", "alone", "--to", &address]);
    assert!(refusal(&output, 1).contains("paused"), "{}", output.err);
    tell("resume alone");
    let _ = vm.works_on();
    tell("stop alone");
    assert_eq!(vm.end().code, Some(0));
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_signal_stops_a_vm_in_order() {
    let world = World::quiet();
    for signal in [Signal::TERM, Signal::INT] {
        let [mut vm, mut waiting] = [world.run("one", Guest::IDLE), world.receive("two")];
        for vm in [&mut vm, &mut waiting] {
            vm.process().signal(signal);
            let output = vm.end();
            assert_eq!(output.code, Some(0), "{}", output.err);
        }
        assert!(world.runtime().names().expect("a folder").is_empty());
    }
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn only_its_user_can_reach_a_vm() {
    let world = World::quiet();
    let _vm = world.run("mine", Guest::IDLE);
    let mode = |path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!(mode(world.runtime().path().to_owned()), 0o700);
    assert_eq!(mode(world.runtime().socket("mine").expect("a name")), 0o600);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_name_is_taken_once_and_freed_by_death() {
    let world = World::quiet();
    let mut first = world.run("name", Guest::IDLE);
    let second = world.ask("vmm", ["run", "--memory", "64M", "--name", "name", "--cmdline", "idle"]);
    assert!(second.code.is_some_and(|code| code != 0), "{}", second.out);
    assert!(second.err.contains("name"), "{}", second.err);
    first.process().kill();
    drop(first);
    // Its socket is still there, and so may be any other that no one listens on.
    drop(UnixListener::bind(world.runtime().socket("other").expect("a name")));
    for name in ["name", "other"] {
        let _ = world.run(name, Guest::IDLE).works_on();
    }
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_vm_can_be_left_alone() {
    let world = World::quiet();
    let run = ["run", "--memory", "64M", "--name", "left", "--cmdline", "idle", "--detach"];
    let output = world.ask("vmm", run);
    assert_eq!(output.code, Some(0), "{}", output.err);
    // It answers already: the command returned when the guest was there.
    let list = world.ask("vmm", ["list"]);
    assert!(list.out.contains("left") && list.out.contains("running"), "{}", list.out);
    let stop = world.ask("vmm", ["stop", "left"]);
    assert_eq!(stop.code, Some(0), "{}", stop.err);
    until("its end", || world.runtime().names().expect("a folder").is_empty().then_some(()));
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_report_that_cannot_be_written_is_known_before_anything_moves() {
    let world = World::quiet();
    let vm = world.run("stays", Guest::IDLE);
    let next = world.receive("next");
    let words = ["--vm", "stays", "--to", &next.address(), "--report", "/nonexistent/report.json"];
    let output = world.ask("migrate", words);
    assert!(refusal(&output, 2).contains("/nonexistent/report.json"), "{}", output.err);
    assert_eq!((vm.life(), next.life()), (Some(Life::Running), Some(Life::Waiting)));
    let migration = vm.api(async |client| client.migration().await);
    assert!(!migration.active && migration.report.is_none(), "{migration:?}");
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_pause_above_the_limit_is_a_status_and_the_report_a_file() {
    let world = World::alone();
    let mut vm = world.run("slow", Guest::IDLE);
    let _ = vm.works_on();
    let next = world.receive("next");
    let file = world.path("report.json");
    let report = file.to_str().expect("text");
    let words = [
        "--vm",
        "slow",
        "--to",
        &next.address(),
        "--max-downtime",
        "10s",
        "--fail-above",
        "1us",
        "--report",
        report,
    ];
    let output = world.ask("migrate", words);
    assert_eq!(output.code, Some(4), "{}", output.err);
    assert!(
        output.err.contains("--fail-above") && output.out.starts_with("moved: "),
        "{}{}",
        output.err,
        output.out
    );
    let written = fs::read(&file).expect("the report");
    let report: migrate::report::Report = serde_json::from_slice(&written).expect("a report");
    assert_eq!(report.residual_bytes, 0);
    assert_eq!(vm.end().code, Some(0));
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn json_is_a_line_for_each_event_and_the_report_last() {
    let world = World::alone();
    let vm = world.run("told", Guest::IDLE);
    let _ = vm.works_on();
    let next = world.receive("next");
    // Every line is parsed, and the last is the report: see Ending.
    let ending = world.migrate(&vm, &next.address(), "--mode precopy");
    let ending = ending.end();
    let _ = ending.moved();
    assert!(ending.events.len() > 3, "{:?}", ending.events);
}
