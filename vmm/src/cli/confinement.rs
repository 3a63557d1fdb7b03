//! What a process that hosts a guest may reach, from its arguments; then it is [confined](crate::sandbox).
//!
//! It comes when the control socket is claimed and the console's file is open, and before any thread but those that make an
//! [empty machine](super::machine::begin).

use std::path::{Path, PathBuf};

use anyhow::ensure;
use migrate::client::RuntimeDir;

use super::args::HostingArgs;
use super::words;
use crate::config::{DiskAccess, Kernel, MachineConfig};
use crate::memory::present;
use crate::sandbox::{self, Files, Landlocked};

/// For `vmm run`: the files of this guest. It boots again from what is at its kernel's path then, which an upgrade of the host
/// may have replaced by another file: so the directories of these are in reach, to be read.
pub(super) fn of_run(args: &HostingArgs, runtime: &RuntimeDir, guest: &MachineConfig) -> anyhow::Result<()> {
    let kernel = match &guest.kernel {
        Kernel::Demo => None,
        Kernel::File(path) => Some(path),
    };
    let boots = kernel.into_iter().chain(&guest.initramfs).map(|path| directory_of(path));
    let files = boots.fold(Files::of_every_vmm(runtime), Files::reads);
    let files = guest.disks.iter().fold(files, |files, disk| match disk.access {
        DiskAccess::ReadOnly => files.reads(&disk.path),
        DiskAccess::ReadWrite => files.writes(&disk.path),
    });
    enter(args, files)
}

/// For `vmm receive`: which files a guest that comes needs, it says itself. `within`: where they may be, if not anywhere.
pub(super) fn of_receive(args: &HostingArgs, runtime: &RuntimeDir, within: &[PathBuf]) -> anyhow::Result<()> {
    for directory in within {
        ensure!(directory.is_dir(), "--guest-files {}: there is no such directory", directory.display());
    }
    let anywhere = [PathBuf::from("/")];
    let within = if within.is_empty() { &anywhere } else { within };
    enter(args, within.iter().fold(Files::of_every_vmm(runtime), Files::writes))
}

/// The directory that a file is in.
fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn enter(args: &HostingArgs, files: Files) -> anyhow::Result<()> {
    present::be_able_to_ask();
    let wanted = !args.no_landlock;
    let landlocked = sandbox::enter(args.seccomp, wanted.then_some(&files))?;
    if wanted && landlocked == Landlocked::Not {
        words::say(words::NO_LANDLOCK);
    }
    Ok(())
}
