//! Commands that speak with a VMM that runs.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use migrate::client::types::VmInfo;
use migrate::client::{Client, ClientError, Events, RuntimeDir};

use super::args::{Command, Which};
use super::hosting::Signals;
use super::keyboard::{self, Held, Typed};
use super::terminal::RawTerminal;
use super::words;

/// How long a guest that was asked to end may take.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// One command.
pub(super) async fn command(command: Command, runtime: &RuntimeDir) -> anyhow::Result<()> {
    let choose = async |name: Option<String>| Client::choose(runtime, name.as_deref()).await;
    match command {
        Command::List { json } => list(runtime, json).await,
        Command::Info { which, json } => info(&choose(which.name).await?, json).await,
        Command::Console(which) => console(&choose(which.name).await?).await,
        Command::Pause(which) => Ok(choose(which.name).await?.pause().await?),
        Command::Resume(which) => Ok(choose(which.name).await?.resume().await?),
        Command::Shutdown { which, wait } => shutdown(&certain(runtime, which)?, wait).await,
        Command::Stop(which) => stop(&certain(runtime, which)?).await,
        Command::Run(_)
        | Command::Cpu(_)
        | Command::Receive(_)
        | Command::Demo(_)
        | Command::Bench(_)
        | Command::Tethered(_)
        | Command::GuestImage => {
            bail!("not a command to a running VMM")
        }
    }
}

/// The VM named, or the only one.
fn certain(runtime: &RuntimeDir, which: Which) -> anyhow::Result<Client> {
    match which.name {
        Some(name) => Ok(Client::named_in(runtime, &name)?),
        None => alone(runtime),
    }
}

/// The only VM, counting those that wait too: what cannot be undone is not guessed.
fn alone(runtime: &RuntimeDir) -> anyhow::Result<Client> {
    let mut running = Client::list_in(runtime)?;
    match running.len() {
        0 => Err(ClientError::NoneRunning(runtime.path().to_owned()).into()),
        1 => Ok(running.remove(0)),
        _ => {
            Err(ClientError::Several(running.iter().map(|client| client.name().to_owned()).collect()).into())
        }
    }
}

async fn list(runtime: &RuntimeDir, json: bool) -> anyhow::Result<()> {
    let mut running: Vec<VmInfo> = Vec::new();
    for client in Client::list_in(runtime)? {
        // One that has ended meanwhile, or does not answer, is not left out silently.
        match client.info().await {
            Ok(info) => running.push(info),
            Err(error) => words::say(&format!("vmm: {error}")),
        }
    }
    if json {
        return print(&format!("{}\n", serde_json::to_string(&running)?));
    }
    print(&words::list(&running))
}

async fn info(client: &Client, json: bool) -> anyhow::Result<()> {
    let info = client.info().await?;
    if json { print(&format!("{}\n", serde_json::to_string(&info)?)) } else { print(&words::info(&info)) }
}

/// Ends the guest and waits until its name is free.
async fn stop(client: &Client) -> anyhow::Result<()> {
    let events = client.events().await?;
    client.stop().await?;
    let ended = ends_within(END_DEADLINE, events).await;
    ensure!(ended, "{} was asked to end {} s ago and has not", client.name(), END_DEADLINE.as_secs());
    Ok(())
}

/// Presses the power button; whether anyone listens shows only if it is waited for.
async fn shutdown(client: &Client, wait: Option<u32>) -> anyhow::Result<()> {
    let events = client.events().await?;
    client.shutdown().await?;
    let Some(seconds) = wait else { return Ok(()) };
    let ended = ends_within(Duration::from_secs(seconds.into()), events).await;
    let name = client.name();
    ensure!(
        ended,
        "{name} has not powered off within {seconds} s; it may not listen to its power button: vmm stop {name} ends it"
    );
    Ok(())
}

/// Whether the VMM ends in time: its events do.
async fn ends_within(limit: Duration, mut events: Events) -> bool {
    let end = async { while let Ok(Some(_)) = events.next().await {} };
    tokio::time::timeout(limit, end).await.is_ok()
}

async fn console(client: &Client) -> anyhow::Result<()> {
    let mut output = client.console().await?;
    let mut signals = Signals::new().context("cannot listen to signals")?;
    let terminal = if io::stdin().is_terminal() { Some(RawTerminal::enter()?) } else { None };
    if terminal.is_some() {
        words::say(words::HOW_TO_LEAVE);
    }
    let mut keyboard = keyboard::listen();
    let (mut held, mut again) = (Held::default(), keyboard::again());
    let bye = loop {
        tokio::select! {
            said = output.next() => match said {
                Some(bytes) => print_bytes(&bytes)?,
                None => break words::VM_ENDED,
            },
            Some(typed) = keyboard.recv(), if !held.is_full() => match typed {
                Typed::Bytes(bytes) => {
                    held.push(&bytes);
                    held.give(async |bytes| type_in(client, bytes).await).await?;
                }
                Typed::Leave => break "",
            },
            _ = again.tick(), if held.bytes() > 0 => {
                held.give(async |bytes| type_in(client, bytes).await).await?;
            }
            _ = signals.next() => break "",
        }
    };
    drop(terminal);
    if held.bytes() > 0 {
        words::say(&words::not_read(held.bytes()));
    }
    words::say(bye);
    Ok(())
}

/// How much was taken. By a VM that has just ended nothing: its output says so.
async fn type_in(client: &Client, bytes: Vec<u8>) -> Result<usize, ClientError> {
    let all = bytes.len();
    match client.type_in(bytes).await {
        Err(ClientError::NotAllTaken { taken, .. }) => Ok(taken),
        Err(ClientError::Unreachable { .. }) => Ok(0),
        told => told.map(|()| all),
    }
}

/// `vmm guest-image`.
pub(super) fn guest_image() -> anyhow::Result<()> {
    ensure!(!io::stdout().is_terminal(), "the image is not for a terminal: write vmm guest-image > FILE");
    print_bytes(guest::IMAGE)
}

/// To standard output, all of it.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(text.as_bytes())
}

fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("cannot write to standard output")
}
