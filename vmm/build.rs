//! Tells the tests whether guests can run on this machine, so that those that need KVM or userfaultfd are counted as ignored, with
//! the reason, instead of passing without having proven anything. The program itself does not depend on it.

use std::fs::OpenOptions;

fn main() {
    tell("/dev/kvm", "no_kvm");
    tell("/dev/userfaultfd", "no_userfaultfd");
}

/// Sets `cfg` where `device` cannot be used.
fn tell(device: &str, cfg: &str) {
    println!("cargo::rustc-check-cfg=cfg({cfg})");
    println!("cargo::rerun-if-changed={device}");
    if let Err(error) = OpenOptions::new().read(true).write(true).open(device) {
        println!("cargo::rustc-cfg={cfg}");
        println!("cargo::warning={device} cannot be used ({error}): the tests that need it are IGNORED");
    }
}
