//! What is to go wrong: a pure function of a seed and a number, so that any one fault can be had again.

use std::fmt;
use std::time::Duration;

use crate::{Cut, Kind};

/// How long both sides try to find each other again, in every attempt.
pub(super) const RECOVERY: Duration = Duration::from_secs(4);

/// The sorts of faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// The link breaks and heals within the time for recovery.
    Cut,
    /// The link breaks, and heals only after both sides have given up.
    Sever,
    /// The link stalls, and goes on.
    Stall,
    /// The link is slow from there on.
    Slow,
    /// A message arrives twice.
    Repeat,
    /// What arrives is not what was sent.
    Damage,
    /// A process is killed.
    Kill,
    /// A process is stopped, and goes on.
    Stop,
    /// A process stops for longer than a promise lasts.
    Sleep,
    /// The destination may have no more memory than a little.
    Memory,
    /// A process may open no more than a few files.
    Files,
    /// There is no room where the journals are.
    Disk,
}

/// A side of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The guest leaves from there.
    Source,
    /// It goes there.
    Destination,
}

/// How an attempt may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest runs on the destination.
    Moved,
    /// It runs on the source.
    Kept,
    /// A side was in doubt, and was helped out of it.
    Resolved,
    /// It died with its host.
    Died,
}

/// One fault.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Of the run.
    pub seed: u64,
    /// In the run.
    pub number: u32,
    /// What.
    pub sort: Sort,
    /// To whom, where it is not the link.
    pub side: Side,
    /// Where.
    pub place: Cut,
    /// At which such message.
    pub nth: u32,
    /// How the guest moves.
    pub mode: &'static str,
    /// How long; what is limited has as many units of room.
    pub time: Duration,
    /// Any number.
    pub any: u64,
}

/// How far the handover has come where a fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The source may still run the guest on by itself.
    Early,
    /// That depends on what is on its way.
    Either,
    /// It may not.
    Late,
}

impl Sort {
    /// All, each as often as its weight says.
    pub const ALL: [(Self, u64); 12] = [
        (Self::Cut, 36),
        (Self::Stall, 22),
        (Self::Repeat, 10),
        (Self::Damage, 12),
        (Self::Slow, 3),
        (Self::Sever, 3),
        (Self::Kill, 6),
        (Self::Stop, 6),
        (Self::Sleep, 1),
        (Self::Memory, 2),
        (Self::Files, 4),
        (Self::Disk, 3),
    ];

    /// As it is written.
    pub fn word(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

/// Messages by which places are named, before commit and after.
const EARLY: [Kind; 11] = [
    Kind::Hello,
    Kind::Welcome,
    Kind::Preflight,
    Kind::Accept,
    Kind::Populated,
    Kind::Pages,
    Kind::RoundEnd,
    Kind::RoundDone,
    Kind::Clock,
    Kind::State,
    Kind::Ready,
];
const LATE: [Kind; 7] =
    [Kind::Commit, Kind::Running, Kind::Complete, Kind::Finish, Kind::Figures, Kind::Settled, Kind::Bye];
const FOLLOWING: [Kind; 4] = [Kind::Push, Kind::Placed, Kind::Request, Kind::Missing];

impl Fault {
    /// The fault of this number, of this sort or any. A protected link is inside TLS: nothing is known of its messages.
    #[must_use]
    pub fn planned(seed: u64, number: u32, only: Option<Sort>, protected: bool) -> Self {
        let mut dice = Dice(seed ^ (u64::from(number) << 32));
        let sort = only.unwrap_or_else(|| {
            if protected {
                return dice.one_of(&[Sort::Damage, Sort::Damage, Sort::Cut, Sort::Stall]);
            }
            let mut at = dice.below(Sort::ALL.iter().map(|(_, weight)| weight).sum());
            let found = Sort::ALL.iter().find(|(_, weight)| {
                let here = at < *weight;
                at = at.saturating_sub(*weight);
                here
            });
            found.expect("weights add up").0
        });
        let mode = dice.one_of(&["precopy", "hybrid", "hybrid --max-downtime 1us", "postcopy", "stopcopy"]);
        let place = if protected || dice.below(5) == 0 { bytes(&mut dice) } else { message(&mut dice, mode) };
        let place = match sort {
            Sort::Sever => dice.one_of(&[
                Cut::Before(Kind::Commit),
                Cut::After(Kind::Commit),
                Cut::Before(Kind::Running),
            ]),
            Sort::Sleep => Cut::After(Kind::Ready),
            // The journals are begun about here; later there is room in them.
            Sort::Disk if dice.below(2) == 0 => {
                dice.one_of(&[Cut::Before(Kind::Preflight), Cut::Before(Kind::Accept)])
            }
            Sort::Repeat | Sort::Damage if !protected => {
                Cut::Before(message(&mut dice, mode).kind().expect("a message"))
            }
            _ => place,
        };
        let side = dice.one_of(&[Side::Source, Side::Destination]);
        let side = if matches!(sort, Sort::Sleep | Sort::Memory) { Side::Destination } else { side };
        let nth = if dice.below(4) == 0 && !matches!(sort, Sort::Sever | Sort::Sleep) { 2 } else { 1 };
        let nth = if place.kind().is_some() { nth } else { 1 };
        let time = Duration::from_millis(match sort {
            Sort::Sleep => 12_000,
            Sort::Slow => 1 + dice.below(10),
            _ => 1 + dice.below(dice.clone().one_of(&[30, 300, 1500])),
        });
        Self { seed, number, sort, side, place, nth, mode, time, any: dice.next() }
    }

    /// The ways in which the attempt may end, as `docs/handover.md` has them.
    #[must_use]
    pub fn allowed(&self) -> &'static [End] {
        use End::{Died, Kept, Moved, Resolved};
        let stage = self.stage();
        match (self.sort, self.side) {
            (Sort::Stall | Sort::Slow | Sort::Stop | Sort::Sleep, _) => &[Moved],
            (Sort::Sever, _) => &[Resolved],
            (Sort::Cut, _) => match stage {
                Stage::Early => &[Kept],
                Stage::Either => &[Kept, Moved],
                Stage::Late => &[Moved],
            },
            (Sort::Repeat | Sort::Damage, _) if stage == Stage::Late => &[Moved],
            (Sort::Repeat | Sort::Damage | Sort::Memory | Sort::Files | Sort::Disk, _) => &[Kept, Moved],
            (Sort::Kill, Side::Source) if stage == Stage::Early => &[Died],
            (Sort::Kill, Side::Source) => &[Died, Moved, Resolved],
            (Sort::Kill, Side::Destination) => match stage {
                Stage::Early => &[Kept],
                Stage::Either => &[Kept, Resolved, Died],
                Stage::Late => &[Resolved, Died],
            },
        }
    }

    fn stage(&self) -> Stage {
        match self.place {
            // It was said before its process died: it arrives all the same.
            Cut::Before(Kind::Ready) if self.sort == Sort::Kill => Stage::Either,
            Cut::Before(kind) if EARLY.contains(&kind) => Stage::Early,
            Cut::After(kind) if EARLY.contains(&kind) && kind != Kind::Ready => Stage::Early,
            Cut::Before(kind) | Cut::After(kind) if LATE.contains(&kind) => Stage::Late,
            Cut::Before(Kind::Missing) | Cut::After(Kind::Missing) => Stage::Early,
            _ => Stage::Either,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, sort, side, place, nth, mode, time, .. } = self;
        write!(f, "fault {number}: {} at {place:?} ({nth}), {side:?}, {time:?}, {mode}", sort.word())
    }
}

impl Cut {
    fn kind(self) -> Option<Kind> {
        match self {
            Self::Before(kind) | Self::After(kind) => Some(kind),
            _ => None,
        }
    }
}

/// A message of a migration of this mode.
fn message(dice: &mut Dice, mode: &str) -> Cut {
    // Of a guest at such a pace, hybrid leaves to post-copy only what may not come in the pause.
    let follows = mode == "postcopy" || mode.contains("--max-downtime");
    let kind = match dice.below(if follows { 9 } else { 6 }) {
        0..3 => dice.one_of(&EARLY),
        3..6 => dice.one_of(&LATE),
        _ => dice.one_of(&FOLLOWING),
    };
    dice.one_of(&[Cut::Before(kind), Cut::After(kind)])
}

/// Any byte, of the first ones as likely as of the many.
fn bytes(dice: &mut Dice) -> Cut {
    let most = dice.one_of(&[100, 4_000, 100_000, 9_000_000]);
    match dice.below(4) {
        0 => Cut::AfterBytesBack(dice.below(dice.clone().one_of(&[100, 1_000, 4_000]))),
        _ => Cut::AfterBytes(dice.below(most)),
    }
}

/// Numbers that look random: splitmix64.
#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_its_seed_and_has_every_sort() {
        let plan =
            |seed| (0..500).map(|number| Fault::planned(seed, number, None, false)).collect::<Vec<_>>();
        assert_eq!(format!("{:?}", plan(1)), format!("{:?}", plan(1)));
        assert_ne!(format!("{:?}", plan(1)), format!("{:?}", plan(2)));
        for (sort, _) in Sort::ALL {
            assert!(plan(1).iter().any(|fault| fault.sort == sort), "{sort:?}");
        }
        assert!(plan(1).iter().all(|fault| fault.time < RECOVERY || fault.sort == Sort::Sleep));
    }
}
