//! The network interface (virtio 1.2, section 5.1): a tap interface of the host behind three queues.
//!
//! ```text
//! guest ── transmit ──> tap                      in the vCPU's exit
//! guest <── receive ── feeder <── tap            a thread of the device's own, while the machine runs
//! guest ── control: "announced" ──> device
//! ```
//!
//! While the machine stands still, frames wait in the tap. Where it goes on in another place, they are
//! [taken](Nic::take_frames) there, and its neighbours are told where it is now ([`Nic::announce`]).

mod announce;
mod feeder;
mod tap;

use std::borrow::Cow;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::*;

use super::VirtioDevice;
use super::queue::{Broken, Request, Requests, copy_from, copy_to, split, total};
use super::state::FIRST_OWN_TAG;
use crate::config::Mac;
use crate::memory::ram::GuestRam;
use crate::state::{Kind, Section, SectionWriter, StateError};

use feeder::Bell;
pub use feeder::Nic;
pub use tap::{Tap, TapError};

/// A network interface's section in the saved state.
pub const KIND: Kind = Kind { name: "virtio-net", version: 1, tags: &[1, 2, 3, 4, 5, 6, MAC] };

const MAC: u16 = FIRST_OWN_TAG;

/// The header before each frame: `virtio_net_hdr_v1` (section 5.1.6).
pub(super) const HEADER_BYTES: usize = 12;
/// A frame of 1500 bytes of payload, with a VLAN tag, behind its header. Nothing longer is offered or taken.
pub(super) const FRAME_BYTES: usize = HEADER_BYTES + 14 + 4 + 1500;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// The device.
#[derive(Debug)]
pub struct Net {
    tap: Arc<Tap>,
    mac: Mac,
    /// Wakes the feeder.
    bell: Arc<Bell>,
    /// Whether the driver announces itself when it is asked to.
    announces: bool,
    /// Whether it is asked to.
    announce: bool,
    generation: u32,
}

impl Net {
    fn new(tap: Arc<Tap>, mac: Mac, bell: Arc<Bell>) -> Self {
        Self { tap, mac, bell, announces: false, announce: false, generation: 0 }
    }

    fn transmit(&self, requests: &mut Requests<'_>) -> Result<(), Broken> {
        let mut frame = [0; FRAME_BYTES];
        while let Some(request) = requests.take()? {
            let bytes = total(&request.readable) as usize;
            if bytes < HEADER_BYTES {
                return Err(Broken("a frame to send has no header"));
            }
            // Longer ones were not agreed on: they are lost.
            if let Some(frame) = frame.get_mut(..bytes) {
                copy_from(requests.ram(), &request.readable, frame)?;
                // Nor was anything that the header could ask for.
                frame[..HEADER_BYTES].fill(0);
                self.tap.write(frame);
            }
            requests.finish(&request, 0)?;
        }
        Ok(())
    }

    fn control(&mut self, requests: &mut Requests<'_>) -> Result<(), Broken> {
        while let Some(request) = requests.take()? {
            let written = self.obey(requests.ram(), &request)?;
            requests.finish(&request, written)?;
        }
        Ok(())
    }

    /// A command is two bytes, perhaps with more behind them; a byte says how it went (section 5.1.6.5).
    fn obey(&mut self, ram: &GuestRam, request: &Request) -> Result<u32, Broken> {
        let (command, _) = split(&request.readable, 2).ok_or(Broken("a command has no head"))?;
        let mut bytes = [0; 2];
        copy_from(ram, &command, &mut bytes)?;
        let announced = [VIRTIO_NET_CTRL_ANNOUNCE as u8, VIRTIO_NET_CTRL_ANNOUNCE_ACK as u8];
        let outcome = if bytes == announced { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
        if outcome == VIRTIO_NET_OK {
            self.ask_to_announce(false);
        }
        match copy_to(ram, &request.writable, &[outcome as u8])? {
            0 => Err(Broken("a command has no room for its outcome")),
            written => Ok(written),
        }
    }

    /// Whether that changes anything.
    fn ask_to_announce(&mut self, announce: bool) -> bool {
        let changed = std::mem::replace(&mut self.announce, announce) != announce;
        self.generation = self.generation.wrapping_add(changed.into());
        changed
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        [VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE]
            .iter()
            .fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[256, 256, 64]
    }

    fn config(&self) -> Cow<'_, [u8]> {
        let announce = if self.announce { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let status = (VIRTIO_NET_S_LINK_UP | announce) as u16;
        Cow::Owned([&self.mac.bytes()[..], &status.to_le_bytes()].concat())
    }

    fn config_generation(&self) -> u32 {
        self.generation
    }

    fn activate(&mut self, features: u64) {
        self.announces = features & 1 << VIRTIO_NET_F_GUEST_ANNOUNCE != 0;
        self.ask_to_announce(false);
    }

    fn kick(&mut self, queue: usize, requests: &mut Requests<'_>) -> Result<(), Broken> {
        match queue {
            RECEIVE => self.bell.ring(),
            TRANSMIT => self.transmit(requests)?,
            _ => self.control(requests)?,
        }
        Ok(())
    }

    fn wake(&mut self) {
        self.bell.ring();
    }

    fn moved(&mut self) -> bool {
        self.announces && self.ask_to_announce(true)
    }

    fn section(&self) -> &'static Kind {
        &KIND
    }

    fn write_identity(&self, section: &mut SectionWriter<'_>) {
        section.required(MAC, &self.mac.bytes());
    }

    fn check_identity(&self, section: &Section<'_>) -> Result<(), StateError> {
        let ours = section.exactly(MAC, "MAC address", 6)? == self.mac.bytes();
        if ours { Ok(()) } else { Err(section.impossible("MAC address: it is another interface's")) }
    }
}
