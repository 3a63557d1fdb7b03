//! Hello, pre-flight, and the connections: before one byte of RAM moves.

use std::net::Shutdown;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use scheduling::near;

use super::context::Context;
use super::packing::Packing;
use crate::alarm::Woken;
use crate::channel::line::Line;
use crate::failure::Failure;
use crate::guest::Rehearsal;
use crate::options::{Compression, Mode, OnTimeout};
use crate::packing::About;
use crate::priority::share_a_core;
use crate::wire::limits::VERSIONS;
use crate::wire::message::{Versions, tame};
use crate::wire::{Codec, Hello, Kind, Message, Preflight, RamMap, Role};

/// All connections of a migration, and what was learned while making them.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    pub(super) control: Line,
    pub(super) data: Vec<Line>,
    pub(super) urgent: Option<Line>,
    /// For packets that come after the guest has left.
    pub(super) packets: Option<Line>,
    pub(super) rehearsal: Rehearsal,
    pub(super) round_trip: Duration,
}

impl Lines {
    /// A conversation that has just begun.
    pub(super) fn only(control: Line, round_trip: Duration) -> Self {
        let (data, urgent, packets) = (Vec::new(), None, None);
        Self { control, data, urgent, packets, rehearsal: Rehearsal::default(), round_trip }
    }
}

/// Connects and asks whether the guest may come. `begun` is told of the control connection.
pub(super) fn connect(context: &Context<'_>, begun: impl FnOnce(&Line)) -> Result<Lines, Failure> {
    RamMap::of(&context.description).map_err(|why| Failure::Guest { doing: "describe the guest", why })?;
    look_up(context)?;
    let (control, asked) = open_control(context, 0)?;
    context.leave_vcpu_cores(control.link());
    begun(&control);
    context.set_control(&control);
    let greeted = greet(&control, asked).map_err(|failure| context.alarm.cause().unwrap_or(failure))?;
    control.set_limit(context.route.deadlines.idle)?;
    let (rehearsal, round_trip) = preflight(context, &control, greeted)?;
    let data = (0..context.streams()).map(|index| open(context, Role::Data, index, 0));
    let data = data.collect::<Result<Vec<_>, _>>()?;
    let urgent = (may_postcopy(context) || matches!(context.options.mode, Mode::Postcopy | Mode::Hybrid))
        .then(|| open(context, Role::Urgent, 0, 0))
        .transpose()?;
    let packets = context.forwards().then(|| open(context, Role::Packets, 0, 0)).transpose()?;
    Ok(Lines { control, data, urgent, packets, rehearsal, round_trip })
}

/// Has the destination's name looked up on a thread of its own, which nobody need wait for: a name server that does not
/// answer holds up no cancel and no time limit.
fn look_up(context: &Context<'_>) -> Result<(), Failure> {
    let Some(look_up) = context.route.dial.look_up() else { return Ok(()) };
    let ((sender, answer), alarm) = (channel(), Arc::clone(&context.alarm));
    let (asking, here) = near(move || {
        // Nobody may be waiting any more.
        let _ = sender.send(look_up());
        alarm.nudge();
    });
    let asking = thread::Builder::new().name("look-up".to_owned()).spawn(asking);
    drop(here);
    let refused = |why: &str| Failure::Connect { to: context.route.dial.to().to_owned(), why: tame(why) };
    asking.map_err(|error| refused(&format!("no thread to look the name up: {error}")))?;
    let limit = context.route.deadlines.connect;
    let mut found = None;
    let woken = context.alarm.wait_until(limit, || {
        found = answer.try_recv().ok();
        found.is_some()
    });
    match found {
        Some(found) => found.map_err(|error| Failure::dial(context.route.dial.to(), &error)),
        None if woken == Woken::TimeUp => {
            Err(refused(&format!("its name was not found within {} s", limit.as_secs_f64())))
        }
        None => Err(context.alarm.cause().unwrap_or_else(|| refused("the migration is over"))),
    }
}

/// The control connection of a call, and when it said hello.
pub(super) fn open_control(context: &Context<'_>, call: u32) -> Result<(Line, Instant), Failure> {
    let line = dial(context, Role::Control)?;
    let asked = Instant::now();
    // A destination that is gone already may have said why: the welcome is listened for all the same.
    let _ = line.tell(&hello(context, Role::Control, 0, call));
    Ok((line, asked))
}

/// A new connection beside it that has said hello; `call`: how often the source has called again.
pub(super) fn open(context: &Context<'_>, role: Role, index: u32, call: u32) -> Result<Line, Failure> {
    let line = dial(context, role)?;
    line.tell(&hello(context, role, index, call))?;
    line.set_limit(context.route.deadlines.idle)?;
    Ok(line)
}

fn dial(context: &Context<'_>, role: Role) -> Result<Line, Failure> {
    let Context { route, alarm, .. } = context;
    // The control connection stays writable when the alarm trips: the reason is still to be told on it.
    let how = if role == Role::Control { Shutdown::Read } else { Shutdown::Both };
    let elsewhere = context.elsewhere();
    let dial = elsewhere.as_deref().unwrap_or(route.dial);
    let link = dial.dial(role, route.deadlines.connect, &|link| alarm.watch(link, how));
    let link = link.map_err(|error| alarm.cause().unwrap_or_else(|| Failure::dial(dial.to(), &error)))?;
    if role == Role::Data && share_a_core(context.description.vcpus, context.streams()) {
        link.keep_in_cache();
    }
    Line::new(link, route.deadlines.connect)
}

fn hello(context: &Context<'_>, role: Role, index: u32, call: u32) -> Message {
    let versions = Versions { min: VERSIONS.0, max: VERSIONS.1 };
    Message::Hello(Hello { versions, role, session: context.session, index, call })
}

/// Waits for the version that the destination has chosen. How long that took, about a round trip.
pub(super) fn greet(control: &Line, asked: Instant) -> Result<Duration, Failure> {
    match control.hear().map_err(|failure| not_ours(control, failure))? {
        Message::Welcome(welcome) if (VERSIONS.0..=VERSIONS.1).contains(&welcome.version) => {
            Ok(asked.elapsed())
        }
        Message::Refuse(refuse) => Err(refused(control, &refuse.reasons)),
        other => Err(control.unexpected(other.kind(), "welcome in a version known here")),
    }
}

/// Whoever closes or is silent before any word of ours is hardly a destination.
fn not_ours(control: &Line, failure: Failure) -> Failure {
    let why = match failure {
        Failure::Closed { .. } | Failure::Broken { .. } => {
            "it closed the connection without a word".to_owned()
        }
        Failure::Silent { .. } => "it does not answer".to_owned(),
        Failure::Protocol { error, .. } => error.to_string(),
        other => return other,
    };
    Failure::Connect { to: control.peer().to_owned(), why }
}

/// Describes the guest; all reasons against it come at once. What the pause was rehearsed to take, and what a round trip does.
fn preflight(
    context: &Context<'_>,
    control: &Line,
    greeted: Duration,
) -> Result<(Rehearsal, Duration), Failure> {
    let packs = context.options.compression != Compression::None;
    let asked = Instant::now();
    control.tell(&Message::Preflight(Box::new(Preflight {
        description: context.description.clone(),
        mode: context.options.mode,
        streams: context.streams(),
        verify: context.options.verify,
        packets: context.forwards(),
        may_postcopy: may_postcopy(context),
        recovery_ms: context.options.recovery.as_millis() as u64,
        codecs: if packs { vec![Codec::Zstd.word().to_owned()] } else { Vec::new() },
        vcpu_cores: context.vcpu_cores(control.link()),
    })))?;
    match control.hear()? {
        Message::Accept(accept) => {
            let round_trip = round_trip(greeted, asked.elapsed(), accept.took_us);
            if packs && accept.codec.is_some() {
                let is_within_host = control.link().is_within_host();
                let about = About { round_trip, streams: context.streams(), is_within_host };
                let packing = Packing::new(context.options, context.description.pages(), about);
                context.packing.get_or_init(|| packing);
            }
            Ok((accept.rehearsal, round_trip))
        }
        Message::Refuse(refuse) => Err(refused(control, &refuse.reasons)),
        other => Err(control.unexpected(other.kind(), Kind::Accept.word())),
    }
}

/// What a round trip takes: as long as being `greeted`, or what an answer took beyond what the destination says it took *it*, whichever
/// is shorter. On a busy host a thread waits for a core for some milliseconds now and then, so one of them may say little of the way.
/// A destination can make it out to be shorter than it is, as it can its rehearsal: the pause is longer then than it was expected to be.
fn round_trip(greeted: Duration, answered: Duration, took_us: Option<u64>) -> Duration {
    let beyond = took_us.and_then(|us| answered.checked_sub(Duration::from_micros(us)));
    beyond.map_or(greeted, |beyond| beyond.min(greeted))
}

/// Whether what is left may follow by post-copy, should time be up.
fn may_postcopy(context: &Context<'_>) -> bool {
    context.options.on_timeout == OnTimeout::Postcopy
}

fn refused(control: &Line, reasons: &[String]) -> Failure {
    let reasons = reasons.iter().map(|reason| tame(reason)).collect();
    Failure::Refused { peer: control.peer().to_owned(), reasons }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_is_the_shorter_of_two_and_a_peer_that_tells_nonsense_has_told_nothing() {
        let ms = Duration::from_millis;
        assert_eq!(round_trip(ms(4), ms(11), Some(10_900)), Duration::from_micros(100), "greeted late");
        assert_eq!(round_trip(ms(4), ms(30), Some(11_000)), ms(4), "answered late");
        assert_eq!(round_trip(ms(4), ms(11), Some(11_000)), ms(0), "as it says");
        assert_eq!(round_trip(ms(4), ms(11), None), ms(4), "it does not tell");
        assert_eq!(round_trip(ms(4), ms(11), Some(11_001)), ms(4), "longer than it can have been");
        assert_eq!(round_trip(ms(4), ms(11), Some(u64::MAX)), ms(4));
    }
}
