//! Proves that a real guest moves between real VMMs inside TLS, by certificates and by a shared key, made by the commands a
//! person has for it; and that one who is not allowed is refused while the guest works on.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use migrate::client::types::Life;
use tests::{Guest, Journey, World};

/// Runs a command that must succeed.
#[track_caller]
fn done(world: &World, words: &str) {
    let output = world.ask("migrate", words.split(' '));
    assert_eq!(output.code, Some(0), "{words}: {}", output.err);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_moves_inside_tls_from_hosts_that_are_allowed() {
    let world = World::alone();
    done(&world, "tls init --dir ca --host a.example 127.0.0.1");
    done(&world, "tls init --dir ca --host b.example");
    let mut journey = Journey::begin(&world, Guest::BUSY);
    let words = ["--tls", "ca/127.0.0.1", "--allow-source", "a.example"];
    let next = world.receive_with("vm1", &words);
    let refused = [
        ("--tls ca/b.example", "not in its --allow-source"),
        ("--tls ca/a.example --tls-name elsewhere.example", "its certificate has another name"),
        ("", "migrations to here are protected"),
    ];
    for (words, says) in refused {
        let reason = journey.attempt(&next.address(), words).kept();
        assert!(reason.contains(says), "{words}: {reason}");
        next.wait_until(Life::Waiting);
    }
    journey.goes_on();
    let report = journey.attempt(&next.address(), "--tls ca/a.example --mode precopy --streams 2 --verify");
    let report = report.moved();
    assert!(report.verification.as_ref().is_some_and(|it| it.mismatched == 0), "{report:?}");
    journey.arrive(next);
}

#[test]
#[cfg_attr(any(no_kvm, no_userfaultfd), ignore = "needs /dev/kvm and /dev/userfaultfd")]
fn a_guest_moves_by_a_shared_key_and_its_memory_follows() {
    let world = World::alone();
    done(&world, "tls psk --out key");
    let mut journey = Journey::begin(&world, Guest::BUSY);
    let next = world.receive_with("vm1", &["--psk", "key"]);
    let report = journey.attempt(&next.address(), "--psk key --mode postcopy").moved();
    assert!(report.postcopy.is_some_and(|figures| figures.missing_pages > 0), "{report:?}");
    journey.arrive(next);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn files_that_will_not_do_are_found_before_anything_begins() {
    let world = World::alone();
    let journey = Journey::begin(&world, Guest::BUSY);
    fs::write(world.path("short"), "password").expect("a file");
    fs::set_permissions(world.path("short"), fs::Permissions::from_mode(0o644)).expect("the file's owner");
    let output = world.ask("migrate", ["--vm", "vm0", "--to", "127.0.0.1:1", "--psk", "short"]);
    assert_eq!(output.code, Some(2), "{}", output.err);
    assert!(output.err.contains("short is a secret that others can read"), "{}", output.err);
    journey.goes_on();
}

#[test]
fn without_protection_other_hosts_are_not_let_in() {
    let world = World::quiet();
    let output = world.ask("vmm", ["receive", "--listen", "0.0.0.0:0"]);
    assert_eq!(output.code, Some(1), "{}", output.err);
    assert!(output.err.contains("give --tls DIR or --psk FILE, or --insecure"), "{}", output.err);
    assert_eq!(output.err.lines().count(), 1, "{}", output.err);
}
