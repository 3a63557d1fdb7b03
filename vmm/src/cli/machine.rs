//! The one place where the command meets the machine: how a guest is booted, and how one is waited for.

use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;

use crate::config::{GuestName, MachineConfig};
use crate::control::Vm;

/// Where the bytes of the guest's console go besides the control API. Written to and flushed by the machine's side, which
/// may wait for it, so that nothing is lost; errors are ignored (a reader may hang up).
pub(super) type ConsoleSink = Option<Box<dyn Write + Send>>;

/// Boots a guest; it runs when this returns.
pub(super) fn boot(config: MachineConfig, console: ConsoleSink) -> anyhow::Result<Arc<dyn Vm>> {
    drop(console);
    anyhow::bail!("cannot boot {}: there is no machine yet", config.name)
}

/// Waits for a guest at a socket that listens already; returns at once.
pub(super) fn receive(
    name: GuestName,
    listener: TcpListener,
    console: ConsoleSink,
) -> anyhow::Result<Arc<dyn Vm>> {
    drop((listener, console));
    anyhow::bail!("{name} cannot receive: there is no machine yet")
}
