//! A machine on KVM whose guest can be moved while it runs.
//!
//! ```text
//! config ──> machine ──> vcpu (one thread each) ──> devices
//!               │  └───> boot (kernel into RAM, entry registers)
//!               └──────> memory (RAM, dirty log, faults)
//! ```
//!
//! [`machine::Machine`] is the door: it boots a guest or builds a blank machine for one that arrives, and is the only
//! place that starts and stops it. State can be taken from a paused machine only, by type. What is saved is described
//! byte by byte in `docs/state.md`. Nothing here but the adapter knows that guests move.

pub mod bench;
pub mod boot;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod devices;
#[doc(hidden)]
pub mod fuzzing;
pub mod kvm;
pub mod lab;
pub mod machine;
pub mod memory;
pub mod migration;
pub mod sandbox;
pub mod state;
pub mod vcpu;
pub mod vm;
