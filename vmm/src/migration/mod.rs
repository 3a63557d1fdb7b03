//! The adapter: a machine as the engine's source and destination.
//!
//! A [`Resident`] is a guest that lives in this process, together with what moving it needs: it is both what the
//! engine calls departing and, before that, arriving. [`Arrivals`] builds residents for guests that come.
//! This is the only room that knows both the machine and the engine.

mod arriving;
mod departing;
mod faults;
mod ram;
mod resident;
mod telemetry;

pub use arriving::{Arrivals, memory_available};
pub use resident::{Identity, Resident};

use migrate::guest::GuestError;

/// For `map_err`: the machine refused.
fn refused(error: impl std::fmt::Display) -> GuestError {
    GuestError(error.to_string())
}
