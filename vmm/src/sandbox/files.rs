//! Which files the process reaches: Landlock (landlock(7)), on top of the user's own rights.
//!
//! A rule is about what a path leads to when the VMM starts: a file, or all that a directory will ever have in it. So a file
//! that is later replaced by another of its name is out of reach, a file in a directory with a rule is not; and a path that
//! leads nowhere gets no rule. What is open already stays usable: the console's file, standard output, the control socket.
//!
//! Best effort: rights that this kernel's Landlock does not know are not restricted (before 6.2 truncating, before 6.10 ioctls of
//! devices, before 6.12 signals and abstract sockets); a kernel before 5.13, or without Landlock, restricts nothing.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use migrate::client::RuntimeDir;

use super::SandboxError;

/// The newest Landlock whose rights are asked for.
const NEWEST: ABI = ABI::V6;

/// What a device on the way to the guest is needed for.
const DEVICES: [&str; 3] = ["/dev/kvm", "/dev/userfaultfd", "/dev/net/tun"];

/// What is read while the VMM runs, by itself (how much memory there is) and by the runtime library (how many CPUs; the
/// program's own symbols, when it panics).
const READ: [&str; 6] = [
    "/proc/meminfo",
    "/proc/sys/vm/overcommit_memory",
    "/proc/self",
    "/proc/self/exe",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
];

/// What is read to look up the name of a host that the guest moves to (getaddrinfo(3)).
const READ_FOR_NAMES: [&str; 11] = [
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/gai.conf",
    "/etc/ld.so.cache",
    "/run/systemd/resolve",
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
];

/// Whether the files are restricted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landlocked {
    /// They are, as far as this kernel knows how.
    Yes,
    /// They are not: that was not wished, or this kernel cannot.
    Not,
}

/// What may be done with what a path leads to.
#[derive(Debug, Clone, Copy)]
enum Reach {
    Read,
    Write,
    Keep,
    Device,
}

/// The files that a VMM reaches: what all do, and what is added for this one.
#[derive(Debug)]
pub struct Files(Vec<(PathBuf, Reach)>);

impl Files {
    /// What every VMM reaches; its control socket is in `runtime`.
    #[must_use]
    pub fn of_every_vmm(runtime: &RuntimeDir) -> Self {
        let read = READ.iter().chain(&READ_FOR_NAMES).fold(Self(Vec::new()), Self::reads);
        let all = DEVICES.iter().fold(read, |files, path| files.with(path, Reach::Device));
        let all = all.keeps(runtime.path());
        match migrate::journal::state_dir() {
            Some(state) => all.keeps(&state),
            None => all,
        }
    }

    /// A file or a directory that is read, with all that is in it.
    #[must_use]
    pub fn reads(self, path: impl AsRef<Path>) -> Self {
        self.with(path, Reach::Read)
    }

    /// A file that is read and written, or all files there are in a directory. None is made, removed or cut short.
    #[must_use]
    pub fn writes(self, path: impl AsRef<Path>) -> Self {
        self.with(path, Reach::Write)
    }

    /// A directory that is the VMM's own: files in it are made, renamed and removed. It must exist.
    #[must_use]
    pub fn keeps(self, directory: impl AsRef<Path>) -> Self {
        self.with(directory, Reach::Keep)
    }

    fn with(mut self, path: impl AsRef<Path>, reach: Reach) -> Self {
        self.0.push((path.as_ref().to_owned(), reach));
        self
    }

    /// From here on this process, with all threads that it starts, reaches nothing else by name.
    ///
    /// # Errors
    /// When the kernel has Landlock and refuses.
    pub(super) fn restrict(&self) -> Result<Landlocked, SandboxError> {
        let failed = |error: landlock::RulesetError| SandboxError::Landlock(error.to_string());
        let rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))
            .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
            .and_then(Ruleset::create)
            .map_err(failed)?;
        let rules = self.0.iter().try_fold(rules, |rules, (path, reach)| match PathFd::new(path) {
            Ok(place) => rules.add_rule(PathBeneath::new(place, reach.rights(path))),
            Err(_) => Ok(rules),
        });
        let status = rules.and_then(|rules| rules.restrict_self()).map_err(failed)?;
        Ok(match status.ruleset {
            RulesetStatus::NotEnforced => Landlocked::Not,
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Landlocked::Yes,
        })
    }
}

impl Reach {
    fn rights(self, path: &Path) -> BitFlags<AccessFs> {
        let rights = match self {
            Self::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            Self::Write => AccessFs::ReadFile | AccessFs::WriteFile,
            Self::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
            Self::Keep => {
                AccessFs::from_all(NEWEST)
                    & !(AccessFs::Execute | AccessFs::IoctlDev | AccessFs::MakeChar | AccessFs::MakeBlock)
            }
        };
        // Some rights exist of directories only.
        if path.is_dir() { rights } else { rights & AccessFs::from_file(NEWEST) }
    }
}
