//! What is typed for a guest, and which of its devices gives it to it.
//!
//! One queue, in the order of typing, whoever reads it: the virtio console while it has a driver that reads, otherwise
//! the serial port. So nothing is given twice or lost when the reader changes, and what waits is saved once, by the port.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of input that wait for the guest at most.
pub(in crate::devices) const MAX_INPUT: usize = 64 << 10;

/// A device that gives input to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::devices) enum Reader {
    /// The serial port: there always is one.
    Serial,
    /// The virtio console.
    Virtio,
}

/// Tells a reader that there is input for it.
type Tell = Arc<dyn Fn() + Send + Sync>;

/// Typed by whoever, read by a device when the guest has room: held for a copy of at most [`MAX_INPUT`].
#[derive(Default)]
pub(super) struct Input(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// Waited for a guest that has come here, but does not run here yet.
    restored: Vec<u8>,
    /// A guest runs here, or has: what is typed here is its.
    guest_here: bool,
    /// Its state was saved: what is typed from then on would not go with it, so nothing is taken until it runs.
    saved: bool,
    /// None: nobody, until it has turned out who does.
    reader: Option<Reader>,
    serial: Option<Tell>,
    virtio: Option<Tell>,
}

impl Input {
    pub(super) fn connect(&self, reader: Reader, tell: Tell) {
        let mut queue = self.queue();
        match reader {
            // Every machine begins with its serial port.
            Reader::Serial => {
                (queue.serial, queue.virtio) = (Some(tell), None);
                // A guest that boots again: what was typed for it before is not for what boots now.
                if queue.guest_here {
                    queue.bytes.clear();
                }
            }
            Reader::Virtio => queue.virtio = Some(tell),
        }
        queue.reader = (reader == Reader::Serial).then_some(reader);
    }

    /// How many bytes were taken.
    pub(super) fn type_in(&self, bytes: &[u8]) -> usize {
        let mut queue = self.queue();
        let room = if queue.saved { 0 } else { MAX_INPUT - queue.bytes.len() };
        let taken = bytes.len().min(room);
        queue.bytes.extend(&bytes[..taken]);
        tell(queue);
        taken
    }

    /// From here on this device reads. It is told, if it did not before.
    pub(super) fn goes_to(&self, reader: Reader) {
        let mut queue = self.queue();
        if queue.reader != Some(reader) {
            queue.reader = Some(reader);
            tell(queue);
        }
    }

    /// The same where it has not turned out before.
    pub(super) fn settle(&self, reader: Reader) {
        let mut queue = self.queue();
        if queue.reader.is_none() {
            queue.reader = Some(reader);
            tell(queue);
        }
    }

    pub(super) fn waits_for(&self, reader: Reader) -> bool {
        let queue = self.queue();
        queue.reader == Some(reader) && !queue.bytes.is_empty()
    }

    /// Offers up to `room` bytes; `take` says how many it has taken. Not called where there are none.
    pub(super) fn give(&self, reader: Reader, room: usize, take: impl FnOnce(&[u8]) -> usize) {
        let mut queue = self.queue();
        let count = room.min(queue.bytes.len());
        if queue.reader == Some(reader) && count > 0 {
            let taken = take(&queue.bytes.make_contiguous()[..count]);
            queue.bytes.drain(..taken.min(count));
        }
    }

    /// A copy of what waits for the guest, for its state. Nothing more is taken until it runs.
    pub(super) fn pending(&self) -> Vec<u8> {
        let mut queue = self.queue();
        queue.saved = queue.guest_here;
        // What was typed here for a guest that does not run here yet is not part of its state.
        let typed = queue.bytes.iter().filter(|_| queue.guest_here);
        queue.restored.iter().chain(typed).copied().collect()
    }

    /// What waited for a guest elsewhere comes first once it [runs](Self::guest_runs). Replaces what another state said.
    pub(super) fn restore(&self, bytes: &[u8]) {
        let mut queue = self.queue();
        // That of a guest that was here before is not another's.
        if std::mem::take(&mut queue.guest_here) {
            queue.bytes.clear();
        }
        queue.restored = bytes.to_vec();
    }

    pub(super) fn guest_runs(&self) {
        let mut queue = self.queue();
        (queue.guest_here, queue.saved) = (true, false);
        for byte in std::mem::take(&mut queue.restored).into_iter().rev() {
            queue.bytes.push_front(byte);
        }
        queue.bytes.truncate(MAX_INPUT);
    }

    /// Nothing that is done under it can leave the queue half-changed.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the reader, without the lock: it will come for its input.
fn tell(queue: MutexGuard<'_, Queue>) {
    let reader = match queue.reader {
        Some(Reader::Serial) => queue.serial.clone(),
        Some(Reader::Virtio) => queue.virtio.clone(),
        None => None,
    };
    drop(queue);
    if let Some(tell) = reader {
        tell();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn counter(input: &Input, reader: Reader) -> Arc<AtomicU32> {
        let told = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&told);
        let tell = move || {
            counter.fetch_add(1, Ordering::SeqCst);
        };
        input.connect(reader, Arc::new(tell));
        told
    }

    fn given(input: &Input, reader: Reader, room: usize) -> Vec<u8> {
        let mut given = Vec::new();
        input.give(reader, room, |bytes| {
            given.extend_from_slice(bytes);
            bytes.len()
        });
        given
    }

    #[test]
    fn input_is_bounded() {
        let input = Input::default();
        counter(&input, Reader::Serial);
        assert_eq!(input.type_in(&vec![1; MAX_INPUT + 5]), MAX_INPUT);
        assert_eq!(given(&input, Reader::Serial, 10).len(), 10);
        assert_eq!(input.type_in(&[1; 20]), 10);
    }

    #[test]
    fn one_device_reads_and_the_next_goes_on_where_it_ended() {
        let input = Input::default();
        let (serial, virtio) = (counter(&input, Reader::Serial), counter(&input, Reader::Virtio));
        let told = || (serial.load(Ordering::SeqCst), virtio.load(Ordering::SeqCst));
        input.type_in(b"abc");
        assert_eq!((told(), given(&input, Reader::Serial, 9)), ((0, 0), vec![]), "nobody yet");
        input.settle(Reader::Virtio);
        input.settle(Reader::Serial);
        assert_eq!(told(), (0, 1));
        input.type_in(b"def");
        assert_eq!(told(), (0, 2));
        assert_eq!(given(&input, Reader::Serial, 9), b"");
        assert_eq!(given(&input, Reader::Virtio, 2), b"ab");
        input.goes_to(Reader::Virtio);
        input.goes_to(Reader::Serial);
        assert_eq!(told(), (1, 2), "who reads already is not told");
        input.give(Reader::Serial, 9, |_| 1);
        assert!(input.waits_for(Reader::Serial) && !input.waits_for(Reader::Virtio));
        assert_eq!(given(&input, Reader::Serial, 9), b"def");
        counter(&input, Reader::Serial);
        input.type_in(b"x");
        assert_eq!(told(), (1, 2), "another machine's port is connected");
    }

    #[test]
    fn what_waited_elsewhere_comes_before_what_was_typed_here() {
        let input = Input::default();
        counter(&input, Reader::Serial);
        input.type_in(b"here");
        assert_eq!(input.pending(), b"");
        input.restore(b"of a guest that never ran; ");
        input.restore(b"there, ");
        input.restore(&input.pending());
        assert_eq!(
            input.pending(),
            b"there, ",
            "to save and restore a guest that does not run changes nothing"
        );
        input.guest_runs();
        assert_eq!(input.pending(), b"there, here");
        input.restore(&input.pending());
        assert_eq!(input.pending(), b"there, here", "nor one that stands still");
        input.guest_runs();
        assert_eq!(given(&input, Reader::Serial, 20), b"there, here");
    }
}
