//! One move of a guest with one fault, to the end of what comes of it.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use migrate::client::types::{Life, Resolution};
use migrate::progress::Event;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

use super::lane::{Disk, Lane};
use super::plan::{End, Fault, RECOVERY, Side, Sort};
use super::watch::{Rest, Watch, files};
use crate::{Does, Migration, Proxy, Trouble, Vm, until};

/// Between two looks at both sides.
const BETWEEN: Duration = Duration::from_millis(8);
/// KiB that fill a small file system.
const SMALL: usize = 1024;

impl Lane {
    /// Moves the guest while this happens. How it ended, and whether it did happen.
    ///
    /// # Panics
    /// When anything is not as it must be.
    pub(super) fn attempt(&mut self, fault: &Fault) -> (End, bool) {
        let (mut here, mut next) = self.prepare();
        let was = Rest::of(here.pid());
        let address = next.address();
        let limit = Limit::set(fault, &here, &next);
        let proxy = Proxy::troubled(&address, self.troubles(fault, &here, &next));
        let words = format!(
            "--mode {} --recovery-timeout {} {}",
            fault.mode,
            recovery(fault),
            if self.is_protected() { "--psk key" } else { "" }
        );
        let mut watch = Watch::of(here.pid(), next.pid());
        let migration = self.world.migrate(&here, proxy.address(), &words);
        let (code, reason) = watched(migration, &mut watch);
        drop(limit);
        let happened = proxy.happened() > 0 || matches!(fault.sort, Sort::Memory | Sort::Files);
        self.disk.iter().for_each(|disk| drop(fs::remove_file(disk.ballast())));
        // It dies a little later than its connections.
        let killed = |vm: &mut Vm, side| {
            let killed = happened && fault.sort == Sort::Kill && fault.side == side;
            killed.then(|| vm.end()).is_some()
        };
        let dead = [killed(&mut here, Side::Source), killed(&mut next, Side::Destination)];
        // A VMM that may open nothing more answers nobody, its operator's commands included.
        let code = if fault.sort == Sort::Files && code > 1 { known_later(&mut here) } else { code };
        let end = match (code, dead) {
            (_, [true, _]) => self.source_is_gone(here, next),
            (3, _) => {
                proxy.heal();
                self.in_doubt(here, next, &address, &was, watch)
            }
            (1, [_, dead]) => {
                // One that was killed, or had too little memory to live, is replaced.
                let lives = !(dead || fault.sort == Sort::Memory && next.has_died());
                if !lives {
                    self.forget(&format!(".{}.destination", next.name()));
                }
                self.stayed(here, &was, lives.then_some(next));
                End::Kept
            }
            (0, [_, true]) => {
                self.forget(&format!(".{}.destination", next.name()));
                End::Died
            }
            (0, _) => {
                self.moved(here, next);
                End::Moved
            }
            (code, _) => panic!("status {code}: {reason}"),
        };
        // What was left of the attempt before may not be cleared away yet over there.
        let busy = reason.contains("another guest is arriving") && !happened;
        let allowed =
            if happened { fault.allowed() } else { &[End::Moved, End::Kept][..1 + usize::from(busy)] };
        assert!(allowed.contains(&end), "{end:?}, but only {allowed:?} is right: {reason}");
        (end, happened)
    }

    /// What the link is to do.
    fn troubles(&self, fault: &Fault, here: &Vm, next: &Vm) -> Vec<Trouble> {
        let pid = if fault.side == Side::Source { here.pid() } else { next.pid() };
        let time = fault.time;
        let does = match fault.sort {
            Sort::Cut => Does::Break(Some(time)),
            Sort::Sever => Does::Break(None),
            Sort::Stall => Does::Stall(time),
            Sort::Slow => Does::Slow(time),
            Sort::Repeat => Does::Repeat,
            // Of a head the magic, the version, or a bit of the kind that makes it one that there is not. What a link inside
            // TLS carries may change anywhere; without TLS nobody could know it of a page.
            Sort::Damage => Does::Damage { byte: (fault.any % 4) as usize, bits: 0x80 },
            Sort::Kill => Does::Act(Arc::new(move || send(pid, Signal::KILL))),
            Sort::Stop | Sort::Sleep => Does::Act(Arc::new(move || {
                send(pid, Signal::STOP);
                thread::spawn(move || {
                    thread::sleep(time);
                    send(pid, Signal::CONT);
                });
            })),
            Sort::Disk => {
                let Some(ballast) = self.disk.as_ref().map(Disk::ballast) else { return Vec::new() };
                Does::Act(Arc::new(move || fill(&ballast)))
            }
            Sort::Memory | Sort::Files => return Vec::new(),
        };
        vec![Trouble { at: fault.place, nth: fault.nth, does }]
    }

    /// The source was killed: what is on the destination decides.
    fn source_is_gone(&mut self, here: Vm, next: Vm) -> End {
        let mut watch = Watch::of(here.pid(), next.pid());
        self.came_from(&here);
        let life = until("the destination to know", || {
            watch.look();
            next.life().filter(|life| *life != Life::Arriving)
        });
        // Parts of it may be missing still: then it is suspended when the time for recovery is over.
        if life == Life::Running {
            thread::sleep(RECOVERY + Duration::from_secs(1));
        }
        let ending = format!(".{}.source", here.name());
        drop(here);
        self.forget(&ending);
        match next.life() {
            Some(Life::Waiting) => {
                assert_eq!(next.console(), b"", "half a guest must not run");
                self.spare = Some(next);
                End::Died
            }
            Some(Life::Running) => {
                self.rests(next);
                End::Moved
            }
            Some(Life::Unknown) => {
                let ask =
                    |words: &[&str]| self.world.ask("migrate", [words, &["--vm", next.name()]].concat()).code;
                if ask(&["resolve", "--force-destination"]) == Some(0) {
                    next.wait_until(Life::Running);
                    self.rests(next);
                    return End::Resolved;
                }
                self.disk.iter().for_each(Disk::grow);
                assert_eq!(ask(&["salvage"]), Some(0), "what there is of half a guest can be kept");
                self.clear();
                End::Died
            }
            life => panic!("the destination is {life:?}"),
        }
    }

    /// The source does not know. The link is whole again: it asks once more, and failing that its operator decides.
    fn in_doubt(&mut self, here: Vm, mut next: Vm, address: &str, was: &Rest, mut watch: Watch) -> End {
        assert_eq!(here.life(), Some(Life::Unknown), "the source says that it does not know");
        let died = next.has_died();
        if died {
            let name = next.name().to_owned();
            drop(next);
            next = self.receive(&name, address);
        }
        let words = ["recover", "--recovery-timeout", "15s", "--vm", here.name()];
        let mut recovery = self.world.start(self.world.command("migrate", words), "recover");
        let code = until("recovery to end", || {
            watch.look();
            recovery.has_ended()
        });
        match code.code() {
            Some(0) => self.moved(here, next),
            Some(1) => {
                // What the process before it had promised has been answered for.
                if died {
                    self.forget(&format!(".{}.destination", next.name()));
                }
                self.stayed(here, was, Some(next));
            }
            _ => {
                assert!(died, "both are there, and do not know: {}", recovery.err());
                until("a commit to lapse", || {
                    let forced = here.try_api(async |client| client.resolve(Resolution::ForceSource).await);
                    forced.is_ok().then_some(())
                });
                self.forget(&format!(".{}.destination", next.name()));
                self.stayed(here, was, Some(next));
            }
        }
        End::Resolved
    }
}

/// So long both sides are to try. Those that are to give up do it soon; those that are to outlast a stopped host do not.
fn recovery(fault: &Fault) -> String {
    let time = match fault.sort {
        Sort::Sever | Sort::Kill => Duration::from_millis(300),
        Sort::Sleep => Duration::from_secs(30),
        _ => RECOVERY,
    };
    format!("{}ms", time.as_millis())
}

/// Follows a migration to its end. Its exit status, and the reason for it.
fn watched(mut migration: Migration, watch: &mut Watch) -> (i32, String) {
    while migration.process().has_ended().is_none() {
        watch.look();
        thread::sleep(BETWEEN);
    }
    let ending = migration.end();
    let reason = match ending.events.last() {
        Some(Event::Ended { report }) => report.reason.clone().unwrap_or_default(),
        _ => ending.words,
    };
    (ending.code, reason)
}

/// What the command could not say, for it was not answered: as its exit status would have been.
fn known_later(here: &mut Vm) -> i32 {
    until("the source to have ended the attempt", || match here.life() {
        _ if here.has_died() => Some(0),
        Some(Life::Running) => Some(1),
        Some(Life::Unknown) => Some(3),
        _ => None,
    })
}

fn send(pid: u32, signal: Signal) {
    // It may have ended meanwhile.
    let _ = kill_process(process(pid), signal);
}

fn process(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id")
}

/// Fills the file system that this file is on, if it is a small one.
fn fill(ballast: &Path) {
    if let Ok(mut file) = fs::File::create(ballast) {
        let _ = (0..SMALL).try_for_each(|_| file.write_all(&[0; 1024]));
        let _ = (0..1024).try_for_each(|_| file.write_all(&[0]));
    }
}

/// A limit of a process. It is as before when this is dropped.
struct Limit(Option<(Pid, Resource, Rlimit)>);

impl Limit {
    fn set(fault: &Fault, here: &Vm, next: &Vm) -> Self {
        let pid = if fault.side == Side::Source { here.pid() } else { next.pid() };
        let (resource, most) = match fault.sort {
            Sort::Memory => (Resource::As, memory(pid) + ((fault.any % 160) << 20)),
            Sort::Files => {
                let open = files(pid);
                let free = (0..).find(|number| !open.contains(number)).expect("a number");
                (Resource::Nofile, free + fault.any % 16)
            }
            _ => return Self(None),
        };
        let maximum = getrlimit(resource).maximum;
        let before = prlimit(Some(process(pid)), resource, Rlimit { current: Some(most), maximum });
        Self(before.ok().map(|before| (process(pid), resource, before)))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Some((pid, resource, before)) = self.0.take() {
            // It may have ended.
            let _ = prlimit(Some(pid), resource, before);
        }
    }
}

/// Address space of a process, bytes.
fn memory(pid: u32) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{pid}/statm")).ok();
    pages.and_then(|pages| pages.split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) << 12
}
