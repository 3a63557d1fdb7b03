//! The one place where the command meets the machine: how a guest is booted, and how one is waited for.

use std::io::Write;
use std::panic;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::Context;
use migrate::Receiver;
use migrate::journal::Journals;

use crate::config::{ArrivalConfig, GuestName, MachineConfig};
use crate::control::Vm;
use crate::devices::Console;
use crate::machine::{Empty, MachineError};
use crate::vm::VmHandle;

/// Where the bytes of the guest's console go besides the control API.
pub(super) type ConsoleSink = Option<Box<dyn Write + Send>>;

/// An empty machine that is being made.
pub(super) type Begun = JoinHandle<Result<Empty, MachineError>>;

/// Begins to make a guest's machine, which takes the kernel about as long as all else that comes before the guest. The thread
/// comes before the process is confined, and so is free: it sees nothing of the guest's, and has ended before anybody does.
pub(super) fn begin(config: &MachineConfig) -> anyhow::Result<Begun> {
    let config = config.clone();
    let make = move || Empty::of(&config);
    thread::Builder::new().name("machine".into()).spawn(make).context("cannot start a thread for the machine")
}

/// Boots a guest in a machine that was begun for it; it runs when this returns.
pub(super) fn boot(
    begun: Begun,
    config: &MachineConfig,
    sink: ConsoleSink,
    journals: Journals,
) -> anyhow::Result<Arc<dyn Vm>> {
    let made = || begun.join().unwrap_or_else(|panic| panic::resume_unwind(panic));
    Ok(Arc::new(VmHandle::run(config.name.as_str(), config, console(sink)?, journals, made)?))
}

/// Waits for a guest at a socket that listens already; returns at once.
pub(super) fn receive(
    name: &GuestName,
    receiver: Receiver,
    arrival: ArrivalConfig,
    sink: ConsoleSink,
    journals: Journals,
) -> anyhow::Result<Arc<dyn Vm>> {
    Ok(Arc::new(VmHandle::receive(name.as_str(), receiver, arrival, console(sink)?, journals)?))
}

fn console(sink: ConsoleSink) -> anyhow::Result<Console> {
    match sink {
        Some(sink) => Console::with_sink(sink).context("cannot start a thread for the console"),
        None => Ok(Console::new()),
    }
}
