//! The control API of a VMM, as its clients see it: the types, where the sockets are, and a client.
//!
//! One VMM serves one guest on one Unix socket, named after the VMM, in a directory only its user can enter.
//! The server itself is the VMM's; what both must agree on is here. A [`Client`] opens a connection for each
//! request, so it can be shared, cloned and kept while VMMs come and go. No request waits without a
//! deadline; a stream ([`Events`], [`ConsoleOutput`]) lasts until the VMM ends it.

mod error;
mod exchange;
mod runtime;
mod stream;
pub mod types;

use bytes::Bytes;
use hyper::Method;
use serde::Serialize;

pub use self::error::ClientError;
use self::exchange::Exchange;
pub use self::runtime::{Presence, RuntimeDir};
pub use self::stream::{ConsoleOutput, Events};
use self::types::{
    Life, MigrateRequest, MigrationStatus, RecoverRequest, Resolution, ResolveRequest, Salvage, VmInfo,
};

/// Result of a request to a VMM.
pub type Result<T> = std::result::Result<T, ClientError>;

/// Speaks with one VMM.
#[derive(Debug, Clone)]
pub struct Client {
    name: String,
    exchange: Exchange,
}

impl Client {
    /// The VMM of that name.
    ///
    /// # Errors
    /// When no VMM of that name is running; the error lists those that are.
    pub fn named_in(runtime: &RuntimeDir, name: &str) -> Result<Self> {
        let socket = runtime.socket(name)?;
        if let Presence::Live { .. } = runtime.presence(name)? {
            return Ok(Self { name: name.to_owned(), exchange: Exchange::new(name, socket) });
        }
        match runtime.names()? {
            running if running.is_empty() => Err(ClientError::NoneRunning(runtime.path().to_owned())),
            running => Err(ClientError::NotRunning { name: name.to_owned(), running }),
        }
    }

    /// The only VMM running: it needs no name. One that still waits for a guest does not count when others have one.
    ///
    /// # Errors
    /// When there is none, or more than one; the error then lists their names.
    pub async fn only_in(runtime: &RuntimeDir) -> Result<Self> {
        let mut running = Self::list_in(runtime)?;
        if running.len() > 1 {
            let mut inhabited = Vec::new();
            for client in &running {
                if client.info().await.is_ok_and(|info| info.life != Life::Waiting) {
                    inhabited.push(client.clone());
                }
            }
            if inhabited.len() == 1 {
                running = inhabited;
            }
        }
        match running.len() {
            0 => Err(ClientError::NoneRunning(runtime.path().to_owned())),
            1 => Ok(running.remove(0)),
            _ => Err(ClientError::Several(running.into_iter().map(|client| client.name).collect())),
        }
    }

    /// [`named_in`](Self::named_in) with a name, [`only_in`](Self::only_in) without.
    ///
    /// # Errors
    /// As these.
    pub async fn choose(runtime: &RuntimeDir, name: Option<&str>) -> Result<Self> {
        match name {
            Some(name) => Self::named_in(runtime, name),
            None => Self::only_in(runtime).await,
        }
    }

    /// All VMMs running, by name. Sockets where no one answers are skipped.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list_in(runtime: &RuntimeDir) -> Result<Vec<Self>> {
        let client = |name: String| {
            let socket = runtime.socket(&name)?;
            Ok(Self { exchange: Exchange::new(&name, socket), name })
        };
        runtime.names()?.into_iter().map(client).collect()
    }

    /// The VMM's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `GET /vm`.
    ///
    /// # Errors
    /// When the VMM cannot be reached or does not answer.
    pub async fn info(&self) -> Result<VmInfo> {
        self.exchange.fetch("/vm").await
    }

    /// `POST /vm/pause`.
    ///
    /// # Errors
    /// As for [`info`](Self::info); [`ClientError::Refused`] when the guest's life does not allow it.
    pub async fn pause(&self) -> Result<()> {
        self.exchange.order(Method::POST, "/vm/pause", Bytes::new()).await
    }

    /// `POST /vm/resume`.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    pub async fn resume(&self) -> Result<()> {
        self.exchange.order(Method::POST, "/vm/resume", Bytes::new()).await
    }

    /// `POST /vm/shutdown`: presses the guest's power button.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    pub async fn shutdown(&self) -> Result<()> {
        self.exchange.order(Method::POST, "/vm/shutdown", Bytes::new()).await
    }

    /// `POST /vm/stop`.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    pub async fn stop(&self) -> Result<()> {
        self.exchange.order(Method::POST, "/vm/stop", Bytes::new()).await
    }

    /// `GET /console`: what the guest has said, then what it says.
    ///
    /// # Errors
    /// As for [`info`](Self::info).
    pub async fn console(&self) -> Result<ConsoleOutput> {
        Ok(ConsoleOutput::new(self.exchange.stream("/console").await?))
    }

    /// `POST /console`: types into the guest's console, where it waits until the guest reads it.
    ///
    /// # Errors
    /// [`ClientError::NotAllTaken`] when so much waits already that there is no room for all of it: the rest is to be
    /// typed again later. Otherwise as for [`pause`](Self::pause).
    pub async fn type_in(&self, bytes: impl Into<Bytes>) -> Result<()> {
        self.exchange.order(Method::POST, "/console", bytes.into()).await
    }

    /// `GET /events`: everything that happens from now on. Nothing is missed after this has returned.
    ///
    /// # Errors
    /// As for [`info`](Self::info).
    pub async fn events(&self) -> Result<Events> {
        Ok(Events::new(self.name.clone(), self.exchange.stream("/events").await?))
    }

    /// `POST /migration`: starts one. Returns when it has been accepted, not when it is over.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    pub async fn migrate(&self, request: &MigrateRequest) -> Result<()> {
        self.exchange.order(Method::POST, "/migration", json(request)?).await
    }

    /// `GET /migration`.
    ///
    /// # Errors
    /// As for [`info`](Self::info).
    pub async fn migration(&self) -> Result<MigrationStatus> {
        self.exchange.fetch("/migration").await
    }

    /// `DELETE /migration`: gives the migration up; the guest stays.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause): after commit it is too late, and without a migration there is nothing to cancel.
    pub async fn cancel_migration(&self) -> Result<()> {
        self.exchange.order(Method::DELETE, "/migration", Bytes::new()).await
    }

    /// `POST /migration/continue`: lets the migration go on that waits before it switches over.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause): when no migration waits for it.
    pub async fn continue_migration(&self) -> Result<()> {
        self.exchange.order(Method::POST, "/migration/continue", Bytes::new()).await
    }

    /// `POST /migration/recover`: calls the other side of a guest in doubt again.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause): when the guest is not in doubt, or came from elsewhere.
    pub async fn recover(&self, request: &RecoverRequest) -> Result<()> {
        self.exchange.order(Method::POST, "/migration/recover", json(request)?).await
    }

    /// `POST /migration/salvage`: keeps the memory of a guest that is here in part.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause): when there is none.
    pub async fn salvage(&self) -> Result<Salvage> {
        self.exchange.ask("/migration/salvage").await
    }

    /// `POST /migration/resolve`: the operator's word on a guest in doubt.
    ///
    /// # Errors
    /// As for [`pause`](Self::pause).
    pub async fn resolve(&self, resolution: Resolution) -> Result<()> {
        self.exchange.order(Method::POST, "/migration/resolve", json(&ResolveRequest { resolution })?).await
    }
}

fn json(request: &impl Serialize) -> Result<Bytes> {
    match serde_json::to_vec(request) {
        Ok(bytes) => Ok(bytes.into()),
        Err(error) => Err(ClientError::Request(error.to_string())),
    }
}
