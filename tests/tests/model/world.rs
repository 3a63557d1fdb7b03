//! Two processes, their connections and one journal, as the engine uses them, in values that can be compared.

use std::collections::VecDeque;

use migrate::handover::{
    Destination, DestinationAction, DestinationEvent, Source, SourceAction, SourceEvent,
};

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
enum Said {
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
enum Answer {
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
struct Line {
    session: u8,
    /// 0: the first of its session.
    number: u8,
    to_destination: VecDeque<Said>,
    to_source: VecDeque<Answer>,
    source_end: bool,
    destination_end: bool,
    /// A commit on it would come too late.
    lapsed: bool,
    /// All that was said on it, to come again.
    said: Vec<Said>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Here {
    state: Source,
    line: Option<usize>,
    /// The destination awaits the guest.
    accepted: bool,
    /// What the destination has not been told although it may hold the guest.
    owes: Option<(Said, u8)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct There {
    state: Destination,
    session: u8,
    /// The last connection of the session.
    number: u8,
    line: Option<usize>,
}

/// The destination's journal of its last session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Record {
    Nothing,
    Arriving { session: u8, this_boot: bool },
    Ran { session: u8 },
    Discarded { session: u8 },
}

/// All there is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    left: Budget,
    /// Migrations begun; the number of the last one.
    session: u8,
    calls: u8,
    source: Option<Here>,
    /// The destination's process lives.
    destination_lives: bool,
    arrival: Option<There>,
    written: Record,
    synced: Record,
    lines: Vec<Option<Line>>,
    /// The guest has run there in this session.
    ran_there: u8,
    in_doubt_once: bool,
    given_back: bool,
    /// It was given back although it had run there.
    lied: bool,
    forced_here: bool,
    forced_there: bool,
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

    fn act(&mut self, action: Action) -> Option<()> {
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

    fn begin(&mut self) -> Option<()> {
        let here = self.source.as_ref().filter(|here| here.line.is_none() && here.state.runs())?;
        let owes = here.owes;
        self.left.attempts = self.left.attempts.checked_sub(1)?;
        self.session += 1;
        let line = self.open(Line {
            session: self.session,
            number: 0,
            to_destination: VecDeque::new(),
            to_source: VecDeque::new(),
            source_end: true,
            destination_end: true,
            lapsed: false,
            said: Vec::new(),
        });
        self.source = Some(Here { state: Source::Here, line: Some(line), accepted: false, owes });
        self.say(Said::Offer);
        Some(())
    }

    fn call(&mut self, said: Said, session: u8) -> Option<()> {
        (self.calls < self.left.calls).then_some(())?;
        self.calls += 1;
        let line = self.open(Line {
            session,
            number: self.calls,
            to_destination: VecDeque::new(),
            to_source: VecDeque::new(),
            source_end: true,
            destination_end: true,
            lapsed: false,
            said: Vec::new(),
        });
        self.source.as_mut()?.line = Some(line);
        self.say(said);
        Some(())
    }

    fn force_here(&mut self) -> Option<()> {
        self.waits_for_operator()?;
        // The operator's word is true: it does not run there, and nobody there is about to make it run. A commit that is
        // still on its way has lapsed: that is what the VMM waits for.
        let runs = self
            .arrival
            .as_ref()
            .is_some_and(|there| there.state.runs() || there.state == Destination::Orphaned);
        let pending =
            self.lines.iter().flatten().any(|line| {
                line.destination_end && !line.lapsed && line.to_destination.contains(&Said::Commit)
            });
        let true_word = !runs && !pending;
        self.left.forces = self.left.forces.checked_sub(1).filter(|_| true_word)?;
        self.forced_here = true;
        self.meets(SourceEvent::Forced);
        self.source.as_mut()?.owes = Some((Said::Superseded, self.session));
        Some(())
    }

    fn waits_for_operator(&self) -> Option<()> {
        let state = self.source.as_ref()?.state;
        matches!(state, Source::Unknown | Source::Stranded).then_some(())
    }

    fn source_hears(&mut self) -> Option<()> {
        let (line, state) = self.source.as_ref().map(|here| (here.line, here.state))?;
        let answer = self.line(line?).to_source.pop_front()?;
        match (answer, state) {
            (Answer::Accept, Source::Here) => self.source.as_mut()?.accepted = true,
            (Answer::Ready, Source::Paused) => {
                self.meets(SourceEvent::Commit);
            }
            (Answer::Held, Source::Asking) => self.meets(SourceEvent::Held),
            (Answer::Running, Source::InDoubt | Source::Asking | Source::Severed) => {
                self.meets(SourceEvent::Running)
            }
            (Answer::Complete, Source::Leaving) => self.meets(SourceEvent::Complete),
            (Answer::Complete, Source::Asking | Source::Severed) => {
                self.meets(SourceEvent::Running);
                self.meets(SourceEvent::Complete);
            }
            (Answer::NotRunning, Source::InDoubt | Source::Asking) => {
                self.given_back = true;
                self.lied |= self.ran_there == self.session;
                self.meets(SourceEvent::NotRunning);
                self.source.as_mut()?.owes = None;
                self.drop_line();
            }
            (Answer::Gone | Answer::Nothing | Answer::NotRunning, Source::Asking | Source::Severed) => {
                self.meets(SourceEvent::Gone);
                self.drop_line();
            }
            (Answer::NotRunning, Source::Kept) => {
                self.source.as_mut()?.owes = None;
                self.drop_line();
            }
            // Whatever else is said ends the conversation.
            _ => self.source_loses(),
        }
        Some(())
    }

    /// The source's end of its connection is gone.
    fn source_loses(&mut self) {
        self.drop_line();
        self.meets(SourceEvent::Failed);
    }

    fn drop_line(&mut self) {
        if let Some(line) = self.source.as_mut().and_then(|here| here.line.take()) {
            self.line(line).source_end = false;
        }
    }

    /// The source's table decides; what is to be said is said.
    fn meets(&mut self, event: SourceEvent) {
        let session = self.session;
        let Some(here) = &mut self.source else { return };
        let Some((state, action)) = here.state.on(event) else { panic!("{event:?} in {:?}", here.state) };
        if state == Source::Kept && matches!(here.state, Source::Paused) {
            // It may have been ready there.
            here.owes = (self.left.without != Some(Duty::TellKept)).then_some((Said::Keep, session));
        }
        here.state = state;
        match action {
            SourceAction::SendCommit => {
                self.in_doubt_once = true;
                self.say(Said::Commit);
            }
            SourceAction::LetGo => self.drop_line(),
            _ => {}
        }
    }

    fn say(&mut self, said: Said) {
        let Some(line) = self.source.as_ref().and_then(|here| here.line) else { return };
        let line = self.line(line);
        line.said.push(said);
        if line.destination_end {
            line.to_destination.push_back(said);
        }
    }

    fn destination_hears(&mut self, at: usize, starts: bool) -> Option<()> {
        let line = self.lines[at].as_mut().filter(|line| line.destination_end && self.destination_lives)?;
        let said = line.to_destination.pop_front()?;
        let (session, number, lapsed) = (line.session, line.number, line.lapsed);
        (starts || said == Said::Commit).then_some(())?;
        let mine = self.arrival.as_ref().is_some_and(|there| there.line == Some(at));
        match said {
            Said::Offer => self.offered(at, session),
            Said::State if mine => {
                self.befalls(DestinationEvent::Restored);
                self.answer(Answer::Ready);
            }
            Said::Commit if mine && (self.has_lapsed(lapsed) || !self.waits_for_commit()) => {
                self.destination_loses()
            }
            Said::Commit if mine => self.runs_there(DestinationEvent::Commit, starts),
            Said::Ask => self.asked(at, session, number),
            Said::Keep | Said::Superseded => {
                let there = self
                    .arrival
                    .as_ref()
                    .filter(|there| there.session == session && (mine || number > there.number));
                if there.is_some_and(|there| there.state.on(DestinationEvent::Disowned).is_some()) {
                    self.befalls(DestinationEvent::Disowned);
                    self.hang_up();
                }
                self.answer_on(at, Answer::NotRunning);
                self.line(at).destination_end = false;
            }
            _ => self.line(at).destination_end = false,
        }
        Some(())
    }

    fn has_lapsed(&self, lapsed: bool) -> bool {
        lapsed && self.left.without != Some(Duty::Lapse)
    }

    fn waits_for_commit(&self) -> bool {
        self.arrival
            .as_ref()
            .is_some_and(|there| matches!(there.state, Destination::Ready | Destination::Held))
    }

    fn offered(&mut self, at: usize, session: u8) {
        let free = self
            .arrival
            .as_ref()
            .is_none_or(|there| there.state == Destination::Discarded && session > there.session);
        if !free {
            self.line(at).destination_end = false;
            return;
        }
        self.arrival = Some(There { state: Destination::Arriving, session, number: 0, line: Some(at) });
        self.written = Record::Arriving { session, this_boot: true };
        self.synced = self.written;
        self.answer(Answer::Accept);
    }

    fn asked(&mut self, at: usize, session: u8, number: u8) {
        let known = self.arrival.as_ref().filter(|there| there.session == session);
        let Some((state, last)) = known.map(|there| (there.state, there.number)) else {
            let answer = self.journal_says(session);
            self.answer_on(at, answer);
            self.line(at).destination_end = false;
            return;
        };
        if number <= last {
            self.line(at).destination_end = false;
            return;
        }
        if self.arrival.as_ref().is_some_and(|there| there.line.is_some()) {
            self.destination_loses();
        }
        let state = self.arrival.as_ref().map_or(state, |there| there.state);
        if let Some(there) = &mut self.arrival {
            (there.number, there.line) = (number, Some(at));
        }
        let answer = match state {
            Destination::Held => Answer::Held,
            Destination::Bereft | Destination::Orphaned => Answer::Running,
            Destination::Arrived => Answer::Complete,
            Destination::Discarded => Answer::NotRunning,
            state => panic!("asked in {state:?}"),
        };
        if matches!(state, Destination::Held | Destination::Bereft | Destination::Orphaned) {
            self.befalls(DestinationEvent::Rejoined);
        }
        self.answer(answer);
        if matches!(answer, Answer::NotRunning) {
            self.hang_up();
        }
    }

    /// What a process that knows nothing of a session can say of it.
    fn journal_says(&mut self, of: u8) -> Answer {
        match self.written {
            Record::Arriving { session, this_boot: true } if session == of => {
                self.written = Record::Discarded { session };
                Answer::NotRunning
            }
            Record::Discarded { session } if session == of => Answer::NotRunning,
            Record::Ran { session } if session == of => Answer::Gone,
            _ => Answer::Nothing,
        }
    }

    fn runs_there(&mut self, event: DestinationEvent, starts: bool) {
        let Some(session) = self.arrival.as_ref().map(|there| there.session) else { return };
        if self.left.without != Some(Duty::WriteAhead) {
            self.written = Record::Ran { session };
        }
        self.befalls(event);
        if starts {
            self.ran_there = session;
            self.answer(Answer::Running);
        } else {
            self.befalls(DestinationEvent::NotStarted);
            self.answer(Answer::NotRunning);
            self.hang_up();
        }
    }

    fn destination_loses(&mut self) {
        self.hang_up();
        self.befalls(DestinationEvent::Failed);
    }

    /// The destination's end of the arrival's connection is gone.
    fn hang_up(&mut self) {
        if let Some(line) = self.arrival.as_mut().and_then(|there| there.line.take()) {
            self.line(line).destination_end = false;
        }
    }

    /// The destination's table decides.
    fn befalls(&mut self, event: DestinationEvent) {
        let Some(there) = &mut self.arrival else { return };
        let Some((state, action)) = there.state.on(event) else { panic!("{event:?} in {:?}", there.state) };
        there.state = state;
        if matches!(action, DestinationAction::ThrowAway | DestinationAction::SendNotRunning) {
            self.written = Record::Discarded { session: there.session };
        }
    }

    fn answer(&mut self, answer: Answer) {
        if let Some(line) = self.arrival.as_ref().and_then(|there| there.line) {
            self.answer_on(line, answer);
        }
    }

    fn answer_on(&mut self, line: usize, answer: Answer) {
        let line = self.line(line);
        if line.source_end {
            line.to_source.push_back(answer);
        }
    }

    fn destination_dies(&mut self, power: bool) -> Option<()> {
        (self.destination_lives && (self.left.power || !power)).then_some(())?;
        self.left.crashes = self.left.crashes.checked_sub(1)?;
        self.destination_lives = false;
        self.arrival = None;
        self.lines.iter_mut().flatten().for_each(|line| line.destination_end = false);
        if power {
            self.written = match self.synced {
                Record::Arriving { session, .. } => {
                    Record::Arriving { session, this_boot: self.left.without == Some(Duty::BootId) }
                }
                record => record,
            };
            self.synced = self.written;
        }
        Some(())
    }

    fn open(&mut self, line: Line) -> usize {
        let at = self.lines.iter().position(Option::is_none).unwrap_or(self.lines.len());
        if at == self.lines.len() {
            self.lines.push(None);
        }
        self.lines[at] = Some(line);
        at
    }

    fn line(&mut self, at: usize) -> &mut Line {
        self.lines[at].as_mut().expect("a line is kept as long as one of its ends")
    }

    /// Forgets what cannot matter any more.
    fn sweep(&mut self) {
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

/// What must be true.
impl World {
    pub(crate) fn runners(&self) -> u32 {
        let here = self.source.as_ref().is_some_and(|here| here.state.runs());
        u32::from(here) + u32::from(self.runs_at_destination())
    }

    fn runs_at_destination(&self) -> bool {
        self.arrival.as_ref().is_some_and(|there| there.state.runs())
    }

    /// Somebody runs it, or some side has it and says so, or whoever had it is dead.
    pub(crate) fn is_accounted_for(&self) -> bool {
        let died_with_source = self.source.is_none();
        let kept_here = self.source.as_ref().is_some_and(|here| here.state != Source::Moved);
        let has_it_there = self.arrival.as_ref().is_some_and(|there| there.state == Destination::Orphaned);
        let died_there =
            self.source.as_ref().is_some_and(|here| here.state == Source::Moved) && self.arrival.is_none();
        self.runners() == 1 || died_with_source || kept_here || has_it_there || died_there
    }

    pub(crate) fn gave_back_truly(&self) -> bool {
        !self.lied
    }

    pub(crate) fn moved_truly(&self) -> bool {
        self.source.as_ref().is_none_or(|here| here.state != Source::Moved || self.ran_there == self.session)
    }

    pub(crate) fn has_moved(&self) -> bool {
        self.source.as_ref().is_some_and(|here| here.state == Source::Moved)
    }

    pub(crate) fn was_given_back(&self) -> bool {
        self.given_back && self.in_doubt_once
    }

    pub(crate) fn is_unknown(&self) -> bool {
        self.waits_for_operator().is_some()
    }

    pub(crate) fn was_forced_here(&self) -> bool {
        self.forced_here
    }

    pub(crate) fn was_forced_there(&self) -> bool {
        self.forced_there
    }

    /// With both processes alive and a network that works they find out; the operator says no more than `migrate recover`.
    pub(crate) fn heals(&self) -> bool {
        let mut world = self.clone();
        if world.source.is_none() {
            return true;
        }
        world.destination_lives = true;
        world.left = Budget {
            attempts: 0,
            calls: u8::MAX,
            crashes: 0,
            power: false,
            forces: 0,
            repeats: 0,
            ..self.left
        };
        // What is on its way does not come any more; both sides notice.
        if world.source.as_ref().is_some_and(|here| here.line.is_some()) {
            world.source_loses();
        }
        if world.arrival.as_ref().is_some_and(|there| there.line.is_some()) {
            world.destination_loses();
        }
        world.lines.clear();
        let _ = world.act(Action::Recover);
        for _ in 0..12 {
            let hears = [0, 1].map(|line| Action::DestinationHears { line, starts: true });
            for action in [Action::Call, Action::TellKept, Action::SourceHears, Action::Complete]
                .into_iter()
                .chain(hears)
            {
                let possible =
                    !matches!(action, Action::DestinationHears { line, .. } if line >= world.lines.len());
                if possible && world.clone().act(action).is_some() {
                    let _ = world.act(action);
                    world.sweep();
                }
            }
        }
        let lost_there = world.arrival.as_ref().is_none_or(|there| there.state == Destination::Discarded);
        let still_held = world.arrival.as_ref().is_some_and(|there| there.state == Destination::Held);
        !still_held && world.runners() == 1 || (lost_there && (world.is_unknown() || world.has_moved()))
    }
}
