//! Two processes, their connections and one journal, as the engine uses them, in values that can be compared.

use std::collections::VecDeque;

use migrate::handover::{Destination, DestinationEvent, Source, SourceEvent};

/// How much may go wrong, and be tried, in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// Migrations begun.
    pub(crate) attempts: u8,
    /// Times the source calls again, of all attempts.
    pub(crate) calls: u8,
    /// Processes killed.
    pub(crate) crashes: u8,
    /// Whether the destination's host may lose power: what was not synced is lost.
    pub(crate) power: bool,
    /// Times an operator forces a side.
    pub(crate) forces: u8,
    /// Old connections whose bytes come again.
    pub(crate) repeats: u8,
    /// What the sides do not do although they must: the check has to notice.
    pub(crate) without: Option<Duty>,
}

/// What keeps a handover right besides its tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Duty {
    /// A commit that comes late is not obeyed.
    Lapse,
    /// A journal from before a power failure is not believed to be complete.
    BootId,
    /// The journal is written before the guest runs.
    WriteAhead,
    /// The source that kept its guest tells the destination so.
    TellKept,
}

/// What the source says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Said {
    Offer,
    State,
    Commit,
    Ask,
    /// It runs on the source.
    Keep,
    /// It was forced to run on the source.
    Superseded,
}

/// What the destination says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Answer {
    Accept,
    Ready,
    Held,
    Running,
    NotRunning,
    Complete,
    Gone,
    /// It has never heard of it, or cannot tell.
    Nothing,
}

/// A connection: in order, without loss until it ends, and it may end for one side long before the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Line {
    pub(crate) session: u8,
    /// 0: the first of its session.
    pub(crate) number: u8,
    pub(crate) to_destination: VecDeque<Said>,
    pub(crate) to_source: VecDeque<Answer>,
    pub(crate) source_end: bool,
    pub(crate) destination_end: bool,
    /// A commit on it would come too late.
    pub(crate) lapsed: bool,
    /// All that was said on it, to come again.
    pub(crate) said: Vec<Said>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Here {
    pub(crate) state: Source,
    pub(crate) line: Option<usize>,
    /// The destination awaits the guest.
    pub(crate) accepted: bool,
    /// What the destination has not been told although it may hold the guest.
    pub(crate) owes: Option<(Said, u8)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct There {
    pub(crate) state: Destination,
    pub(crate) session: u8,
    /// The last connection of the session.
    pub(crate) number: u8,
    pub(crate) line: Option<usize>,
}

/// The destination's journal of its last session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Record {
    Nothing,
    Arriving { session: u8, this_boot: bool },
    Ran { session: u8 },
    Discarded { session: u8 },
}

/// All there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) left: Budget,
    /// Migrations begun; the number of the last one.
    pub(crate) session: u8,
    pub(crate) calls: u8,
    pub(crate) source: Option<Here>,
    /// The destination's process lives.
    pub(crate) destination_lives: bool,
    pub(crate) arrival: Option<There>,
    pub(crate) written: Record,
    pub(crate) synced: Record,
    pub(crate) lines: Vec<Option<Line>>,
    /// The guest has run there in this session.
    pub(crate) ran_there: u8,
    pub(crate) in_doubt_once: bool,
    pub(crate) given_back: bool,
    /// It was given back although it had run there.
    pub(crate) lied: bool,
    pub(crate) forced_here: bool,
    pub(crate) forced_there: bool,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Begin,
    Pause,
    SourceHears,
    SourceLosesLink,
    SourceCancels,
    Call,
    SourceGivesUp,
    Recover,
    ForceHere,
    SourceDies,
    TellKept,
    Lapse(usize),
    Repeat(usize),
    DestinationHears { line: usize, starts: bool },
    DestinationLosesLink,
    Complete,
    DestinationGivesUp,
    DestinationBreaks,
    DestinationDies { power: bool },
    DestinationRestarts,
    Sync,
    ForceThere,
}

impl World {
    pub(crate) fn new(budget: Budget) -> Self {
        Self {
            left: budget,
            session: 0,
            calls: 0,
            source: Some(Here { state: Source::Here, line: None, accepted: false, owes: None }),
            destination_lives: true,
            arrival: None,
            written: Record::Nothing,
            synced: Record::Nothing,
            lines: Vec::new(),
            ran_there: 0,
            in_doubt_once: false,
            given_back: false,
            lied: false,
            forced_here: false,
            forced_there: false,
        }
    }

    pub(crate) fn actions(&self) -> Vec<Action> {
        let mut all = vec![
            Action::Begin,
            Action::Pause,
            Action::SourceHears,
            Action::SourceLosesLink,
            Action::SourceCancels,
            Action::Call,
            Action::SourceGivesUp,
            Action::Recover,
            Action::ForceHere,
            Action::SourceDies,
            Action::TellKept,
            Action::DestinationLosesLink,
            Action::Complete,
            Action::DestinationGivesUp,
            Action::DestinationBreaks,
            Action::DestinationDies { power: false },
            Action::DestinationDies { power: true },
            Action::DestinationRestarts,
            Action::Sync,
            Action::ForceThere,
        ];
        for line in 0..self.lines.len() {
            all.extend([Action::Lapse(line), Action::Repeat(line)]);
            all.extend([true, false].map(|starts| Action::DestinationHears { line, starts }));
        }
        all
    }

    /// The world after it; none where it cannot happen.
    pub(crate) fn after(&self, action: Action) -> Option<World> {
        let mut world = self.clone();
        world.act(action)?;
        world.sweep();
        (world != *self).then_some(world)
    }

    pub(crate) fn act(&mut self, action: Action) -> Option<()> {
        match action {
            Action::Begin => self.begin(),
            Action::Pause => {
                let here = self.source.as_ref().filter(|here| here.state == Source::Here && here.accepted)?;
                here.line?;
                self.meets(SourceEvent::Paused);
                self.say(Said::State);
                Some(())
            }
            Action::SourceHears => self.source_hears(),
            Action::SourceLosesLink => {
                self.source.as_ref()?.line?;
                self.source_loses();
                Some(())
            }
            Action::SourceCancels => {
                let here = self.source.as_ref()?;
                here.line.filter(|_| matches!(here.state, Source::Here | Source::Paused))?;
                self.say(Said::Keep);
                self.source_loses();
                Some(())
            }
            Action::Call => {
                let here = self.source.as_ref().filter(|here| here.state.asks() && here.line.is_none())?;
                let _ = here;
                self.call(Said::Ask, self.session)
            }
            Action::TellKept => {
                let owes = self
                    .source
                    .as_ref()
                    .filter(|here| here.line.is_none() && here.state == Source::Kept)?
                    .owes?;
                self.call(owes.0, owes.1)
            }
            Action::SourceGivesUp => {
                self.source.as_ref().filter(|here| here.state.asks() && here.line.is_none())?;
                self.meets(SourceEvent::GiveUp);
                Some(())
            }
            Action::Recover => {
                self.waits_for_operator()?;
                (self.calls < self.left.calls).then(|| self.meets(SourceEvent::Recover))
            }
            Action::ForceHere => self.force_here(),
            Action::SourceDies => {
                self.left.crashes = self.left.crashes.checked_sub(1)?;
                let here = self.source.take()?;
                here.line.into_iter().for_each(|line| self.line(line).source_end = false);
                Some(())
            }
            Action::Lapse(at) => {
                let line = self.lines[at].as_mut()?;
                let pending = line.destination_end && line.to_destination.contains(&Said::Commit);
                pending.then(|| line.lapsed = true)
            }
            Action::Repeat(at) => {
                self.left.repeats = self.left.repeats.checked_sub(1)?;
                let line = self.lines[at].clone()?;
                let again = line.said.iter().copied().collect();
                self.open(Line {
                    to_destination: again,
                    to_source: VecDeque::new(),
                    source_end: false,
                    destination_end: true,
                    lapsed: true,
                    ..line
                });
                Some(())
            }
            Action::DestinationHears { line, starts } => self.destination_hears(line, starts),
            Action::DestinationLosesLink => {
                self.arrival.as_ref()?.line?;
                self.destination_loses();
                Some(())
            }
            Action::Complete => {
                let there = self.arrival.as_ref().filter(|there| there.state == Destination::Running)?;
                there.line?;
                self.befalls(DestinationEvent::Complete);
                self.answer(Answer::Complete);
                Some(())
            }
            Action::DestinationGivesUp => {
                self.arrival.as_ref().filter(|there| there.state == Destination::Bereft)?;
                self.befalls(DestinationEvent::GiveUp);
                Some(())
            }
            Action::DestinationBreaks => {
                let there = self.arrival.as_ref()?;
                there.state.on(DestinationEvent::Broken)?;
                self.befalls(DestinationEvent::Broken);
                self.hang_up();
                Some(())
            }
            Action::DestinationDies { power } => self.destination_dies(power),
            Action::DestinationRestarts => (!self.destination_lives).then(|| self.destination_lives = true),
            Action::Sync => {
                self.synced = self.written;
                Some(())
            }
            Action::ForceThere => {
                // The operator's word is true: the source is gone for good, or stands still until the operator says more.
                let _held = self.arrival.as_ref().filter(|there| there.state == Destination::Held)?;
                let still = self
                    .source
                    .as_ref()
                    .is_none_or(|here| matches!(here.state, Source::Unknown | Source::Stranded));
                self.left.forces = self.left.forces.checked_sub(1).filter(|_| still)?;
                self.forced_there = true;
                self.runs_there(DestinationEvent::Forced, true);
                // Refused where anything is missing.
                self.befalls(DestinationEvent::Complete);
                Some(())
            }
        }
    }

    pub(crate) fn open(&mut self, line: Line) -> usize {
        let at = self.lines.iter().position(Option::is_none).unwrap_or(self.lines.len());
        if at == self.lines.len() {
            self.lines.push(None);
        }
        self.lines[at] = Some(line);
        at
    }

    pub(crate) fn line(&mut self, at: usize) -> &mut Line {
        self.lines[at].as_mut().expect("a line is kept as long as one of its ends")
    }

    /// Forgets what cannot matter any more.
    pub(crate) fn sweep(&mut self) {
        for slot in &mut self.lines {
            if let Some(line) = slot {
                if !line.source_end {
                    line.to_source.clear();
                }
                if !line.destination_end {
                    line.to_destination.clear();
                }
                if self.left.repeats == 0 {
                    line.said.clear();
                }
                if !line.source_end && !line.destination_end {
                    *slot = None;
                }
            }
        }
        while self.lines.last().is_some_and(Option::is_none) {
            self.lines.pop();
        }
    }
}
