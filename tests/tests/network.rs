//! Proves that a guest's network goes with it: its taps, what neighbours know of it, and what was sent to it meanwhile.
//!
//! The demo guest has a network interface here and no driver for it: what counts is what the hosts do.

use migrate::client::types::Life;
use migrate::options::InFlightPolicy;
use tests::{Guest, Journey, Vm, World, until};

const GUEST: Guest =
    Guest { nic: Some("tap=tap0,mac=02:00:00:77:00:02"), words: "idle fill=16", ..Guest::IDLE };

/// Another guest cannot have this interface, and says why.
#[track_caller]
fn refused(world: &World, net: &str) -> String {
    let line = ["run", "--name", "other", "--memory", "64M", "--kernel", "kernel", "--net", net];
    let output = world.ask("vmm", line);
    assert_eq!(output.code, Some(1), "{output:?}");
    output.err
}

fn goes_with_the_guest(words: &str) {
    let world = World::networked();
    let mut journey = Journey::begin(&world, GUEST);
    assert!(refused(&world, "tap=tap0").contains("tap tap0 is in use by another program"));
    let stream = world.network().stream();
    for tap in ["tap1", "tap2"] {
        let report = journey.hop(words);
        let counted = report.in_flight.expect("a guest with a network");
        assert_eq!(counted.policy, InFlightPolicy::Forward);
        until("the bridge to learn where the guest is", || {
            (world.network().port_of_the_guest().as_deref() == Some(tap)).then_some(())
        });
        assert!(refused(&world, &format!("tap={tap}")).contains("is in use"));
    }
    drop(stream);
    // Those that it left are free.
    let _other =
        Vm::start(&world, "other", &["run", "--memory", "64M", "--kernel", "kernel", "--net", "tap=tap0"]);
}

#[test]
#[cfg_attr(any(no_kvm, no_netns), ignore = "needs /dev/kvm, /dev/net/tun and network namespaces")]
fn a_network_goes_with_the_guest_by_precopy() {
    goes_with_the_guest("--mode precopy");
}

#[test]
#[cfg_attr(any(no_kvm, no_netns), ignore = "needs /dev/kvm, /dev/net/tun and network namespaces")]
fn a_network_goes_with_the_guest_by_stopcopy() {
    goes_with_the_guest("--mode stopcopy");
}

#[test]
#[cfg_attr(
    any(no_kvm, no_netns, no_userfaultfd),
    ignore = "needs /dev/kvm, /dev/userfaultfd, /dev/net/tun and network namespaces"
)]
fn a_network_goes_with_the_guest_by_postcopy() {
    goes_with_the_guest("--mode postcopy");
}

#[test]
#[cfg_attr(
    any(no_kvm, no_netns, no_userfaultfd),
    ignore = "needs /dev/kvm, /dev/userfaultfd, /dev/net/tun and network namespaces"
)]
fn a_network_goes_with_the_guest_by_hybrid() {
    goes_with_the_guest("--mode hybrid");
}

/// What a guest that stands still for long would get meanwhile.
const LONG_PAUSE: &str = "--mode stopcopy --bandwidth 20M --compression none";

#[test]
#[cfg_attr(any(no_kvm, no_netns), ignore = "needs /dev/kvm, /dev/net/tun and network namespaces")]
fn packets_wait_for_a_guest_that_stands_still_and_are_sent_after_it() {
    let world = World::networked();
    let mut journey = Journey::begin(&world, GUEST);
    let _stream = world.network().stream();
    let counted = journey.hop(LONG_PAUSE).in_flight.expect("a guest with a network");
    assert!(counted.packets > 50 && counted.bytes > 40 * counted.packets, "{counted:?}");
}

#[test]
#[cfg_attr(any(no_kvm, no_netns), ignore = "needs /dev/kvm, /dev/net/tun and network namespaces")]
fn packets_are_not_sent_after_a_guest_where_that_is_not_wanted() {
    let world = World::networked();
    let mut journey = Journey::begin(&world, GUEST);
    let _stream = world.network().stream();
    let counted =
        journey.hop(&format!("{LONG_PAUSE} --in-flight drop")).in_flight.expect("a guest with a network");
    assert_eq!((counted.policy, counted.packets), (InFlightPolicy::Drop, 0));
}

#[test]
#[cfg_attr(any(no_kvm, no_netns), ignore = "needs /dev/kvm, /dev/net/tun and network namespaces")]
fn a_guest_is_kept_with_its_network_where_the_other_host_has_none_for_it() {
    let world = World::networked();
    let mut journey = Journey::begin(&world, GUEST);
    for (net, says) in [
        ("tap=tap7", "there is no tap tap7 here"),
        ("tap=tap0", "tap tap0 is in use by another program"),
        ("tap=br0", "br0 is not a tap interface"),
        ("tap=tap1,bridge=br7", "there is no bridge br7 here for tap tap1"),
    ] {
        let line = ["receive", "--listen", "127.0.0.1:0", "--net", net];
        let mut there = Vm::start(&world, "there", &line);
        let reason = journey.attempt(&there.address(), "--mode precopy").kept();
        assert!(reason.contains(says), "{reason}");
        there.process().kill();
    }
    journey.hop("--mode precopy");
}

#[test]
#[cfg_attr(any(no_kvm, no_netns), ignore = "needs /dev/kvm, /dev/net/tun and network namespaces")]
fn a_tap_that_was_made_goes_with_its_vmm() {
    let world = World::networked();
    let nic = Some("tap=made,create,bridge=br0,mac=02:00:00:77:00:02");
    let mut journey = Journey::begin(&world, Guest { nic, ..GUEST });
    assert!(world.network().ip("link show made").contains("master br0"));
    journey.hop("--mode precopy");
    assert!(!world.network().ip("link show").contains("made"));
}

#[test]
#[cfg_attr(any(no_kvm, no_netns), ignore = "needs /dev/kvm, /dev/net/tun and network namespaces")]
fn a_guest_that_boots_again_keeps_its_tap_and_can_move() {
    let world = World::networked();
    let mut journey = Journey::begin(&world, Guest { words: "idle reset-after=2", ..GUEST });
    until("the guest to boot again", || (journey.here().info().reboots > 0).then_some(()));
    assert!(refused(&world, "tap=tap0").contains("is in use"));
    let there = world.receive("there");
    // It may be booting again just now: then it is asked once more.
    until("the guest to move", || {
        let ending = journey.attempt(&there.address(), "--mode precopy");
        (ending.code == 0).then_some(())
    });
    there.wait_until(Life::Running);
    assert!(refused(&world, "tap=tap1").contains("is in use"));
    journey.here_mut().end();
}

#[test]
#[cfg_attr(any(no_kvm, no_netns), ignore = "needs /dev/kvm, /dev/net/tun and network namespaces")]
fn a_guest_whose_tap_is_taken_away_goes_on_and_its_vmm_says_so_once() {
    let world = World::networked();
    let mut journey = Journey::begin(&world, GUEST);
    world.network().ip("link delete tap0");
    let says = "tap tap0 is gone, the guest's network is cut";
    until("the VMM to notice", || journey.here_mut().process().err().contains(says).then_some(()));
    journey.goes_on();
    assert_eq!(journey.here_mut().process().err().matches(says).count(), 1);
}

#[test]
#[cfg_attr(any(no_kvm, no_netns), ignore = "needs /dev/kvm, /dev/net/tun and network namespaces")]
fn taps_and_bridges_are_the_operators_word() {
    let world = World::networked();
    let journey = Journey::begin(&world, GUEST);
    world.network().ip("link add br1 type bridge");
    let says = refused(&world, "tap=tap3,bridge=br1");
    assert!(says.contains("tap tap3 is a port of bridge br0, not of br1"), "{says}");
    let line = [
        "run", "--name", "other", "--memory", "64M", "--kernel", "kernel", "--net", "tap=tap3", "--net",
        "tap=tap3",
    ];
    let output = world.ask("vmm", line);
    assert!(output.err.contains("tap tap3 is given twice"), "{output:?}");
    let line = ["receive", "--listen", "127.0.0.1:0", "--net", "tap=tap1", "--net", "tap=tap2"];
    let there = Vm::start(&world, "there", &line);
    let reason = journey.attempt(&there.address(), "--mode precopy").kept();
    assert!(
        reason.contains("this host has 2 taps for a guest's network interfaces, the guest has 1"),
        "{reason}"
    );
    journey.goes_on();
}
