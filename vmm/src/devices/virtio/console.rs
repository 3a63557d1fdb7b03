//! The console (virtio 1.2, section 5.3): one port, which Linux calls `hvc0`, at the same [`Console`] as the serial port.
//!
//! ```text
//! guest ── transmit ──> console                  in the vCPU's exit
//! guest <── receive ── thread <── console        while the machine runs
//! ```
//!
//! What is typed waits in the console, nowhere else: the device has nothing of its own to save. A thread brings it to the
//! guest, because memory of a guest that has just come may be missing: whoever types must not wait for that. Until a
//! driver has made room for input, and when it is gone, input is the serial port's.

use std::borrow::Cow;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{JoinHandle, Thread};

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::VirtioDevice;
use super::mmio::{Fed, MmioTransport};
use super::queue::{Broken, Requests, copy_from, copy_to, total};
use super::state::TRANSPORT_TAGS;
use crate::devices::Console;
use crate::devices::console::Reader;
use crate::memory::ram::GuestRam;
use crate::sandbox::{self, ThreadKind};
use crate::state::{Kind, Section, SectionWriter, StateError};

/// Its section in the saved state.
pub const KIND: Kind = Kind { name: "virtio-console", version: 1, tags: &TRANSPORT_TAGS };

/// Most output of one request. Linux sends a few bytes at a time, and never more than 32 KiB.
pub(super) const MAX_OUTPUT: u64 = 1 << 20;

const RECEIVE: usize = 0;

/// The device.
#[derive(Debug)]
struct Port {
    console: Console,
    /// Wakes the thread.
    bell: Arc<Bell>,
}

impl Port {
    fn transmit(&self, requests: &mut Requests<'_>) -> Result<(), Broken> {
        while let Some(request) = requests.take()? {
            let bytes = total(&request.readable);
            if bytes > MAX_OUTPUT {
                return Err(Broken("a request has more output than anyone writes at once"));
            }
            let mut output = vec![0; bytes as usize];
            copy_from(requests.ram(), &request.readable, &mut output)?;
            self.console.put(&output);
            requests.finish(&request, 0)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Port {
    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    /// Not its size: whoever looks at the console may have any.
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64, 64]
    }

    fn config(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }

    fn activate(&mut self, _: u64) {}

    fn kick(&mut self, queue: usize, requests: &mut Requests<'_>) -> Result<(), Broken> {
        if queue == RECEIVE {
            self.console.input_goes_to(Reader::Virtio);
            self.bell.ring();
            return Ok(());
        }
        self.transmit(requests)
    }

    fn wake(&mut self) {
        self.bell.ring();
    }

    fn deactivate(&mut self) {
        self.console.input_goes_to(Reader::Serial);
    }

    fn section(&self) -> &'static Kind {
        &KIND
    }

    fn write_identity(&self, _: &mut SectionWriter<'_>) {}

    fn check_identity(&self, _: &Section<'_>) -> Result<(), StateError> {
        Ok(())
    }
}

/// Wakes the thread. A ring before it sleeps is not lost: it does not fall asleep then.
#[derive(Debug, Default)]
struct Bell(OnceLock<Thread>);

impl Bell {
    fn ring(&self) {
        // Before the thread is there, there is nobody to wake: it begins by looking.
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}

/// A console of a machine, as its owner sees it.
#[derive(Debug)]
pub struct VirtioConsole {
    feeder: Arc<Feeder>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Feeder {
    console: Console,
    bell: Arc<Bell>,
    transport: Arc<MmioTransport>,
    over: AtomicBool,
}

impl VirtioConsole {
    /// Connects a console with a guest, after its serial port.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn connect(
        console: Console,
        ram: Arc<GuestRam>,
        interrupt: Arc<dyn Fn() + Send + Sync>,
    ) -> io::Result<Self> {
        let bell = Arc::new(Bell::default());
        let port = Port { console: console.clone(), bell: Arc::clone(&bell) };
        let transport = MmioTransport::new(Box::new(port), ram, interrupt);
        let typed = Arc::clone(&bell);
        console.connect(Reader::Virtio, Arc::new(move || typed.ring()));
        let feeder = Arc::new(Feeder { console, bell, transport, over: AtomicBool::new(false) });
        let running = Arc::clone(&feeder);
        let thread = std::thread::Builder::new().name("hvc".into()).spawn(move || running.run())?;
        Ok(Self { feeder, thread: Some(thread) })
    }

    /// Its registers.
    #[must_use]
    pub fn transport(&self) -> &Arc<MmioTransport> {
        &self.feeder.transport
    }
}

impl Drop for VirtioConsole {
    fn drop(&mut self) {
        self.feeder.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Feeder {
    fn run(&self) {
        sandbox::confine(ThreadKind::Device);
        let _ = self.bell.0.set(std::thread::current());
        while !self.over.load(Ordering::Acquire) {
            self.deliver();
            std::thread::park();
        }
    }

    fn deliver(&self) {
        let fed = self.transport.feed(RECEIVE, |requests| {
            // A guest that has come here made room where it was.
            self.console.settle_input(Reader::Virtio);
            receive(requests, &self.console)
        });
        if fed == Fed::NoDriver {
            self.console.settle_input(Reader::Serial);
        }
    }
}

/// Gives the driver what was typed, as far as it has room.
fn receive(requests: &mut Requests<'_>, console: &Console) -> Result<(), Broken> {
    while console.input_waits_for(Reader::Virtio)
        && let Some(request) = requests.take()?
    {
        let mut input = Vec::new();
        // Copied into the guest only afterwards: whoever types waits for what is done here.
        console.give_input(Reader::Virtio, total(&request.writable) as usize, |bytes| {
            input.extend_from_slice(bytes);
            bytes.len()
        });
        let written = copy_to(requests.ram(), &request.writable, &input)?;
        requests.finish(&request, written)?;
    }
    Ok(())
}
