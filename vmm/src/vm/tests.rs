//! Ends and orders without a guest; with one they are tested from outside.

use std::net::TcpStream;
use std::time::Instant;

use super::*;
use crate::control::Vm;

#[test]
#[cfg_attr(no_kvm, ignore = "needs /dev/kvm")]
fn stopping_the_wait_for_a_guest_closes_its_port() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let handle = VmHandle::receive("test", listener, ArrivalConfig::default(), Console::new()).unwrap();
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
    let handle = VmHandle::new("test", None, Console::new(), Stage::Waiting);
    assert!(handle.inner.enter(Stage::Waiting));
    handle.stop().unwrap();
    assert!(!handle.inner.enter(Stage::Waiting));
    assert_eq!(handle.info().life, migrate::client::types::Life::Stopped);
    handle.stop().unwrap();
}

#[test]
fn a_guest_ends_while_an_order_is_being_obeyed() {
    let handle = VmHandle::new("test", None, Console::new(), Stage::Waiting);
    let _obeying = handle.inner.order();
    handle.inner.guest_ended(&GuestEnd { vcpu: 0, end: End::Shutdown });
    assert_eq!(handle.inner.lock().stopped_itself, Some(Ending::Stopped));
}
