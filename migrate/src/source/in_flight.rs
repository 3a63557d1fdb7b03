//! Packets in flight: what still comes here for a guest that runs there now.
//!
//! While the guest stands still its packets wait where they are. If it runs on here it gets them; once it runs there
//! they are sent after it, on a connection of their own, and so is what neighbours and switches send here until they
//! have learned where it is. Nobody can tell when they all have: when nothing has come for a while, or after a time.

use std::net::Shutdown;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::Journey;
use super::connect::Lines;
use super::context::Context;
use super::us_since;
use crate::alarm::Woken;
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::options::InFlightPolicy;
use crate::report::InFlight;
use crate::threads::start;
use crate::wire::Message;

/// When nothing has come for so long, the network knows where the guest is. Longer than the time between the first two
/// announcements, should the first one be lost.
const QUIET: Duration = Duration::from_millis(100);
/// Longer than this nothing is sent after the guest: then something else is wrong with the network.
const LONGEST: Duration = Duration::from_secs(2);
/// A wait for packets, after which it is looked whether the migration still lasts.
const LOOK_UP: Duration = Duration::from_millis(20);

/// The thread that forwards, if there is one.
pub(super) type Forwarding<'scope> = Option<ScopedJoinHandle<'scope, InFlight>>;

impl<'a> Journey<'a> {
    /// Before the pause: a thread that waits until the guest runs there. None where the guest has no network.
    pub(super) fn stand_by<'scope>(
        &self,
        scope: &'scope Scope<'scope, 'a>,
        lines: &Lines,
    ) -> Result<Forwarding<'scope>, Failure>
    where
        'a: 'scope,
    {
        let (context, Some(line)) = (self.context, lines.packets.clone()) else { return Ok(None) };
        let forwarding = start(scope, "packets", move || {
            let longest = context.timeout.saturating_add(LONGEST);
            match context.alarm.wait_until(longest, || context.departed.get().is_some()) {
                Woken::Done => {
                    context.departed.get().map_or_else(InFlight::default, |at| forward(context, &line, *at))
                }
                Woken::TimeUp | Woken::Stopped => InFlight::default(),
            }
        });
        forwarding.map(Some)
    }

    /// The guest runs there. Wakes nobody where there is nothing to forward.
    pub(super) fn start_forwarding(&self) {
        if self.context.forwards() {
            // Only the one commit of this migration leads here.
            let _ = self.context.departed.set(Instant::now());
            self.context.alarm.nudge();
        }
    }

    /// Waits until the network knows where the guest is.
    pub(super) fn end_forwarding(&mut self, forwarding: Forwarding<'_>) {
        let context = self.context;
        let policy = context.options.in_flight;
        let counted = forwarding.map(|thread| thread.join().unwrap_or_default());
        let networked = context.description.nics > 0;
        self.logbook.report.in_flight = networked.then(|| InFlight { policy, ..counted.unwrap_or_default() });
    }
}

/// Sends packets after the guest. A connection that breaks loses them, as any network may, and nothing else.
fn forward(context: &Context<'_>, line: &Line, departed: Instant) -> InFlight {
    let mut quiet_since = Instant::now();
    let mut count = InFlight { policy: InFlightPolicy::Forward, ..InFlight::default() };
    let (mut packets, mut waited) = (Vec::new(), true);
    let goes_on = |quiet_since: Instant| {
        quiet_since.elapsed() < QUIET && departed.elapsed() < LONGEST && !context.alarm.is_stopped()
    };
    while goes_on(quiet_since) {
        context.guest.take_packets(LOOK_UP, &mut packets);
        for packet in packets.drain(..).take_while(|_| departed.elapsed() < LONGEST) {
            let bytes = packet.bytes.len() as u64;
            if line.tell(&Message::Packet(packet)).is_err() {
                return count;
            }
            count.packets += 1;
            count.bytes += bytes;
            quiet_since = Instant::now();
            // The first ones came in the pause.
            count.last_us = if waited { 0 } else { us_since(departed) };
        }
        waited = false;
    }
    // The end, and the answer to it: then all has been taken.
    line.link().shut(Shutdown::Write);
    match line.hear() {
        Err(Failure::Closed { .. }) => {}
        // A destination that says anything here is none of ours; the guest has moved all the same.
        Ok(_) | Err(_) => line.link().shut(Shutdown::Both),
    }
    count
}
