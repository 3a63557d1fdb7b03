//! Memory that is there. A host that is itself a virtual machine gives memory back to the one below while nobody uses it,
//! and gets it again page by page, which takes longer than all that is measured here: 4 ms for a huge page, instead of
//! 0.1. So what a guest will need is taken, written, and let go of right before it is needed. On a host of iron this
//! changes nothing.

use std::sync::Arc;

use super::LabError;
use super::guest::GuestPlan;
use crate::memory::layout::Layout;
use crate::memory::ram::GuestRam;

/// Bytes made ready in one call.
const PIECE: u64 = 32 << 20;

/// As much memory as a guest has, taken from the host. Dropping it is letting go of it.
#[derive(Debug)]
pub struct BackedMemory(#[expect(dead_code, reason = "held")] Arc<GuestRam>);

impl BackedMemory {
    /// Takes memory of so many bytes, rounded up to what a guest can have.
    ///
    /// # Errors
    /// When the host has no address space for it.
    pub fn take(bytes: u64) -> Result<Self, LabError> {
        let layout = Layout::for_bytes(bytes.next_multiple_of(2 << 20).max(16 << 20));
        let ram = layout.and_then(GuestRam::new).map_err(|error| LabError::Arguments(error.to_string()))?;
        for region in ram.layout().regions() {
            for at in (0..region.bytes).step_by(PIECE as usize) {
                ram.populate(region.start + at, PIECE.min(region.bytes - at));
            }
        }
        Ok(Self(ram))
    }

    /// The same, of as much as a guest will have written, beside other work.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    ///
    /// # Panics
    /// When the thread that takes it does.
    pub async fn for_guest(guest: &GuestPlan) -> Result<Self, LabError> {
        let bytes = guest.written_bytes();
        let taking = tokio::task::spawn_blocking(move || Self::take(bytes));
        taking.await.expect("taking memory does not panic")
    }
}
