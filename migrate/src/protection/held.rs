//! What the files say, without the files: what the command sends to a VMM, which may be confined and cannot read them.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ProtectionError;
use super::files::{CA, CERTIFICATE, KEY, content, secret};
use super::shared_key::SharedKey;

/// The content of the files that protect a source. Secret: it goes over the control socket, which is its user's alone, and
/// is kept as long as a migration.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Held {
    /// Certificates, in PEM.
    Certificates {
        /// Of `ca.pem`: whom it trusts.
        ca: String,
        /// Of `cert.pem`: what it shows.
        cert: String,
        /// Of `key.pem`.
        key: String,
    },
    /// A key that both sides have.
    SharedKey {
        /// In hexadecimal digits.
        key: String,
    },
}

impl Held {
    /// Reads a directory given as `--tls`.
    pub(super) fn certificates(dir: &Path) -> Result<Self, ProtectionError> {
        let text = |path: &Path, bytes: Vec<u8>| {
            String::from_utf8(bytes)
                .map_err(|_| ProtectionError(format!("{} is not PEM: it is no text", path.display())))
        };
        let public = |name: &str| {
            let path = dir.join(name);
            text(&path, content(&path)?)
        };
        let key = dir.join(KEY);
        Ok(Self::Certificates {
            ca: public(CA)?,
            cert: public(CERTIFICATE)?,
            key: text(&key, secret(&key)?)?,
        })
    }

    /// Reads a file given as `--psk`.
    pub(super) fn shared_key(file: &Path) -> Result<Self, ProtectionError> {
        Ok(Self::SharedKey { key: SharedKey::read(file)?.digits() })
    }
}

impl fmt::Debug for Held {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificates { .. } => "Certificates",
            Self::SharedKey { .. } => "SharedKey",
        })
    }
}
