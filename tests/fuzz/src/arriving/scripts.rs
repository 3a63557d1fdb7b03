//! What sources say that lead far inside: seeds for whole destinations.

use migrate::guest::Packet;
use migrate::options::Mode;
use migrate::pages::{PAGE_SIZE, PageRun};
use migrate::wire::rejoin::Knows;
use migrate::wire::{Kind, Message, Role};

use super::{FORCE, LET_GO};
use crate::guest::regions;
use crate::peer::{Steps, number};
use crate::seeds;

pub(crate) fn seeds() -> Vec<(String, Vec<u8>)> {
    let said = |name: &str, word: u8, steps: Steps| (name.to_owned(), [vec![word], steps.0].concat());
    let of = |name: &str, steps: Steps| said(name, 0, steps);
    vec![
        of("stranger", Steps::default().say(0, &Message::Bye)),
        of("streams", Steps::default().say(1, &seeds::hello(Role::Data, 0))),
        of("refused", begun(Mode::Precopy, &[PageRun { first: 0, count: 1 << 20 }], false)),
        of("precopy", end(state(rounds(begun(Mode::Precopy, &regions(), false))))),
        of("stopcopy", end(last_round(begun(Mode::Stopcopy, &regions(), false)))),
        of("verify", verified()),
        of("postcopy", postcopy()),
        of("hybrid", hybrid()),
        of("hybrid-in-the-pause", end(state(rounds(begun(Mode::Hybrid, &regions(), false))))),
        of("lost", last_round(begun(Mode::Precopy, &regions(), false)).close(0)),
        of(
            "orphan",
            missing(begun(Mode::Postcopy, &regions(), false))
                .say(0, &Message::Commit)
                .wait(0, Kind::Running)
                .close(3),
        ),
        of("packets", end(packets())),
        of("held-rejoined", end(rejoin(held(), Knows::Committed, 1))),
        of("held-awaited", end(thrice(last_round(begun(Mode::Stopcopy, &regions(), false))))),
        of("held-disowned", rejoin(held(), Knows::Kept, 1)),
        of("held-asked-when-gone", rejoin(rejoin(held(), Knows::Kept, 1), Knows::Committed, 2)),
        said("held-forced", FORCE, held()),
        said("held-let-go", LET_GO, held()),
        of("unheard-rejoined", finish(rejoin(unheard(), Knows::Committed, 1))),
        of("bereft-rejoined", pushed_again(rejoin(bereft(), Knows::Left, 1), 1)),
        of("bereft-called-over", pushed_again(call_over(bereft(), Knows::Committed, 3), 3)),
        of(
            "bereft-twice",
            pushed_again(rejoin(connected(rejoin(bereft(), Knows::Left, 1), 1), Knows::Left, 2), 2),
        ),
        said("orphan-let-go", LET_GO, bereft()),
        of("another-guest", another()),
    ]
}

/// Ready was said, and the source says no more.
fn held() -> Steps {
    last_round(begun(Mode::Precopy, &regions(), false))
}

/// It runs here, and its source does not say that it has heard so.
fn unheard() -> Steps {
    held().say(0, &Message::Commit).wait(0, Kind::Running)
}

/// It runs here without a part of its memory, of which it has got a page.
fn bereft() -> Steps {
    let runs = missing(begun(Mode::Postcopy, &regions(), false)).say(0, &Message::Commit);
    runs.wait(0, Kind::Running).pages(3, Kind::Push, &[[4, 1]])
}

/// The source comes back.
fn rejoin(steps: Steps, knows: Knows, call: u32) -> Steps {
    ask(steps.again(false), knows, call)
}

/// Of its calls one may come in the moment in which the operator begins to wait, and is not answered.
fn thrice(steps: Steps) -> Steps {
    (1..4).fold(steps, |steps, call| rejoin(steps, Knows::Committed, call))
}

/// It calls although the conversation before goes on.
fn call_over(steps: Steps, knows: Knows, call: u32) -> Steps {
    ask(steps.again(true), knows, call)
}

fn ask(steps: Steps, knows: Knows, call: u32) -> Steps {
    let asked = steps.say(0, &seeds::call(Role::Control, 0, call)).wait(0, Kind::Welcome);
    asked.say(0, &seeds::rejoin(knows)).wait(0, Kind::Fate)
}

/// What bereft lacks, but for the page that it has got.
fn pushed_again(steps: Steps, call: u32) -> Steps {
    let pushed = connected(steps, call)
        .pages(1, Kind::Push, &[[0, 4]])
        .pages(1, Kind::PushZeros, &[[5, 3]])
        .pages(3, Kind::Push, &[[64, 1]]);
    finish(pushed.wait(0, Kind::Complete))
}

/// The connections of a call on which pages come, and what is waited for has been requested.
fn connected(steps: Steps, call: u32) -> Steps {
    let called = steps.say(1, &seeds::call(Role::Data, 0, call));
    called.say(3, &seeds::call(Role::Urgent, 0, call)).wait(3, Kind::Request)
}

/// One that has no room, and then one that has.
fn another() -> Steps {
    let refused = begun(Mode::Precopy, &[PageRun { first: 0, count: 1 << 20 }], false).again(false);
    Steps([refused.0, end(held()).0].concat())
}

/// Connections and pre-flight.
fn begun(mode: Mode, ram: &[PageRun], verify: bool) -> Steps {
    begun_with(mode, ram, verify, 0)
}

fn begun_with(mode: Mode, ram: &[PageRun], verify: bool, nics: u32) -> Steps {
    let roles = [(Role::Data, true), (Role::Urgent, matches!(mode, Mode::Postcopy | Mode::Hybrid))];
    let roles = roles.into_iter().chain([(Role::Packets, nics > 0)]).filter(|(_, wanted)| *wanted);
    let asked = Steps::default()
        .say(0, &seeds::hello(Role::Control, 0))
        .wait(0, Kind::Welcome)
        .say(0, &seeds::preflight(mode, ram.to_vec(), verify, nics))
        .wait(0, Kind::Accept);
    roles.fold(asked, |steps, (role, _)| steps.say(number(role, 0), &seeds::hello(role, 0)))
}

fn rounds(steps: Steps) -> Steps {
    let round = |steps: Steps, round| {
        steps.say(1, &Message::RoundEnd { round, last: false }).wait(0, Kind::RoundDone)
    };
    let first = steps
        .say(0, &Message::Populated { first: 0, words: vec![0xff_ffff, 0xff] })
        .pages(1, Kind::Pages, &[[0, 8], [64, 2]])
        .pages(1, Kind::Zeros, &[[8, 16], [66, 6]]);
    let second = round(first, 0).pages(1, Kind::Pages, &[[3, 1]]).pages(1, Kind::Zeros, &[[4, 1]]);
    round(second, 1).pages(0, Kind::Pages, &[[5, 2]])
}

fn state(steps: Steps) -> Steps {
    let clock = steps.say(0, &Message::Clock { shown_ns: 1 << 60 });
    clock.say(0, &Message::State { after_round: None, blob: vec![1; 32] }).wait(0, Kind::Ready)
}

/// The state, and a round that comes on the data connection.
fn last_round(steps: Steps) -> Steps {
    steps
        .say(0, &Message::State { after_round: Some(0), blob: vec![1; 32] })
        .pages(1, Kind::Pages, &[[0, 24]])
        .say(1, &Message::RoundEnd { round: 0, last: true })
        .wait(0, Kind::Ready)
}

fn end(steps: Steps) -> Steps {
    finish(steps.say(0, &Message::Commit).wait(0, Kind::Running))
}

fn finish(steps: Steps) -> Steps {
    steps.say(0, &Message::Finish).wait(0, Kind::Settled).say(0, &Message::Bye)
}

fn missing(steps: Steps) -> Steps {
    state(steps.say(0, &Message::Missing { first: 0, words: vec![0xff, 1] }))
}

fn postcopy() -> Steps {
    let runs = missing(begun(Mode::Postcopy, &regions(), false)).say(0, &Message::Commit);
    let placed = runs
        .wait(0, Kind::Running)
        .pages(1, Kind::Push, &[[0, 4]])
        .wait(3, Kind::Request)
        .pages(3, Kind::Push, &[[4, 1], [64, 1]])
        .pages(1, Kind::PushZeros, &[[5, 3]])
        .wait(0, Kind::Complete);
    placed.say(0, &Message::Finish).wait(0, Kind::Settled).say(0, &Message::Bye)
}

/// Missing pages are named ahead of the pause.
fn hybrid() -> Steps {
    let named = rounds(begun(Mode::Hybrid, &regions(), false))
        .say(0, &Message::RoundEnd { round: 2, last: false })
        .wait(0, Kind::RoundDone)
        .say(0, &Message::Missing { first: 0, words: vec![0xff] })
        .say(0, &Message::RoundEnd { round: 3, last: false })
        .wait(0, Kind::RoundDone);
    let runs = state(named.say(0, &Message::Missing { first: 64, words: vec![3] }));
    let pushed = runs.pages(1, Kind::Push, &[[0, 8]]).say(0, &Message::Commit).wait(0, Kind::Running);
    let placed = pushed.pages(3, Kind::PushZeros, &[[64, 2]]).wait(0, Kind::Complete);
    placed.say(0, &Message::Finish).wait(0, Kind::Settled).say(0, &Message::Bye)
}

fn verified() -> Steps {
    let zero = u64::from(crc32fast::hash(&[0; PAGE_SIZE]));
    let hashes = |first, count| Message::Hashes { first, hashes: vec![zero; count] };
    let sent = begun(Mode::Precopy, &regions(), true)
        .say(0, &Message::State { after_round: None, blob: vec![1; 32] })
        .say(0, &hashes(0, 24))
        .say(0, &hashes(64, 8));
    end(sent.wait(0, Kind::Verified).wait(0, Kind::Ready))
}

fn packets() -> Steps {
    let packet = |nic| Message::Packet(Packet { nic, bytes: vec![2; 60] });
    last_round(begun_with(Mode::Stopcopy, &regions(), false, 1))
        .say(0, &Message::Commit)
        .wait(0, Kind::Running)
        .say(4, &packet(0))
        .say(4, &packet(1))
}
