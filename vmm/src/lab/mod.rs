//! A laboratory: VMM processes on this host, and a demo guest that hops between them.
//!
//! ```text
//!   Lab ──starts──> Host (a process of `vmm run` or `vmm receive`)
//!                     │  ^
//!          Journey: one guest, its host of the moment, everything it said on the way
//! ```
//!
//! `vmm demo` and `vmm bench` are built from it. Everything goes through the doors that users have: processes, the
//! control API, the console. Every wait has a deadline. Processes and files go when the [`Lab`] goes, however that
//! comes about: a dropped [`Host`] kills its process, and a process whose laboratory was killed is ended by the
//! kernel ([`tether`]).

pub mod backed;
pub mod error;
pub mod guest;
pub mod host;
pub mod journey;
pub mod measuring;
pub mod output;
pub mod setting;
pub mod slow;
pub mod stats;
pub mod table;
pub mod tether;
pub mod transcript;
pub mod usage;
pub mod verdict;
pub mod watch;

use std::cell::Cell;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use migrate::client::RuntimeDir;
use migrate::protection::authority;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

pub use self::error::LabError;
use self::guest::GuestPlan;
use self::host::Host;
use self::journey::Wire;

/// Where VMMs wait for guests, and the name in their certificates.
const HOST: &str = "127.0.0.1";

/// Longest wait for a VMM to start or to end.
const PROCESS_DEADLINE: Duration = Duration::from_secs(20);

/// Where VMMs are started: a private directory for their control sockets.
#[derive(Debug)]
pub struct Lab {
    program: PathBuf,
    runtime: RuntimeDir,
    started: Cell<u32>,
    /// Removed with everything in it when the laboratory goes.
    _directory: TempDir,
}

impl Lab {
    /// Sets one up. The VMMs are this program.
    ///
    /// # Errors
    /// When the host gives no temporary directory.
    pub fn new() -> Result<Self, LabError> {
        let directory = tempfile::Builder::new()
            .prefix("vmm-lab-")
            .tempdir()
            .map_err(LabError::host("make a temporary directory"))?;
        let program = std::env::current_exe().map_err(LabError::host("find this program"))?;
        let runtime = RuntimeDir::at(directory.path());
        Ok(Self { program, runtime, started: Cell::new(0), _directory: directory })
    }

    /// Starts a VMM that boots a demo guest.
    ///
    /// # Errors
    /// When it ends instead of running the guest; the error says what it said.
    pub async fn boot(&self, plan: &GuestPlan) -> Result<Host, LabError> {
        let (memory, cpus) = (plan.memory.to_string(), plan.cpus.get().to_string());
        let line = plan.command_line();
        self.start("guest", &["run", "--memory", &memory, "--cpus", &cpus, "--cmdline", &line]).await
    }

    /// Starts a VMM that waits for a guest, on a port of its choice.
    ///
    /// # Errors
    /// When it ends instead of waiting.
    pub async fn receive(&self, wire: Wire) -> Result<Host, LabError> {
        let listen = format!("{HOST}:0");
        let mut line = vec!["receive", "--listen", &listen];
        let credentials = self.credentials(wire)?.map(|dir| dir.display().to_string());
        line.extend(credentials.iter().flat_map(|dir| ["--tls", dir]));
        self.start("host", &line).await
    }

    /// Where certificates for this wire are: made when they are first asked for.
    fn credentials(&self, wire: Wire) -> Result<Option<PathBuf>, LabError> {
        if wire == Wire::Plain {
            return Ok(None);
        }
        let (dir, all) = (self.runtime.path().join("tls"), [HOST.to_owned()]);
        if !dir.exists() {
            authority::init(&dir, &all).map_err(|error| LabError::Arguments(error.to_string()))?;
        }
        Ok(Some(dir.join(HOST)))
    }

    async fn start(&self, what: &str, arguments: &[&str]) -> Result<Host, LabError> {
        let number = self.started.replace(self.started.get() + 1);
        let name = format!("{what}-{number}");
        Host::start(&self.program, &self.runtime, &name, arguments).await
    }
}

/// Sees `work` through, unless someone asks this program to end: then everything `work` owned is dropped, VMMs and
/// temporary files included.
///
/// # Errors
/// As `work`, and [`LabError::Interrupted`].
pub async fn unless_interrupted<T>(work: impl Future<Output = Result<T, LabError>>) -> Result<T, LabError> {
    let listen = |kind| signal(kind).map_err(LabError::host("listen for signals"));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => Err(LabError::Interrupted),
        _ = terminate.recv() => Err(LabError::Interrupted),
        _ = hangup.recv() => Err(LabError::Interrupted),
    }
}

/// Prints a result. Whoever reads it may have had enough (`| head`): that is no failure.
pub(crate) fn show(result: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", result.trim_end()).and_then(|()| out.flush());
}

/// Waits for `event`, but not for ever.
pub(crate) async fn within<T>(
    limit: Duration,
    what: impl FnOnce() -> String,
    event: impl Future<Output = T>,
) -> Result<T, LabError> {
    tokio::time::timeout(limit, event).await.map_err(|_| LabError::Late { what: what(), after: limit })
}
