//! What can go wrong while VMMs are measured. That a run fails is a result: it is kept with these words.

use std::io;
use std::time::Duration;

use vmm::lab::LabError;

/// Why there is nothing to show for it.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// Nothing can be measured on this host.
    #[error("{0}")]
    Unfit(String),
    /// A run did not come to its end, and why.
    #[error("{0}")]
    Failed(String),
    /// Something did not happen in time.
    #[error("{what}: not within {} s", after.as_secs_f64())]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The host refused something.
    #[error("cannot {what}: {error}")]
    Host {
        /// What was tried.
        what: String,
        /// How it failed.
        error: io::Error,
    },
    /// What is shared with `vmm bench` failed, or the program was interrupted.
    #[error(transparent)]
    Lab(#[from] LabError),
}

impl PeersError {
    /// For `map_err`: the host refused `what`.
    pub(super) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Host { what: what.into(), error }
    }

    /// Whether it ends everything, and not this run alone.
    pub(super) fn is_final(&self) -> bool {
        matches!(self, Self::Unfit(_) | Self::Lab(LabError::Interrupted))
    }
}

/// Waits for `event`, but not for ever.
pub(super) async fn within<T>(
    limit: Duration,
    what: impl Into<String>,
    event: impl Future<Output = T>,
) -> Result<T, PeersError> {
    tokio::time::timeout(limit, event).await.map_err(|_| PeersError::Late { what: what.into(), after: limit })
}
