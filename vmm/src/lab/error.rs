//! What can go wrong in the laboratory itself. That a migration fails is a result, not an error.

use std::io;
use std::path::Path;
use std::time::Duration;

use migrate::client::ClientError;

/// Why an experiment could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// This host refused something.
    #[error("cannot {what}: {error}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// How it failed.
        error: io::Error,
    },
    /// A VMM ended when it should have gone on.
    #[error("{said}")]
    Died {
        /// Its last words.
        said: String,
    },
    /// Something did not happen in time.
    #[error("{what}: not within {} s", after.as_secs_f64())]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// A VMM did not do what it was asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file asked for cannot be written.
    #[error("cannot write {path}: {error}")]
    Output {
        /// Which.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// Arguments that make no sense together.
    #[error("{0}")]
    Arguments(String),
    /// Someone asked this program to end.
    #[error("interrupted: all VMMs it had started are ended")]
    Interrupted,
}

impl LabError {
    /// For `map_err`: this file cannot be written.
    pub(crate) fn output(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |error| Self::Output { path, error }
    }

    /// For `map_err`: the host refused `what`.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Host { what, error: error.into() }
    }
}
