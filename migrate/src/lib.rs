//! Live migration of virtual machines over TCP: the engine, its wire format, and the operator's command.
//!
//! Two sides, one conversation: the [`source`] has the guest and dials, the [`destination`] listens.
//!
//! ```text
//!   guest that leaves                                                guest that arrives
//!   Departing + Ram                                                  Host, Arriving + Ram, Faults
//!        │                                                                  │
//!   source::migrate ── control: hello, pre-flight, state, commit ── Receiver::receive
//!        └── crew ───── data: pages, zero marks, pushed pages ───── landing ┘
//!        └── page server ── urgent: requested pages (post-copy) ─── faults ─┘
//! ```
//!
//! The rooms, one way down: the two sides use [`handover`] (who may run the guest when: pure),
//! [`convergence`] (what to do after a round: pure), `packing` (whether a frame is packed: pure), [`wire`] (bytes to messages and back: no sockets) and
//! [`channel`] (byte streams with deadlines). They see the guest only through [`guest`] and pages as [`pages`].
//! What can be told is in [`progress`] and [`report`]. Who may take part is said in [`protection`].
//!
//! The engine knows no KVM, has no unsafe code, and waits for nothing without a deadline.
#![forbid(unsafe_code)]

mod alarm;
pub mod channel;
pub mod cli;
pub mod client;
pub mod convergence;
pub mod destination;
mod failure;
pub mod guest;
pub mod handover;
pub mod journal;
pub mod options;
mod packing;
pub mod pages;
pub mod priority;
pub mod progress;
pub mod protection;
mod pulse;
mod rate;
pub mod report;
pub mod source;
mod threads;
mod verify;
pub mod wire;

pub use alarm::{Cancel, NotWaiting, TooLate};
pub use destination::{Arrival, Receiver, Waiting};
pub use failure::Failure;
pub use source::migrate;
