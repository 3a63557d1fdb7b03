//! What a guest boots from: kept for as long as it lives, and taken along when it moves, because it may reset.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use super::Cmdline;

/// What boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernel {
    /// The demo guest that comes with the VMM.
    Demo,
    /// A Linux bzImage, or an ELF file: with a PVH note, or a Linux `vmlinux`.
    File(#[serde(serialize_with = "as_text")] PathBuf),
}

/// What a guest's own reset does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnReset {
    /// The guest boots again, in a new machine.
    #[default]
    Reboot,
    /// The guest ends.
    End,
}

/// What a guest boots from, and whether more than once. Files are looked up by absolute paths, each time anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// What boots.
    pub kernel: Kernel,
    /// Its initial file system.
    #[serde(default, serialize_with = "as_texts")]
    pub initramfs: Option<PathBuf>,
    /// What the kernel is told.
    pub cmdline: Cmdline,
    /// What its reset does.
    pub on_reset: OnReset,
}

impl Kernel {
    /// The same, wherever this process goes.
    pub(super) fn absolute(&self) -> Self {
        match self {
            Self::Demo => Self::Demo,
            Self::File(path) => Self::File(absolute(path)),
        }
    }
}

/// The path from the root. Fails only for the empty path, which names nothing either way.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

/// A path that is not UTF-8 is not found again by another host.
fn as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

fn as_texts<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.serialize_some(&path.display().to_string()),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_travels_as_text() {
        let boot = BootConfig {
            kernel: Kernel::File("/boot/k".into()),
            initramfs: Some("/i".into()),
            cmdline: "quiet".parse().unwrap(),
            on_reset: OnReset::Reboot,
        };
        let json = r#"{"kernel":{"file":"/boot/k"},"initramfs":"/i","cmdline":"quiet","on_reset":"reboot"}"#;
        assert_eq!(serde_json::to_string(&boot).unwrap(), json);
        assert_eq!(serde_json::from_str::<BootConfig>(json).unwrap(), boot);
        let demo = r#"{"kernel":"demo","cmdline":"","on_reset":"end"}"#;
        let demo: BootConfig = serde_json::from_str(demo).unwrap();
        assert_eq!((demo.kernel, demo.initramfs, demo.on_reset), (Kernel::Demo, None, OnReset::End));
    }

    #[test]
    fn what_cannot_be_a_command_line_is_refused() {
        let long = "x".repeat(Cmdline::MAX + 1);
        let json = format!(r#"{{"kernel":"demo","cmdline":"{long}","on_reset":"end"}}"#);
        assert!(serde_json::from_str::<BootConfig>(&json).is_err());
    }
}
