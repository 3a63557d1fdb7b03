//! What all threads of an arrival share.

use std::sync::{Arc, OnceLock};

use super::fault::Placing;
use super::landing::Landing;
use crate::alarm::Alarm;
use crate::channel::Deadlines;
use crate::channel::line::Line;
use crate::guest::{Arriving, Ram};
use crate::priority::Parting;
use crate::progress::{Event, Observer};
use crate::report::Phase;
use crate::wire::{Preflight, RamMap};

pub(super) struct Context<'a> {
    pub(super) preflight: Preflight,
    pub(super) map: RamMap,
    pub(super) guest: Arc<dyn Arriving>,
    pub(super) ram: Arc<dyn Ram>,
    pub(super) control: Line,
    /// Of this conversation.
    pub(super) alarm: Arc<Alarm>,
    pub(super) deadlines: Deadlines,
    pub(super) landing: Arc<Landing>,
    /// Post-copy: set just before the pause; pages are placed from then on.
    pub(super) placing: OnceLock<Arc<Placing>>,
    pub(super) observer: &'a dyn Observer,
    /// How the cores here are parted, if they are.
    pub(super) parting: Option<Parting>,
}

impl Context<'_> {
    pub(super) fn enter(&self, phase: Phase) {
        self.observer.tell(Event::Phase { phase });
    }
}
