//! `--detach`: the VMM goes on in the background.
//!
//! This program is started again in a session of its own. It says one line on its standard output when the VM is
//! there; when that ends without a line, it has failed, and what it said on standard error is why. What it says later
//! goes to `NAME.log` beside the socket; the file goes when the VM ends well.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use anyhow::{Context, ensure};
use migrate::client::RuntimeDir;

use super::args::HostingArgs;
use super::words;
use crate::control::Ending;

/// What the process in the background says when the VM is there: one line, tabs between the fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) name: String,
    pub(super) socket: PathBuf,
    pub(super) listen: Option<String>,
}

/// In the foreground: starts the process in the background, waits until the VM is there, and says so.
pub(super) fn start(args: &HostingArgs) -> anyhow::Result<ExitCode> {
    let console = args.console.as_deref();
    ensure!(
        console != Some(Path::new("-")),
        "--detach leaves no standard output for --console -: give a file"
    );
    let runtime = RuntimeDir::from_env()?;
    runtime.ensure()?;
    let log = runtime.path().join(format!("starting-{}.log", std::process::id()));
    let mut child = spawn(&log)?;
    let mut line = String::new();
    let output = child.stdout.take().context("the VMM has no standard output")?;
    BufReader::new(output).read_line(&mut line).context("cannot hear the VMM")?;
    match Ready::parse(&line) {
        Some(ready) => {
            fs::rename(&log, log_of(&runtime, &ready.name)).context("cannot keep the VMM's log")?;
            print!("{}", words::detached(&ready));
            Ok(ExitCode::SUCCESS)
        }
        None => failed(child, &log),
    }
}

fn spawn(log: &Path) -> anyhow::Result<Child> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let stderr = File::create(log).with_context(|| format!("cannot write the log {}", log.display()))?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).arg("--detached");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    command.spawn().context("cannot start the VMM")
}

/// It says why itself, and ends with its own status.
fn failed(mut child: Child, log: &Path) -> anyhow::Result<ExitCode> {
    let status = child.wait().context("cannot wait for the VMM")?;
    let why = fs::read(log).unwrap_or_default();
    let _ = fs::remove_file(log);
    if why.is_empty() {
        words::say(&format!("vmm: the VMM ended and said nothing ({status})"));
    }
    let _ = io::stderr().write_all(&why);
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// In the background, first: no terminal, and no signal meant for whoever started us.
pub(super) fn leave_session() -> anyhow::Result<()> {
    rustix::process::setsid().context("cannot leave the session")?;
    Ok(())
}

/// In the background, last: a VM that ended well leaves nothing behind.
pub(super) fn forget_log(name: &str, ending: &Ending) {
    if let (Ending::Moved { .. } | Ending::Stopped, Ok(runtime)) = (ending, RuntimeDir::from_env()) {
        let _ = fs::remove_file(log_of(&runtime, name));
    }
}

fn log_of(runtime: &RuntimeDir, name: &str) -> PathBuf {
    runtime.path().join(format!("{name}.log"))
}

impl Ready {
    /// Says it. If nobody hears it, that is not the VM's concern.
    pub(super) fn tell(&self) {
        let listen = self.listen.as_deref().unwrap_or_default();
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "ready\t{}\t{}\t{listen}", self.name, self.socket.display())
            .and_then(|()| out.flush());
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.strip_prefix("ready\t")?.strip_suffix('\n')?.split('\t');
        let (name, socket, listen) = (fields.next()?, fields.next()?, fields.next()?);
        let listen = (!listen.is_empty()).then(|| listen.to_owned());
        Some(Self { name: name.to_owned(), socket: socket.into(), listen })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_line_is_no_line() {
        let ready =
            Ready { name: "a".into(), socket: "/r/a.sock".into(), listen: Some("127.0.0.1:7".into()) };
        assert_eq!(Ready::parse("ready\ta\t/r/a.sock\t127.0.0.1:7\n"), Some(ready.clone()));
        assert_eq!(Ready::parse("ready\ta\t/r/a.sock\t\n"), Some(Ready { listen: None, ..ready }));
        assert_eq!(Ready::parse("ready\ta\t/r/a"), None);
        assert_eq!(Ready::parse(""), None);
    }
}
