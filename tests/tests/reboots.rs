//! Proves that a guest that resets boots again where it is: the same guest with its disks and its console, in a machine
//! that is new; also where it has moved to.

use migrate::client::types::Life;
use tests::{Guest, Journey, Transcript, Vm, World, until};

/// What the guest said on this host, one text for each time it booted; the first may have begun elsewhere.
fn boots(vm: &Vm) -> Vec<String> {
    let text = String::from_utf8_lossy(&vm.console()).into_owned();
    let mut starts: Vec<_> = text.match_indices("[000001] demo guest").map(|(at, _)| at).collect();
    starts.retain(|at| *at > 0);
    let (froms, tos) = ([&[0], &starts[..]].concat(), [&starts[..], &[text.len()]].concat());
    froms.into_iter().zip(tos).map(|(from, to)| text[from..to].to_owned()).collect()
}

/// Waits until the guest has booted here so often, and works.
#[track_caller]
fn works_in_boot(vm: &Vm, number: usize) {
    until(&format!("boot {number} on {}", vm.name()), || {
        let last = boots(vm).get(number)?.clone();
        Transcript::of([last]).has_begun().then_some(())
    });
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_reboots_where_it_has_moved_to_and_can_move_on() {
    let world = World::quiet();
    std::fs::File::create(world.path("disk.img")).unwrap().set_len(1 << 20).unwrap();
    let guest = Guest::IDLE.words("idle reset-after=8").disk("disk.img");
    let mut journey = Journey::begin(&world, guest);
    let uuid = journey.here().info().uuid;
    journey.hop("--mode precopy");
    works_in_boot(journey.here(), 1);
    let (here, texts) = (journey.here(), boots(journey.here()));
    assert!(texts[0].trim_end().ends_with("resetting"), "{}", texts[0]);
    Transcript::of([&texts[1]]).check().unwrap();
    let info = here.info();
    assert_eq!((info.uuid, info.life, info.corruptions), (uuid, Life::Running, Some(0)));
    assert!(info.reboots >= 1);
    let line = ["run", "--name", "thief", "--memory", "64M", "--kernel", "kernel", "--disk", "disk.img"];
    let thief = world.ask("vmm", line);
    assert!(thief.code == Some(1) && thief.err.contains("disk.img is in use"), "{thief:?}");
    let next = world.receive("next");
    drop(journey.attempt(&next.address(), "--mode precopy").moved());
    next.wait_until(Life::Running);
    assert_eq!((next.info().uuid, next.info().reboots), (uuid, 0));
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_that_cannot_boot_where_it_has_moved_to_ends_and_says_which_file_is_missing() {
    let world = World::quiet();
    std::fs::File::create(world.path("disk.img")).unwrap().set_len(1 << 20).unwrap();
    let guest = Guest::IDLE.words("idle reset-after=8").disk("disk.img");
    let mut journey = Journey::begin(&world, guest);
    std::fs::remove_file(world.path("kernel")).unwrap();
    journey.hop("--mode precopy");
    let ended = journey.here_mut().end();
    let kernel = world.path("kernel");
    let says = format!(
        "crashed: the guest asked for a reset and cannot boot again: cannot read kernel {}: No such file",
        kernel.display()
    );
    assert!(ended.code == Some(1) && ended.err.contains(&says), "{ended:?}");
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_reset_gives_a_migration_up_and_the_guest_boots_again_here() {
    let world = World::alone();
    let journey = Journey::begin(&world, Guest::BUSY.words("dirty ws=8 rate=100 fill=64 reset-after=4"));
    let there = world.receive("there");
    let reason = journey.attempt(&there.address(), "--mode precopy --bandwidth 2M --compression none").kept();
    assert!(reason.contains("the guest asked for a reset"), "{reason}");
    works_in_boot(journey.here(), 1);
    journey.here().wait_until(Life::Running);
    there.wait_until(Life::Waiting);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_without_reboot_ends_well_with_its_reset() {
    let world = World::quiet();
    let line = ["run", "--no-reboot", "--memory", "64M", "--cpus", "1", "--cmdline", "reset-after=0"];
    let output = world.ask("vmm", line);
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.out.trim_end().ends_with("resetting"), "{}", output.out);
}
