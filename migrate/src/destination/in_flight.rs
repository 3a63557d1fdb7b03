//! Packets that the source sends after the guest: delivered one by one, until the source has no more.

use std::net::Shutdown;

use super::context::Context;
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::wire::Message;

impl Context<'_> {
    /// The life of the connection for packets. Whatever ends it loses packets, as any network may, and nothing else.
    pub(super) fn receive_packets(&self, line: &Line) {
        loop {
            match line.hear() {
                Ok(Message::Packet(packet)) if packet.nic < self.preflight.description.nics => {
                    self.guest.deliver_packet(&packet);
                }
                // Before the guest runs here there is nothing to send, nor where nobody sends it anything.
                Err(Failure::Silent { .. }) if !self.alarm.is_stopped() => {}
                Ok(_) | Err(_) => return line.link().shut(Shutdown::Both),
            }
        }
    }
}
