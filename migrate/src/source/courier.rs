//! Pages into frames, frames onto a link: the hot path of the source.
//!
//! A courier owns one link's side of the data plane and buffers that are reused for every frame. Pages are
//! written straight from guest memory, many runs a frame; zero pages become marks. No allocation a page.

mod judged;
mod size;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use self::judged::Press;
use self::size::Size;
use super::context::Context;
use super::packing::Packing;
use crate::alarm::Woken;
use crate::channel::Link;
use crate::channel::limiter::Limiter;
use crate::failure::Failure;
use crate::pages::PageRun;
use crate::priority::{PORTION, Turns};
use crate::wire::limits::{HEAD_BYTES, RUN_BYTES};
use crate::wire::runs::put_runs;
use crate::wire::{Head, Kind, Message};

/// Whether pages land in memory or are placed for a guest that may wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// While the guest runs here, or nobody has asked for a short pause: each frame waits for the rate limit.
    Land,
    /// In a pause that is to be short: not held up by the rate limit.
    LandAtOnce,
    /// While the guest runs there: it may wait for what is claimed, so the rate limit is waited for
    /// [before claiming](Courier::wait_turn).
    Place,
    /// … and does wait: not held up by the rate limit.
    PlaceAtOnce,
}

impl Manner {
    fn kinds(self) -> (Kind, Kind) {
        match self {
            Self::Land | Self::LandAtOnce => (Kind::Pages, Kind::Zeros),
            Self::Place | Self::PlaceAtOnce => (Kind::Push, Kind::PushZeros),
        }
    }

    /// Whether nobody waits for these pages just now.
    fn has_time(self) -> bool {
        matches!(self, Self::Land | Self::Place)
    }
}

pub(super) struct Courier<'a> {
    context: &'a Context<'a>,
    link: Arc<dyn Link>,
    is_within_host: bool,
    manner: Manner,
    /// Runs with content that wait for a full frame, and their pages.
    data: Vec<PageRun>,
    pages: u64,
    /// Pages that make it full.
    most: u64,
    zeros: Vec<PageRun>,
    /// Frames of pages and zero marks sent, and their bytes.
    frames: u64,
    bytes: u64,
    turns: Turns,
    /// Of frames that nobody waits for.
    size: Size,
    /// Reused: what `split_zeros` finds, and the head with its run table.
    found: Vec<PageRun>,
    head: Vec<u8>,
    /// Taken when a frame is not sent straight from guest memory.
    press: Option<Box<Press>>,
}

impl<'a> Courier<'a> {
    pub(super) fn new(context: &'a Context<'a>, link: &Arc<dyn Link>, manner: Manner) -> Self {
        let runs = Kind::Pages.runs();
        Self {
            context,
            link: Arc::clone(link),
            is_within_host: link.is_within_host(),
            manner,
            data: Vec::with_capacity(runs),
            pages: 0,
            most: PORTION,
            zeros: Vec::with_capacity(runs),
            frames: 0,
            bytes: 0,
            turns: Turns::beside(context.description.vcpus),
            size: Size::default(),
            found: Vec::with_capacity(runs),
            head: Vec::with_capacity(HEAD_BYTES + runs * RUN_BYTES),
            press: None,
        }
    }

    /// The calling thread sends on a data connection, and nothing else. It may keep to other cores until this is dropped.
    pub(super) fn is_of_crew(&mut self) {
        self.turns = self.context.turns_of_bulk(&self.link);
    }

    /// What the calling thread sends from here on is missing where the guest runs.
    pub(super) fn sends_what_is_missing(&mut self) {
        self.turns.part(self.context.parting.as_ref());
    }

    /// The calling thread was woken, on a vCPU's core perhaps.
    pub(super) fn step_aside(&mut self) {
        self.turns.step_aside();
    }

    /// From here on pages go in this manner.
    pub(super) fn change(&mut self, manner: Manner) {
        debug_assert!(self.data.is_empty(), "what waits goes in the manner before");
        self.manner = manner;
    }

    /// Frames of pages and zero marks sent so far.
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    /// Their bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Connections that share the network.
    pub(super) fn streams(&self) -> u32 {
        self.context.streams()
    }

    /// What the link takes, bytes per second, where that is known.
    pub(super) fn link_rate(&self) -> Option<f64> {
        self.context.packing.get().and_then(Packing::link_rate)
    }

    /// Waits until the rate limit allows more; nothing need be claimed for it yet.
    pub(super) fn wait_turn(&self) -> Result<(), Failure> {
        self.waiting(|| self.pace(0))
    }

    /// Does what holds up sending: where it takes long, the link is slow.
    pub(super) fn waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        let Some(packing) = self.context.packing.get() else { return wait() };
        let since = Instant::now();
        let waited = wait();
        packing.waited(since.elapsed());
        waited
    }

    /// Waits for an answer to what was sent.
    pub(super) fn wait_for_answer<T>(&mut self, wait: impl FnOnce() -> T) -> T {
        let since = Instant::now();
        let answer = self.waiting(wait);
        self.size.waited(since.elapsed());
        answer
    }

    /// Sends the pages of `run`, now or with a later one.
    pub(super) fn add(&mut self, run: PageRun) -> Result<(), Failure> {
        self.context.ram().split_zeros(run, &mut self.zeros, &mut self.found);
        if self.zeros.len() >= self.manner.kinds().1.runs() {
            self.send_zeros()?;
        }
        let mut found = std::mem::take(&mut self.found);
        let sent = found.drain(..).try_for_each(|part| self.put(part));
        self.found = found;
        sent
    }

    /// Sends what waits.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.send_zeros()?;
        self.send_data()
    }

    /// Says something on the same link, after all pages added before.
    pub(super) fn tell(&mut self, message: &Message) -> Result<(), Failure> {
        self.flush()?;
        let frame = message.encode().map_err(Failure::wire(self.link.peer()))?;
        self.send(&frame)
    }

    fn put(&mut self, mut part: PageRun) -> Result<(), Failure> {
        let most_runs = self.manner.kinds().0.runs();
        while part.count > 0 {
            if self.pages == 0 {
                self.most = self.most_pages();
            }
            let count = part.count.min(self.most - self.pages);
            self.data.push(PageRun { first: part.first, count });
            self.pages += count;
            part = PageRun { first: part.first + count, count: part.count - count };
            if self.pages == self.most || self.data.len() == most_runs {
                self.send_data()?;
            }
        }
        Ok(())
    }

    /// Pages of the frame that begins. One that may be packed is no larger than a portion; nor where there is a rate limit, under which
    /// larger ones would come by fits and starts.
    pub(super) fn most_pages(&self) -> u64 {
        let is_plain = self.context.packing.get().is_none_or(Packing::is_idle);
        if !is_plain || self.limiter().is_some() {
            return PORTION;
        }
        match self.manner {
            Manner::Land => self.size.pages(),
            Manner::Place if self.is_within_host => self.size.pages_of_push(self.streams()),
            _ => PORTION,
        }
    }

    fn send_data(&mut self) -> Result<(), Failure> {
        if self.data.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        let bytes = match self.context.packing.get() {
            Some(packing) => self.send_judged(packing)?,
            None => self.send_straight()?,
        };
        self.context.meter.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.context.meter.pages.fetch_add(self.pages, Ordering::Relaxed);
        self.count(bytes);
        if self.manner.has_time() {
            self.size.sent(self.pages, began.elapsed());
            self.turns.offer_core();
        }
        self.data.clear();
        self.pages = 0;
        Ok(())
    }

    /// The head of a frame with the pages that wait, as they are.
    fn content_head(&self) -> Head {
        let content = self.pages as usize * crate::pages::PAGE_SIZE;
        let table = self.data.len() * RUN_BYTES;
        Head::new(self.manner.kinds().0, table + content, self.data.len() as u64)
    }

    /// Sends the pages that wait from guest memory; bytes of the frame.
    fn send_straight(&mut self) -> Result<usize, Failure> {
        let head = self.content_head();
        self.head.clear();
        self.head.extend_from_slice(&head.encode());
        put_runs(&self.data, &mut self.head);
        let bytes = HEAD_BYTES + head.length;
        self.pay(bytes)?;
        let sent = self.link.send_pages(&self.head, self.context.ram(), &self.data);
        sent.map_err(self.broken())?;
        Ok(bytes)
    }

    fn send_zeros(&mut self) -> Result<(), Failure> {
        let kind = self.manner.kinds().1;
        let zeros = std::mem::take(&mut self.zeros);
        self.context.packing.get().into_iter().for_each(|packing| packing.forget(&zeros));
        for runs in zeros.chunks(kind.runs()) {
            self.head.clear();
            let head = Head::new(kind, runs.len() * RUN_BYTES, runs.len() as u64);
            self.head.extend_from_slice(&head.encode());
            put_runs(runs, &mut self.head);
            let head = std::mem::take(&mut self.head);
            self.send(&head)?;
            self.count(head.len());
            self.head = head;
            let pages = runs.iter().map(|run| run.count).sum();
            self.context.meter.zero_pages.fetch_add(pages, Ordering::Relaxed);
        }
        self.zeros = zeros;
        self.zeros.clear();
        Ok(())
    }

    fn count(&mut self, bytes: usize) {
        self.frames += 1;
        self.bytes += bytes as u64;
    }

    fn send(&self, frame: &[u8]) -> Result<(), Failure> {
        self.link.send(frame).map_err(self.broken())?;
        self.context.meter.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Pays for a frame, and waits where the manner allows it.
    fn pay(&self, bytes: usize) -> Result<(), Failure> {
        match (self.manner, self.limiter()) {
            (Manner::Land, _) => return self.pace(bytes),
            (Manner::Place, Some(limiter)) => limiter.charge(bytes),
            _ => {}
        }
        Ok(())
    }

    fn pace(&self, bytes: usize) -> Result<(), Failure> {
        let Some(limiter) = self.limiter() else { return Ok(()) };
        if limiter.pace(bytes, &self.context.alarm) != Woken::Stopped {
            return Ok(());
        }
        let stopped = Failure::Bug("paced after the end".to_owned());
        Err(self.context.alarm.cause().unwrap_or(stopped))
    }

    fn limiter(&self) -> Option<&Limiter> {
        match self.manner {
            Manner::Land | Manner::LandAtOnce => self.context.limiter.as_ref(),
            Manner::Place | Manner::PlaceAtOnce => self.context.limiter_postcopy.as_ref(),
        }
    }

    fn broken(&self) -> impl FnOnce(std::io::Error) -> Failure {
        Failure::link(self.link.peer(), self.context.route.deadlines.idle)
    }
}
