//! Proves that a guest's disks go with it: whoever runs it has them, and nobody else.

use std::fs::File;

use tests::{Guest, Journey, World};

/// A world with an image of a MiB in it, and a guest that has it.
fn with_disk(world: &World) -> Journey<'_> {
    resize(world, 1 << 20);
    Journey::begin(world, Guest::IDLE.disk("disk.img,serial=data"))
}

fn resize(world: &World, bytes: u64) {
    File::options().create(true).append(true).open(world.path("disk.img")).unwrap().set_len(bytes).unwrap();
}

/// Another guest cannot have the image, and says why.
#[track_caller]
fn is_taken(world: &World) {
    let line = ["run", "--name", "other", "--memory", "64M", "--kernel", "kernel", "--disk", "disk.img,ro"];
    let output = world.ask("vmm", line);
    assert_eq!(output.code, Some(1), "{output:?}");
    assert!(output.err.contains("disk.img is in use: stop the machine that has it"), "{output:?}");
}

fn goes_with_the_guest(words: &str) {
    let world = World::quiet();
    let mut journey = with_disk(&world);
    is_taken(&world);
    for _ in 0..2 {
        journey.hop(words);
        is_taken(&world);
    }
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_disk_goes_with_the_guest_by_precopy() {
    goes_with_the_guest("--mode precopy");
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn a_disk_goes_with_the_guest_by_postcopy() {
    goes_with_the_guest("--mode postcopy");
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_is_kept_with_its_disk_where_the_other_host_has_another() {
    let world = World::quiet();
    let journey = with_disk(&world);
    resize(&world, 2 << 20);
    let there = world.receive("there");
    let reason = journey.attempt(&there.address(), "--mode precopy").kept();
    assert!(reason.contains("disk.img has 2097152 bytes here, the guest's has 1048576"), "{reason}");
    is_taken(&world);
    journey.goes_on();
}
