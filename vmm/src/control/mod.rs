//! The control API: what an operator (or `migrate`) may ask of a VMM, over HTTP on a Unix socket.
//!
//! The server sees the machine and its migrations through one trait, [`Vm`], and never touches a guest itself.
//! Requests are answered on one thread; what may take a moment runs beside it, so a slow guest never makes
//! the API deaf. `GET /openapi.json` describes all of it, and a test holds the two together.
//!
//! Whoever is served may do everything: the socket has mode 0600, in a directory made with mode 0700, and of those who
//! connect all the same only the VMM's own user and root [are served](peer).

mod answer;
mod api;
mod feed;
mod peer;
mod routes;
mod server;
mod socket;
#[cfg(test)]
mod tests;

use migrate::client::types::{MigrationStatus, RecoverRequest, Resolution, Salvage, VmInfo};
use migrate::options::Options;
use migrate::progress::Event;
use tokio::sync::broadcast;

use crate::devices::ConsoleReader;

pub use self::routes::openapi;
pub use self::server::serve;
pub use self::socket::{ControlSocket, SocketError};

/// A virtual machine as the API sees it. Calls may block for as long as the machine takes to obey
/// (milliseconds); they are made on a thread that may.
pub trait Vm: Send + Sync + 'static {
    /// What it is and how it is.
    fn info(&self) -> VmInfo;

    /// Pauses the guest.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] when the guest's life does not allow it.
    fn pause(&self) -> Result<(), Refusal>;

    /// Lets a paused guest run on.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] when the guest's life does not allow it; above all when it is in doubt.
    fn resume(&self) -> Result<(), Refusal>;

    /// Presses the guest's power button. What it does then, and when, is its own affair.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] when the guest's life does not allow it.
    fn shutdown(&self) -> Result<(), Refusal>;

    /// Ends the guest, or the waiting for one. Returns when it has been asked; [`wait_ended`](Self::wait_ended)
    /// returns when it is done.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] when that would lose a guest: another host still fetches its memory from here.
    fn stop(&self) -> Result<(), Refusal>;

    /// Listens to the guest's console: what it has said lately, then what it says.
    fn console(&self) -> ConsoleReader;

    /// Types into the guest's console. How many bytes were taken: fewer when the guest has not read what was typed before,
    /// or is just leaving.
    fn type_in(&self, bytes: &[u8]) -> usize;

    /// Everything that happens in migrations from now on, incoming or outgoing. The last of each that was to leave
    /// from here is `Ended`.
    fn events(&self) -> broadcast::Receiver<Event>;

    /// Starts to move the guest. Returns when that is accepted.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] when the guest is not running here or is already moving.
    fn start_migration(&self, options: Options) -> Result<(), Refusal>;

    /// The migration that is leaving from here, or the last one that was to.
    fn migration(&self) -> MigrationStatus;

    /// Asks to give the migration up. Returns when that is accepted; `Ended` tells when it is done.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] when there is none, or it is too late.
    fn cancel_migration(&self) -> Result<(), Refusal>;

    /// The operator's word that the migration may switch over. Returns when it has been heard.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] when no migration waits for it.
    fn continue_migration(&self) -> Result<(), Refusal>;

    /// Calls the other side of a guest in doubt again. Returns when that has begun; `Ended` tells what came of it.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] when the guest is not in doubt, or came from elsewhere.
    fn recover(&self, request: RecoverRequest) -> Result<(), Refusal>;

    /// Keeps the memory of a guest that is here in part.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] when there is none.
    fn salvage(&self) -> Result<Salvage, Refusal>;

    /// The operator's word on a guest in doubt.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] when the guest is not in doubt.
    fn resolve(&self, resolution: Resolution) -> Result<(), Refusal>;

    /// Waits until the guest is here no more. Whatever [`events`](Self::events) has to tell of that is told before.
    fn wait_ended(&self) -> Ending;
}

/// How a guest ended on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// It runs elsewhere.
    Moved {
        /// Where, `HOST:PORT` of the migration.
        to: String,
    },
    /// It was shut down, by itself or by its operator.
    Stopped,
    /// It could not go on.
    Crashed(String),
}

/// Why something asked for was not done: one line naming the thing, the value and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not now: the guest's life does not allow it. 409.
    #[error("{0}")]
    Conflict(String),
    /// It should have been possible, and failed. 500.
    #[error("{0}")]
    Failed(String),
}
