//! Following a migration: events are shown as they come, until it is over or nothing more can be known.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use super::args::Common;
use super::show::Show;
use super::{Status, status, words};
use crate::client::{self, Client, ClientError, Events};
use crate::progress::Event;
use crate::report::Report;

/// What the first Ctrl-C means. The second always leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupt {
    /// Asks the VMM to give up: whoever started a migration may stop it.
    Cancels,
    /// Leaves: whoever only watches changes nothing.
    Leaves,
}

/// One migration being followed.
pub(super) struct Following<'a> {
    pub(super) client: &'a Client,
    pub(super) events: Events,
    /// The report of the migration before this one, if any: not to be taken for this one's.
    pub(super) earlier: Option<Report>,
    pub(super) interrupt: Interrupt,
}

/// `migrate watch`.
pub(super) async fn watch(client: &Client, common: &Common) -> anyhow::Result<Status> {
    // In this order: what ends before the question is in the answer, what ends after it is in the events.
    let events = client.events().await?;
    let now = client.migration().await?;
    if !now.active {
        return status::tell(client, &now, common).await;
    }
    let following = Following { client, events, earlier: now.report, interrupt: Interrupt::Leaves };
    let report = following.follow(&mut Show::new(common.json)).await;
    Ok(report.map_or(Status::Unknown, |report| Status::of_report(&report, None)))
}

impl Following<'_> {
    /// The report; `None` when the outcome is not known here. Either has been shown.
    pub(super) async fn follow(mut self, show: &mut Show) -> Option<Report> {
        let mut interrupts = signal(SignalKind::interrupt()).ok();
        let mut cancelling = Cancelling::default();
        loop {
            tokio::select! {
                            event = self.events.next() => match event {
                                Ok(Some(Event::Ended { report })) => return Some(show.end(*report)),
                                Ok(Some(event)) => show.tell(&event),
                                Ok(None) => {
             let reason = words::hung_up(self.client.name());
             return self.last_word(show, &reason).await;
            },
                                Err(error) => return self.last_word(show, &error.to_string()).await,
                            },
                            () = interrupted(&mut interrupts) => {
                                if self.interrupt == Interrupt::Leaves || cancelling.asked {
                                    show.note(words::LEFT);
                                    return None;
                                }
                                show.note(words::CANCELLING);
                                cancelling.ask(self.client.clone());
                            },
                            answer = cancelling.answer() => match answer {
                                Ok(()) => show.note(words::CANCEL_ASKED),
                                Err(error) => show.note(&words::cannot_cancel(&error.to_string())),
                            },
                        }
        }
    }

    /// The events broke off before the end. Perhaps only the connection did: asks once more.
    async fn last_word(self, show: &mut Show, reason: &str) -> Option<Report> {
        let status = self.client.migration().await.ok();
        match status.and_then(|status| if status.active { None } else { status.report }) {
            Some(report) if Some(&report) != self.earlier.as_ref() => Some(show.end(report)),
            _ => {
                show.note(&words::not_known(reason));
                None
            }
        }
    }
}

async fn interrupted(interrupts: &mut Option<Signal>) {
    match interrupts {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// A request to cancel. It runs beside the events: while it is made, they go on, and a second Ctrl-C is heard.
#[derive(Default)]
struct Cancelling {
    asked: bool,
    request: Option<JoinHandle<client::Result<()>>>,
}

impl Cancelling {
    fn ask(&mut self, client: Client) {
        self.asked = true;
        self.request = Some(tokio::spawn(async move { client.cancel_migration().await }));
    }

    /// What the VMM answered, once.
    async fn answer(&mut self) -> client::Result<()> {
        let Some(request) = &mut self.request else { return std::future::pending().await };
        let answer = request.await;
        self.request = None;
        answer.unwrap_or_else(|error| Err(ClientError::Request(error.to_string())))
    }
}
