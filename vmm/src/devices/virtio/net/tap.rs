//! A tap interface: the host's end of a guest's network cable (Documentation/networking/tuntap.rst).
//!
//! Each read and each write is one Ethernet frame behind a virtio-net header, as the guest's driver has it. Frames that
//! nobody reads wait in the interface's queue (500 of them, or what its `txqueuelen` says); what comes then is lost, as
//! in any switch.

#![expect(unsafe_code, reason = "the ioctls of tap interfaces have no safe wrapper")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::HEADER_BYTES;
use crate::config::{InterfaceName, TapConfig};

/// Make an interface a port of a bridge (linux/sockios.h).
const SIOCBRADDIF: libc::c_ulong = 0x89a2;

/// What can go wrong with a tap interface.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// There is none of this name.
    #[error(
        "there is no tap {0} here: make it (ip tuntap add {0} mode tap), or write tap={0},create to have it made"
    )]
    Absent(InterfaceName),
    /// Another program is connected to it.
    #[error("tap {0} is in use by another program, perhaps another VMM: give this guest one of its own")]
    InUse(InterfaceName),
    /// The interface is something else.
    #[error("{0} is not a tap interface with one queue: give one made by ip tuntap add NAME mode tap")]
    NotATap(InterfaceName),
    /// The host does not let us.
    #[error(
        "no right to use tap {0}: run as root, or give the tap to this user (ip tuntap add {0} mode tap user NAME)"
    )]
    Forbidden(InterfaceName),
    /// There is no such bridge.
    #[error("there is no bridge {bridge} here for tap {tap}: make it (ip link add {bridge} type bridge)")]
    NoBridge {
        /// The interface.
        tap: InterfaceName,
        /// What it was to be a port of.
        bridge: InterfaceName,
    },
    /// It is a port of another bridge.
    #[error(
        "tap {tap} is a port of bridge {is}, not of {bridge}: take it out of that one, or leave out bridge={bridge}"
    )]
    OtherBridge {
        /// The interface.
        tap: InterfaceName,
        /// What it is a port of.
        is: String,
        /// What it was to be a port of.
        bridge: InterfaceName,
    },
    /// The host does not let us change it.
    #[error("no right to change tap {name}: run as root, or as root first: {first}")]
    FixedByRoot {
        /// The interface.
        name: InterfaceName,
        /// What root can do.
        first: String,
    },
    /// Anything else.
    #[error("cannot {doing} tap {name}: {error}")]
    Host {
        /// The interface.
        name: InterfaceName,
        /// What was to be done.
        doing: &'static str,
        /// Why not.
        error: io::Error,
    },
}

/// A tap interface that this process is connected to. It has a carrier for as long.
#[derive(Debug)]
pub struct Tap {
    name: String,
    file: File,
}

impl Tap {
    /// Connects to the interface, makes it if that was asked for, and switches it on.
    ///
    /// # Errors
    /// One line: what is wrong with it.
    pub fn open(config: &TapConfig) -> Result<Self, TapError> {
        let name = &config.name;
        let host = |doing| move |error| TapError::Host { name: name.clone(), doing, error };
        let control = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map_err(|error| host("look for")(error.into()))?;
        if !config.create && flags(control.as_fd(), name).is_err() {
            return Err(TapError::Absent(name.clone()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(host("open /dev/net/tun for"))?;
        attach(&file, name)?;
        // The header of virtio 1 has 12 bytes; nothing is left to the other side: no sums, no segmentation.
        set_header(&file, HEADER_BYTES as libc::c_int).map_err(host("set the header of"))?;
        set_offload(&file, 0).map_err(host("set the offloads of"))?;
        if let Some(bridge) = &config.bridge {
            plug_in(control.as_fd(), name, bridge)?;
        }
        switch_on(control.as_fd(), name).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => {
                TapError::FixedByRoot { name: name.clone(), first: format!("ip link set {name} up") }
            }
            _ => host("switch on")(error),
        })?;
        set_carrier(&file).map_err(host("give a carrier to"))?;
        Ok(Self { name: name.to_string(), file })
    }

    /// Anything that keeps frames apart, in a tap's place.
    pub(crate) fn from_fd(fd: std::os::fd::OwnedFd) -> Self {
        Self { name: "of a test".into(), file: fd.into() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next frame, with its header, if one waits. How many bytes; more than there is room for are cut off.
    ///
    /// # Errors
    /// When the interface was taken away: no frame will ever come.
    pub fn read(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.file).read(into) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Sends a frame, with its header. One that the host cannot take is lost, as on any network.
    pub fn write(&self, frame: &[u8]) {
        let _ = (&self.file).write(frame);
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn attach(file: &File, name: &InterfaceName) -> Result<(), TapError> {
    let kind = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_NO_CARRIER;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = kind as libc::c_short;
    // SAFETY: the kernel reads and writes one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    done(result).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => TapError::InUse(name.clone()),
        Some(libc::EINVAL) => TapError::NotATap(name.clone()),
        Some(libc::EPERM) => TapError::Forbidden(name.clone()),
        _ => TapError::Host { name: name.clone(), doing: "connect to", error },
    })
}

/// Comes last: a bridge hears at once of the carrier of an interface that is switched on, but up to a second late of
/// one that had a carrier before (linkwatch), and passes nothing on for as long. Kernels before 6.0 give it earlier.
fn set_carrier(file: &File) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one int, which outlives the call.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETCARRIER, &on) })
}

fn set_header(file: &File, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one int, which outlives the call.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &bytes) })
}

fn set_offload(file: &File, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: the argument is a number.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
}

/// Makes the interface a port of the bridge, unless it is one already.
fn plug_in(control: BorrowedFd<'_>, name: &InterfaceName, bridge: &InterfaceName) -> Result<(), TapError> {
    let host = |error| TapError::Host { name: name.clone(), doing: "connect the bridge to", error };
    let mut port = request(name);
    // SAFETY: the kernel reads and writes one ifreq, which outlives the call.
    done(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCGIFINDEX, &mut port) }).map_err(host)?;
    // SAFETY: SIOCGIFINDEX has put the index there.
    let index = unsafe { port.ifr_ifru.ifru_ifindex };
    let mut request = request(bridge);
    request.ifr_ifru.ifru_ifindex = index;
    // SAFETY: the kernel reads one ifreq, which outlives the call.
    let plugged = done(unsafe { libc::ioctl(control.as_raw_fd(), SIOCBRADDIF, &request) });
    plugged.or_else(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => match master(name).filter(|is| is != bridge.as_str()) {
            Some(is) => Err(TapError::OtherBridge { tap: name.clone(), is, bridge: bridge.clone() }),
            None => Ok(()),
        },
        Some(libc::ENODEV | libc::EOPNOTSUPP) => {
            Err(TapError::NoBridge { tap: name.clone(), bridge: bridge.clone() })
        }
        Some(libc::EPERM) => Err(TapError::FixedByRoot {
            name: name.clone(),
            first: format!("ip link set {name} master {bridge}"),
        }),
        _ => Err(host(error)),
    })
}

/// The bridge that an interface is a port of, as far as can be seen.
fn master(name: &InterfaceName) -> Option<String> {
    let link = std::fs::read_link(format!("/sys/class/net/{name}/master")).ok()?;
    Some(link.file_name()?.to_string_lossy().into_owned())
}

/// Switches it on. Whoever may only use an interface finds it switched on already.
fn switch_on(control: BorrowedFd<'_>, name: &InterfaceName) -> io::Result<()> {
    let now = flags(control, name)?;
    if i32::from(now) & libc::IFF_UP != 0 {
        return Ok(());
    }
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = now | libc::IFF_UP as libc::c_short;
    // SAFETY: the kernel reads one ifreq, which outlives the call.
    done(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &request) })
}

/// The interface's flags, if there is one.
fn flags(control: BorrowedFd<'_>, name: &InterfaceName) -> io::Result<libc::c_short> {
    let mut request = request(name);
    // SAFETY: the kernel reads and writes one ifreq, which outlives the call.
    done(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) })?;
    // SAFETY: SIOCGIFFLAGS has put the flags there.
    Ok(unsafe { request.ifr_ifru.ifru_flags })
}

/// A request about this interface, with nothing else in it.
fn request(name: &InterfaceName) -> libc::ifreq {
    // SAFETY: an ifreq of zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // A name is shorter than the field, which ends with a zero.
    for (place, byte) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
        *place = byte as libc::c_char;
    }
    request
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
