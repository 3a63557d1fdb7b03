//! Numbered lines on a 16550 at 0x3f8, sent in the gaps between work.
//!
//! A character costs an exit (8 to 25 us). A line at once would be a gap in the work, and the
//! guest would then measure its own console. So lines go to a ring, and vCPU 0 sends at most one
//! character a turn and one every 150 us. A line that does not fit is dropped *before* it gets
//! its number: numbers on the wire have no holes, a reader that sees one has lost something.

use crate::cpu::{header, inb, is_due, outb, tsc};
use crate::machine::Machine;
use crate::telemetry::{PAGE_SIZE, header as page};
use core::fmt::{Arguments, Write};
use core::hint::spin_loop;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize};

const DATA: u16 = 0x3f8;
const INTERRUPTS: u16 = DATA + 1;
const FIFO: u16 = DATA + 2;
const LINE_CONTROL: u16 = DATA + 3;
const LINE_STATUS: u16 = DATA + 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// Characters the 16550 takes when its transmitter is empty.
const FIFO_SIZE: u32 = 16;
const CHARACTER_US: u64 = 150;

const RING: usize = 1 << 14;
const LINE_MAX: usize = 400;
static CHARACTERS: [AtomicU8; RING] = [const { AtomicU8::new(0) }; RING];
/// Characters ever put into and taken out of the ring.
static PUT: AtomicUsize = AtomicUsize::new(0);
static TAKEN: AtomicUsize = AtomicUsize::new(0);
static LOCKED: AtomicBool = AtomicBool::new(false);
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

pub(crate) fn init() {
    outb(INTERRUPTS, 0);
    outb(LINE_CONTROL, 3);
    outb(FIFO, 7);
}

/// The first line, sent at once: it shows that the guest lives.
pub(crate) fn greet(machine: &Machine) {
    let mib = (machine.memory_pages * PAGE_SIZE) >> 20;
    line(format_args!("demo guest, {mib} MiB, command line: {}", machine.command_line));
    flush();
}

/// Puts a line into the ring.
pub(crate) fn line(text: Arguments) {
    let mut line = Line { bytes: [0; LINE_MAX], length: 0 };
    lock();
    let number = NEXT_NUMBER.load(Relaxed);
    // Too long a line is cut.
    let _ = write!(line, "[{number:06}] {text}");
    let free = RING - (PUT.load(Relaxed) - TAKEN.load(Acquire));
    if free >= LINE_MAX + 2 {
        NEXT_NUMBER.store(number + 1, Relaxed);
        line.bytes[..line.length].iter().chain(b"\r\n").for_each(|&byte| put(byte));
    }
    LOCKED.store(false, Release);
}

/// Waits for the lock, but not for ever: its holder may be the vCPU that just took a fault.
fn lock() {
    for _ in 0..1 << 24 {
        if !LOCKED.swap(true, AcqRel) {
            return;
        }
        spin_loop();
    }
}

fn put(byte: u8) {
    let at = PUT.load(Relaxed);
    CHARACTERS[at % RING].store(byte, Relaxed);
    PUT.store(at + 1, Release);
}

struct Line {
    bytes: [u8; LINE_MAX],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for &byte in text.as_bytes().iter().take(LINE_MAX - self.length) {
            self.bytes[self.length] = byte;
            self.length += 1;
        }
        Ok(())
    }
}

/// vCPU 0's end of the ring.
pub(crate) struct Sender {
    next: u64,
    period: u64,
    room: u32,
}

impl Sender {
    pub(crate) fn new(tsc_khz: u64) -> Self {
        Self { next: tsc(), period: tsc_khz * CHARACTER_US / 1000, room: 0 }
    }

    /// Sends a character if it is time.
    #[inline(always)]
    pub(crate) fn turn(&mut self, now: u64) {
        if is_due(now, self.next, self.period) && PUT.load(Relaxed) != TAKEN.load(Relaxed) {
            self.next = now + self.period;
            self.send();
        }
    }

    #[cold]
    fn send(&mut self) {
        if self.room == 0 {
            // One port a turn: the character goes next time.
            self.room = if inb(LINE_STATUS) & TRANSMITTER_EMPTY != 0 { FIFO_SIZE } else { 0 };
            return;
        }
        if let Some(byte) = take() {
            self.room -= 1;
            outb(DATA, byte);
        }
    }
}

/// Sends all there is, without regard for gaps.
pub(crate) fn flush() {
    let mut sender = Sender { next: 0, period: 0, room: 0 };
    while PUT.load(Acquire) != TAKEN.load(Relaxed) {
        sender.send();
    }
}

fn take() -> Option<u8> {
    let at = TAKEN.load(Relaxed);
    if at == PUT.load(Acquire) {
        return None;
    }
    let byte = CHARACTERS[at % RING].load(Relaxed);
    TAKEN.store(at + 1, Release);
    if byte == b'\n' {
        header(page::CONSOLE_LINES).fetch_add(1, Relaxed);
    }
    Some(byte)
}
