//! What destinations say that lead far inside: seeds for whole sources.

use migrate::guest::{Rehearsal, Telemetry};
use migrate::report::{Postcopy, Takeover, Verification};
use migrate::wire::limits::VERSIONS;
use migrate::wire::message::{Accept, Figures, Ready, Reason, Refuse, Welcome};
use migrate::wire::rejoin::Fate;
use migrate::wire::{Codec, Kind, Message};

use super::{FORCED, HASTY, LAST_EPOCH, NICS, PACED, RECOVERS, TWO_STREAMS, VAST, VERIFY};
use crate::peer::Steps;
use crate::seeds;

pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let of = |name: &str, asked: u16, steps: Steps| {
        let mut bytes = asked.to_le_bytes().to_vec();
        bytes.extend(steps.0);
        (name.to_owned(), bytes)
    };
    let refuse = Message::Refuse(Refuse { reasons: vec!["no room".to_owned()] });
    let not_running = Message::NotRunning(Reason { reason: "no".to_owned() });
    let lost = |rounds| ready(accepted(rounds)).wait(0, Kind::Commit);
    vec![
        of("stranger", 0, Steps::default().say(0, &Message::Bye)),
        of("refused", 0, welcomed().say(0, &refuse)),
        of("precopy", 0, end(lost(1))),
        of("stopcopy", 1, end(lost(0))),
        of("postcopy", 2, postcopy(1)),
        of("hybrid", 3, postcopy(2)),
        of("hybrid-in-the-pause", VAST | 3, end(lost(1))),
        of("verify", VERIFY | 1, verify()),
        of("packets", NICS | 1, end(lost(0))),
        of("two-streams", TWO_STREAMS | PACED, end(lost(1))),
        of("without-limits", VAST | NICS, end(lost(1))),
        of("in-doubt", 0, lost(1).close(0)),
        of("not-running", 0, lost(1).say(0, &not_running)),
        of("last-epoch", LAST_EPOCH, end(lost(1))),
        of("time-is-up", HASTY | FORCED, end(lost(1))),
        of("held", RECOVERS, end(called(lost(1), Fate::Held, 0).wait(0, Kind::Commit))),
        of("running", RECOVERS, last_words(called(lost(1), Fate::Running, 0))),
        of("arrived", 2, last_words(complete(called(postcopied(1), Fate::Arrived, 0)))),
        of("gone", RECOVERS | FORCED, called(lost(1), Fate::Gone, 0)),
        of("never-ran", RECOVERS, called(lost(1), Fate::NotRunning, 0)),
        of("severed", RECOVERS | 2, severed()),
        of("recovered", 2, severed()),
        of(
            "missing-nothing-new",
            RECOVERS | 2,
            missing(missing(called(postcopied(1), Fate::Running, 9), 5), 5),
        ),
        of("missing-outside", RECOVERS | 2, missing(called(postcopied(1), Fate::Running, 9), 1 << 40)),
    ]
}

/// The source calls again, and hears this.
fn called(steps: Steps, fate: Fate, missing: u64) -> Steps {
    steps
        .again(false)
        .wait(0, Kind::Hello)
        .say(0, &Message::Welcome(Welcome { version: VERSIONS.1 }))
        .wait(0, Kind::Rejoin)
        .say(0, &seeds::fate(fate, missing))
}

fn missing(steps: Steps, word: u64) -> Steps {
    steps.say(0, &Message::Missing { first: 0, words: vec![word] })
}

/// It runs on the destination, and pages are missing there.
fn postcopied(rounds: u32) -> Steps {
    ready(accepted(rounds)).wait(0, Kind::Commit).say(0, &Message::Running)
}

fn complete(steps: Steps) -> Steps {
    steps.say(0, &Message::Complete(Postcopy { missing_pages: 32, ..Postcopy::default() }))
}

/// The link breaks in post-copy, and the source comes back with what is missing.
fn severed() -> Steps {
    let named = missing(called(postcopied(1), Fate::Running, 2), 6);
    let pushed = named.wait(1, Kind::Push).say(3, &Message::Request { gfns: vec![1, 2] });
    last_words(complete(pushed.say(1, &Message::Placed)))
}

fn welcomed() -> Steps {
    Steps::default()
        .wait(0, Kind::Hello)
        .say(0, &Message::Welcome(Welcome { version: VERSIONS.1 }))
        .wait(0, Kind::Preflight)
}

/// Accepted, and so many rounds done before the pause: words that come before their time wait in the link.
fn accepted(rounds: u32) -> Steps {
    let rehearsal = Rehearsal { save_us: 50, restore_us: 50 };
    let steps = welcomed()
        .say(0, &Message::Accept(Accept { rehearsal, took_us: Some(20), codec: Some(Codec::Zstd) }));
    (0..rounds).fold(steps, |steps, round| steps.say(0, &Message::RoundDone { round }))
}

fn ready(steps: Steps) -> Steps {
    steps.wait(0, Kind::State).say(0, &Message::Ready(Ready { restore_us: 400 }))
}

fn end(steps: Steps) -> Steps {
    last_words(steps.say(0, &Message::Running))
}

fn last_words(steps: Steps) -> Steps {
    let telemetry = Telemetry { tsc: 1 << 41, tsc_khz: 2_000_000, work: 1 << 21, ..Telemetry::default() };
    let figures = Figures { telemetry: Some(telemetry), takeover: Some(Takeover::default()) };
    steps
        .wait(0, Kind::Finish)
        .say(0, &Message::Figures(figures.clone()))
        .say(0, &Message::Settled(figures))
        .wait(0, Kind::Bye)
}

fn postcopy(rounds: u32) -> Steps {
    let runs = postcopied(rounds).say(3, &Message::Request { gfns: vec![3, 64] });
    let placed = (0..8).fold(runs, |steps, _| steps.say(1, &Message::Placed));
    last_words(complete(placed))
}

fn verify() -> Steps {
    let verification =
        Verification { pages: 32, skipped: 0, mismatched: 0, first_mismatches: Vec::new(), us: 7 };
    let compared = accepted(0).wait(0, Kind::Hashes).say(0, &Message::Verified(verification));
    end(compared.say(0, &Message::Ready(Ready { restore_us: 400 })).wait(0, Kind::Commit))
}
