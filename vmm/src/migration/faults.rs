//! Faults on missing pages for the engine, by frame number.

use std::sync::Arc;
use std::time::Duration;

use migrate::guest::{BLOCK_PAGES, BLOCK_PARTS, Faults, Result, Stage};
use migrate::pages::{PageRun, PageSet};

use crate::memory::PAGE;
use crate::memory::ram::GuestRam;
use crate::memory::staging::{self, Block, Staging};
use crate::memory::userfault::Userfault;

/// A guest's RAM while parts of it are still on the source.
#[derive(Debug)]
pub(super) struct EngineFaults(Arc<Userfault>, Option<Staging>);

impl EngineFaults {
    pub(super) fn catch(ram: Arc<GuestRam>, missing: &PageSet) -> Result<Self> {
        let userfault = Arc::new(Userfault::catch(ram).map_err(super::refused)?);
        let faults = Self(Arc::clone(&userfault), Staging::beside(userfault));
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

    fn stage(&self, first: u64) -> Option<Arc<dyn Stage>> {
        Some(Arc::new(EngineStage(self.1.as_ref()?.block(first * PAGE)?)))
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

const _: () = assert!(BLOCK_PAGES * PAGE == staging::BLOCK && BLOCK_PARTS == staging::PARTS);

/// Room for a block of it.
struct EngineStage(Block);

impl Stage for EngineStage {
    fn with_part(&self, part: u64, with: &mut dyn FnMut(&mut [u8])) {
        self.0.with_part(part, with);
    }

    fn place(&self) -> Result<()> {
        Ok(self.0.place()?)
    }
}
