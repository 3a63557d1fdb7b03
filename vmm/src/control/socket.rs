//! The control socket: one name, one VMM.
//!
//! Claiming a name is done under a lock on the directory, because between finding a socket stale and replacing it
//! another VMM might do the same. Afterwards the socket itself holds the name: it accepts connections.

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use migrate::client::{ClientError, Presence, RuntimeDir};
use rustix::fs::{FlockOperation, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that may wait to be accepted: operators, not traffic.
const BACKLOG: i32 = 64;

/// Why a name cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another VMM has it.
    #[error("a VMM named {name} is already running (pid {pid}); choose another --name")]
    Taken {
        /// The name.
        name: String,
        /// Whose it is.
        pid: i32,
    },
    /// The directory or the name cannot be used.
    #[error(transparent)]
    Directory(#[from] ClientError),
    /// The socket cannot be made.
    #[error("cannot make the control socket {}: {error}", path.display())]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A claimed name: a socket that listens. Removed when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    name: String,
    path: PathBuf,
    pub(super) listener: UnixListener,
}

impl ControlSocket {
    /// Claims a name. A socket that a dead VMM has left behind is replaced.
    ///
    /// # Errors
    /// When a VMM of that name is running, or the socket cannot be made.
    pub fn claim(runtime: &RuntimeDir, name: &str) -> Result<Self, SocketError> {
        let path = runtime.socket(name)?;
        runtime.ensure()?;
        let failed = |error: io::Error| SocketError::Socket { path: path.clone(), error };
        let directory = File::open(runtime.path()).map_err(failed)?;
        rustix::fs::flock(&directory, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        match runtime.presence(name)? {
            Presence::Live { pid } => return Err(SocketError::Taken { name: name.to_owned(), pid }),
            Presence::Stale => fs::remove_file(&path).map_err(failed)?,
            Presence::Absent => {}
        }
        let listener = listen(&path).map_err(failed)?;
        Ok(Self { name: name.to_owned(), path, listener })
    }

    /// The name claimed.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlSocket {
    /// Removed while it still listens: nobody else can have claimed the name yet.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The mode is set before the socket has a name: bind(2) takes it over, so there is no moment with another.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}
