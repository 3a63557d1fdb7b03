//! The `migrate` command: the operator's hand on a VMM that runs on this host.
//!
//! It moves nothing itself. It asks the VMM over its control socket, follows what the VMM tells, and says how it
//! ended: in words, as JSON, and as an exit status. Whatever happens to this command, the migration goes on;
//! only the VMM knows how it ends. So when the VMM falls silent, the command says that it does not know.

mod args;
mod follow;
mod show;
mod start;
mod status;
mod tls;
pub mod values;
pub mod words;

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

pub use self::args::{Arguments, Command, StartArgs};
use self::follow::{Following, Interrupt};
use self::show::Show;
pub use self::status::Status;
use crate::client::types::{RecoverRequest, Resolution};
use crate::client::{Client, RuntimeDir};

/// The command, from the process's arguments to its exit status.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("migrate: cannot start: {error}");
            return Status::Usage.into();
        }
    };
    let status = runtime.block_on(async { run(&arguments, &RuntimeDir::from_env()?).await });
    status
        .unwrap_or_else(|error: anyhow::Error| {
            eprintln!("migrate: {error:#}");
            Status::of_error(&error)
        })
        .into()
}

/// One command.
///
/// # Errors
/// When the VMM cannot be found or refuses; [`Status::of_error`] has the exit status for it.
pub async fn run(arguments: &Arguments, runtime: &RuntimeDir) -> anyhow::Result<Status> {
    let client = async || Client::choose(runtime, arguments.vm()).await;
    match &arguments.command {
        None => {
            start::start(&client().await?, arguments.start.as_ref().context("--to and its options")?).await
        }
        Some(Command::Status(common)) => status::show(&client().await?, common).await,
        Some(Command::Watch(common)) => follow::watch(&client().await?, common).await,
        Some(Command::Cancel(_)) => {
            client().await?.cancel_migration().await?;
            eprintln!("{}", words::CANCEL_ASKED);
            Ok(Status::Moved)
        }
        Some(Command::Continue(_)) => {
            client().await?.continue_migration().await?;
            eprintln!("{}", words::CONTINUED);
            Ok(Status::Moved)
        }
        Some(Command::Recover { to, recovery_timeout, common }) => {
            let recovery_ms =
                recovery_timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
            recover(&client().await?, RecoverRequest { to: to.clone(), recovery_ms }, common.json).await
        }
        Some(Command::Salvage(common)) => {
            let kept = client().await?.salvage().await?;
            println!("{}", if common.json { serde_json::to_string(&kept)? } else { words::salvaged(&kept) });
            Ok(Status::Moved)
        }
        Some(Command::Resolve { force_source, force_destination, discard, .. }) => {
            let resolution = match (force_source, force_destination, discard) {
                (true, ..) => Resolution::ForceSource,
                (_, true, _) => Resolution::ForceDestination,
                (.., true) => Resolution::Discard,
                _ => return recover(&client().await?, RecoverRequest::default(), false).await,
            };
            if let Some(warning) = words::warning(resolution) {
                eprintln!("{warning}");
            }
            let client = client().await?;
            client.resolve(resolution).await?;
            eprintln!("{}", words::resolved(client.name(), resolution));
            Ok(Status::Moved)
        }
        Some(Command::Tls(command)) => tls::make(command),
    }
}

/// Has the destination called again, and follows that to its end.
async fn recover(client: &Client, request: RecoverRequest, json: bool) -> anyhow::Result<Status> {
    let events = client.events().await?;
    let earlier = client.migration().await?.report;
    client.recover(&request).await?;
    let following = Following { client, events, earlier, interrupt: Interrupt::Leaves };
    let report = following.follow(&mut Show::new(json)).await;
    Ok(report.map_or(Status::Unknown, |report| Status::of_report(&report, None)))
}
