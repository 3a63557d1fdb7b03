//! Guest memory: where it lies ([`layout`]), the RAM behind it ([`ram`]), moving it in bulk ([`bulk`]),
//! to and from files ([`files`]), which pages exist ([`present`]), which were written ([`dirty`]), catching touches of
//! pages that are not here yet ([`userfault`]), and room where they wait to be placed without a copy ([`staging`]).
//!
//! Invariant: every access goes through [`ram::GuestRam`], which turns guest-physical addresses into host
//! memory after checking that they lie inside RAM. Nothing here knows why memory is read or moved.

pub mod bulk;
pub mod dirty;
pub mod files;
mod huge;
pub mod layout;
pub mod own_writes;
pub mod present;
pub mod ram;
pub mod staging;
pub mod userfault;

use std::io;

/// Bytes in a guest page.
pub const PAGE: u64 = 4096;

/// What can go wrong with guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The amount asked for cannot be laid out.
    #[error(
        "guest memory of {bytes} bytes is not possible: give a multiple of 2 MiB from 16 MiB to {max_gib} GiB"
    )]
    Size {
        /// What was asked for.
        bytes: u64,
        /// The most there can be.
        max_gib: u64,
    },
    /// The host refused something.
    #[error("cannot {what}: {error}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// How it failed.
        error: io::Error,
    },
    /// The kernel cannot catch faults on missing pages.
    #[error(
        "userfaultfd is not available ({error}): run as root, give access to /dev/userfaultfd, \
         or set vm.unprivileged_userfaultfd=1"
    )]
    NoUserfault {
        /// How it failed.
        error: io::Error,
    },
}

impl MemoryError {
    /// For `map_err`: the host refused `what`.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Host { what, error: error.into() }
    }
}
