//! The serial port: a 16550 at [`PORT`], interrupt line [`GSI`], connected to the console.
//!
//! Its interrupt is raised by `KVM_IRQ_LINE`, not through an eventfd: the call returns when the interrupt controllers
//! know of it, so that a state saved afterwards has it.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use super::console::{MAX_INPUT, Reader};
use super::{Console, Device, End};
use crate::state::{Kind, Section, SectionWriter, StateError};

/// First of its eight I/O ports: COM1.
pub const PORT: u16 = 0x3f8;
/// Its interrupt line.
pub const GSI: u32 = 4;

/// Its section in the saved state.
pub const KIND: Kind = Kind { name: "serial", version: 1, tags: &[1, 2, 3] };

const REGISTERS: usize = 9;
const FIFO: usize = 64;

/// Everything the port knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SerialState {
    /// Divisor low and high, interrupt enable and identification, line control and status, modem control and status,
    /// scratch.
    pub registers: [u8; REGISTERS],
    /// Received, not yet read by the guest.
    pub fifo: Vec<u8>,
    /// Input that no device has given to the guest yet.
    pub waiting: Vec<u8>,
}

/// The port.
pub struct SerialPort {
    /// vCPUs and typing people come at the same time; held for one exit of a vCPU.
    inner: Mutex<Inner>,
    console: Console,
}

struct Inner {
    uart: Uart,
    line: Line,
    /// Input is taken only while the machine runs: what was saved stays what it was.
    open: bool,
}

type Uart = Serial<Line, NoEvents, Output>;

/// Raises the interrupt: a short pulse, as the line is edge-triggered.
#[derive(Clone)]
struct Line(Arc<dyn Fn() + Send + Sync>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        (self.0)();
        Ok(())
    }
}

struct Output(Console);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SerialPort {
    /// A port after reset. `interrupt` pulses [`GSI`].
    #[must_use]
    pub fn new(console: Console, interrupt: Arc<dyn Fn() + Send + Sync>) -> Arc<Self> {
        let line = Line(interrupt);
        let uart = Serial::new(line.clone(), Output(console.clone()));
        let port = Arc::new(Self { inner: Mutex::new(Inner { uart, line, open: false }), console });
        let typed = Arc::downgrade(&port);
        let take = move || {
            if let Some(port) = typed.upgrade() {
                port.take_input(&mut port.inner());
            }
        };
        port.console.connect(Reader::Serial, Arc::new(take));
        port
    }

    /// The machine is about to run: takes input from here on.
    pub fn open(&self) {
        let mut inner = self.inner();
        inner.open = true;
        self.console.guest_runs();
        self.take_input(&mut inner);
    }

    /// The machine has stopped: what is typed waits in the console.
    pub fn close(&self) {
        self.inner().open = false;
    }

    /// What it knows.
    #[must_use]
    pub fn state(&self) -> SerialState {
        let s = self.inner().uart.state();
        let registers = [
            s.baud_divisor_low,
            s.baud_divisor_high,
            s.interrupt_enable,
            s.interrupt_identification,
            s.line_control,
            s.line_status,
            s.modem_control,
            s.modem_status,
            s.scratch,
        ];
        SerialState { registers, fifo: s.in_buffer, waiting: self.console.pending_input() }
    }

    /// Puts a state in place, and raises the interrupt again if one is due: at worst the guest looks once in vain.
    pub fn set_state(&self, state: SerialState) {
        let [
            low,
            high,
            enable,
            identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = state.registers;
        let registers = vm_superio::SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: state.fifo,
        };
        let mut inner = self.inner();
        let output = Output(self.console.clone());
        // Fails only for a queue longer than FIFO, which `SerialState::read` has refused.
        if let Ok(uart) = Serial::from_state(&registers, inner.line.clone(), NoEvents, output) {
            inner.uart = uart;
        }
        self.console.restore_input(&state.waiting);
    }

    fn take_input(&self, inner: &mut Inner) {
        let room = inner.uart.fifo_capacity();
        if inner.open && room > 0 {
            // In loopback mode the port takes nothing: the input waits.
            let enqueue = |input: &[u8]| inner.uart.enqueue_raw_bytes(input).unwrap_or(0);
            self.console.give_input(Reader::Serial, room, enqueue);
        }
    }

    /// No code that runs under the lock leaves the registers half-changed.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut inner = self.inner();
        for byte in data {
            *byte = inner.uart.read(offset as u8);
            if inner.uart.fifo_capacity() == FIFO {
                self.take_input(&mut inner);
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<End> {
        let mut inner = self.inner();
        for byte in data {
            // The console takes every byte and the interrupt cannot fail.
            let _ = inner.uart.write(offset as u8, *byte);
        }
        None
    }
}

impl SerialState {
    /// Writes its section's fields.
    pub fn write(&self, section: &mut SectionWriter<'_>) {
        section.required(1, &self.registers);
        section.required(2, &self.fifo);
        section.optional(3, &self.waiting);
    }

    /// Reads its section.
    ///
    /// # Errors
    /// When a part is missing or cannot be.
    pub fn read(section: &Section<'_>) -> Result<Self, StateError> {
        let mut registers = [0; REGISTERS];
        registers.copy_from_slice(section.exactly(1, "registers", REGISTERS)?);
        let fifo = section.required(2, "fifo")?.to_vec();
        let waiting = section.optional(3).unwrap_or_default().to_vec();
        if fifo.len() > FIFO || waiting.len() > MAX_INPUT {
            return Err(section.impossible("length of input"));
        }
        Ok(Self { registers, fifo, waiting })
    }
}

impl std::fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "serial port at {PORT:#x}")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn port() -> (Arc<SerialPort>, Console, Arc<AtomicU32>) {
        let (console, pulses) = (Console::new(), Arc::new(AtomicU32::new(0)));
        let counter = Arc::clone(&pulses);
        let pulse = Arc::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        (SerialPort::new(console.clone(), pulse), console, pulses)
    }

    fn read(port: &SerialPort, offset: u64) -> u8 {
        let mut data = [0];
        port.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn output_reaches_the_console() {
        let (port, console, _) = port();
        assert_eq!(port.write(0, b"hi"), None);
        assert_eq!(console.recent(), b"hi");
    }

    #[test]
    fn input_longer_than_the_fifo_arrives_whole_once_open() {
        let (port, console, pulses) = port();
        port.write(1, &[1]); // Interrupt on received data.
        let text: Vec<u8> = (0..200).collect();
        assert_eq!(console.input(&text), 200);
        assert_eq!(pulses.load(Ordering::SeqCst), 0, "closed: nothing is taken");
        port.open();
        assert_eq!(pulses.load(Ordering::SeqCst), 1);
        let arrived: Vec<u8> = text.iter().map(|_| read(&port, 0)).collect();
        assert_eq!(arrived, text);
        assert_eq!(read(&port, 5) & 1, 0, "nothing left");
    }

    #[test]
    fn golden_serial_port() {
        let registers = [0x0c, 0, 5, 1, 3, 0x60, 8, 0xb0, 0x5a];
        let state = SerialState { registers, fifo: b"received".into(), waiting: b"typed".into() };
        let written = |state: &SerialState| {
            let mut stream = crate::state::StreamWriter::new(Vec::new());
            stream.section(&KIND, 0, |section| state.write(section));
            stream.finish()
        };
        crate::state::golden::holds(&KIND, &written(&state), |bytes| {
            let stream = crate::state::Stream::read(bytes, &[KIND]).unwrap();
            written(&SerialState::read(stream.section(&KIND, 0).unwrap()).unwrap())
        });
    }

    #[test]
    fn state_goes_through_its_section_and_no_input_is_lost() {
        let (port, console, _) = port();
        port.open();
        port.write(1, &[1]);
        port.write(7, &[0x5a]);
        let text = [7; 100];
        console.input(&text);
        let mut writer = crate::state::StreamWriter::new(Vec::new());
        writer.section(&KIND, 0, |section| port.state().write(section));
        let bytes = writer.finish();
        let stream = crate::state::Stream::read(&bytes, &[KIND]).unwrap();
        let state = SerialState::read(stream.section(&KIND, 0).unwrap()).unwrap();

        let (other, _, pulses) = self::port();
        other.set_state(state);
        assert_eq!(pulses.load(Ordering::SeqCst), 1, "received data is announced again");
        other.open();
        assert_eq!(read(&other, 7), 0x5a);
        assert!(text.iter().all(|byte| read(&other, 0) == *byte));
        assert_eq!(read(&other, 5) & 1, 0);
    }
}
