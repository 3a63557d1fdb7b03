//! Taking turns: a test that loads the machine has it to itself.

use std::fs::{File, OpenOptions};

use crate::binaries::built_in;

/// Who may be at work beside this test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    /// No other test with a world.
    None,
    /// Others that are content with company.
    Quiet,
}

/// A turn. It ends when this is dropped, or with the process, however that ends.
#[derive(Debug)]
pub(crate) struct Turn {
    _lock: File,
}

impl Turn {
    /// Waits for a turn. A lock on a file, so that it holds between test binaries and between runs of them.
    pub(crate) fn wait(company: Company) -> Self {
        let path = built_in().join("end-to-end-tests.lock");
        let lock =
            OpenOptions::new().create(true).append(true).open(&path).expect("a lock file beside the tests");
        let locked = match company {
            Company::None => lock.lock(),
            Company::Quiet => lock.lock_shared(),
        };
        locked.expect("a lock");
        Self { _lock: lock }
    }
}
