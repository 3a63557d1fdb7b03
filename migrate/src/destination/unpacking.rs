//! Packed pages: unpacked as a whole into a buffer, and from there into guest memory.

use std::sync::atomic::{AtomicU64, Ordering};

use super::context::Context;
use super::landing::Landing;
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::guest::Ram;
use crate::pages::{PAGE_SIZE, PageRun};
use crate::report::Traffic;
use crate::wire::limits::RUN_BYTES;
use crate::wire::packed::Unpacker;
use crate::wire::{Admitted, Codec, Head, Kind};

/// What came packed.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    pages: AtomicU64,
    delta_pages: AtomicU64,
    saved_bytes: AtomicU64,
}

impl Unpacked {
    /// Whether anything has: from then on differences may come, and the state is restored when the last round has landed.
    pub(super) fn any(&self) -> bool {
        self.pages.load(Ordering::Acquire) > 0
    }

    /// The part of the traffic that is about this.
    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            packed_pages: self.pages.load(Ordering::Relaxed),
            delta_pages: self.delta_pages.load(Ordering::Relaxed),
            saved_bytes: self.saved_bytes.load(Ordering::Relaxed),
            ..Traffic::default()
        }
    }

    fn count(&self, head: &Head, pages: u64, deltas: u64) {
        let plain = head.argument * RUN_BYTES as u64 + pages * PAGE_SIZE as u64;
        self.pages.fetch_add(pages, Ordering::Release);
        self.delta_pages.fetch_add(deltas, Ordering::Relaxed);
        self.saved_bytes.fetch_add(plain.saturating_sub(head.length as u64), Ordering::Relaxed);
    }
}

impl Context<'_> {
    /// Takes what follows the run table of a packed frame. `body` and `content` are buffers.
    pub(super) fn take_packed(
        &self,
        head: &Head,
        line: &Line,
        pages: Admitted<'_>,
        body: &mut Vec<u8>,
        content: &mut Vec<u8>,
        unpacker: &mut Unpacker,
    ) -> Result<(), Failure> {
        if Codec::of_offer(&self.preflight.codecs).is_none() {
            return Err(line.unexpected(head.kind, "pages as they are: no packing was agreed on"));
        }
        body.resize(head.length - pages.runs().len() * RUN_BYTES, 0);
        line.link().receive(body).map_err(line.broken_off())?;
        content.resize(pages.pages() as usize * PAGE_SIZE, 0);
        let mut deltas = 0;
        let unpacked = unpacker.unpack(head.kind, body, content, |at, into| {
            deltas += 1;
            self.ram.copy_out(PageRun { first: pages.gfn(at), count: 1 }, into);
        });
        unpacked.map_err(Failure::wire(line.peer()))?;
        self.landing.unpacked.count(head, pages.pages(), deltas);
        if head.kind == Kind::PackedPush {
            return self.placing(line, head)?.place(self, pages, content);
        }
        self.landing.land_copy(&*self.ram, pages, content);
        Ok(())
    }
}

impl Landing {
    /// As if the pages had come straight.
    fn land_copy(&self, ram: &dyn Ram, pages: Admitted<'_>, mut content: &[u8]) {
        self.expect_now(ram, pages);
        for run in pages.runs() {
            let (now, rest) = content.split_at(run.bytes() as usize);
            ram.copy_in(*run, now);
            content = rest;
        }
    }
}
