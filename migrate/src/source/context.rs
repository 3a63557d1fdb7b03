//! What all threads of the source share: the guest, the options, the alarm, and the counters of what was sent.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::Route;
use super::crew::Round;
use super::packing::Packing;
use super::page_server::Unsent;
use super::time_limit::{Passing, TimeLimit};
use crate::alarm::Alarm;
use crate::channel::limiter::Limiter;
use crate::channel::line::Line;
use crate::channel::{Dial, Link};
use crate::failure::Failure;
use crate::guest::{Departing, Description, GuestError, Ram};
use crate::options::{InFlightPolicy, MAX_STREAMS, Options, default_timeout};
use crate::pages::{PAGE_SIZE, PageSet};
use crate::priority::{Parting, Turns};
use crate::progress::{Event, Observer, Progress};
use crate::report::{Phase, Traffic};
use crate::wire::Message;

/// At least so often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

pub(super) struct Context<'a> {
    pub(super) guest: &'a dyn Departing,
    pub(super) description: Description,
    pub(super) options: &'a Options,
    /// For the whole migration until commit, and for each wait of its own that is not part of that.
    pub(super) timeout: Duration,
    pub(super) route: Route<'a>,
    pub(super) alarm: Arc<Alarm>,
    pub(super) observer: &'a dyn Observer,
    /// Of bulk data, until the guest runs there.
    pub(super) limiter: Option<Limiter>,
    /// … and from then on.
    pub(super) limiter_postcopy: Option<Limiter>,
    /// Set where both sides can pack.
    pub(super) packing: OnceLock<Packing>,
    pub(super) meter: Meter,
    /// Names the migration.
    pub(super) session: Uuid,
    /// Set while there is a control connection: the pulse says `alive` on it. Each call has another.
    control: RwLock<Option<Line>>,
    /// Set in the pause of post-copy: pages that may be requested and pushed from then on.
    pub(super) unsent: OnceLock<Arc<Unsent>>,
    /// Set when the guest runs on the destination.
    pub(super) departed: OnceLock<Instant>,
    /// Asked for when pages are moved: who only tells a destination that its guest was kept needs none, and that guest may
    /// have ended.
    ram: OnceLock<Arc<dyn Ram>>,
    time: Mutex<TimeLimit>,
    /// The round that the crew sends while the guest runs.
    round: Mutex<Option<Arc<Round>>>,
    /// Where the operator has sent the calls.
    elsewhere: RwLock<Option<Arc<dyn Dial>>>,
    /// When a pause began, and how long it may last.
    pause: Mutex<Option<(Instant, Duration)>>,
    logging: AtomicBool,
    /// Whether vCPUs are, or were until the pause.
    holds_back: AtomicBool,
    /// How the cores here are parted, if they are.
    pub(super) parting: Option<Parting>,
}

/// Counters, written by the sending threads, read by the pulse and the score.
#[derive(Debug, Default)]
pub(super) struct Meter {
    pub(super) bytes: AtomicU64,
    pub(super) pages: AtomicU64,
    pub(super) zero_pages: AtomicU64,
    pub(super) packed_pages: AtomicU64,
    pub(super) delta_pages: AtomicU64,
    pub(super) saved_bytes: AtomicU64,
    pub(super) total: AtomicU64,
    pub(super) round: AtomicU32,
    pub(super) dirty_per_s: AtomicU64,
    /// Percent of its time that a vCPU which writes is held back.
    pub(super) throttle: AtomicU8,
    phase: Mutex<Option<Phase>>,
    /// Pages sent when the present total was set.
    base: AtomicU64,
    last: Mutex<Option<(Instant, u64)>>,
}

impl<'a> Context<'a> {
    pub(super) fn new(
        guest: &'a dyn Departing,
        options: &'a Options,
        route: Route<'a>,
        alarm: Arc<Alarm>,
        observer: &'a dyn Observer,
        session: Uuid,
        parting: Option<Parting>,
    ) -> Self {
        let description = guest.description();
        let memory = description.pages() * PAGE_SIZE as u64;
        let timeout = options.timeout.unwrap_or_else(|| default_timeout(memory));
        Self {
            guest,
            description,
            timeout,
            ram: OnceLock::new(),
            options,
            route,
            alarm,
            observer,
            limiter: options.bandwidth.map(Limiter::new),
            limiter_postcopy: options.postcopy_limit().map(Limiter::new),
            packing: OnceLock::new(),
            meter: Meter::default(),
            session,
            control: RwLock::default(),
            unsent: OnceLock::new(),
            departed: OnceLock::new(),
            time: Mutex::new(TimeLimit::new(timeout, Instant::now())),
            round: Mutex::new(None),
            elsewhere: RwLock::default(),
            pause: Mutex::new(None),
            logging: AtomicBool::new(false),
            holds_back: AtomicBool::new(false),
            parting,
        }
    }

    /// The guest's memory.
    pub(super) fn ram(&self) -> &dyn Ram {
        &**self.ram.get_or_init(|| self.guest.ram())
    }

    /// Data connections.
    pub(super) fn streams(&self) -> u32 {
        self.options.streams.clamp(1, MAX_STREAMS)
    }

    /// Whether packets are sent after the guest.
    pub(super) fn forwards(&self) -> bool {
        self.description.nics > 0 && self.options.in_flight == InFlightPolicy::Forward
    }

    /// Whether the dirty log has been started.
    pub(super) fn logging(&self) -> bool {
        self.logging.load(Ordering::Relaxed)
    }

    /// Starts the dirty log.
    pub(super) fn start_log(&self) -> Result<(), Failure> {
        self.logging.store(true, Ordering::Relaxed);
        self.guest.start_dirty_log().map_err(Failure::guest("start dirty logging"))
    }

    /// Adds what was written since it was last watched.
    pub(super) fn harvest(&self, set: &mut PageSet) -> Result<(), Failure> {
        self.guest.harvest(set).map_err(Failure::guest("read the dirty log"))
    }

    /// Holds vCPUs back that have `written` so many pages in the last round, for so many percent of their time. Each round anew, as
    /// others may write by then.
    pub(super) fn hold_back(&self, percent: u8, written: u64) -> Result<(), Failure> {
        self.meter.throttle.store(percent, Ordering::Relaxed);
        if !self.holds_back.swap(percent > 0, Ordering::Relaxed) && percent == 0 {
            return Ok(());
        }
        self.guest.throttle(percent, written).map_err(Failure::guest("hold vCPUs back"))
    }

    /// Puts what the guest has written on stable storage, as far as it can be now.
    pub(super) fn settle(&self) -> Result<(), Failure> {
        let since = Instant::now();
        self.guest
            .settle(&|| self.goes_on(since))
            .map_err(|error| self.gave_up("settle the guest's disks", error))
    }

    /// Lets the destination take what the guest has outside of its memory.
    pub(super) fn hand_over(&self) -> Result<(), Failure> {
        let since = Instant::now();
        let handed = self.guest.hand_over(&|| self.goes_on(since));
        handed.map_err(|error| self.gave_up("hand over the guest's disks", error))
    }

    /// Whether a disk is waited for any longer. Where the time limit does not run any more, it holds for each such wait.
    fn goes_on(&self, since: Instant) -> bool {
        !self.alarm.is_stopped() && since.elapsed() < self.timeout
    }

    /// A time limit has passed for what the guest's side says; it stopped for anything else only because it was told to.
    fn gave_up(&self, doing: &'static str, error: GuestError) -> Failure {
        let told = self.alarm.cause().filter(|cause| !cause.is_time_limit());
        told.unwrap_or_else(|| Failure::guest(doing)(error))
    }

    /// The time limit of the whole migration.
    pub(super) fn time(&self) -> MutexGuard<'_, TimeLimit> {
        self.time.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The crew sends this round from now on, which may be cut short; `None`: there is none any more.
    pub(super) fn set_round(&self, round: Option<&Arc<Round>>) {
        *self.round.lock().unwrap_or_else(PoisonError::into_inner) = round.cloned();
    }

    /// From now on a time limit of its own holds for the pause.
    pub(super) fn limit_pause(&self, limit: Duration) {
        *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), limit));
    }

    /// From here on another address is called.
    pub(super) fn redirect(&self, to: &str) {
        let elsewhere = self.route.dial.elsewhere(to).map(Arc::from);
        *self.elsewhere.write().unwrap_or_else(PoisonError::into_inner) = elsewhere;
    }

    /// Where the operator has sent the calls, if that is not where the migration began.
    pub(super) fn elsewhere(&self) -> Option<Arc<dyn Dial>> {
        self.elsewhere.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How cores are parted from the start of a move over `link`.
    fn parted_at_the_start(&self, link: &Arc<dyn Link>) -> Option<&Parting> {
        self.parting.as_ref()?.at_the_start(self.options.mode, link.is_within_host())
    }

    /// Of the calling thread, which moves bulk data over `link`, or occupies a core as much.
    pub(super) fn turns_of_bulk(&self, link: &Arc<dyn Link>) -> Turns {
        let mut turns = Turns::staying(self.description.vcpus, self.streams());
        turns.part(self.parted_at_the_start(link));
        turns
    }

    /// The calling thread leaves the cores of vCPUs to them.
    pub(super) fn leave_vcpu_cores(&self, link: &Arc<dyn Link>) {
        self.parted_at_the_start(link).into_iter().for_each(Parting::leave_vcpu_cores);
    }

    /// What the destination is told of how cores are parted.
    pub(super) fn vcpu_cores(&self, link: &Arc<dyn Link>) -> Vec<u32> {
        self.parted_at_the_start(link).map_or_else(Vec::new, Parting::vcpu_cores)
    }

    /// vCPUs go to their cores, where these are parted.
    pub(super) fn send_vcpus(&self, link: &Arc<dyn Link>) {
        if let Some(parting) = self.parted_at_the_start(link) {
            self.guest.send_vcpus_to(parting.for_vcpus());
        }
    }

    /// From here on the pulse says `alive` there.
    pub(super) fn set_control(&self, control: &Line) {
        *self.control.write().unwrap_or_else(PoisonError::into_inner) = Some(control.clone());
    }

    pub(super) fn beat(&self) -> Duration {
        self.route.deadlines.beat.min(PROGRESS_EVERY).min(self.timeout)
    }

    /// What happens on every beat.
    pub(super) fn pulse(&self) {
        let passed = self.time().passed(Instant::now());
        match passed {
            Some(Passing::GivesUp) => {
                let to = self.route.dial.to().to_owned();
                let _ = self.alarm.recall(Failure::TimedOut { to, after: self.timeout });
            }
            Some(Passing::EndsRounds) => {
                let round = self.round.lock().unwrap_or_else(PoisonError::into_inner);
                round.iter().for_each(|round| round.cut());
            }
            Some(Passing::DoesNothing) | None => {}
        }
        let pause = *self.pause.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, limit)) = pause.filter(|(since, limit)| since.elapsed() >= *limit) {
            let _ = self.alarm.recall(Failure::PausedTooLong(limit));
        }
        if let Some(control) = &*self.control.read().unwrap_or_else(PoisonError::into_inner) {
            // Who hears the control connection learns of its end; the pulse has nothing to add.
            let _ = control.tell(&Message::Alive);
        }
        if let Some(progress) = self.meter.progress() {
            self.observer.tell(Event::Progress(progress));
        }
    }
}

impl Meter {
    pub(super) fn enter(&self, phase: Phase) {
        if phase == Phase::Switchover {
            // The pause ends it.
            self.throttle.store(0, Ordering::Relaxed);
        }
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = Some(phase);
    }

    /// A new round, or post-copy, of `pages`.
    pub(super) fn begin(&self, round: u32, pages: u64) {
        self.round.store(round, Ordering::Relaxed);
        self.base.store(self.sent(), Ordering::Relaxed);
        self.total.store(pages, Ordering::Relaxed);
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            bytes: self.bytes.load(Ordering::Relaxed),
            pages: self.pages.load(Ordering::Relaxed),
            zero_pages: self.zero_pages.load(Ordering::Relaxed),
            packed_pages: self.packed_pages.load(Ordering::Relaxed),
            delta_pages: self.delta_pages.load(Ordering::Relaxed),
            saved_bytes: self.saved_bytes.load(Ordering::Relaxed),
        }
    }

    fn sent(&self) -> u64 {
        self.pages.load(Ordering::Relaxed) + self.zero_pages.load(Ordering::Relaxed)
    }

    /// Where things are; nothing during the pause, and before there is anything to tell.
    fn progress(&self) -> Option<Progress> {
        let phase = (*self.phase.lock().unwrap_or_else(PoisonError::into_inner))
            .filter(|phase| *phase != Phase::Switchover)?;
        let (now, bytes) = (Instant::now(), self.bytes.load(Ordering::Relaxed));
        let before = self
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace((now, bytes))
            .unwrap_or((now, bytes));
        let seconds = now.duration_since(before.0).as_secs_f64();
        let bytes_per_s = if seconds > 0.0 { (bytes - before.1) as f64 / seconds } else { 0.0 };
        let pages_total = self.total.load(Ordering::Relaxed);
        let done = self.sent().saturating_sub(self.base.load(Ordering::Relaxed));
        let pages_left = pages_total.saturating_sub(done);
        let left_bytes = pages_left as f64 * crate::pages::PAGE_SIZE as f64;
        Some(Progress {
            phase,
            round: self.round.load(Ordering::Relaxed),
            pages_total,
            pages_left,
            bytes,
            bytes_per_s,
            dirty_rate: f64::from_bits(self.dirty_per_s.load(Ordering::Relaxed)),
            throttle: self.throttle.load(Ordering::Relaxed),
            eta_ms: (bytes_per_s > 0.0).then(|| (left_bytes / bytes_per_s * 1e3) as u64),
        })
    }
}
