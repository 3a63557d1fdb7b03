//! The data plane of the destination: frames off a link, pages into guest memory.
//!
//! Pages are read straight into guest memory. A round is over when every data connection has ended it; the
//! stream that ends it last says so. Nothing here allocates or locks a page at a time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::context::Context;
use super::fault::Placing;
use super::prepare::Prepare;
use super::unpacking::Unpacked;
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::guest::{PART_PAGES, Ram};
use crate::pages::{AtomicPageSet, PAGE_SIZE, PageRun};
use crate::priority::Turns;
use crate::report::Traffic;
use crate::wire::limits::{HEAD_BYTES, PAGES_PER_FRAME, PAGES_PER_PUSH, RUN_BYTES};
use crate::wire::packed::{Unpacker, body_bytes};
use crate::wire::{Admitted, Error, Head, Kind, Message, RamMap, Role};

/// How long the control connection may take to say why a data connection ended.
const GRACE: Duration = Duration::from_millis(200);

/// Where pages land before the guest runs.
#[derive(Debug)]
pub(super) struct Landing {
    /// Pages that have content here: a zero mark must clear them, others are zero already.
    received: AtomicPageSet,
    pub(super) prepare: Prepare,
    /// The round that is on its way. Streams end it one by one, hence the lock.
    barrier: Mutex<Barrier>,
    streams: u32,
    /// All that lands has landed.
    closed: AtomicBool,
    bytes: AtomicU64,
    pages: AtomicU64,
    zero_pages: AtomicU64,
    pub(super) unpacked: Unpacked,
}

/// What may come on the connections that carry pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Rounds.
    Landing,
    /// Nothing: the state is being restored.
    Landed,
    /// Missing pages.
    Placing,
}

impl Stage {
    /// Whether a frame of `kind` may come now, on a connection for `role`; if not, what may.
    fn admit(self, kind: Kind, role: Role) -> Result<(), &'static str> {
        let (lands, places) = (
            matches!(kind, Kind::Pages | Kind::Packed | Kind::Zeros | Kind::RoundEnd),
            matches!(kind, Kind::Push | Kind::PackedPush | Kind::PushZeros),
        );
        match (self, role) {
            (Self::Placing, _) if places => Ok(()),
            (Self::Landing, Role::Data) if lands => Ok(()),
            (Self::Placing, _) => Err("push or push-zeros"),
            (Self::Landing, Role::Data) => Err("pages, zeros or round-end"),
            (Self::Landing | Self::Landed, _) => Err("nothing on this connection now"),
        }
    }
}

#[derive(Debug, Default)]
struct Barrier {
    round: u32,
    ended: u32,
    last_over: bool,
}

/// Buffers of one stream, reused for every frame.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    table: Vec<u8>,
    runs: Vec<PageRun>,
    pub(super) content: Vec<u8>,
    pub(super) body: Vec<u8>,
    pub(super) unpacker: Unpacker,
}

impl Landing {
    pub(super) fn new(limit: u64, streams: u32) -> Self {
        Self {
            received: AtomicPageSet::new(limit),
            prepare: Prepare::new(limit),
            barrier: Mutex::default(),
            streams,
            closed: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            zero_pages: AtomicU64::new(0),
            unpacked: Unpacked::default(),
        }
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            bytes: self.bytes.load(Ordering::Relaxed),
            pages: self.pages.load(Ordering::Relaxed),
            zero_pages: self.zero_pages.load(Ordering::Relaxed),
            ..self.unpacked.traffic()
        }
    }

    /// From here on nothing may land.
    pub(super) fn close(&self) {
        self.prepare.close();
        self.closed.store(true, Ordering::Release);
    }

    /// Whether the last round has landed.
    pub(super) fn last_round_over(&self) -> bool {
        self.lock().last_over
    }

    /// Counts a frame.
    pub(super) fn count(&self, head: &Head, pages: u64) {
        self.bytes.fetch_add((HEAD_BYTES + head.length) as u64, Ordering::Relaxed);
        let zeros = matches!(head.kind, Kind::Zeros | Kind::PushZeros);
        if zeros { &self.zero_pages } else { &self.pages }.fetch_add(pages, Ordering::Relaxed);
    }

    fn land(&self, line: &Line, ram: &dyn Ram, pages: Admitted<'_>) -> Result<(), Failure> {
        self.expect_now(ram, pages);
        line.link().receive_pages(ram, pages.runs()).map_err(line.broken_off())
    }

    /// These pages get content.
    pub(super) fn expect_now(&self, ram: &dyn Ram, pages: Admitted<'_>) {
        for run in pages.runs() {
            self.prepare.now(*run, ram);
            self.received.insert_run(*run);
        }
    }

    fn land_zeros(&self, ram: &dyn Ram, zeros: Admitted<'_>) -> Result<(), Failure> {
        zeros.runs().iter().for_each(|run| self.prepare.spare(*run));
        let mut stale = zeros.runs().iter().flat_map(|run| self.received.claim_run(*run));
        stale.try_for_each(|run| ram.clear(run)).map_err(Failure::guest("clear memory"))
    }

    /// `ends` of the data connections have ended `round`. Says so to the source when all have.
    fn end_round(&self, round: u32, last: bool, ends: u32, context: &Context<'_>) -> Result<(), Failure> {
        let mut barrier = self.lock();
        if round != barrier.round || barrier.ended + ends > self.streams || barrier.last_over {
            return Err(context.control.unexpected(Kind::RoundEnd, "the end of another round"));
        }
        barrier.ended += ends;
        if barrier.ended < self.streams {
            return Ok(());
        }
        barrier.round += 1;
        barrier.ended = 0;
        barrier.last_over = last;
        drop(barrier);
        if last {
            context.alarm.nudge();
            return Ok(());
        }
        context.control.tell(&Message::RoundDone { round })
    }

    fn lock(&self) -> MutexGuard<'_, Barrier> {
        self.barrier.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Context<'_> {
    /// Takes a frame of pages, whichever kind, from `line`.
    pub(super) fn take_pages(&self, head: &Head, line: &Line, scratch: &mut Scratch) -> Result<(), Failure> {
        let Scratch { table, runs, content, body, unpacker } = scratch;
        let pages = admit(&self.map, head, line, table, runs)?;
        match head.kind {
            Kind::Pages => self.landing.land(line, &*self.ram, pages)?,
            Kind::Zeros => self.landing.land_zeros(&*self.ram, pages)?,
            Kind::Push => {
                let placing = self.placing(line, head)?;
                pages
                    .pieces(PART_PAGES)
                    .try_for_each(|piece| self.take_push(placing, line, piece, content))?;
            }
            Kind::Packed | Kind::PackedPush => {
                self.take_packed(head, line, pages, body, content, unpacker)?
            }
            _ => self.placing(line, head)?.place_zeros(self, pages)?,
        }
        self.landing.count(head, pages.pages());
        Ok(())
    }

    /// Takes a piece of a push: into the room for its block, or from a buffer to its places.
    fn take_push(
        &self,
        placing: &Placing,
        line: &Line,
        pages: Admitted<'_>,
        content: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        if let Some(part) = placing.reserve(pages.runs())? {
            part.fill(|bytes| line.link().receive(bytes)).map_err(line.broken_off())?;
            placing.settle(&part)?;
            return placing.tell_if_complete(self);
        }
        content.resize(pages.pages() as usize * PAGE_SIZE, 0);
        line.link().receive(content).map_err(line.broken_off())?;
        placing.place(self, pages, content)
    }

    /// Takes the end of a round from `line`, which stands for `ends` data connections.
    pub(super) fn take_round_end(&self, head: &Head, line: &Line, ends: u32) -> Result<(), Failure> {
        match line.body(head)? {
            Message::RoundEnd { round, last } => self.landing.end_round(round, last, ends, self),
            other => Err(line.unexpected(other.kind(), Kind::RoundEnd.word())),
        }
    }

    /// A stream's life: frame after frame, until the connection ends.
    pub(super) fn receive_stream(&self, line: &Line, role: Role) {
        let (vcpus, streams) = (self.preflight.description.vcpus, self.preflight.streams);
        let (mut scratch, mut turns) = (Scratch::default(), Turns::staying(vcpus, streams));
        if role == Role::Data {
            let within = line.link().is_within_host();
            turns.part(
                self.parting.as_ref().and_then(|parting| parting.at_the_start(self.preflight.mode, within)),
            );
        }
        loop {
            match self.receive_frame(line, role, &mut scratch, &mut turns) {
                // Between rounds nothing comes; the control connection tells whether the source lives.
                Ok(()) | Err(Failure::Silent { .. }) if !self.alarm.is_stopped() => {}
                Ok(()) => return,
                Err(failure) => {
                    if failure.is_bare() {
                        // A source that gives up closes all its connections; this waits for it to say why.
                        self.alarm.rest(GRACE);
                    }
                    return self.alarm.trip(failure);
                }
            }
        }
    }

    fn receive_frame(
        &self,
        line: &Line,
        role: Role,
        scratch: &mut Scratch,
        turns: &mut Turns,
    ) -> Result<(), Failure> {
        let head = line.hear_head()?;
        let stage = self.stage();
        if role == Role::Data {
            if stage == Stage::Placing {
                turns.part(self.parting.as_ref());
            }
            // It may have been woken on a vCPU's core.
            turns.offer_core();
        }
        stage.admit(head.kind, role).map_err(|expected| line.unexpected(head.kind, expected))?;
        match head.kind {
            Kind::RoundEnd => self.take_round_end(&head, line, 1),
            Kind::Push | Kind::PackedPush | Kind::PushZeros if role == Role::Data => {
                self.take_pages(&head, line, scratch)?;
                line.tell(&Message::Placed)
            }
            _ => self.take_pages(&head, line, scratch),
        }
    }

    fn stage(&self) -> Stage {
        if self.placing.get().is_some() {
            Stage::Placing
        } else if self.landing.closed.load(Ordering::Acquire) {
            Stage::Landed
        } else {
            Stage::Landing
        }
    }
}

/// Reads a run table and admits it if it fits the frame and RAM.
fn admit<'a>(
    map: &RamMap,
    head: &Head,
    line: &Line,
    table: &mut Vec<u8>,
    runs: &'a mut Vec<PageRun>,
) -> Result<Admitted<'a>, Failure> {
    let wrong = |error| Failure::wire(line.peer())(error);
    table.resize(head.table_bytes().map_err(wrong)?, 0);
    line.link().receive(table).map_err(line.broken_off())?;
    let pages = map.admit(head.kind, table, runs).map_err(wrong)?;
    if head.kind.is_packed() {
        return body_bytes(head, &pages).map(|_| pages).map_err(wrong);
    }
    let (most, content) = match head.kind {
        Kind::Pages => (PAGES_PER_FRAME, pages.pages()),
        Kind::Push => (PAGES_PER_PUSH, pages.pages()),
        _ => (u64::MAX, 0),
    };
    let length = (pages.runs().len() * RUN_BYTES) as u64 + content * PAGE_SIZE as u64;
    if pages.pages() > most || length != head.length as u64 {
        let expected = format!("its {} pages need {length}", pages.pages());
        return Err(wrong(Error::Length { kind: head.kind, length: head.length as u64, expected }));
    }
    Ok(pages)
}

/// Prepares memory ahead of the streams.
pub(super) fn run_ahead(context: &Context<'_>) {
    let turns = Turns::beside(context.preflight.description.vcpus);
    context.landing.prepare.run_ahead(&*context.ram, &context.alarm, turns);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_comes_on_its_connection_and_at_its_time() {
        let lands = [Kind::Pages, Kind::Packed, Kind::Zeros, Kind::RoundEnd];
        let places = [Kind::Push, Kind::PackedPush, Kind::PushZeros];
        for stage in [Stage::Landing, Stage::Landed, Stage::Placing] {
            for role in [Role::Data, Role::Urgent] {
                for kind in lands {
                    let fits = stage == Stage::Landing && role == Role::Data;
                    assert_eq!(stage.admit(kind, role).is_ok(), fits, "{kind:?} {role:?} {stage:?}");
                }
                for kind in places {
                    let fits = stage == Stage::Placing;
                    assert_eq!(stage.admit(kind, role).is_ok(), fits, "{kind:?} {role:?} {stage:?}");
                }
                assert!(stage.admit(Kind::Commit, role).is_err() && stage.admit(Kind::State, role).is_err());
            }
        }
    }
}
