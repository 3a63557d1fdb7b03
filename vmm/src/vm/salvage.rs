//! What is kept of a guest that is here in part.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use migrate::client::types::Salvage;
use migrate::guest::Departing;
use migrate::pages::{PAGE_SIZE, PageRun};
use serde_json::json;

use crate::control::Refusal;
use crate::migration::Resident;

use super::VmHandle;
use super::doubt::{Doubt, of_state};
use super::stage::Stage;

/// Pages saved at once.
const CHUNK: u64 = 1024;

/// Keeps what is here of a guest whose memory is split, in the state directory: an image of RAM, and a list of the pages in
/// it that never came.
pub(super) fn salvage(handle: &VmHandle) -> Result<Salvage, Refusal> {
    let inner = &handle.inner;
    let _one = inner.order();
    let Stage::InDoubt(Doubt::Came { guest, missing, .. }) = inner.stage() else {
        return Err(of_state("no guest is here in part: there is nothing to salvage"));
    };
    let folder =
        inner.journals.folder().ok_or_else(|| of_state("there is no state directory: set VMM_STATE_DIR"))?;
    let name = format!("{}.{}", guest.identity().uuid, guest.epoch());
    let paths = [folder.join(format!("{name}.memory")), folder.join(format!("{name}.missing.json"))];
    save(&guest, &missing, &paths).map_err(|error| {
        Refusal::Failed(format!("cannot keep the memory in {}: {error}", paths[0].display()))
    })
}

fn save(guest: &Resident, missing: &[PageRun], [memory, list]: &[PathBuf; 2]) -> io::Result<Salvage> {
    let ram = guest.ram();
    // What does not exist is zero, or missing; to read it would wait for it.
    let mut here = ram.populated().map_err(|error| io::Error::other(error.0))?;
    missing.iter().for_each(|run| here.remove_run(*run));
    let image = private(memory)?;
    let end = Resident::description(guest).gfn_limit() * PAGE_SIZE as u64;
    image.set_len(end)?;
    let mut bytes = vec![0; CHUNK as usize * PAGE_SIZE];
    for run in here.runs() {
        let mut first = run.first;
        while first < run.end() {
            let part = PageRun { first, count: CHUNK.min(run.end() - first) };
            let bytes = &mut bytes[..part.bytes() as usize];
            ram.copy_out(part, bytes);
            image.write_all_at(bytes, first * PAGE_SIZE as u64)?;
            first = part.end();
        }
    }
    image.sync_all()?;
    let description = Departing::description(guest);
    let text = json!({
        "guest": description.name, "uuid": description.uuid, "epoch": guest.epoch(),
        "ram": description.ram, "missing": missing,
    });
    writeln!(private(list)?, "{text:#}")?;
    let count = |runs: &[PageRun]| runs.iter().map(|run| run.count).sum();
    Ok(Salvage {
        memory: memory.clone(),
        list: list.clone(),
        pages: here.len(),
        missing_pages: count(missing),
    })
}

/// A file for nobody else's eyes.
fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}
