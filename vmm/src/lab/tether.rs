//! Ties a process to the one that started it: when that one is killed, the kernel ends this one.
//!
//! The wish survives `execve` (PR_SET_PDEATHSIG, prctl(2)), so a tethered program needs no support for it: the
//! laboratory starts `vmm tethered --by PID -- run …`, and that becomes `vmm run …`.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use clap::Args;
use rustix::process::Signal;

/// Arguments of the hidden subcommand `tethered`.
#[derive(Debug, Args)]
pub struct TetherArgs {
    /// The process to be tied to
    #[arg(long, value_name = "PID")]
    pub by: u32,
    /// This program's arguments then
    #[arg(last = true, required = true)]
    pub arguments: Vec<OsString>,
}

/// Becomes this program with other arguments, tied to its parent. Returns only when that failed.
#[must_use]
pub fn become_tethered(args: &TetherArgs) -> io::Error {
    let tied = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    if let Err(error) = tied {
        return error.into();
    }
    // It may have died before: then no signal comes any more.
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_pid().cast_unsigned());
    if parent != Some(args.by) {
        return io::Error::other(format!("process {} is gone", args.by));
    }
    match std::env::current_exe() {
        Ok(program) => Command::new(program).args(&args.arguments).exec(),
        Err(error) => error,
    }
}
