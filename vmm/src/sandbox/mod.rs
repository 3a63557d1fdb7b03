//! What the VMM can do to its host, taken away from it: what a guest that breaks out finds is a process that can do little.
//!
//! ```text
//! enter ──> no new privileges, no core dump ──> Landlock: which files ──> a filter of system calls for the whole process
//!                                                                              │ inherited by every thread
//! confine(kind), first thing on a thread ──> a narrower filter on top <────────┘
//! ```
//! A thread's filters can only grow stricter, and a thread that is started has its starter's. So a thread that starts others
//! may do all that they may; those that meet the guest directly ([`ThreadKind::Vcpu`], [`ThreadKind::Device`]) start none. [`lists`]
//! says who may call what, and why.
//!
//! A forbidden call is never made. By default it is said in one line, and the process ends ([`violation`]).

mod files;
mod filter;
mod ioctls;
mod lists;
#[cfg(test)]
mod tests;
mod violation;

use std::io;
use std::sync::OnceLock;

use clap::ValueEnum;
use rustix::process::DumpableBehavior;

pub use self::files::{Files, Landlocked};
use self::filter::Filter;
pub use self::lists::ThreadKind;

/// What becomes of a call that a thread's filter forbids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Seccomp {
    /// It is said in one line, and the process ends
    Kill,
    /// It is made, and the kernel logs it
    Log,
    /// There are no filters; the process can be traced and dumps its core
    Off,
}

/// Why the process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A step failed.
    #[error("cannot {what}: {error}; --seccomp off goes on without filters of system calls")]
    Seccomp {
        /// Which.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
    /// The files cannot be restricted although this kernel has Landlock.
    #[error("cannot restrict which files this VMM reaches: {0}; --no-landlock goes on without")]
    Landlock(String),
}

/// The filters of this process, once it has entered. Of the process and not of a value that is handed around: so are the
/// filters, and a thread that forgot to be handed one would be free.
static FILTERS: OnceLock<Filters> = OnceLock::new();

/// A filter for each kind of thread, made when the first thread of its kind is confined: most VMMs never have some of them.
struct Filters {
    seccomp: Seccomp,
    of: [OnceLock<Filter>; ThreadKind::ALL.len()],
}

impl Filters {
    fn of(&self, kind: ThreadKind) -> &Filter {
        self.of[kind as usize].get_or_init(|| Filter::of(kind, self.seccomp))
    }
}

/// Confines the process, for good. Comes before it has other threads, or none but such as will have ended before there is
/// anything of the guest's: those that there are stay free. `None` leaves the files as they are.
///
/// # Errors
/// When the kernel refuses. Some of it may be in force then.
pub fn enter(seccomp: Seccomp, files: Option<&Files>) -> Result<Landlocked, SandboxError> {
    let failed = |what| move |error: rustix::io::Errno| SandboxError::Seccomp { what, error: error.into() };
    violation::outlive_limits_of_files();
    rustix::thread::set_no_new_privs(true).map_err(failed("give up new privileges"))?;
    let landlocked = files.map_or(Ok(Landlocked::Not), Files::restrict)?;
    if seccomp == Seccomp::Off {
        return Ok(landlocked);
    }
    // Registers, buffers and keys of a guest do not belong in a file, nor in the hands of another process of the user's.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(failed("keep this process from dumping its core"))?;
    let failed = |what| move |error| SandboxError::Seccomp { what, error };
    violation::tell().map_err(failed("handle the signal of a forbidden system call"))?;
    let filters = FILTERS.get_or_init(|| Filters { seccomp, of: Default::default() });
    filters.of(ThreadKind::Control).install().map_err(failed("install the filter of system calls"))?;
    Ok(landlocked)
}

/// Narrows what the calling thread, and those that it starts, may do, where the process has [entered](enter). A thread that
/// cannot be confined further goes on as it is, and that is said: a guest is not lost for want of a second fence.
pub fn confine(kind: ThreadKind) {
    let Some(filters) = FILTERS.get() else { return };
    if let Err(error) = filters.of(kind).install() {
        eprintln!("vmm: cannot confine a thread ({kind:?}) further: {error}; it keeps the process's filter");
    }
}
