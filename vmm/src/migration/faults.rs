//! Faults on missing pages for the engine, by frame number.

use std::sync::Arc;
use std::time::Duration;

use migrate::guest::{Faults, Result};
use migrate::pages::{PageRun, PageSet};

use crate::memory::PAGE;
use crate::memory::ram::GuestRam;
use crate::memory::userfault::Userfault;

/// A guest's RAM while parts of it are still on the source.
#[derive(Debug)]
pub(super) struct EngineFaults(Userfault);

impl EngineFaults {
    pub(super) fn catch(ram: Arc<GuestRam>, missing: &PageSet) -> Result<Self> {
        let faults = Self(Userfault::catch(ram).map_err(super::refused)?);
        faults.discard(missing)?;
        Ok(faults)
    }
}

impl Faults for EngineFaults {
    fn wait(&self, wait: Duration, touched: &mut Vec<u64>) -> Result<()> {
        let from = touched.len();
        self.0.wait(wait, touched)?;
        touched[from..].iter_mut().for_each(|gpa| *gpa /= PAGE);
        Ok(())
    }

    fn discard(&self, pages: &PageSet) -> Result<()> {
        let ram = self.0.ram();
        pages.runs().try_for_each(|run| Ok(ram.discard(run.first * PAGE, run.bytes())?))
    }

    fn place(&self, run: PageRun, data: &[u8]) -> Result<()> {
        Ok(self.0.place(run.first * PAGE, data)?)
    }

    fn fill_hole(&self, gfn: u64) -> Result<()> {
        Ok(self.0.fill_hole(gfn * PAGE)?)
    }

    fn place_zeros(&self, run: PageRun) -> Result<()> {
        Ok(self.0.place_zeros(run.first * PAGE, run.bytes())?)
    }

    fn close(&self) {
        self.0.close();
    }
}
