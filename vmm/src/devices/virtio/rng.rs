//! The source of randomness (virtio 1.2, section 5.4): fills what the driver gives it from the host's own.
//!
//! It has nothing of its own to save.

use std::borrow::Cow;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::VirtioDevice;
use super::queue::{Broken, Request, Requests, copy_to, split, total};
use super::state::TRANSPORT_TAGS;
use crate::memory::ram::GuestRam;
use crate::state::{Kind, Section, SectionWriter, StateError};

/// Its section in the saved state.
pub const KIND: Kind = Kind { name: "virtio-rng", version: 1, tags: &TRANSPORT_TAGS };

/// Most bytes for one request. The device need not fill all of a buffer; Linux asks for 64 or fewer at a time.
const MAX_BYTES: u64 = 4096;

/// The device.
#[derive(Debug)]
pub struct Rng;

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64]
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }

    fn activate(&mut self, _: u64) {}

    fn kick(&mut self, _: usize, requests: &mut Requests<'_>) -> Result<(), Broken> {
        while let Some(request) = requests.take()? {
            let written = fill(requests.ram(), &request)?;
            requests.finish(&request, written)?;
        }
        Ok(())
    }

    fn section(&self) -> &'static Kind {
        &KIND
    }

    fn write_identity(&self, _: &mut SectionWriter<'_>) {}

    fn check_identity(&self, _: &Section<'_>) -> Result<(), StateError> {
        Ok(())
    }
}

fn fill(ram: &GuestRam, request: &Request) -> Result<u32, Broken> {
    let mut bytes = [0; MAX_BYTES as usize];
    let wanted = total(&request.writable).min(MAX_BYTES);
    let (pieces, _) = split(&request.writable, wanted).unwrap_or_default();
    // The host's randomness can be cut short by a signal (getrandom(2)): then the driver has what there is.
    let flags = rustix::rand::GetRandomFlags::empty();
    let got = rustix::rand::getrandom(&mut bytes[..wanted as usize], flags).unwrap_or(0);
    copy_to(ram, &pieces, &bytes[..got])
}
