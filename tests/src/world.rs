//! A world of its own for one test: a folder for everything, and the programs to start in it.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use migrate::client::RuntimeDir;
use tempfile::TempDir;

use crate::turn::{Company, Turn};
use crate::{Guest, Migration, Network, Output, Process, Vm, binary};

/// Everything of one test. Processes end with the values that stand for them; keep those shorter than this.
#[derive(Debug)]
pub struct World {
    folder: TempDir,
    started: Cell<u32>,
    network: Option<Network>,
    turn: Arc<Turn>,
}

impl World {
    /// A world that has the machine to itself.
    #[must_use]
    pub fn alone() -> Self {
        Self::new(Company::None)
    }

    /// A world whose guests are idle, so that there may be others like it.
    #[must_use]
    pub fn quiet() -> Self {
        Self::new(Company::Quiet)
    }

    /// A world like that in a network of its own. Guests have `tap0` in it, VMMs that receive the next ones.
    #[must_use]
    pub fn networked() -> Self {
        let network = Network::make();
        // The guest's own.
        network.next_tap();
        // Alone: the kernel makes and unmakes interfaces one at a time, and slowly, for the whole machine.
        Self { network: Some(network), ..Self::alone() }
    }

    fn new(company: Company) -> Self {
        Self::in_turn(Arc::new(Turn::wait(company)))
    }

    /// Another world in the same turn, for the same test.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self::in_turn(Arc::clone(&self.turn))
    }

    fn in_turn(turn: Arc<Turn>) -> Self {
        // A short path: a socket's address has room for 108 bytes.
        let folder = tempfile::Builder::new().prefix("vm").tempdir().expect("a temporary folder");
        Self { folder, started: Cell::new(0), network: None, turn }
    }

    /// A path in the world's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its network.
    ///
    /// # Panics
    /// When it has none of its own.
    #[must_use]
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("a world with a network")
    }

    /// Where the control sockets are.
    #[must_use]
    pub fn runtime(&self) -> RuntimeDir {
        RuntimeDir::at(self.path("run"))
    }

    /// A program under test with these arguments, to be started in this world.
    #[must_use]
    pub fn command<'a>(&self, program: &str, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let program = binary(program);
        let mut command = match &self.network {
            Some(network) => network.wrap(program),
            None => Command::new(program),
        };
        command.args(arguments).current_dir(self.folder.path());
        command.env("VMM_RUNTIME_DIR", self.runtime().path()).env("VMM_STATE_DIR", self.path("state"));
        command
    }

    /// Starts a command; the label, with a number, names its logs.
    #[must_use]
    pub fn start(&self, command: Command, label: &str) -> Process {
        self.started.set(self.started.get() + 1);
        Process::start(command, self.folder.path(), &format!("{}-{label}", self.started.get()))
    }

    /// Runs a program to its end.
    #[must_use]
    #[track_caller]
    pub fn ask<'a>(&self, program: &str, arguments: impl IntoIterator<Item = &'a str>) -> Output {
        self.start(self.command(program, arguments), program).end()
    }

    /// Starts a VMM with a guest, and waits until it runs.
    #[must_use]
    #[track_caller]
    pub fn run(&self, name: &str, guest: Guest) -> Vm {
        let cpus = guest.cpus.to_string();
        let mut line = vec!["run", "--memory", guest.memory, "--cpus", &cpus, "--cmdline", guest.words];
        line.extend(["--cpu", guest.cpu]);
        if guest.disk.or(guest.nic).is_some() {
            std::fs::write(self.path("kernel"), ::guest::IMAGE).expect("a kernel");
            line.extend(["--kernel", "kernel"]);
        }
        line.extend(guest.disk.iter().flat_map(|disk| ["--disk", disk]));
        line.extend(guest.nic.iter().flat_map(|nic| ["--net", nic]));
        Vm::start(self, name, &line)
    }

    /// Starts a VMM that waits for a guest.
    #[must_use]
    #[track_caller]
    pub fn receive(&self, name: &str) -> Vm {
        let tap = self.network.as_ref().map(|network| format!("tap={}", network.next_tap()));
        let mut line = vec!["receive", "--listen", "127.0.0.1:0"];
        line.extend(tap.iter().flat_map(|tap| ["--net", tap]));
        Vm::start(self, name, &line)
    }

    /// Starts a VMM that waits for a guest whose CPU is at most this.
    #[must_use]
    #[track_caller]
    pub fn receive_at_most(&self, name: &str, cpu: &str) -> Vm {
        Vm::start(self, name, &["receive", "--listen", "127.0.0.1:0", "--cpu", cpu])
    }

    /// Starts a VMM that waits for a guest, with further arguments.
    #[must_use]
    #[track_caller]
    pub fn receive_with(&self, name: &str, words: &[&str]) -> Vm {
        Vm::start(self, name, &[&["receive", "--listen", "127.0.0.1:0"], words].concat())
    }

    /// Starts moving the guest of a VMM. `words` are further arguments. Unless they say otherwise, a long pause is allowed:
    /// on a busy machine everything is expected to take long, and the guest would rightly stay where it is. And a lost link is
    /// soon given up: most tests that lose one want to see what comes then.
    #[must_use]
    pub fn migrate(&self, vm: &Vm, to: &str, words: &str) -> Migration {
        let known = ["--vm", vm.name(), "--to", to, "--json"];
        let patient = ["--max-downtime", "10s"].into_iter().filter(|_| !words.contains("--max-downtime"));
        let brief =
            ["--recovery-timeout", "1s"].into_iter().filter(|_| !words.contains("--recovery-timeout"));
        let arguments = known.into_iter().chain(patient).chain(brief).chain(words.split_whitespace());
        Migration::new(self.start(self.command("migrate", arguments), "migrate"))
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}
