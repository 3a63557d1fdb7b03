//! What can go wrong between a client and a VMM.

use std::path::PathBuf;
use std::time::Duration;

use super::types::OptionsError;

/// Why a VMM could not be found or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no directory for control sockets.
    #[error(
        "no directory for control sockets: set XDG_RUNTIME_DIR (or VMM_RUNTIME_DIR to a directory of mode 0700)"
    )]
    NoRuntimeDir,
    /// The directory or a socket in it cannot be used.
    #[error("{}: {reason}", path.display())]
    RuntimeDir {
        /// Which.
        path: PathBuf,
        /// Why, and the way out.
        reason: String,
    },
    /// Not a name a VMM can have.
    #[error("\"{0}\" is not a name for a VM: 1 to 64 of a-z A-Z 0-9 . _ - and not a dot or dash first")]
    BadName(String),
    /// No VMM is running.
    #[error("no VM is running (none answers in {}); start one with vmm run", .0.display())]
    NoneRunning(PathBuf),
    /// Not that one.
    #[error("no VM named {name} is running; these are: {}", running.join(", "))]
    NotRunning {
        /// The name asked for.
        name: String,
        /// Those running.
        running: Vec<String>,
    },
    /// A name is needed to tell them apart.
    #[error("{} VMs are running: name one of {}", .0.len(), .0.join(", "))]
    Several(Vec<String>),
    /// The request cannot be made.
    #[error("cannot make the request: {0}")]
    Request(String),
    /// Options that cannot be.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// The connection could not be made or broke.
    #[error("VM {name} cannot be reached: {reason}")]
    Unreachable {
        /// The VMM.
        name: String,
        /// What happened.
        reason: String,
    },
    /// It took longer than any answer may.
    #[error("VM {name} did not answer {what} within {} s", after.as_secs())]
    TimedOut {
        /// The VMM.
        name: String,
        /// The request.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// It said no.
    #[error("{reason}")]
    Refused {
        /// HTTP status: 409 when the guest's life does not allow it, 400 when the request makes no sense.
        status: u16,
        /// What it said.
        reason: String,
    },
    /// The guest has not read what was typed before, and there is no room for all of this.
    #[error("{reason}")]
    NotAllTaken {
        /// How many bytes were taken.
        taken: usize,
        /// What it said.
        reason: String,
    },
    /// It said something else than the API says.
    #[error("VM {name} answered {what} with something unexpected: {reason}; are both of the same version?")]
    Garbled {
        /// The VMM.
        name: String,
        /// The request.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
}
