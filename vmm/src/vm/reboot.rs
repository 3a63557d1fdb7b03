//! A guest that resets boots again: a new machine in the place of the old one, in the same process.
//!
//! The reset is told on a vCPU's thread, which the old machine ends with, so a thread of its own does this; it is there from
//! the beginning, because what a vCPU's thread starts could do [no more than that](crate::sandbox). It obeys the operator's orders as an order of its own: a guest that was paused meanwhile boots paused, one that was stopped does
//! not boot. A guest that is leaving is kept first, because its reset gives the migration up.
//!
//! A guest that does nothing but reset must not have the host's processors for it: [`BETWEEN_BOOTS`].

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};
use std::{io, mem, thread};

use migrate::guest::Result;

use crate::control::Ending;
use crate::migration::Resident;

use super::Inner;
use super::stage::Stage;

/// At least so long from one boot to the next. Only a guest that resets sooner waits for the rest of it.
const BETWEEN_BOOTS: Duration = Duration::from_secs(1);

/// Starts the thread. It boots the guest of whoever is sent to it again once it is time, and ends when nobody can send any
/// more.
pub(super) fn start() -> io::Result<Sender<Arc<Inner>>> {
    let (again, asked) = channel::<Arc<Inner>>();
    let body = move || asked.iter().for_each(|inner| boot_again(&inner));
    thread::Builder::new().name("reboot".into()).spawn(body)?;
    Ok(again)
}

fn boot_again(inner: &Arc<Inner>) {
    let since = inner.lock().booted.elapsed();
    if inner.ends_within(BETWEEN_BOOTS.saturating_sub(since)) {
        return;
    }
    let _one = inner.order();
    // Nobody but this thread leads on from a guest that has reset, except to its end.
    let Stage::Here(guest) = inner.stage() else { return };
    eprintln!("vmm: the guest has reset, it boots again");
    if let Err(error) = inner.replace_machine(&guest) {
        inner.end(Ending::Crashed(format!("the guest asked for a reset and cannot boot again: {error}")));
    }
}

impl Inner {
    fn replace_machine(self: &Arc<Self>, guest: &Resident) -> Result<()> {
        let (runs, reboots) = (guest.is_running(), self.lock().reboots + 1);
        let next = guest.boot_again(self.hooks(reboots))?;
        let mut life = self.lock();
        let before = mem::replace(&mut life.stage, Stage::Here(Arc::clone(&next)));
        life.reboots = reboots;
        life.booted = Instant::now();
        life.stopped_itself = None;
        drop(life);
        drop(before);
        if runs { next.resume() } else { Ok(()) }
    }
}
