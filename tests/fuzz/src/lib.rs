//! Hostile bytes for everything that reads bytes from outside: each [`Target`] takes any input and must neither panic,
//! hang, nor allocate beyond its [`limits`].
//!
//! ```text
//!   corpus ──> driver (mutates, stable Rust only) ──┐
//!   corpus ──> libFuzzer (guided by coverage) ──────┴──> Target::run(bytes) ──> the project's own code
//! ```
//!
//! A target is a plain function, so that both drivers, a debugger and a test can call it. Where it takes more than one
//! thing, its input is a [`script`]. What an input may do to the project's code is asserted where it can be: a guest that
//! runs twice is as much a finding as a panic. `docs/testing.md` says how to run and replay.

mod arriving;
mod boot;
mod control;
mod devices;
pub mod driver;
mod guest;
mod journal;
mod leaving;
pub mod limits;
mod peer;
pub mod script;
mod seeds;
mod state;
mod virtio;
mod wire;

/// One thing that reads bytes from outside.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: a word on the command line, a folder of the corpus.
    pub name: &'static str,
    /// What it feeds.
    pub about: &'static str,
    /// Feeds it. Anything may come.
    pub run: fn(&[u8]),
    /// Inputs that lead far inside, by name.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
}

/// All of them.
pub const TARGETS: [Target; 8] = [
    Target {
        name: "wire",
        about: "frames, run tables, bitmaps, messages",
        run: wire::run,
        seeds: wire::seeds,
    },
    Target {
        name: "arriving",
        about: "a destination in conversation with a hostile source",
        run: arriving::run,
        seeds: arriving::seeds,
    },
    Target {
        name: "leaving",
        about: "a source in conversation with a hostile destination",
        run: leaving::run,
        seeds: leaving::seeds,
    },
    Target {
        name: "journal",
        about: "journals in a VMM's state directory",
        run: journal::run,
        seeds: journal::seeds,
    },
    Target {
        name: "state",
        about: "saved states and descriptions of machines",
        run: state::run,
        seeds: state::seeds,
    },
    Target { name: "control", about: "the control API", run: control::run, seeds: control::seeds },
    Target { name: "boot", about: "kernels: bzImage, ELF, PVH", run: boot::run, seeds: boot::seeds },
    Target {
        name: "virtio",
        about: "virtio devices with a hostile driver",
        run: virtio::run,
        seeds: virtio::seeds,
    },
];

impl Target {
    /// The one of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }
}
