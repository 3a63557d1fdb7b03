//! Frames of pages where both sides can pack: how each goes is judged by how those before it went.
//!
//! Whatever is packed, or kept to send differences against, is copied first and sent from the copy: what the guest writes
//! meanwhile is in the next round, and not in half of this frame. A frame that goes straight costs a few looks at the clock.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Courier, Manner};
use crate::failure::Failure;
use crate::packing::Way;
use crate::pages::PAGE_SIZE;
use crate::source::packing::Packing;
use crate::wire::limits::{HEAD_BYTES, PAGES_PER_PACKED};
use crate::wire::packed::Packer;
use crate::wire::runs::put_runs;
use crate::wire::{Head, Kind};

/// Buffers of a courier that packs, reused for every frame.
#[derive(Default)]
pub(super) struct Press {
    /// As if it were not packed: head, run table and content.
    plain: Vec<u8>,
    mixed: Vec<u8>,
    packed: Vec<u8>,
    packer: Packer,
}

impl Manner {
    fn packed_kind(self) -> Kind {
        match self {
            Self::Land | Self::LandAtOnce => Kind::Packed,
            Self::Place | Self::PlaceAtOnce => Kind::PackedPush,
        }
    }

    fn lands(self) -> bool {
        matches!(self, Self::Land | Self::LandAtOnce)
    }
}

impl Courier<'_> {
    /// Sends the pages that wait; bytes of the frame.
    pub(super) fn send_judged(&mut self, packing: &Packing) -> Result<usize, Failure> {
        let mut way = packing.way(!self.manner.has_time());
        let is_too_large = self.pages > PAGES_PER_PACKED;
        if is_too_large || way == Way::Kept && !(self.manner.lands() && packing.keeps()) {
            way = Way::Straight;
        }
        let began = Instant::now();
        if way == Way::Straight {
            packing.forget(&self.data);
            let bytes = self.send_straight()?;
            packing.sent(bytes, Duration::ZERO, began.elapsed());
            return Ok(bytes);
        }
        let mut press = self.press.take().unwrap_or_default();
        let packed = self.fill(&mut press, packing, way);
        let (frame, took, sending) =
            (if packed { &press.packed } else { &press.plain }, began.elapsed(), Instant::now());
        self.pay(frame.len())?;
        self.link.send(frame).map_err(self.broken())?;
        let bytes = frame.len();
        if packed {
            packing.sent_packed(bytes, took, sending.elapsed());
        } else {
            packing.sent(bytes, took, sending.elapsed());
        }
        self.press = Some(press);
        Ok(bytes)
    }

    /// Copies the pages that wait into a frame, and packs it. Whether it is packed.
    fn fill(&self, press: &mut Press, packing: &Packing, way: Way) -> bool {
        let Press { plain, mixed, packed, packer } = press;
        let content = self.pages as usize * PAGE_SIZE;
        plain.clear();
        plain.extend_from_slice(&self.content_head().encode());
        put_runs(&self.data, plain);
        let mut at = plain.len();
        plain.resize(at + content, 0);
        for run in &self.data {
            let end = at + run.bytes() as usize;
            self.context.ram().copy_out(*run, &mut plain[at..end]);
            at = end;
        }
        let (_, content) = plain.split_at(at - content);
        mixed.clear();
        mixed.extend_from_slice(content);
        let round = self.context.meter.round.load(Ordering::Relaxed);
        let deltas = match self.manner {
            Manner::Land => packing.mix(round, &self.data, content, mixed),
            Manner::LandAtOnce => packing.mix_last(round, &self.data, content, mixed),
            Manner::Place | Manner::PlaceAtOnce => 0,
        };
        if way == Way::Kept && deltas == 0 {
            return false;
        }
        let began = Instant::now();
        packed.clear();
        packed.extend_from_slice(&[0; HEAD_BYTES]);
        put_runs(&self.data, packed);
        let smaller = packer.pack(content, mixed, deltas, packing.level(), packed);
        if way == Way::Packed {
            packing.tried(content.len(), smaller, began.elapsed());
        }
        if smaller {
            let length = packed.len() - HEAD_BYTES;
            let head = Head::new(self.manner.packed_kind(), length, self.data.len() as u64);
            packed[..HEAD_BYTES].copy_from_slice(&head.encode());
            if self.manner == Manner::Land {
                packing.note_packed();
            }
            let meter = &self.context.meter;
            meter.packed_pages.fetch_add(self.pages, Ordering::Relaxed);
            meter.delta_pages.fetch_add(deltas.count_ones().into(), Ordering::Relaxed);
            meter.saved_bytes.fetch_add((plain.len() - packed.len()) as u64, Ordering::Relaxed);
        }
        smaller
    }
}
