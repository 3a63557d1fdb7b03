//! A guest in doubt: paused, because another host may be running it, or has part of it, or may want it back.
//!
//! Who left is [recovered](recover) by asking the destination again; who came waits for its source. Where a host is gone for good
//! the operator's word decides. All of it is the engine's to do ([`migrate::handover`]); this room passes the word on.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver as Orders, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::control::{Ending, Refusal};
use crate::migration::Resident;
use crate::sandbox::{self, ThreadKind};
use migrate::channel::Deadlines;
use migrate::client::types::{RecoverRequest, Resolution};
use migrate::guest::GuestError;
use migrate::options::Options;
use migrate::pages::PageRun;
use migrate::source::{self, Disowned, Parted, Route};
use migrate::{Arrival, Cancel, Receiver, Waiting};

use super::moving::{BETWEEN_ATTEMPTS, Recorder, leave_in_background};
use super::stage::Stage;
use super::{Inner, LifeOf, VmHandle};

/// How long an order to the thread that waits for a source may take: starting a guest, at most.
const OBEYED_WITHIN: Duration = Duration::from_secs(30);

/// Between two tries to tell a destination; twice as long each time, and never longer than the other.
const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(2);

/// A guest in doubt.
#[derive(Clone)]
pub(super) enum Doubt {
    /// It was to leave.
    Left {
        guest: Arc<Resident>,
        /// With what the engine goes on; none where it was kept, but could not be run on.
        parted: Arc<Mutex<Option<Parted>>>,
        options: Box<Options>,
        reason: String,
    },
    /// It was to come.
    Came {
        guest: Arc<Resident>,
        /// Pages that did not come.
        missing: Arc<Vec<PageRun>>,
        reason: String,
        /// To the thread that waits for its source.
        orders: Sender<Order>,
    },
}

/// The operator's word for a guest that came, and where to answer.
pub(super) struct Order {
    resolution: Resolution,
    answer: Sender<Result<(), String>>,
    /// The operator was told that it is too late.
    void: Arc<AtomicBool>,
}

impl Doubt {
    /// A guest that was to leave.
    pub(super) fn left(
        guest: &Arc<Resident>,
        parted: Option<Parted>,
        options: &Options,
        reason: &str,
    ) -> Self {
        Self::Left {
            guest: Arc::clone(guest),
            parted: Arc::new(Mutex::new(parted)),
            options: Box::new(options.clone()),
            reason: reason.to_owned(),
        }
    }

    pub(super) fn guest(&self) -> &Arc<Resident> {
        match self {
            Self::Left { guest, .. } | Self::Came { guest, .. } => guest,
        }
    }

    /// Why, and the way out, in one line.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Left { reason, .. } => format!(
                "{reason}; `migrate recover` asks the destination again, `migrate resolve --force-source` runs it here \
                 where that host is gone for good"
            ),
            Self::Came { reason, missing, .. } if missing.is_empty() => format!(
                "{reason}; all of the guest is here: `migrate recover` on its source goes on with the move, \
                 `migrate resolve --force-destination` runs it here where that host is gone for good"
            ),
            Self::Came { reason, missing, .. } => {
                let pages: u64 = missing.iter().map(|run| run.count).sum();
                format!(
                    "{reason}; {pages} pages of the guest's memory did not come: `migrate recover` on its source sends \
                     them, `migrate salvage` keeps what is here"
                )
            }
        }
    }
}

pub(super) fn of_state(refused: impl std::fmt::Display) -> Refusal {
    Refusal::Conflict(refused.to_string())
}

/// Calls the destination of a guest in doubt again; of one whose link is lost just now, at once.
pub(super) fn recover(handle: &VmHandle, request: &RecoverRequest) -> Result<(), Refusal> {
    let inner = &handle.inner;
    let _one = inner.order();
    let stage = inner.stage();
    let (guest, parted, options) = match &stage {
        Stage::Leaving(_) => {
            let cancel = inner.lock().cancel.clone();
            cancel.into_iter().for_each(|cancel| cancel.call_now(request.to.clone()));
            return Ok(());
        }
        Stage::InDoubt(Doubt::Left { guest, parted, options, .. }) => (guest, parted, options),
        Stage::InDoubt(Doubt::Came { .. }) => {
            return Err(of_state(
                "the guest came from another host, which has to call: run `migrate recover` there",
            ));
        }
        _ => return Err(of_state("no guest is in doubt here: there is nothing to recover")),
    };
    if lock(parted).is_none() {
        let failed = "the engine cannot go on with this guest: `migrate resolve --force-source` or `--discard` is left";
        return Err(of_state(failed));
    }
    let mut options = Options::clone(options);
    options.to = request.to.clone().unwrap_or(options.to);
    options.recovery = request.recovery_ms.map_or(options.recovery, Duration::from_millis);
    let cancel = Cancel::new();
    let (leaving, held, engine_cancel) = (Arc::clone(guest), Arc::clone(parted), cancel.clone());
    let (guest, moving) = (Arc::clone(guest), Arc::clone(inner));
    leave_in_background(inner, stage, guest, options, cancel, move |options| {
        let parted = lock(&held).take().expect("one order at a time, and it was there");
        match source::dial(options) {
            Ok(dial) => {
                let route =
                    Route { dial: &*dial, deadlines: Deadlines::default(), journals: &moving.journals };
                parted.recover(&*leaving, options, route, &engine_cancel, &Recorder(&moving))
            }
            Err(why) => parted.left_as_it_was(why),
        }
    })
}

/// The operator's word on a guest in doubt.
pub(super) fn resolve(handle: &VmHandle, resolution: Resolution) -> Result<(), Refusal> {
    let inner = &handle.inner;
    let one = inner.order();
    let stage = inner.stage();
    match (&stage, resolution) {
        (Stage::Leaving(_) | Stage::InDoubt(Doubt::Left { .. }), Resolution::ForceDestination) => {
            return Err(of_state(
                "the guest was to leave from here: --force-source runs it here, --discard lets go of it",
            ));
        }
        (Stage::Arriving(_) | Stage::InDoubt(Doubt::Came { .. }), Resolution::ForceSource) => {
            return Err(of_state(
                "the guest was to come here: --force-destination runs it here, --discard lets go of it",
            ));
        }
        // What the engine says of this would end the waiting first.
        (Stage::Arriving(guest), Resolution::ForceDestination) if guest.is_running() => {
            return Err(of_state(
                "the guest runs here already, as far as its memory has come; the rest is on its source alone",
            ));
        }
        _ => {}
    }
    let was_called = matches!(stage, Stage::Leaving(_));
    let doubt = match stage {
        Stage::InDoubt(doubt) => doubt,
        Stage::Leaving(_) | Stage::Arriving(_) => doubt_that_nobody_waits_out(inner)?,
        _ => return Err(of_state("the guest is not in doubt: there is nothing to resolve")),
    };
    match (doubt, resolution) {
        (Doubt::Left { guest, parted, .. }, Resolution::Discard) => {
            if let Some(mut parted) = lock(&parted).take() {
                parted.let_go(&*guest).map_err(of_state)?;
            }
            guest.release();
            inner.end(Ending::Stopped);
            Ok(())
        }
        (Doubt::Left { guest, parted, options, .. }, _) => {
            let parted = match force_here(&guest, &parted) {
                Ok(parted) => parted,
                Err(refused) => {
                    drop(one);
                    if was_called {
                        // What is refused changes nothing: the destination is called again, as it was.
                        let _ = recover(handle, &RecoverRequest::default());
                    }
                    return Err(refused);
                }
            };
            inner.enter(Stage::Here(Arc::clone(&guest)));
            if let Some(parted) = parted {
                tell_kept_in_background(inner, guest, parted, *options);
            }
            Ok(())
        }
        (Doubt::Came { orders, .. }, resolution) => order(inner, &orders, resolution),
    }
}

/// The doubt of a guest whose other side is waited for just now: the operator decides, so the waiting ends.
fn doubt_that_nobody_waits_out(inner: &Inner) -> Result<Doubt, Refusal> {
    let goes_on = "the migration is not over: the guest can be decided about while the link is lost, or when it has ended in \
                   doubt; `migrate status` says where it is";
    let waits = |life: &LifeOf| {
        life.migration.lost.is_some() && matches!(life.stage, Stage::Leaving(_) | Stage::Arriving(_))
    };
    let life = inner.lock();
    let arrives = matches!(life.stage, Stage::Arriving(_));
    let receiver = inner.receiver.get().and_then(std::sync::Weak::upgrade).filter(|_| arrives);
    let cancel = life.cancel.clone();
    if waits(&life) {
        cancel.iter().for_each(Cancel::give_up);
        receiver.iter().for_each(|receiver| receiver.stop());
    }
    let waited = inner.ended.wait_timeout_while(life, OBEYED_WITHIN, |life| waits(life));
    let stage = waited.unwrap_or_else(PoisonError::into_inner).0.stage.clone();
    match stage {
        Stage::InDoubt(doubt) => Ok(doubt),
        _ => {
            cancel.iter().for_each(Cancel::do_not_give_up);
            receiver.iter().for_each(|receiver| receiver.go_on());
            Err(of_state(goes_on))
        }
    }
}

/// Runs it here; what is left is to tell the destination.
fn force_here(guest: &Resident, parted: &Mutex<Option<Parted>>) -> Result<Option<Parted>, Refusal> {
    let mut held = lock(parted);
    match held.as_mut() {
        Some(parted) => parted.force(guest).map_err(of_state)?,
        None => guest.resume().map_err(|error: GuestError| Refusal::Failed(error.to_string()))?,
    }
    Ok(held.take())
}

/// Has the thread that waits for the source obey.
fn order(inner: &Inner, orders: &Sender<Order>, resolution: Resolution) -> Result<(), Refusal> {
    let ((answer, answered), gone) = (channel(), "the guest is being decided about already");
    let void = Arc::new(AtomicBool::new(false));
    orders.send(Order { resolution, answer, void: Arc::clone(&void) }).map_err(|_| of_state(gone))?;
    if let Some(receiver) = inner.receiver.get().and_then(std::sync::Weak::upgrade) {
        receiver.stop();
    }
    answered
        .recv_timeout(OBEYED_WITHIN)
        .map_err(|_| {
            void.store(true, Ordering::SeqCst);
            of_state(gone)
        })?
        .map_err(of_state)
}

/// Tells destinations that may hold the guest that it runs here, as far as they can be reached by `options` now. Whether
/// all have heard.
pub(super) fn tell_kept(inner: &Inner, guest: &Resident, options: &Options) -> bool {
    let untold = mem::take(&mut *lock(&inner.untold));
    if untold.is_empty() {
        return true;
    }
    // A credential that is gone keeps nobody but the destination, which then has to be told by its operator.
    let Ok(dial) = source::dial(options) else {
        lock(&inner.untold).extend(untold);
        return true;
    };
    let route = Route { dial: &*dial, deadlines: Deadlines::default(), journals: &inner.journals };
    let mut left = Vec::new();
    for parted in untold {
        match parted.disown(guest, options, route) {
            Disowned::Heard => {}
            Disowned::Unreached(parted) => left.push(*parted),
            Disowned::RunsThere => eprintln!(
                "vmm: THE GUEST RUNS TWICE: here, where it was forced to, and on {}, which was said not to run it; \
                 `vmm stop` ends one of them",
                options.to
            ),
        }
    }
    let all = left.is_empty();
    lock(&inner.untold).extend(left);
    all
}

/// The same again and again, for the time for recovery.
pub(super) fn tell_kept_for_a_while(inner: &Inner, guest: &Resident, options: &Options) {
    let (since, mut rest) = (Instant::now(), FIRST_REST);
    while !tell_kept(inner, guest, options) && since.elapsed() < options.recovery {
        if inner.ends_within(rest.min(options.recovery.saturating_sub(since.elapsed()))) {
            return;
        }
        rest = (rest * 2).min(LONGEST_REST);
    }
}

fn tell_kept_in_background(inner: &Arc<Inner>, guest: Arc<Resident>, parted: Parted, options: Options) {
    let inner = Arc::clone(inner);
    lock(&inner.untold).push(parted);
    // Without a thread the destination is told by the next attempt, or by its operator.
    let _ = thread::Builder::new().name("migration".into()).spawn(move || {
        sandbox::confine(ThreadKind::Departing);
        tell_kept_for_a_while(&inner, &guest, &options);
    });
}

/// Waits for the source of a guest in doubt, and obeys the operator, until it is decided. None: all is over here.
pub(super) fn wait_for_source(
    inner: &Arc<Inner>,
    receiver: &Receiver,
    guest: &Arc<Resident>,
    mut waiting: Box<Waiting>,
) -> Option<Arrival> {
    let (sender, orders) = channel();
    loop {
        eprintln!("vmm: the guest is in doubt: {}", waiting.reason());
        let doubt = Doubt::Came {
            guest: Arc::clone(guest),
            missing: Arc::new(waiting.missing()),
            reason: waiting.reason().to_owned(),
            orders: sender.clone(),
        };
        if !inner.enter(Stage::InDoubt(doubt)) {
            return None;
        }
        waiting = match receiver.await_source(waiting, Duration::MAX, &Recorder(inner)) {
            Arrival::Waits(waiting) => match obey(inner, receiver, waiting, &orders) {
                // A host that cannot listen now is not asked without pause.
                Ok(_) if inner.ends_within(BETWEEN_ATTEMPTS) => return None,
                Ok(waiting) => waiting,
                Err(decided) => return decided,
            },
            decided => return Some(decided),
        };
    }
}

/// What the operator has said meanwhile. `Err`: it is decided.
fn obey(
    inner: &Inner,
    receiver: &Receiver,
    waiting: Box<Waiting>,
    orders: &Orders<Order>,
) -> Result<Box<Waiting>, Option<Arrival>> {
    receiver.go_on();
    let valid = |order: &Order| !order.void.load(Ordering::SeqCst);
    let Some(Order { resolution, answer, .. }) = orders.try_iter().find(valid) else { return Ok(waiting) };
    let told = |result| drop(answer.send(result));
    match resolution {
        Resolution::ForceDestination => match receiver.force(waiting) {
            Ok(arrival) => {
                told(Ok(()));
                Err(Some(arrival))
            }
            Err((waiting, why)) => {
                told(Err(why));
                Ok(waiting)
            }
        },
        _ if waiting.is_held() => {
            receiver.let_go(waiting);
            told(Ok(()));
            Err(Some(Arrival::Failed { reason: "its operator has let go of it".to_owned() }))
        }
        _ => {
            // A thread may hang in a fault, half-way in a request of half a guest. Let go, it would finish it with zeros in
            // the place of what is missing, on a disk perhaps. So nothing is let go of: all of it ends with this process,
            // which ends now.
            mem::forget(waiting);
            told(Ok(()));
            inner.end(Ending::Stopped);
            Err(None)
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
