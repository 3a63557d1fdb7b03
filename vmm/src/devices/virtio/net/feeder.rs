//! The way in: a thread that brings frames from the tap into the guest, and announces where it is.
//!
//! What cannot be delivered now, because the driver has no room or the machine stands still, is held, and the tap is not
//! read on: its own queue holds the rest. What no driver wants is dropped. A machine that is built for a guest which
//! still runs elsewhere drops everything until it runs: the guest has had these frames there.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::{FRAME_BYTES, HEADER_BYTES, Net, RECEIVE, Tap, announce};
use crate::config::Mac;
use crate::devices::virtio::mmio::{Fed, MmioTransport};
use crate::devices::virtio::queue::{Broken, Requests, copy_to, total};
use crate::memory::ram::GuestRam;
use crate::sandbox::{self, ThreadKind};

/// Frames delivered at a time, with one interrupt.
const BATCH: usize = 64;
/// Frames that another host sent after the guest, and that wait for room: as many as a burst of one round trip has.
const MAX_HELD: usize = 1024;

/// Wakes the feeder. A ring that comes before it listens is not lost.
#[derive(Debug)]
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(super) fn ring(&self) {
        // Fails only where it has been rung 2^64 times since it was heard.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn hear(&self) {
        // Nothing to read: it was not rung.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// A network interface of a machine, as its owner sees it. Dropping it lets go of the tap.
#[derive(Debug)]
pub struct Nic {
    feeder: Arc<Feeder>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Feeder {
    tap: Arc<Tap>,
    mac: Mac,
    bell: Arc<Bell>,
    transport: Arc<MmioTransport>,
    /// Shared by the thread, and whoever brings or takes frames: held for a few moves of memory.
    desk: Mutex<Desk>,
    /// The tap was taken away.
    cut: AtomicBool,
    over: AtomicBool,
}

#[derive(Debug, Default)]
struct Desk {
    /// Behind their headers.
    held: VecDeque<Vec<u8>>,
    /// The guest runs elsewhere.
    drops: bool,
    /// Since when it is here, and how often that was announced.
    announced: Option<(Instant, usize)>,
    /// The guest runs elsewhere now, and what waited for it has been taken.
    taken: bool,
}

impl Nic {
    /// Connects a tap with a guest. `arriving`: the guest still runs elsewhere.
    ///
    /// # Errors
    /// When the host refuses a thread or a descriptor.
    pub fn connect(
        tap: Arc<Tap>,
        mac: Mac,
        arriving: bool,
        ram: Arc<GuestRam>,
        interrupt: Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let device = Net::new(Arc::clone(&tap), mac, Arc::clone(&bell));
        let transport = MmioTransport::new(Box::new(device), ram, interrupt);
        let desk = Mutex::new(Desk { drops: arriving, ..Desk::default() });
        let (cut, over) = Default::default();
        let feeder = Arc::new(Feeder { tap, mac, bell, transport, desk, cut, over });
        let running = Arc::clone(&feeder);
        let thread = std::thread::Builder::new().name("net".into()).spawn(move || running.run())?;
        Ok(Self { feeder, thread: Some(thread) })
    }

    /// Its tap, for the machine in which its guest boots again: when this is dropped, nobody reads it any more.
    #[must_use]
    pub fn tap(&self) -> &Arc<Tap> {
        &self.feeder.tap
    }

    /// Its registers.
    #[must_use]
    pub fn transport(&self) -> &Arc<MmioTransport> {
        &self.feeder.transport
    }

    /// The machine runs, or is about to: the guest gets what comes, as soon as the transport is open.
    pub fn listen(&self) {
        let mut desk = self.feeder.desk();
        (desk.drops, desk.taken) = (false, false);
    }

    /// The guest has come here, and runs: tells its network, a few times.
    pub fn announce(&self) {
        self.feeder.desk().announced = Some((Instant::now(), 0));
        self.feeder.bell.ring();
    }

    /// The guest runs elsewhere now: takes what has come for it here since it stopped, and later what still comes for its
    /// address. Waits for a first one, but not longer than `wait`. Ethernet frames.
    pub fn take_frames(&self, wait: Duration, into: &mut Vec<Vec<u8>>) {
        let before = into.len();
        self.feeder.take(into);
        if into.len() == before {
            wait_for(&[PollFd::new(&*self.feeder.tap, PollFlags::IN)], Some(wait));
            self.feeder.take(into);
        }
    }

    /// Another host sends a frame after the guest, which has come from there.
    pub fn bring(&self, frame: &[u8]) {
        let mut desk = self.feeder.desk();
        if desk.held.len() < MAX_HELD && frame.len() <= FRAME_BYTES - HEADER_BYTES {
            desk.held.push_back([&[0; HEADER_BYTES], frame].concat());
            drop(desk);
            self.feeder.bell.ring();
        }
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        self.feeder.over.store(true, Ordering::Release);
        self.feeder.bell.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Feeder {
    fn run(&self) {
        sandbox::confine(ThreadKind::Device);
        loop {
            // In this order: what rang the bell is seen.
            self.bell.hear();
            if self.over.load(Ordering::Acquire) {
                return;
            }
            let announcement = self.announce();
            let listens = self.deliver();
            let mut events = vec![PollFd::new(&self.bell.0, PollFlags::IN)];
            if listens && !self.cut.load(Ordering::Relaxed) {
                events.push(PollFd::new(&*self.tap, PollFlags::IN));
            }
            wait_for(&events, announcement);
        }
    }

    /// Brings frames in. Whether the tap is to be listened to for more: not before the bell rings, where one is held.
    fn deliver(&self) -> bool {
        let mut frames = std::mem::take(&mut self.desk().held);
        while frames.len() < BATCH
            && let Some(frame) = self.next_frame()
        {
            frames.push_back(frame);
        }
        if self.desk().drops {
            return true;
        }
        let fed = self.transport.feed(RECEIVE, |requests| {
            while let Some(frame) = frames.front_mut() {
                if !receive(requests, frame)? {
                    return Ok(());
                }
                frames.pop_front();
            }
            Ok(())
        });
        if fed == Fed::NoDriver {
            frames.clear();
        }
        let mut desk = self.desk();
        while let Some(frame) = frames.pop_back() {
            desk.held.push_front(frame);
        }
        desk.held.is_empty()
    }

    fn next_frame(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; FRAME_BYTES + 1];
        match self.tap.read(&mut frame) {
            Ok(bytes) => {
                frame.truncate(bytes?);
                Some(frame)
            }
            Err(error) => {
                if !self.cut.swap(true, Ordering::Relaxed) {
                    let name = self.tap.name();
                    eprintln!("vmm: tap {name} is gone, the guest's network is cut: {error}");
                }
                None
            }
        }
    }

    fn take(&self, into: &mut Vec<Vec<u8>>) {
        let mut desk = self.desk();
        // Before the guest ran elsewhere, its other tap was not listened to: what was for all was also for it.
        let all = !std::mem::replace(&mut desk.taken, true);
        let held = std::mem::take(&mut desk.held);
        drop(desk);
        // What the thread holds it has read before that, too: it reads on only where it is rung for.
        let held = held.into_iter().map(|frame| (true, frame));
        let waiting = std::iter::from_fn(|| self.next_frame()).take(MAX_HELD).map(|frame| (all, frame));
        let frames = held.chain(waiting).filter_map(|(all, frame)| {
            let frame = frame.get(HEADER_BYTES..)?;
            concerns(self.mac, all, frame).then(|| frame.to_vec())
        });
        into.extend(frames);
    }

    /// Announces the guest if it is time to. How long until the next time.
    fn announce(&self) -> Option<Duration> {
        let mut desk = self.desk();
        let (since, times) = desk.announced?;
        let due = announce::TIMES.get(times)?;
        let wait = (since + *due).saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            return Some(wait);
        }
        desk.announced = Some((since, times + 1));
        drop(desk);
        if !self.transport.moved() {
            // It stands still, or is elsewhere already: this is not its place any more.
            self.desk().announced = None;
            return None;
        }
        self.tap.write(&announce::frame(self.mac));
        Some(Duration::ZERO)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a frame is for this station, or for all where that counts, and not from itself: its announcements come by here.
fn concerns(mac: Mac, all: bool, frame: &[u8]) -> bool {
    let mac = mac.bytes();
    let (to, from) = (frame.get(..6), frame.get(6..12));
    (all || to == Some(&mac)) && from != Some(&mac)
}

/// Gives a frame to the driver. Whether it had room.
fn receive(requests: &mut Requests<'_>, frame: &mut [u8]) -> Result<bool, Broken> {
    let Some(request) = requests.take()? else { return Ok(false) };
    let room = total(&request.writable) as usize;
    let mut written = 0;
    // What is longer than was agreed on, or than its buffer, is lost.
    if (HEADER_BYTES..=FRAME_BYTES.min(room)).contains(&frame.len()) {
        // Of the header only the number of buffers says anything: 1 (section 5.1.6.4.1).
        frame[..HEADER_BYTES].fill(0);
        frame[HEADER_BYTES - 2] = 1;
        written = copy_to(requests.ram(), &request.writable, frame)?;
    }
    requests.finish(&request, written)?;
    Ok(true)
}

/// Waits for one of these. A wait that is cut short is one that has ended.
fn wait_for(events: &[PollFd<'_>], wait: Option<Duration>) {
    let limit = wait.and_then(|wait| Timespec::try_from(wait).ok());
    let _ = poll(&mut events.to_vec(), limit.as_ref());
}
