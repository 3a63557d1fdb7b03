//! One VMM: a process, its control socket and its console.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use migrate::client::types::{Life, VmInfo};
use migrate::client::{Client, RuntimeDir};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, waitid};
use tokio::process::{Child, Command};

use super::output::{Output, last_line};
use super::{LabError, PROCESS_DEADLINE, within};

/// A VMM that runs. Dropping it kills the process.
#[derive(Debug)]
pub struct Host {
    name: String,
    pid: u32,
    client: Client,
    console: Output,
    errors: Output,
    /// Kept for what happens when it is dropped; never waited for, so that what the process used can still be asked
    /// after it has ended.
    _child: Child,
}

impl Host {
    pub(super) async fn start(
        program: &Path,
        runtime: &RuntimeDir,
        name: &str,
        arguments: &[&str],
    ) -> Result<Self, LabError> {
        let mut child = Command::new(program)
            .args(["tethered", "--by", &std::process::id().to_string(), "--"])
            .args(arguments)
            .args(["--name", name])
            .env("VMM_RUNTIME_DIR", runtime.path())
            .env("VMM_STATE_DIR", runtime.path().join("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(LabError::host("start a VMM"))?;
        let console = Output::of(child.stdout.take().expect("was asked for"));
        let mut errors = Output::of(child.stderr.take().expect("was asked for"));
        let pid = child.id().expect("was not waited for");
        let answers = answers(runtime, name, &mut errors);
        let Some(client) = within(PROCESS_DEADLINE, || format!("VMM {name} starts"), answers).await? else {
            return Err(last_words(name, pid, &mut errors).await);
        };
        Ok(Self { name: name.to_owned(), pid, client, console, errors, _child: child })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Its control API.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What the guest has said on this host.
    #[must_use]
    pub fn console(&self) -> Vec<u8> {
        self.console.so_far()
    }

    /// Waits until the guest has said enough on this host.
    ///
    /// # Errors
    /// When the process ended before, or it took too long.
    pub async fn said(
        &mut self,
        what: &str,
        limit: Duration,
        enough: impl FnMut(&Vec<u8>) -> bool,
    ) -> Result<(), LabError> {
        let said = within(limit, || what.to_owned(), self.console.reaches(enough)).await?;
        if said { Ok(()) } else { Err(last_words(&self.name, self.pid, &mut self.errors).await) }
    }

    /// Waits until the process has ended by itself, and has all the guest said on this host.
    ///
    /// # Errors
    /// When it goes on.
    pub async fn ended(&mut self) -> Result<Vec<u8>, LabError> {
        let pid = self.pid;
        let waiting = tokio::task::spawn_blocking(move || exited(pid, PROCESS_DEADLINE));
        let exited =
            waiting.await.map_err(io::Error::other).flatten().map_err(LabError::host("wait for a VMM"))?;
        let late = || format!("VMM {} ends after its guest has moved", self.name);
        if !exited {
            return Err(LabError::Late { what: late(), after: PROCESS_DEADLINE });
        }
        within(PROCESS_DEADLINE, late, self.console.to_end()).await
    }

    /// What the VMM says about its guest.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn info(&self) -> Result<VmInfo, LabError> {
        Ok(self.client.info().await?)
    }

    /// The address where a VMM that receives waits for a guest.
    ///
    /// # Errors
    /// When it does not wait.
    pub async fn listen(&self) -> Result<String, LabError> {
        let died = || LabError::Died { said: format!("VMM {} listens nowhere", self.name) };
        self.info().await?.listen.ok_or_else(died)
    }
}

/// Waits until the VMM answers on its control socket and has come to rest in its life. It says something on standard
/// error when that is so, therefore it is asked again whenever it has said something. Nothing when it has ended.
async fn answers(runtime: &RuntimeDir, name: &str, errors: &mut Output) -> Option<Client> {
    let mut heard = 0;
    loop {
        if let Ok(client) = Client::named_in(runtime, name)
            && let Ok(info) = client.info().await
            && matches!(info.life, Life::Running | Life::Waiting)
        {
            return Some(client);
        }
        if !errors.reaches(|all| all.len() > heard).await {
            return None;
        }
        heard = errors.so_far().len();
    }
}

/// Why a VMM ended: what it said itself, else how.
async fn last_words(name: &str, pid: u32, errors: &mut Output) -> LabError {
    let said = within(PROCESS_DEADLINE, String::new, errors.to_end()).await.unwrap_or_default();
    let error = last_line(&said).and_then(|line| line.strip_prefix("vmm: ").map(str::to_owned));
    let Some(said) = error else {
        let ended = tokio::task::spawn_blocking(move || how_it_ended(pid)).await;
        return LabError::Died { said: format!("VMM {name} {}", ended.unwrap_or_default()) };
    };
    LabError::Died { said }
}

fn how_it_ended(pid: u32) -> String {
    // Its output ended; it has or is about to.
    let _ = exited(pid, PROCESS_DEADLINE);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    let status = process(pid).ok().and_then(|pid| waitid(WaitId::Pid(pid), options).ok().flatten());
    let signal = status.as_ref().and_then(WaitIdStatus::terminating_signal);
    let code = status.as_ref().and_then(WaitIdStatus::exit_status);
    match (signal, code) {
        (Some(signal), _) => format!("was killed by signal {signal}"),
        (_, Some(code)) => format!("ended with status {code} before it should"),
        _ => "fell silent".to_owned(),
    }
}

/// Waits until a process has exited, without taking its last word from whoever asks for it later.
fn exited(pid: u32, limit: Duration) -> io::Result<bool> {
    let process = pidfd_open(process(pid)?, PidfdFlags::empty())?;
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    // Readable means exited: pidfd_open(2).
    let mut events = [PollFd::new(&process, PollFlags::IN)];
    Ok(retry_on_intr(|| poll(&mut events, Some(&limit)))? > 0)
}

fn process(pid: u32) -> io::Result<Pid> {
    Pid::from_raw(pid.cast_signed()).ok_or_else(|| ErrorKind::NotFound.into())
}
