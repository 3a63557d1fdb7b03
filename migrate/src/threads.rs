//! Where threads of a migration are started: a host that has none left ends an attempt, and is no defect.

use std::thread::{Builder, Scope, ScopedJoinHandle};

use scheduling::near;

use crate::failure::Failure;
use crate::guest::GuestError;

/// Starts a thread of `scope` [near](near) this one. `name`: what the host's tools call it, 15 characters at most.
///
/// # Errors
/// When the host refuses it: it has no memory for one, or no more are allowed.
pub(crate) fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, Failure> {
    let refused = |error: std::io::Error| Failure::guest("start a thread")(GuestError(error.to_string()));
    let (work, _here) = near(work);
    Builder::new().name(name.to_owned()).spawn_scoped(scope, work).map_err(refused)
}
