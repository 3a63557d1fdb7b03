//! Why a migration did not go on: one list for both sides, each line naming the thing, the value and the way out.

use std::io;
use std::time::Duration;

use crate::channel::tls::Distrust;
use crate::guest::GuestError;
use crate::journal::Journals;
use crate::report::Verification;
use crate::wire;
use crate::wire::message::tame;

/// What stopped a migration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nobody answered at the destination's address.
    #[error("cannot connect to {to}: {why}; is `vmm receive` waiting there?")]
    Connect {
        /// `HOST:PORT`.
        to: String,
        /// The system's word.
        why: String,
    },
    /// The port to listen on cannot be had.
    #[error("cannot listen on {on}: {why}; give a free `HOST:PORT` of this machine")]
    Listen {
        /// `HOST:PORT`.
        on: String,
        /// The system's word.
        why: String,
    },
    /// A connection broke.
    #[error("the connection to {peer} broke: {why}")]
    Broken {
        /// Who was at its other end.
        peer: String,
        /// The system's word.
        why: String,
    },
    /// A connection was closed by the other side.
    #[error("{peer} closed the connection")]
    Closed {
        /// Who.
        peer: String,
    },
    /// Nothing was heard for too long.
    #[error("{peer} has not been heard for {}; is it stopped, or the network cut?", seconds(.after))]
    Silent {
        /// Who.
        peer: String,
        /// For how long.
        after: Duration,
    },
    /// One side has not proven to the other who it is.
    #[error("no trust between this host and {peer}: {why}")]
    Untrusted {
        /// Who.
        peer: String,
        /// What is wrong, and the way out.
        why: String,
    },
    /// The destination cannot take the guest.
    #[error("{peer} refused: {}", reasons.join("; "))]
    Refused {
        /// Who.
        peer: String,
        /// Every reason it gave.
        reasons: Vec<String>,
    },
    /// The other side gave up.
    #[error("{peer} gave up: {reason}")]
    Aborted {
        /// Who.
        peer: String,
        /// Its reason.
        reason: String,
    },
    /// What came is not what the wire allows.
    #[error("{peer} broke the protocol: {error}")]
    Protocol {
        /// Who.
        peer: String,
        /// How.
        error: wire::Error,
    },
    /// The VMM or kernel on this side could not do its part.
    #[error("cannot {doing}: {why}")]
    Guest {
        /// What was asked of it.
        doing: &'static str,
        /// Its word.
        why: String,
    },
    /// The policy gave up.
    #[error("{0}")]
    NotConverging(String),
    /// RAM differs between both sides.
    #[error(
        "verification: {} of {} pages differ, first at frame {:#x}",
        .0.mismatched, .0.pages, .0.first_mismatches.first().unwrap_or(&0)
    )]
    Mismatch(Verification),
    /// Somebody asked for it.
    #[error("cancelled: {0}")]
    Cancelled(String),
    /// The options' time limit.
    #[error("the move to {to} was not done within {}; --timeout allows more", seconds(.after))]
    TimedOut {
        /// `HOST:PORT` it was to go to.
        to: String,
        /// The limit.
        after: Duration,
    },
    /// The guest was paused for too long.
    #[error("the destination was not ready within {} of the pause; --max-downtime allows more (twice its value)", seconds(.0))]
    PausedTooLong(Duration),
    /// What is promised cannot be written down.
    #[error("cannot keep the journal in {folder}: {why}; VMM_STATE_DIR names another folder")]
    Journal {
        /// Where.
        folder: String,
        /// The system's word.
        why: String,
    },
    /// A commit that was sent may still be obeyed.
    #[error("the destination may still obey the last commit: try again in {}", seconds(.left))]
    Pending {
        /// For so long.
        left: Duration,
    },
    /// A commit came too late to be obeyed.
    #[error("{peer} sent commit more than {} after it could: was this process stopped, or the host suspended?", seconds(.after))]
    Lapsed {
        /// Who.
        peer: String,
        /// How long it may take.
        after: Duration,
    },
    /// The destination, asked again, does not have the guest.
    #[error("{peer} was asked what became of the guest: {reason}")]
    Fate {
        /// Who.
        peer: String,
        /// What it said.
        reason: String,
    },
    /// A bug of the engine that was caught.
    #[error("internal error: {0}; please report it")]
    Bug(String),
}

impl Failure {
    /// Wraps what the guest's side says: `Failure::guest("pause the guest")`.
    pub(crate) fn guest(doing: &'static str) -> impl FnOnce(GuestError) -> Self {
        move |error| Self::Guest { doing, why: error.0 }
    }

    /// Wraps what a link says; `limit` is the time limit that was set on it.
    pub(crate) fn link(peer: &str, limit: Duration) -> impl FnOnce(io::Error) -> Self {
        let peer = peer.to_owned();
        move |error| match error.kind() {
            _ if Distrust::in_error(&error).is_some() => Self::untrusted(&peer, &error),
            io::ErrorKind::WouldBlock => Self::Silent { peer, after: limit },
            io::ErrorKind::TimedOut => {
                Self::Broken { peer, why: "it stopped in the middle of a message".to_owned() }
            }
            io::ErrorKind::UnexpectedEof => Self::Closed { peer },
            _ => Self::Broken { peer, why: error.to_string() },
        }
    }

    /// The peer is not trusted, or does not trust.
    fn untrusted(peer: &str, error: &io::Error) -> Self {
        Self::Untrusted { peer: peer.to_owned(), why: tame(&error.to_string()) }
    }

    /// Why there is no connection to `to`.
    pub(crate) fn dial(to: &str, error: &io::Error) -> Self {
        if Distrust::in_error(error).is_some() {
            return Self::untrusted(to, error);
        }
        // The system's word without its number.
        let text = error.to_string();
        let text = text.split(" (os error").next().unwrap_or(&text);
        Self::Connect { to: to.to_owned(), why: tame(&text.to_lowercase()) }
    }

    /// Wraps what the file system says of the journal.
    pub(crate) fn journal(journals: &Journals, error: &io::Error) -> Self {
        let folder = journals.folder().map_or_else(String::new, |folder| folder.display().to_string());
        Self::Journal { folder, why: error.to_string() }
    }

    /// Wraps what the wire says.
    pub(crate) fn wire(peer: &str) -> impl FnOnce(wire::Error) -> Self {
        let peer = peer.to_owned();
        move |error| Self::Protocol { peer, error }
    }

    /// Whether this only says that time has passed, not for what.
    pub(crate) fn is_time_limit(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::PausedTooLong(_))
    }

    /// Whether this only says that a connection ended, not why.
    pub(crate) fn is_bare(&self) -> bool {
        matches!(self, Self::Broken { .. } | Self::Closed { .. } | Self::Silent { .. })
    }
}

impl Failure {
    /// Whether only the conversation is over: this side could have gone on.
    pub(crate) fn is_of_conversation(&self) -> bool {
        let others = matches!(
            self,
            Self::Aborted { .. }
                | Self::Protocol { .. }
                | Self::Connect { .. }
                | Self::Refused { .. }
                | Self::Lapsed { .. }
        );
        self.is_bare() || others
    }
}

fn seconds(duration: &Duration) -> String {
    format!("{} s", (duration.as_secs_f64() * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_the_thing_the_value_and_the_way_out() {
        let failure = Failure::Connect { to: "127.0.0.1:9".to_owned(), why: "connection refused".to_owned() };
        let line = "cannot connect to 127.0.0.1:9: connection refused; is `vmm receive` waiting there?";
        assert_eq!(failure.to_string(), line);
        let silent = Failure::Silent { peer: "10.0.0.2:4000".to_owned(), after: Duration::from_secs(3) };
        assert!(silent.to_string().contains("for 3 s"), "{silent}");
    }
}
