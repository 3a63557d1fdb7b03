//! Who may run the guest, and when: two tables, one a side.
//!
//! Pure: no clock, no I/O, nothing that can fail. The sides feed it events and do what it says; nothing
//! else starts a guest. `docs/handover.md` argues the tables, and a test compares them with it line by line. A model of both
//! sides, their journals and a network that loses, delays and repeats is checked with these very tables (`tests/tests/model/`).

use std::fmt;

/// Where the source is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Source {
    /// The guest runs here.
    #[default]
    Here,
    /// It is paused here; the destination cannot run it yet.
    Paused,
    /// Commit was handed to the network: the destination may run it.
    InDoubt,
    /// The link was lost with commit on it: the destination is called again and asked what became of it.
    Asking,
    /// It runs on the destination, which may still need pages from here.
    Leaving,
    /// It runs on the destination, the link was lost, and the destination may still need pages from here.
    Severed,
    /// End: it runs here.
    Kept,
    /// Nobody here can know. It stays paused until the operator says more.
    Unknown,
    /// It ran on the destination, which cannot be reached or has lost it. What is left here is what it was when it left.
    Stranded,
    /// End: it runs on the destination, or the operator says so.
    Moved,
}

/// What happens to the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// The guest has been paused.
    Paused,
    /// The conversation is over before its end: link, peer, host, and until commit time limit and cancel.
    Failed,
    /// The destination is ready, and commit is about to be sent.
    Commit,
    /// The destination, asked, says that it still waits for commit.
    Held,
    /// The destination says that it does not run the guest, and never did or will.
    NotRunning,
    /// The destination says that it runs the guest.
    Running,
    /// The destination says that no page is missing.
    Complete,
    /// The destination says that it ran the guest and has lost it.
    Gone,
    /// The time for recovery has passed.
    GiveUp,
    /// The operator wants the destination to be called again.
    Recover,
    /// The operator says that the destination does not run it and never will.
    Forced,
    /// The operator says that the destination runs it.
    Disowned,
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
    /// Call the destination and ask what became of the guest.
    Ask,
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
    /// It has said ready, and the link was lost: the source may have sent commit, or may run the guest on.
    Held,
    /// The guest runs here; pages may be missing.
    Running,
    /// It runs here, pages may be missing, and the link is lost. Who touches a missing page waits.
    Bereft,
    /// It ran here, and the pages it still misses do not come. Suspended, until the source comes back.
    Orphaned,
    /// End: it runs here, and nothing is missing.
    Arrived,
    /// End: it never ran here.
    Discarded,
}

/// What happens to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationEvent {
    /// Pages and state are in place.
    Restored,
    /// The conversation is over before its end: the link, or what was said on it.
    Failed,
    /// This side cannot go on: the machine or the host failed.
    Broken,
    /// Commit came, in time.
    Commit,
    /// The guest could not be started, and did nothing.
    NotStarted,
    /// No page is missing.
    Complete,
    /// The source has come back.
    Rejoined,
    /// The time for recovery has passed.
    GiveUp,
    /// The source, or the operator here, says that the guest is not to run here.
    Disowned,
    /// The operator says that the source does not run it and never will.
    Forced,
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
    /// Run the suspended guest on, when nothing is missing.
    RunOn,
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
            (Source::Paused, On::Commit) | (Source::Asking, On::Held) => (Source::InDoubt, Do::SendCommit),
            (Source::InDoubt | Source::Asking, On::Failed) => (Source::Asking, Do::Ask),
            (Source::InDoubt | Source::Asking, On::NotRunning) => (Source::Kept, Do::RunHere),
            (Source::InDoubt | Source::Asking | Source::Severed, On::Running) => {
                (Source::Leaving, Do::ServePages)
            }
            (Source::Leaving | Source::Severed, On::Failed) => (Source::Severed, Do::Ask),
            (Source::Leaving, On::Complete) => (Source::Moved, Do::LetGo),
            (Source::Asking, On::Gone | On::GiveUp) => (Source::Unknown, Do::StayPaused),
            (Source::Severed, On::Gone | On::GiveUp) => (Source::Stranded, Do::StayPaused),
            (Source::Unknown, On::Recover) => (Source::Asking, Do::Ask),
            (Source::Stranded, On::Recover) => (Source::Severed, Do::Ask),
            (Source::Unknown | Source::Stranded, On::Forced) => (Source::Kept, Do::RunHere),
            (Source::Unknown | Source::Stranded, On::Disowned) => (Source::Moved, Do::LetGo),
            (Source::Kept | Source::Unknown | Source::Stranded | Source::Moved, On::Failed) => {
                (self, Do::None)
            }
            _ => return None,
        })
    }

    /// Whether the guest runs on this side in this state.
    #[must_use]
    pub fn runs(self) -> bool {
        matches!(self, Source::Here | Source::Kept)
    }

    /// Whether the destination is to be called again and asked.
    #[must_use]
    pub fn asks(self) -> bool {
        matches!(self, Source::Asking | Source::Severed)
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
            (Destination::Arriving, On::Failed | On::Broken | On::Disowned)
            | (Destination::Ready | Destination::Held, On::Broken | On::Disowned) => {
                (Destination::Discarded, Do::ThrowAway)
            }
            (Destination::Ready | Destination::Held, On::Failed) => (Destination::Held, Do::None),
            (Destination::Held, On::Rejoined) => (Destination::Held, Do::None),
            (Destination::Ready, On::Commit) | (Destination::Held, On::Commit | On::Forced) => {
                (Destination::Running, Do::RunHere)
            }
            (Destination::Running | Destination::Bereft, On::Failed) => (Destination::Bereft, Do::None),
            (Destination::Running, On::NotStarted) => (Destination::Discarded, Do::SendNotRunning),
            (Destination::Running | Destination::Bereft, On::Complete) => (Destination::Arrived, Do::None),
            (Destination::Bereft, On::Rejoined) => (Destination::Running, Do::None),
            (Destination::Running, On::Broken)
            | (Destination::Bereft, On::Broken | On::GiveUp | On::Disowned) => {
                (Destination::Orphaned, Do::Suspend)
            }
            (Destination::Orphaned, On::Rejoined) => (Destination::Running, Do::RunOn),
            (Destination::Arrived | Destination::Discarded | Destination::Orphaned, On::Failed) => {
                (self, Do::None)
            }
            _ => return None,
        })
    }

    /// Whether the guest runs on this side in this state.
    #[must_use]
    pub fn runs(self) -> bool {
        matches!(self, Destination::Running | Destination::Bereft | Destination::Arrived)
    }
}

impl Source {
    /// Every state.
    pub const ALL: [Source; 10] = [
        Source::Here,
        Source::Paused,
        Source::InDoubt,
        Source::Asking,
        Source::Leaving,
        Source::Severed,
        Source::Kept,
        Source::Unknown,
        Source::Stranded,
        Source::Moved,
    ];
}

impl SourceEvent {
    /// Every event.
    pub const ALL: [SourceEvent; 12] = [
        SourceEvent::Paused,
        SourceEvent::Commit,
        SourceEvent::Running,
        SourceEvent::Complete,
        SourceEvent::Failed,
        SourceEvent::NotRunning,
        SourceEvent::Held,
        SourceEvent::Gone,
        SourceEvent::GiveUp,
        SourceEvent::Recover,
        SourceEvent::Forced,
        SourceEvent::Disowned,
    ];
}

impl Destination {
    /// Every state.
    pub const ALL: [Destination; 8] = [
        Destination::Arriving,
        Destination::Ready,
        Destination::Held,
        Destination::Running,
        Destination::Bereft,
        Destination::Orphaned,
        Destination::Arrived,
        Destination::Discarded,
    ];
}

impl DestinationEvent {
    /// Every event.
    pub const ALL: [DestinationEvent; 10] = [
        DestinationEvent::Restored,
        DestinationEvent::Commit,
        DestinationEvent::Complete,
        DestinationEvent::NotStarted,
        DestinationEvent::Failed,
        DestinationEvent::Broken,
        DestinationEvent::Rejoined,
        DestinationEvent::GiveUp,
        DestinationEvent::Disowned,
        DestinationEvent::Forced,
    ];
}

/// The source's table as `docs/handover.md` has it.
#[must_use]
pub fn source_table() -> String {
    table(&Source::ALL, &SourceEvent::ALL, Source::on)
}

/// The destination's table as `docs/handover.md` has it.
#[must_use]
pub fn destination_table() -> String {
    table(&Destination::ALL, &DestinationEvent::ALL, Destination::on)
}

fn table<S, E, A>(states: &[S], events: &[E], on: impl Fn(S, E) -> Option<(S, A)>) -> String
where
    S: Copy + fmt::Debug,
    E: Copy + fmt::Debug,
    A: fmt::Debug,
{
    let mut text = "| in | on | goes to | and does |\n|---|---|---|---|\n".to_owned();
    for (state, event) in states.iter().flat_map(|state| events.iter().map(move |event| (state, event))) {
        if let Some((next, action)) = on(*state, *event) {
            let [from, met, to] = [words(state, '-'), words(event, '-'), words(&next, '-')];
            text += &format!("| {from} | {met} | {to} | {} |\n", words(&action, ' '));
        }
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
    use super::*;

    #[test]
    fn the_document_has_these_tables() {
        let document = include_str!("../../docs/handover.md");
        for table in [source_table(), destination_table()] {
            assert!(document.contains(&table), "docs/handover.md lacks\n{table}");
        }
    }
}
