//! Who may run the guest, and when: two tables, one a side.
//!
//! Pure: no clock, no I/O, nothing that can fail. The sides feed it events and do what it says; nothing
//! else starts a guest. `docs/handover.md` argues the tables; a test compares them with it cell by cell,
//! another walks every interleaving of both sides over a link that loses everything at any moment.

use std::fmt;

/// Where the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// The guest runs here.
    Here,
    /// It is paused here; the destination cannot run it yet.
    Paused,
    /// Commit was handed to the network: the destination may run it.
    InDoubt,
    /// It runs on the destination, which may still need pages from here.
    Leaving,
    /// End: it runs here.
    Kept,
    /// End: nobody here can know. It stays paused.
    Unknown,
    /// End: it runs on the destination.
    Moved,
}

/// What happens to the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// The guest has been paused.
    Paused,
    /// Anything went wrong: link, peer, host, time limit, cancel.
    Failed,
    /// The destination is ready, and commit is about to be sent.
    Commit,
    /// The destination says that it does not run the guest and never did.
    NotRunning,
    /// The destination says that it runs the guest.
    Running,
    /// The destination says that no page is missing.
    Complete,
}

/// What the source must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceAction {
    /// Nothing.
    None,
    /// Run the guest on.
    RunHere,
    /// Hand commit to the network.
    SendCommit,
    /// Serve missing pages.
    ServePages,
    /// Leave the guest paused and say so.
    StayPaused,
    /// The guest and its memory are not needed here any more.
    LetGo,
}

/// Where the destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Destination {
    /// Memory and state are coming.
    Arriving,
    /// It has said ready.
    Ready,
    /// The guest runs here; pages may be missing.
    Running,
    /// End: it runs here, and nothing is missing.
    Arrived,
    /// End: it never ran here.
    Discarded,
    /// End: it ran here, and the pages it still misses cannot come. Suspended.
    Orphaned,
}

/// What happens to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationEvent {
    /// Pages and state are in place.
    Restored,
    /// Anything went wrong.
    Failed,
    /// Commit came.
    Commit,
    /// The guest could not be started, and did nothing.
    NotStarted,
    /// No page is missing.
    Complete,
}

/// What the destination must do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationAction {
    /// Nothing.
    None,
    /// Say ready.
    SendReady,
    /// Run the guest.
    RunHere,
    /// Throw the machine away.
    ThrowAway,
    /// Say that the guest does not run here.
    SendNotRunning,
    /// Pause the guest where it is.
    Suspend,
}

impl Source {
    /// The next state and what to do; `None` for what cannot happen.
    #[must_use]
    pub fn on(self, event: SourceEvent) -> Option<(Source, SourceAction)> {
        use SourceAction as Do;
        use SourceEvent as On;
        Some(match (self, event) {
            (Source::Here, On::Paused) => (Source::Paused, Do::None),
            (Source::Here, On::Failed) => (Source::Kept, Do::None),
            (Source::Paused, On::Failed) => (Source::Kept, Do::RunHere),
            (Source::Paused, On::Commit) => (Source::InDoubt, Do::SendCommit),
            (Source::InDoubt, On::Failed) => (Source::Unknown, Do::StayPaused),
            (Source::InDoubt, On::NotRunning) => (Source::Kept, Do::RunHere),
            (Source::InDoubt, On::Running) => (Source::Leaving, Do::ServePages),
            (Source::Leaving, On::Failed) => (Source::Unknown, Do::StayPaused),
            (Source::Leaving, On::Complete) => (Source::Moved, Do::LetGo),
            (Source::Kept | Source::Unknown | Source::Moved, On::Failed) => (self, Do::None),
            _ => return None,
        })
    }

    /// Whether the guest runs on this side in this state.
    #[must_use]
    pub fn runs(self) -> bool {
        matches!(self, Source::Here | Source::Kept)
    }
}

impl Destination {
    /// The next state and what to do; `None` for what cannot happen.
    #[must_use]
    pub fn on(self, event: DestinationEvent) -> Option<(Destination, DestinationAction)> {
        use DestinationAction as Do;
        use DestinationEvent as On;
        Some(match (self, event) {
            (Destination::Arriving, On::Restored) => (Destination::Ready, Do::SendReady),
            (Destination::Arriving | Destination::Ready, On::Failed) => {
                (Destination::Discarded, Do::ThrowAway)
            }
            (Destination::Ready, On::Commit) => (Destination::Running, Do::RunHere),
            (Destination::Running, On::Failed) => (Destination::Orphaned, Do::Suspend),
            (Destination::Running, On::NotStarted) => (Destination::Discarded, Do::SendNotRunning),
            (Destination::Running, On::Complete) => (Destination::Arrived, Do::None),
            (Destination::Arrived | Destination::Discarded | Destination::Orphaned, On::Failed) => {
                (self, Do::None)
            }
            _ => return None,
        })
    }

    /// Whether the guest runs on this side in this state.
    #[must_use]
    pub fn runs(self) -> bool {
        matches!(self, Destination::Running | Destination::Arrived)
    }
}

/// The source's table as `docs/handover.md` has it.
#[must_use]
pub fn source_table() -> String {
    use Source::{Here, InDoubt, Kept, Leaving, Moved, Paused, Unknown};
    use SourceEvent as On;
    let states = [Here, Paused, InDoubt, Leaving, Kept, Unknown, Moved];
    let events = [On::Paused, On::Failed, On::Commit, On::NotRunning, On::Running, On::Complete];
    table(&states, &events, Source::on)
}

/// The destination's table as `docs/handover.md` has it.
#[must_use]
pub fn destination_table() -> String {
    use Destination::{Arrived, Arriving, Discarded, Orphaned, Ready, Running};
    use DestinationEvent as On;
    let states = [Arriving, Ready, Running, Arrived, Discarded, Orphaned];
    let events = [On::Restored, On::Failed, On::Commit, On::NotStarted, On::Complete];
    table(&states, &events, Destination::on)
}

fn table<S, E, A>(states: &[S], events: &[E], on: impl Fn(S, E) -> Option<(S, A)>) -> String
where
    S: Copy + fmt::Debug,
    E: Copy + fmt::Debug,
    A: fmt::Debug,
{
    let heads: Vec<_> = events.iter().map(|event| words(event, '-')).collect();
    let mut text = format!("| state | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(events.len()));
    for state in states {
        text += &format!("| {} |", words(state, '-'));
        for event in events {
            text += &match on(*state, *event) {
                Some((next, action)) => format!(" {}: {} |", words(&next, '-'), words(&action, ' ')),
                None => " |".to_owned(),
            };
        }
        text.push('\n');
    }
    text
}

/// `NotRunning` as `not-running` or `not running`.
fn words(name: &impl fmt::Debug, between: char) -> String {
    let mut text = String::new();
    for letter in format!("{name:?}").chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push(between);
        }
        text.extend(letter.to_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};

    use super::*;

    #[test]
    fn the_document_has_these_tables() {
        let document = include_str!("../../docs/handover.md");
        for table in [source_table(), destination_table()] {
            assert!(document.contains(&table), "docs/handover.md lacks\n{table}");
        }
    }

    /// Both sides and what is on its way between them, in order.
    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    struct World {
        source: Source,
        destination: Destination,
        to_destination: VecDeque<DestinationEvent>,
        to_source: VecDeque<SourceEvent>,
    }

    impl World {
        /// What the source may meet next.
        fn source_steps(&self) -> Vec<World> {
            let mut steps = Vec::new();
            let mut on = |event, consumed: bool| {
                let Some((state, action)) = self.source.on(event) else { return };
                let mut next = World { source: state, ..self.clone() };
                if consumed {
                    next.to_source.pop_front();
                }
                if action == SourceAction::SendCommit {
                    next.to_destination.push_back(DestinationEvent::Commit);
                }
                steps.push(next);
            };
            on(SourceEvent::Failed, false);
            on(SourceEvent::Paused, false);
            // The source's own step "commit" is its reaction to ready, which travels as Commit here.
            if let Some(event) = self.to_source.front() {
                on(*event, true);
            }
            steps
        }

        /// What the destination may meet next. `Restored` needs a paused source: state exists only then.
        fn destination_steps(&self) -> Vec<World> {
            let mut steps = Vec::new();
            let mut on = |event, consumed: bool| {
                let Some((state, action)) = self.destination.on(event) else { return };
                let mut next = World { destination: state, ..self.clone() };
                if consumed {
                    next.to_destination.pop_front();
                }
                next.to_source.extend(match action {
                    DestinationAction::SendReady => Some(SourceEvent::Commit),
                    DestinationAction::RunHere => Some(SourceEvent::Running),
                    DestinationAction::SendNotRunning => Some(SourceEvent::NotRunning),
                    DestinationAction::None if event == DestinationEvent::Complete => {
                        Some(SourceEvent::Complete)
                    }
                    _ => None,
                });
                steps.push(next);
            };
            on(DestinationEvent::Failed, false);
            on(DestinationEvent::Complete, false);
            if self.source != Source::Here {
                on(DestinationEvent::Restored, false);
            }
            if let Some(event) = self.to_destination.front() {
                on(*event, true);
            }
            steps
        }

        /// The link loses whatever is on its way, in one direction or both.
        fn losses(&self) -> [World; 2] {
            let mut lost = [self.clone(), self.clone()];
            lost[0].to_destination.clear();
            lost[1].to_source.clear();
            lost
        }
    }

    #[test]
    fn no_interleaving_has_two_runners_and_no_known_ending_has_none() {
        let start = World {
            source: Source::Here,
            destination: Destination::Arriving,
            to_destination: VecDeque::new(),
            to_source: VecDeque::new(),
        };
        let (mut seen, mut open) = (HashSet::from([start.clone()]), vec![start]);
        while let Some(world) = open.pop() {
            let (here, there) = (world.source.runs(), world.destination.runs());
            assert!(!(here && there), "two runners: {world:?}");
            if world.source == Source::Moved {
                assert!(there, "moved to nobody: {world:?}");
            }
            let steps = world.source_steps().into_iter().chain(world.destination_steps());
            for next in steps.chain(world.losses()) {
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        assert!(seen.len() > 30, "the walk saw only {} worlds", seen.len());
    }
}
