//! One VMM: its process, its control API, its console.

use std::path::PathBuf;

use migrate::client::types::{Life, VmInfo};
use migrate::client::{Client, ClientError, Result};

use crate::{Output, Process, SecondOfWork, Transcript, World, until};

/// A `vmm run` or `vmm receive`. It is killed when this is dropped.
#[derive(Debug)]
pub struct Vm {
    name: String,
    process: Process,
    client: Client,
    console: PathBuf,
}

impl Vm {
    /// Starts a VMM and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn start(world: &World, name: &str, arguments: &[&str]) -> Self {
        let console = world.path(&format!("{name}.console"));
        let mut command = world.command("vmm", arguments.iter().copied());
        command.args(["--name", name, "--console"]).arg(&console);
        let mut process = world.start(command, name);
        let client = until(&format!("VMM {name} to answer"), || {
            assert!(process.has_ended().is_none(), "VMM {name} ended at once: {}", process.err());
            Client::named_in(&world.runtime(), name).ok().filter(|client| wait(client.info()).is_ok())
        });
        Self { name: name.to_owned(), process, client, console }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process's id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether its process has ended by now.
    pub fn has_died(&mut self) -> bool {
        self.process.has_ended().is_some()
    }

    /// What it says of itself.
    ///
    /// # Panics
    /// When it does not answer.
    #[track_caller]
    pub fn info(&self) -> VmInfo {
        self.api(async |client| client.info().await)
    }

    /// A request to its control API that must succeed.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn api<T>(&self, request: impl AsyncFnOnce(&Client) -> Result<T>) -> T {
        wait(request(&self.client)).unwrap_or_else(|error| panic!("VMM {}: {error}", self.name))
    }

    /// What it says to a request to its control API.
    ///
    /// # Errors
    /// When it refuses, or does not answer.
    pub fn try_api<T>(&self, request: impl AsyncFnOnce(&Client) -> Result<T>) -> Result<T> {
        wait(request(&self.client))
    }

    /// Why it refuses a request to its control API, which it must.
    ///
    /// # Panics
    /// When it does not, or not as a conflict with the guest's life.
    #[track_caller]
    pub fn refused<T>(&self, request: impl AsyncFnOnce(&Client) -> Result<T>) -> String {
        match wait(request(&self.client)) {
            Err(ClientError::Refused { status: 409, reason }) => reason,
            Err(other) => panic!("VMM {}: {other}", self.name),
            Ok(_) => panic!("VMM {} did what it should have refused", self.name),
        }
    }

    /// Where its guest is in its life; `None` when the VMM does not answer.
    pub fn life(&self) -> Option<Life> {
        wait(self.client.info()).ok().map(|info| info.life)
    }

    /// Waits for its guest to be there.
    ///
    /// # Panics
    /// When it does not get there in time.
    #[track_caller]
    pub fn wait_until(&self, life: Life) {
        until(&format!("the guest of {} to be {life:?}", self.name), || {
            (self.life() == Some(life)).then_some(())
        });
    }

    /// Where it listens for a guest.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn address(&self) -> String {
        until(&format!("the address of {}", self.name), || self.info().listen)
    }

    /// What its console took down.
    pub fn console(&self) -> Vec<u8> {
        std::fs::read(&self.console).unwrap_or_default()
    }

    /// What its guest has said here.
    pub fn transcript(&self) -> Transcript {
        Transcript::of([self.console()])
    }

    /// Waits until the guest has worked here for a whole second from now, and returns its report of that second.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn works_on(&self) -> SecondOfWork {
        // The first report may be of a second that began before.
        let reports = || self.transcript().work();
        let before = reports().len();
        until(&format!("the guest of {} to work", self.name), || reports().get(before + 1).copied())
    }

    /// Whether the guest stands still: it says nothing for longer than between two reports of its work.
    pub fn stands_still(&self) -> bool {
        let before = self.console();
        std::thread::sleep(std::time::Duration::from_millis(1500));
        self.console() == before
    }

    /// The end of its process.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn end(&mut self) -> Output {
        self.process.end()
    }
}

/// Waits for an answer of the control API, which has a deadline of its own.
fn wait<T>(answer: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(answer)
}
