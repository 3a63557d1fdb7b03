//! Where the control sockets of this user's VMMs are.
//!
//! `VMM_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/vmm`, else `/run/vmm` for root. Whoever can
//! connect to a socket controls its guest: the directory is made with mode 0700, the sockets have mode 0600. A socket file says nothing by itself (a killed VMM leaves one behind);
//! only one that accepts connections is a VMM.

use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{ClientError, Result};

/// Longest name of a VMM. With the directory it must fit a socket address (108 bytes, unix(7)).
const MAX_NAME: usize = 64;

/// The directory of control sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir(PathBuf);

/// Whether a VMM is behind a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// There is no socket.
    Absent,
    /// There is a socket, and no one behind it.
    Stale,
    /// Someone accepts connections.
    Live {
        /// Its process id.
        pid: i32,
    },
}

impl RuntimeDir {
    /// The directory the environment says. It need not exist.
    ///
    /// # Errors
    /// [`ClientError::NoRuntimeDir`] when the environment names none and this is not root.
    pub fn from_env() -> Result<Self> {
        let root = rustix::process::geteuid().is_root();
        choose(std::env::var_os("VMM_RUNTIME_DIR"), std::env::var_os("XDG_RUNTIME_DIR"), root)
            .map(Self)
            .ok_or(ClientError::NoRuntimeDir)
    }

    /// A directory of the caller's choice.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the directory if need be.
    ///
    /// # Errors
    /// When it cannot be made, is someone else's, or others can write to it: it is not changed then, because
    /// whoever made it so may have had a reason.
    pub fn ensure(&self) -> Result<()> {
        let refuse = |reason: String| ClientError::RuntimeDir { path: self.0.clone(), reason };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.0);
        made.map_err(|error| {
            refuse(format!("cannot make the directory: {error}; set VMM_RUNTIME_DIR to another"))
        })?;
        let found = fs::metadata(&self.0).map_err(|error| refuse(error.to_string()))?;
        if found.uid() != rustix::process::geteuid().as_raw() {
            return Err(refuse(format!(
                "belongs to user {}, not to you; set VMM_RUNTIME_DIR to another directory",
                found.uid()
            )));
        }
        if found.mode() & 0o022 != 0 {
            let mode = found.mode() & 0o7777;
            return Err(refuse(format!("can be written to by others (mode {mode:04o}); chmod it to 0700")));
        }
        Ok(())
    }

    /// The path of a VMM's socket.
    ///
    /// # Errors
    /// When the name cannot be one.
    pub fn socket(&self, name: &str) -> Result<PathBuf> {
        if is_name(name) {
            Ok(self.0.join(format!("{name}.sock")))
        } else {
            Err(ClientError::BadName(name.into()))
        }
    }

    /// Whether a VMM of that name is running.
    ///
    /// # Errors
    /// When the name cannot be one, or the socket cannot be tried.
    pub fn presence(&self, name: &str) -> Result<Presence> {
        let path = self.socket(name)?;
        knock(&path).map_err(|error| ClientError::RuntimeDir { path, reason: error.to_string() })
    }

    /// The names of all VMMs running, in order.
    ///
    /// # Errors
    /// When the directory cannot be read. That it does not exist is no error: there are none.
    pub fn names(&self) -> Result<Vec<String>> {
        let refuse =
            |error: io::Error| ClientError::RuntimeDir { path: self.0.clone(), reason: error.to_string() };
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(refuse)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(refuse)?.file_name();
            let Some(name) = file.to_str().and_then(|file| file.strip_suffix(".sock")) else { continue };
            if matches!(self.presence(name), Ok(Presence::Live { .. })) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }
}

fn choose(ours: Option<OsString>, xdg: Option<OsString>, root: bool) -> Option<PathBuf> {
    let given = |value: Option<OsString>| value.filter(|value| !value.is_empty()).map(PathBuf::from);
    given(ours).or_else(|| given(xdg).map(|xdg| xdg.join("vmm"))).or_else(|| root.then(|| "/run/vmm".into()))
}

fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty() && name.len() <= MAX_NAME && !name.starts_with(['.', '-']) && name.bytes().all(allowed)
}

/// Connects and hangs up, without waiting: a VMM whose queue of connections is full is there too.
fn knock(path: &Path) -> io::Result<Presence> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {
            let peer = rustix::net::sockopt::socket_peercred(&socket)?;
            Ok(Presence::Live { pid: peer.pid.as_raw_pid() })
        }
        Err(Errno::AGAIN) => Ok(Presence::Live { pid: 0 }),
        Err(Errno::CONNREFUSED) => Ok(Presence::Stale),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Presence::Absent),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_variable_overrides_and_root_needs_none() {
        let some = |value: &str| Some(OsString::from(value));
        assert_eq!(choose(some("/a"), some("/b"), true), Some("/a".into()));
        assert_eq!(choose(some(""), some("/b"), true), Some("/b/vmm".into()));
        assert_eq!(choose(None, None, true), Some("/run/vmm".into()));
        assert_eq!(choose(None, None, false), None);
    }

    #[test]
    fn a_name_cannot_leave_the_directory() {
        let runtime = RuntimeDir::at("/r");
        assert_eq!(runtime.socket("demo-1.a_B").unwrap(), PathBuf::from("/r/demo-1.a_B.sock"));
        for name in ["", ".", "..", "a/b", "-a", "é", "a b", &"x".repeat(MAX_NAME + 1)] {
            assert!(matches!(runtime.socket(name), Err(ClientError::BadName(_))), "{name}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_refused_with_the_way_out() {
        let error = RuntimeDir::at("/proc/vmm").ensure().unwrap_err().to_string();
        assert!(error.starts_with("/proc/vmm: cannot make the directory: "), "{error}");
        assert!(error.ends_with("; set VMM_RUNTIME_DIR to another"), "{error}");
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_vms() {
        let runtime = RuntimeDir::at("/nonexistent/vmm");
        assert_eq!(runtime.names().unwrap(), Vec::<String>::new());
        assert_eq!(runtime.presence("demo").unwrap(), Presence::Absent);
    }
}
