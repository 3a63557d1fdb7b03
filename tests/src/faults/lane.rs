//! One guest on its way through VMM after VMM, and what must be true of it whenever it has come to rest.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use migrate::client::types::Life;

use super::watch::{Rest, Vcpus};
use crate::{Guest, Transcript, Vm, World, until};

/// Few pages, of which many are written.
const GUEST: Guest = Guest { words: "dirty ws=4 rate=1000 fill=4", memory: "64M", ..Guest::IDLE };
/// After so many attempts the guest has to report a second of work.
const REPORTS_EVERY: u32 = 16;
/// Longer than anything may linger: twice the silence after which a side gives up.
const LINGERS: Duration = Duration::from_secs(20);

/// A guest, and the VMM where it may go next.
#[derive(Debug)]
pub(super) struct Lane {
    // Before the world: they end first.
    pub(super) here: Option<Vm>,
    pub(super) spare: Option<Vm>,
    /// What it said where it was before.
    told: Vec<u8>,
    started: u32,
    attempts: u32,
    protected: bool,
    /// Where the journals are.
    pub(super) disk: Option<Disk>,
    pub(super) world: World,
}

/// A file system so small that it can be filled. It goes when this is dropped.
#[derive(Debug)]
pub(super) struct Disk(PathBuf);

impl Disk {
    /// None where this user may not mount one.
    fn mount(at: PathBuf) -> Option<Self> {
        fs::create_dir_all(&at).expect("a folder");
        let options = ["-t", "tmpfs", "-o", "size=512k,mode=0700", "tmpfs"];
        let mounted = Command::new("mount").args(options).arg(&at).stderr(Stdio::null()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(at))
    }

    /// Makes room for a guest's memory.
    pub(super) fn grow(&self) {
        let grown = Command::new("mount").args(["-o", "remount,size=128m"]).arg(&self.0).status();
        assert!(grown.is_ok_and(|status| status.success()), "to make room in {}", self.0.display());
    }

    /// Makes it as small as it was.
    fn shrink(&self) {
        // Should it fail, the disk is not full when it should be, and that attempt ends well.
        let _ = Command::new("mount").args(["-o", "remount,size=512k"]).arg(&self.0).status();
    }

    /// Where what fills it is.
    pub(super) fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Should it fail, the list of mounts shows what was left.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

impl Lane {
    /// In this world; inside TLS, by a shared key, if that is wanted.
    pub(super) fn open(world: World, protected: bool) -> Self {
        if protected {
            let made = world.ask("migrate", ["tls", "psk", "--out", "key"]);
            assert_eq!(made.code, Some(0), "{}", made.err);
        }
        let disk = Disk::mount(world.path("state"));
        Self { here: None, spare: None, told: Vec::new(), started: 0, attempts: 0, protected, disk, world }
    }

    pub(super) fn is_protected(&self) -> bool {
        self.protected
    }

    /// All of it is given up.
    pub(super) fn clear(&mut self) {
        (self.here, self.spare) = (None, None);
        self.forget("");
        self.disk.iter().for_each(Disk::shrink);
    }

    /// A guest that works, and a VMM that waits.
    pub(super) fn prepare(&mut self) -> (Vm, Vm) {
        let here = self.here.take().unwrap_or_else(|| {
            self.told.clear();
            let name = self.name();
            let vm = self.world.run(&name, GUEST);
            until("the guest to work", || vm.transcript().has_begun().then_some(()));
            vm
        });
        let spare = self.spare.take().unwrap_or_else(|| {
            let name = self.name();
            self.receive(&name, "127.0.0.1:0")
        });
        (here, spare)
    }

    /// A VMM that waits there.
    pub(super) fn receive(&self, name: &str, listen: &str) -> Vm {
        let mut line = vec!["receive", "--listen", listen];
        line.extend(self.protected.then_some(["--psk", "key"]).into_iter().flatten());
        Vm::start(&self.world, name, &line)
    }

    fn name(&mut self) -> String {
        self.started += 1;
        format!("vm{}", self.started)
    }

    /// The guest has stayed there; the other waits as before.
    pub(super) fn stayed(&mut self, here: Vm, was: &Rest, next: Option<Vm>) {
        here.wait_until(Life::Running);
        if let Some(next) = next {
            next.wait_until(Life::Waiting);
            assert_eq!(next.console(), b"", "the guest has run where it must not");
            self.spare = Some(next);
        }
        let rest = || Rest::of(here.pid());
        let left = eventually(|| rest().is_within(was).then_some(()));
        assert!(left.is_some(), "left from the attempt: {:?}, before it {was:?}", rest());
        self.rests(here);
    }

    /// The guest has moved from one to the other.
    pub(super) fn moved(&mut self, mut from: Vm, to: Vm) {
        let ended = from.end();
        assert_eq!(ended.code, Some(0), "a VMM whose guest has moved ends well: {}", ended.err);
        self.came_from(&from);
        to.wait_until(Life::Running);
        self.rests(to);
    }

    /// The guest is not there any more.
    pub(super) fn came_from(&mut self, from: &Vm) {
        self.told.extend(from.console());
    }

    /// The guest is here, runs, and is whole.
    pub(super) fn rests(&mut self, here: Vm) {
        self.attempts += 1;
        let mut vcpus = Vcpus::of(here.pid());
        until("the guest to run", || vcpus.have_run().then_some(()));
        if self.attempts.is_multiple_of(REPORTS_EVERY) {
            assert!(here.works_on().work_per_s > 0, "the guest does no work");
        }
        let told = Transcript::of([&self.told, &here.console()]);
        told.check().unwrap_or_else(|wrong| panic!("{wrong}\n{}", told.text()));
        assert_eq!(here.info().corruptions, Some(0), "damage, as the VMM sees it");
        self.nothing_is_promised();
        self.here = Some(here);
    }

    /// Journals of processes that were killed outlive them, as they should.
    pub(super) fn forget(&self, ending: &str) {
        let entries = fs::read_dir(self.world.path("state")).into_iter().flatten().flatten();
        let dead = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(ending));
        dead.for_each(|entry| drop(fs::remove_file(entry.path())));
    }

    /// No journal says that anything is still promised. What is over may be remembered.
    fn nothing_is_promised(&self) {
        let open = || {
            let entries = fs::read_dir(self.world.path("state")).into_iter().flatten().flatten();
            let promised = |entry: &fs::DirEntry| {
                let promise = promise(&fs::read_to_string(entry.path()).ok()?)?;
                (!["discarded", "arrived", "moved", "forced"].contains(&&*promise)).then_some(promise)
            };
            entries.filter_map(|entry| Some((promised(&entry)?, entry.file_name()))).collect::<Vec<_>>()
        };
        let over = eventually(|| open().is_empty().then_some(()));
        assert!(over.is_some(), "still promised: {:?}", open());
    }
}

/// Looks for as long as anything of an attempt may linger.
fn eventually<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let since = Instant::now();
    loop {
        let seen = look();
        if seen.is_some() || since.elapsed() > LINGERS {
            return seen;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// What a journal promises: its two slots are lines, and the one with the larger number counts.
fn promise(journal: &str) -> Option<String> {
    let records = journal.lines().filter_map(|line| {
        let record: serde_json::Value = serde_json::from_str(line.split_once(' ')?.1).ok()?;
        Some((record["number"].as_u64()?, record["promise"].as_str()?.to_owned()))
    });
    records.max().map(|(_, promise)| promise)
}
