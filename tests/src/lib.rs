//! Parts of the end-to-end tests: a small world of real processes, and what can go wrong in it.
//!
//! ```text
//! World ── a folder of its own for sockets, consoles and logs; one test has the machine at a time
//!   ├── Vm         one `vmm` process: its control API, its console, its end
//!   ├── Migration  one `migrate` process: its events while it lasts, its report and status when it is over
//!   ├── Journey    one guest on its way through several VMMs, and what it said on all of them
//!   ├── Network    a namespace with a bridge and taps, for a world whose guests have a network
//!   └── Proxy      the network between two VMMs: cut after so many bytes or at a certain message, or silent, or worse
//! ```
//!
//! [`faults`] has all of it go wrong, over and over. [`peers`] measures it beside QEMU. [`saved`] is apart from that: a reader of the saved state, written from its document.
//!
//! Nothing here looks into a process: all is learnt as an operator could learn it. Nothing waits without a deadline, and
//! what a test leaves behind dies with its `World`. `docs/testing.md` says what is proven where.

mod binaries;
pub mod faults;
mod guest;
mod journey;
mod migration;
mod network;
pub mod peers;
mod process;
mod proxy;
pub mod saved;
mod transcript;
mod trouble;
mod turn;
mod until;
mod vm;
mod wire;
mod world;

pub use binaries::binary;
pub use guest::Guest;
pub use journey::Journey;
pub use migration::{Ending, Migration};
pub use network::{Network, Stream};
pub use process::{Output, Process};
pub use proxy::Proxy;
pub use transcript::{SecondOfWork, Transcript};
pub use trouble::{Cut, Does, Trouble};
pub use until::{PATIENCE, until};
pub use vm::Vm;
pub use wire::{HEAD, Kind};
pub use world::World;
