//! Ends and orders without a guest; with one they are tested from outside.

use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use migrate::client::types::Life;
use migrate::journal::Journals;
use uuid::Uuid;

use super::*;
use crate::config::{Kernel, OnReset};
use crate::control::Vm;
use crate::vcpu::CpuChoice;

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn stopping_the_wait_for_a_guest_closes_its_port() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let handle = VmHandle::receive(
        "test",
        Receiver::on(listener, None).unwrap(),
        ArrivalConfig::default(),
        Console::new(),
        Journals::default(),
    )
    .unwrap();
    assert_eq!(handle.info().listen, Some(address.to_string()));
    handle.stop().unwrap();
    assert_eq!(handle.wait_ended(), Ending::Stopped);
    assert_eq!(handle.info().listen, None);
    let deadline = Instant::now() + Duration::from_secs(5);
    while TcpStream::connect(address).is_ok() {
        assert!(Instant::now() < deadline, "the port is still open");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn nothing_begins_after_the_end() {
    let handle = VmHandle::new("test", None, Console::new(), Journals::default()).unwrap();
    assert!(handle.inner.enter(Stage::Waiting));
    handle.stop().unwrap();
    assert!(!handle.inner.enter(Stage::Waiting));
    assert_eq!(handle.info().life, Life::Stopped);
    handle.stop().unwrap();
}

#[test]
fn a_guest_ends_while_an_order_is_being_obeyed() {
    let handle = VmHandle::new("test", None, Console::new(), Journals::default()).unwrap();
    let _obeying = handle.inner.order();
    handle.inner.guest_ended(0, &GuestEnd { vcpu: 0, end: End::Shutdown });
    assert_eq!(handle.inner.lock().stopped_itself, Some(OwnEnd::Final(Ending::Stopped)));
}

#[test]
fn the_first_word_of_the_present_machine_counts() {
    let handle = VmHandle::new("test", None, Console::new(), Journals::default()).unwrap();
    let said = |reboots, end| {
        handle.inner.guest_ended(reboots, &GuestEnd { vcpu: 1, end });
        match &handle.inner.lock().stopped_itself {
            None => "nothing",
            Some(OwnEnd::Final(Ending::Stopped)) => "stopped",
            Some(_) => "something else",
        }
    };
    assert_eq!(said(1, End::TripleFault), "nothing", "of another machine");
    assert_eq!(said(0, End::Shutdown), "stopped");
    assert_eq!(said(0, End::TripleFault), "stopped");
}

/// A demo guest that resets as soon as it works.
fn resets_at_once(on_reset: OnReset) -> MachineConfig {
    MachineConfig {
        name: "test".parse().unwrap(),
        uuid: Uuid::new_v4(),
        memory: "64M".parse().unwrap(),
        cpus: "2".parse().unwrap(),
        cmdline: "reset-after=0".parse().unwrap(),
        kernel: Kernel::Demo,
        initramfs: None,
        disks: Vec::new(),
        cpu: CpuChoice::default(),
        nics: Vec::new(),
        virtio_console: false,
        on_reset,
    }
}

fn run(config: &MachineConfig) -> Result<VmHandle, StartError> {
    VmHandle::run("test", config, Console::new(), Journals::default(), || Empty::of(config))
}

fn boots(handle: &VmHandle) -> usize {
    String::from_utf8_lossy(&handle.inner.console.recent()).matches("[000001] demo guest").count()
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_that_resets_boots_again_but_not_without_pause() {
    let config = resets_at_once(OnReset::Reboot);
    let started = Instant::now();
    let handle = run(&config).unwrap();
    while boots(&handle) < 4 {
        assert!(!handle.inner.ends_within(Duration::from_millis(10)) && started.elapsed().as_secs() < 30);
        assert!(matches!(handle.info().life, Life::Running | Life::Rebooting));
    }
    assert!(started.elapsed() >= Duration::from_secs(3), "three reboots in {:?}", started.elapsed());
    let info = handle.info();
    assert!((3..=4).contains(&info.reboots), "{info:?}");
    assert_eq!((info.uuid, info.vcpus, info.memory), (Some(config.uuid), Some(2), Some(64 << 20)));
    handle.stop().unwrap();
    assert_eq!(handle.wait_ended(), Ending::Stopped);
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_that_is_not_to_reboot_ends_with_its_reset() {
    let handle = run(&resets_at_once(OnReset::End)).unwrap();
    assert_eq!(handle.wait_ended(), Ending::Stopped);
    assert_eq!((boots(&handle), handle.info().reboots), (1, 0));
}

/// The operator's pause holds whatever the guest does.
#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn a_guest_paused_as_it_resets_boots_paused() {
    let handle = run(&resets_at_once(OnReset::Reboot)).unwrap();
    let reboots = |least| {
        let started = Instant::now();
        while handle.info().reboots < least {
            assert!(started.elapsed().as_secs() < 30);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    while handle.info().life != Life::Rebooting {
        std::thread::sleep(Duration::from_millis(1));
    }
    handle.pause().unwrap();
    reboots(1);
    assert_eq!((handle.info().life, boots(&handle)), (Life::Paused, 1));
    handle.resume().unwrap();
    reboots(2);
    assert!(boots(&handle) >= 2);
    handle.stop().unwrap();
}

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn what_is_gone_when_a_guest_resets_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    std::fs::write(&kernel, guest::IMAGE).unwrap();
    let config = MachineConfig { kernel: Kernel::File(kernel.clone()), ..resets_at_once(OnReset::Reboot) };
    let handle = run(&config).unwrap();
    std::fs::remove_file(&kernel).unwrap();
    let Ending::Crashed(why) = handle.wait_ended() else { panic!("it cannot have booted") };
    let begins = format!(
        "the guest asked for a reset and cannot boot again: cannot read kernel {}: ",
        kernel.display()
    );
    assert!(why.starts_with(&begins), "{why}");
}
