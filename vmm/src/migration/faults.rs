//! Faults on missing pages for the engine: those it does not know about are zero pages, resolved right here.

use std::sync::Arc;
use std::time::Duration;

use migrate::guest::{Faults, Result};
use migrate::pages::{PageRun, PageSet};

use crate::memory::PAGE;
use crate::memory::ram::GuestRam;
use crate::memory::userfault::Userfault;

use super::ram::pieces;

/// A guest's RAM while parts of it are still on the source.
#[derive(Debug)]
pub(super) struct EngineFaults {
    userfault: Userfault,
    /// What was missing at the start. A touched page outside of it was never written on the source.
    missing: PageSet,
}

impl EngineFaults {
    pub(super) fn catch(ram: &Arc<GuestRam>, missing: &PageSet) -> Result<Self> {
        let runs: Vec<PageRun> = missing.runs().collect();
        let userfault = Userfault::catch(Arc::clone(ram), &pieces(&runs)).map_err(super::refused)?;
        Ok(Self { userfault, missing: missing.clone() })
    }
}

impl Faults for EngineFaults {
    fn wait(&self, wait: Duration, touched: &mut Vec<u64>) -> Result<()> {
        let mut addresses = Vec::new();
        self.userfault.wait(wait, &mut addresses)?;
        for gpa in addresses {
            if self.missing.contains(gpa / PAGE) {
                touched.push(gpa / PAGE);
            } else {
                self.userfault.fill_hole(gpa)?;
            }
        }
        Ok(())
    }

    fn place(&self, run: PageRun, data: &[u8]) -> Result<()> {
        Ok(self.userfault.place(run.first * PAGE, data)?)
    }

    fn place_zeros(&self, run: PageRun) -> Result<()> {
        Ok(self.userfault.place_zeros(run.first * PAGE, run.bytes())?)
    }

    fn close(&self) {
        self.userfault.close();
    }
}
