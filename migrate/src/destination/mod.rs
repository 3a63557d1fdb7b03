//! The side a guest arrives at: one listener, one guest at a time, and a score that mirrors the source's.
//!
//! ```text
//!   calling thread   the score; hears the control connection, restores the state, runs the guest
//!   reception        accepts, hears each caller's hello on a thread of its own, drops strangers
//!   streams          land pages (or place them, in post-copy), one thread a connection, the urgent one included
//!   preparer         makes memory ready ahead of round 0
//!   faults           sees touches of missing pages and requests them (post-copy)
//!   pulse            signs of life
//! ```
//!
//! Any failure before commit ends with the machine thrown away. The guest runs here only on commit.

mod context;
mod custody;
mod fault;
mod finish;
mod gather;
mod in_flight;
mod landing;
mod place;
mod prepare;
mod reception;
mod session;
mod switchover;
mod unpacking;
mod waiting;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver as Callers;
use std::time::Duration;

use self::place::{Place, attended};
use self::reception::{Caller, Desk, Memory};
pub use self::waiting::Waiting;
use crate::channel::tcp::TcpListen;
use crate::channel::tls::TlsListen;
use crate::channel::{Deadlines, Listen};
use crate::failure::Failure;
use crate::guest::{Arriving, Host};
use crate::journal::Journals;
use crate::options::Mode;
use crate::progress::Observer;
use crate::protection::DestinationIdentity;
use crate::report::{Postcopy, Takeover, Traffic, Verification};

/// A place on the network where guests arrive.
pub struct Receiver {
    listen: Box<dyn Listen>,
    deadlines: Deadlines,
    memory: Memory,
    /// Nobody is to wait here.
    stopped: AtomicBool,
}

/// How an attempt ended here.
pub enum Arrival {
    /// The guest runs here, and nothing of it is missing.
    Arrived {
        /// The machine.
        guest: Arc<dyn Arriving>,
        /// What happened, as seen from here.
        report: Box<ArrivalReport>,
        /// Set when the source may not know: it may [call again](Receiver::await_source).
        unheard: Option<Box<Waiting>>,
    },
    /// No guest came to run here; the machine, if there was one, is thrown away. Receiving again is fine.
    Failed {
        /// One line.
        reason: String,
    },
    /// The source was lost, and has not come back in time: the guest stands still here, in part or as a whole. It can still
    /// [come back](Receiver::await_source).
    Waits(Box<Waiting>),
}

/// What the destination saw of a migration.
#[derive(Debug, Clone, PartialEq)]
pub struct ArrivalReport {
    /// The guest's name.
    pub guest: String,
    /// Where it came from.
    pub from: String,
    /// How it came.
    pub mode: Mode,
    /// What was received.
    pub traffic: Traffic,
    /// Restoring the state, µs.
    pub restore_us: u64,
    /// The other steps of the pause.
    pub takeover: Takeover,
    /// Size of the state, bytes.
    pub state_bytes: u64,
    /// Post-copy's figures.
    pub postcopy: Option<Postcopy>,
    /// The comparison, if asked for.
    pub verification: Option<Verification>,
}

impl Receiver {
    /// Listens on `HOST:PORT`; port 0 picks a free one.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(listen: &str) -> Result<Self, Failure> {
        let bound = TcpListen::bind(listen)
            .map_err(|error| Failure::Listen { on: listen.to_owned(), why: error.to_string() })?;
        Ok(Self::over(Box::new(bound), Deadlines::default()))
    }

    /// Listens on a socket that is bound already; with an identity only for those whom it lets in.
    ///
    /// # Errors
    /// When the host refuses what waiting on it needs.
    pub fn on(listener: TcpListener, identity: Option<DestinationIdentity>) -> io::Result<Self> {
        let tcp = TcpListen::on(listener)?;
        let listen: Box<dyn Listen> = match identity {
            None => Box::new(tcp),
            Some(identity) => Box::new(TlsListen::new(tcp, identity)),
        };
        Ok(Self::over(listen, Deadlines::default()))
    }

    /// Receives over any kind of link.
    #[must_use]
    pub fn over(listen: Box<dyn Listen>, deadlines: Deadlines) -> Self {
        Self { listen, deadlines, memory: Memory::new(Journals::default()), stopped: AtomicBool::new(false) }
    }

    /// Keeps what is promised there.
    #[must_use]
    pub fn keeping(self, journals: Journals) -> Self {
        Self { memory: Memory::new(journals), ..self }
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.listen.address().unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into())
    }

    /// Waits for a guest and takes it in. Strangers on the port are dropped and do not end this.
    #[must_use]
    pub fn receive(&self, host: &dyn Host, observer: &dyn Observer) -> Arrival {
        let desk = Arc::new(Desk::new(self.deadlines.connect, self.memory.clone(), observer));
        attended(&*self.listen, &self.stopped, &desk, |callers| {
            self.place(&desk, callers, observer).receive(host)
        })
    }

    /// Waits for the source of a guest that is here already, and goes on with it, until `limit` has passed without it or it is
    /// told to [stop](Self::stop).
    #[must_use]
    pub fn await_source(&self, waiting: Box<Waiting>, limit: Duration, observer: &dyn Observer) -> Arrival {
        let desk = Arc::new(Desk::new(self.deadlines.connect, self.memory.clone(), observer));
        desk.expect(waiting.session(), waiting.call());
        let session = waiting.session();
        let arrival = attended(&*self.listen, &self.stopped, &desk, |callers| {
            self.place(&desk, callers, observer).wait(waiting, limit)
        });
        if let Arrival::Failed { .. } = arrival {
            self.memory.note_discarded(session);
        }
        arrival
    }

    /// The operator's word that the source does not run the guest and never will: it runs here.
    ///
    /// # Errors
    /// When it has run here already, or part of it is missing, or it cannot be started: one line, and it waits on.
    pub fn force(&self, waiting: Box<Waiting>) -> std::result::Result<Arrival, (Box<Waiting>, String)> {
        waiting.force()
    }

    /// The operator's word that the guest is not needed here.
    pub fn let_go(&self, waiting: Box<Waiting>) {
        if waiting.is_held() {
            self.memory.note_discarded(waiting.session());
        }
        waiting.let_go();
    }

    fn place<'a>(
        &'a self,
        desk: &'a Desk<'a>,
        callers: &'a Callers<Caller>,
        observer: &'a dyn Observer,
    ) -> Place<'a> {
        Place { desk, callers, memory: &self.memory, deadlines: self.deadlines, observer }
    }

    /// Ends a [`receive`](Self::receive) that still waits for a guest, or an [`await_source`](Self::await_source), and each to
    /// come, until it [goes on](Self::go_on). One that is taking a guest in goes on to its end.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.listen.wake();
    }

    /// Guests, and sources, are waited for again.
    pub fn go_on(&self) {
        self.stopped.store(false, Ordering::SeqCst);
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("on", &self.local_addr()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arrived { report, .. } => f.debug_tuple("Arrived").field(report).finish(),
            Self::Failed { reason } => f.debug_tuple("Failed").field(reason).finish(),
            Self::Waits(waiting) => waiting.fmt(f),
        }
    }
}
