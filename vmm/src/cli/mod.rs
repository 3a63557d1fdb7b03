//! The `vmm` command: starts a VMM for a guest, or speaks with one that runs.
//!
//! A process that hosts a guest ([`run`](Command::Run), [`receive`](Command::Receive)) has two voices: standard output
//! is the guest's console, byte for byte, and standard error is the VMM's. All other commands are clients of
//! the control API and could as well be written by someone else.

mod args;
mod confinement;
mod cpu;
mod detach;
mod escape;
mod hosting;
mod keyboard;
mod machine;
mod remote;
mod terminal;
mod words;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use migrate::client::RuntimeDir;

pub use self::args::{Arguments, Command};
use crate::lab::tether;
use crate::{bench, demo};

/// The command, from the process's arguments to its exit status: 0 when what was asked for was done (for a VMM: the
/// guest moved or was shut down), 1 when not (the guest crashed), 2 for wrong arguments.
#[must_use]
pub fn main() -> ExitCode {
    run(Arguments::parse()).unwrap_or_else(|error| {
        words::say(&format!("vmm: {error:#}"));
        ExitCode::FAILURE
    })
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::GuestImage => remote::guest_image().map(|()| ExitCode::SUCCESS),
        Command::Cpu(args) => remote::print(&cpu::run(&args)?).map(|()| ExitCode::SUCCESS),
        Command::Run(args) => hosting::run(args),
        Command::Receive(args) => hosting::receive(args),
        Command::Demo(args) => Ok(runtime()?.block_on(demo::run(&args))?),
        Command::Bench(args) => Ok(runtime()?.block_on(bench::run(&args))?),
        Command::Tethered(args) => Err(tether::become_tethered(&args).into()),
        client => {
            let answer = runtime()?.block_on(remote::command(client, &RuntimeDir::from_env()?));
            answer.map(|()| ExitCode::SUCCESS)
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")
}
