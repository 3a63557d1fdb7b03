//! One process: its output kept in files, its end awaited with a deadline, killed when it is no longer needed.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::until;

/// Lines of a log shown when a test fails.
const SHOWN: usize = 40;

/// A process that dies with this value. When a test fails, its last words are shown.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
    out: PathBuf,
    err: PathBuf,
}

/// What a process that has ended has said.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit status; `None` after a signal.
    pub code: Option<i32>,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Process {
    /// Starts it; its output goes to files in `folder` named after `label`, which nothing else there has.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: Command, folder: &Path, label: &str) -> Self {
        let [out, err] = ["out", "err"].map(|stream| folder.join(format!("{label}.{stream}")));
        let create = |path| File::create_new(path).unwrap_or_else(|error| panic!("{label}: a log: {error}"));
        command.stdin(Stdio::null()).stdout(create(&out)).stderr(create(&err));
        let what = format!("{label}: {command:?}");
        let child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        Self { child, what, out, err }
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far on standard output.
    pub fn out(&self) -> String {
        read(&self.out)
    }

    /// The file that its standard output goes to.
    pub fn out_path(&self) -> &Path {
        &self.out
    }

    /// What it has said so far on standard error.
    pub fn err(&self) -> String {
        read(&self.err)
    }

    /// SIGKILL: it gets no say.
    pub fn kill(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When it has ended and was waited for.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("a process to signal");
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child process")
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    #[track_caller]
    pub fn end(&mut self) -> Output {
        let what = format!("the end of {}", self.what);
        let status = until(&what, || self.has_ended());
        Output { code: status.code(), out: self.out(), err: self.err() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {}", self.what);
            for text in [self.out(), self.err()] {
                let lines: Vec<_> = text.lines().collect();
                lines[lines.len().saturating_sub(SHOWN)..].iter().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
