//! A network of its own for one test: a namespace with a bridge and taps, which nothing outside can reach.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Taps there are, `tap0` and so on.
const TAPS: u32 = 4;
/// The guest's address on the bridge. It has none of its own: it does not answer.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Packets that a stream sends at most: about a minute of them.
const MOST_PACKETS: u32 = 60_000;

/// The namespace. It goes when this is dropped.
#[derive(Debug)]
pub struct Network {
    name: String,
    given: AtomicU32,
}

impl Network {
    /// The MAC address that guests have in it.
    pub const MAC: &'static str = "02:00:00:77:00:02";

    pub(crate) fn make() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("vmm-test-{}-{number}", std::process::id());
        ip(&["netns", "add", &name]);
        let network = Self { name, given: AtomicU32::new(0) };
        network.ip("link set lo up");
        // With an address of its own: one that followed its ports' would make it forget its neighbours.
        network.ip("link add br0 address 02:00:00:77:00:01 type bridge");
        network.ip("link set br0 up");
        network.ip("address add 10.77.0.1/24 dev br0");
        network.ip(&format!("neighbour add {GUEST} lladdr {} dev br0", Self::MAC));
        for tap in 0..TAPS {
            network.ip(&format!("tuntap add tap{tap} mode tap"));
            network.ip(&format!("link set tap{tap} master br0"));
        }
        network
    }

    /// A tap that no VMM has been given.
    pub(crate) fn next_tap(&self) -> String {
        format!("tap{}", self.given.fetch_add(1, Ordering::Relaxed))
    }

    /// The same command inside.
    pub(crate) fn wrap(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Has `ip` do something inside.
    ///
    /// # Panics
    /// When it cannot.
    #[track_caller]
    pub fn ip(&self, words: &str) -> String {
        let inside = ["-netns", &self.name];
        ip(&inside.into_iter().chain(words.split_whitespace()).collect::<Vec<_>>())
    }

    /// The port of the bridge at which it has learned that guests' address is.
    #[must_use]
    pub fn port_of_the_guest(&self) -> Option<String> {
        let output = Command::new("bridge").args(["-netns", &self.name, "fdb", "show", "br", "br0"]).output();
        let table = String::from_utf8(output.expect("bridge of iproute2").stdout).expect("text");
        let entry = table.lines().find(|line| line.starts_with(Self::MAC))?;
        entry.split_whitespace().skip_while(|word| *word != "dev").nth(1).map(str::to_owned)
    }

    /// Sends a packet to the guest every millisecond, until the stream is dropped.
    ///
    /// # Panics
    /// When the host refuses a thread.
    #[must_use]
    pub fn stream(&self) -> Stream {
        let namespace = File::open(format!("/run/netns/{}", self.name)).expect("the namespace");
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let send = move || {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).expect("to enter the namespace");
            let socket = UdpSocket::bind("10.77.0.1:0").expect("a socket");
            for _ in 0..MOST_PACKETS {
                if ends.load(Ordering::Relaxed) {
                    break;
                }
                socket.send_to(b"packet", SocketAddr::new(IpAddr::V4(GUEST), 9)).expect("to send");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let thread = std::thread::Builder::new().name("stream".into()).spawn(send).expect("a thread");
        Stream { over, thread: Some(thread) }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Should it fail, the next `ip netns list` shows what was left.
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// Packets on their way to a guest.
#[derive(Debug)]
pub struct Stream {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the stream to have sent");
        }
    }
}

#[track_caller]
fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("ip of iproute2");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {error}", arguments.join(" "));
    String::from_utf8(output.stdout).expect("text")
}
