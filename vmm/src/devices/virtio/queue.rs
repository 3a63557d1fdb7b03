//! A virtqueue: what the driver set up, and the requests in it (virtio 1.2, section 2.7, split rings).
//!
//! Nothing in it is believed: it is served only after its rings were found to lie in RAM, a request is given out only
//! when its chain of descriptors is whole, bounded and in RAM. Whatever else a driver does there breaks the queue, not
//! the VMM: [`Broken`] says so, and the transport asks the driver for a reset.

use std::sync::atomic::{AtomicBool, Ordering};

use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_NEXT;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::memory::bulk::Piece;
use crate::memory::ram::{GuestRam, Mmap};

/// Most descriptors in one request: as many as a block request has data segments, and two for its head and status.
pub const MAX_DESCRIPTORS: usize = 128;

/// Why a queue cannot be served any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken(pub &'static str);

/// Everything that is known of a queue. Plain: it goes into the saved state as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QueueState {
    /// Whether the driver has finished setting it up.
    pub ready: bool,
    /// Number of descriptors.
    pub size: u16,
    /// Where the next request is taken from the available ring.
    pub next_avail: u16,
    /// Where the next finished one goes in the used ring.
    pub next_used: u16,
    /// Guest-physical address of the descriptors.
    pub descriptors: u64,
    /// Of the available ring.
    pub avail: u64,
    /// Of the used ring.
    pub used: u64,
}

/// A queue of a device.
#[derive(Debug)]
pub struct VirtQueue {
    max_size: u16,
    /// As the driver has set it up so far; the positions are those of `live`, where there is one.
    setup: QueueState,
    live: Option<Queue>,
}

impl VirtQueue {
    /// After reset. `max_size` is a power of two.
    #[must_use]
    pub fn new(max_size: u16) -> Self {
        Self { max_size, setup: QueueState::default(), live: None }
    }

    /// Most descriptors it can have.
    #[must_use]
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Whether it is served.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.live.is_some()
    }

    /// What the driver may still change: nothing once the queue is ready.
    pub fn setup(&mut self) -> Option<&mut QueueState> {
        self.live.is_none().then_some(&mut self.setup)
    }

    /// Begins to serve it.
    ///
    /// # Errors
    /// When it cannot be as the driver says.
    pub fn enable(&mut self, ram: &GuestRam) -> Result<(), Broken> {
        if self.live.is_none() {
            self.live = Some(check(self.max_size, &QueueState { ready: true, ..self.setup }, ram)?);
        }
        Ok(())
    }

    /// Forgets how far it was served; what was set up stays.
    pub fn disable(&mut self) {
        self.live = None;
    }

    /// What is known of it.
    #[must_use]
    pub fn state(&self) -> QueueState {
        match &self.live {
            Some(live) => QueueState {
                ready: true,
                next_avail: live.next_avail(),
                next_used: live.next_used(),
                ..self.setup
            },
            None => self.setup,
        }
    }

    /// A queue as it was saved.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn from_state(max_size: u16, state: &QueueState, ram: &GuestRam) -> Result<Self, Broken> {
        let live = if state.ready { Some(check(max_size, state, ram)?) } else { None };
        let setup = QueueState { ready: false, next_avail: 0, next_used: 0, ..*state };
        Ok(Self { max_size, setup, live })
    }

    /// The requests that are in it now. None is given out any more once `hurry` is set.
    ///
    /// # Errors
    /// When the driver says that there are more than it has room for.
    pub fn requests<'a>(
        &'a mut self,
        ram: &'a GuestRam,
        hurry: &'a AtomicBool,
    ) -> Result<Option<Requests<'a>>, Broken> {
        let Some(queue) = &mut self.live else { return Ok(None) };
        let avail = queue
            .avail_idx(ram.mmap(), Ordering::Acquire)
            .map_err(|_| Broken("its available ring is not in RAM"))?;
        let left = avail.0.wrapping_sub(queue.next_avail());
        if left > queue.size() {
            return Err(Broken("it holds more requests than descriptors"));
        }
        Ok(Some(Requests { queue, ram, hurry, left, finished: 0, cut_short: false }))
    }
}

/// The queue of a state, if it can be served.
fn check(max_size: u16, state: &QueueState, ram: &GuestRam) -> Result<Queue, Broken> {
    let queue = Queue::try_from(virtio_queue::QueueState {
        max_size,
        next_avail: state.next_avail,
        next_used: state.next_used,
        event_idx_enabled: false,
        size: state.size,
        ready: state.ready,
        desc_table: state.descriptors,
        avail_ring: state.avail,
        used_ring: state.used,
    })
    .map_err(|_| Broken("its size or the alignment of a ring cannot be"))?;
    // The library takes a ring at 0 for one that was not set up.
    let valid = state.avail != 0 && queue.is_valid(ram.mmap());
    if valid { Ok(queue) } else { Err(Broken("a ring is not in RAM")) }
}

/// The requests that were in a queue when the driver called. What it puts there later it calls for again, as it is
/// never told not to: so one call is a bounded amount of work.
#[derive(Debug)]
pub struct Requests<'a> {
    queue: &'a mut Queue,
    ram: &'a GuestRam,
    hurry: &'a AtomicBool,
    left: u16,
    finished: u16,
    cut_short: bool,
}

/// One request: memory that the device reads, and memory that it writes. All of it is RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    head: u16,
    /// From the driver.
    pub readable: Vec<Piece>,
    /// For the driver.
    pub writable: Vec<Piece>,
}

impl<'a> Requests<'a> {
    /// The guest's memory.
    #[must_use]
    pub fn ram(&self) -> &'a GuestRam {
        self.ram
    }

    /// The next one, until there is none, or the machine is to stand still.
    ///
    /// # Errors
    /// When its descriptors are not a request.
    pub fn take(&mut self) -> Result<Option<Request>, Broken> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        if self.hurry.load(Ordering::Relaxed) {
            self.cut_short = true;
            return Ok(None);
        }
        self.left = left;
        let mut available =
            self.queue.iter(self.ram.mmap()).map_err(|_| Broken("its available ring cannot be"))?;
        available.next().map(|chain| request(chain, self.ram.mmap())).transpose()
    }

    /// Gives a request back to the driver, with the number of bytes that were written for it.
    ///
    /// # Errors
    /// When its head is not a descriptor of this queue.
    pub fn finish(&mut self, request: &Request, written: u32) -> Result<(), Broken> {
        self.queue
            .add_used(self.ram.mmap(), request.head, written)
            .map_err(|_| Broken("a request has no descriptor"))?;
        self.finished += 1;
        Ok(())
    }

    /// Whether there are more, which the driver has called for and will not call for again.
    #[must_use]
    pub fn is_cut_short(&self) -> bool {
        self.cut_short
    }

    /// Whether any was given back.
    #[must_use]
    pub fn any_finished(&self) -> bool {
        self.finished > 0
    }
}

fn request(chain: DescriptorChain<&Mmap>, memory: &Mmap) -> Result<Request, Broken> {
    let mut request = Request { head: chain.head_index(), readable: Vec::new(), writable: Vec::new() };
    // The library ends a chain early that loops, leaves its table or is longer than 4 GiB: then its last one names more.
    let mut whole = false;
    for (number, descriptor) in chain.enumerate() {
        if number == MAX_DESCRIPTORS {
            return Err(Broken("a request has too many descriptors"));
        }
        whole = u32::from(descriptor.flags()) & VRING_DESC_F_NEXT == 0;
        let (start, bytes) = (descriptor.addr().0, u64::from(descriptor.len()));
        if bytes == 0 {
            continue;
        }
        if !GuestMemoryBackend::check_range(memory, GuestAddress(start), bytes as usize) {
            return Err(Broken("a request leads outside RAM"));
        }
        if descriptor.is_write_only() {
            request.writable.push((start, bytes));
        } else if request.writable.is_empty() {
            request.readable.push((start, bytes));
        } else {
            return Err(Broken("a request has memory to read after memory to write"));
        }
    }
    if whole { Ok(request) } else { Err(Broken("a request's descriptors do not end")) }
}

/// Bytes in pieces together.
#[must_use]
pub fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|(_, bytes)| bytes).sum()
}

/// The first `bytes` of pieces, and the rest. None where there are fewer.
#[must_use]
pub fn split(pieces: &[Piece], bytes: u64) -> Option<(Vec<Piece>, Vec<Piece>)> {
    let (mut head, mut rest, mut wanted) = (Vec::new(), Vec::new(), bytes);
    for &(start, length) in pieces {
        let taken = length.min(wanted);
        wanted -= taken;
        head.extend((taken > 0).then_some((start, taken)));
        rest.extend((taken < length).then_some((start + taken, length - taken)));
    }
    (wanted == 0).then_some((head, rest))
}

/// Copies out of pieces of RAM, which have at least as many bytes.
pub fn copy_from(ram: &GuestRam, pieces: &[Piece], into: &mut [u8]) -> Result<(), Broken> {
    let mut rest = into;
    for &(start, bytes) in pieces {
        let (now, later) = rest.split_at_mut(rest.len().min(bytes as usize));
        ram.mmap().read_slice(now, GuestAddress(start)).map_err(|_| Broken("a request leads outside RAM"))?;
        rest = later;
    }
    Ok(())
}

/// Copies into pieces of RAM, as far as both go. How much that was.
pub fn copy_to(ram: &GuestRam, pieces: &[Piece], from: &[u8]) -> Result<u32, Broken> {
    let mut rest = from;
    for &(start, bytes) in pieces {
        let (now, later) = rest.split_at(rest.len().min(bytes as usize));
        ram.mmap()
            .write_slice(now, GuestAddress(start))
            .map_err(|_| Broken("a request leads outside RAM"))?;
        rest = later;
    }
    Ok((from.len() - rest.len()) as u32)
}
