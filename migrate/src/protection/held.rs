//! What the files say, without the files: what the command sends to a VMM, which may be confined and cannot read them.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ProtectionError;
use super::files::Pems;
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
    /// Of the files in a directory given as `--tls`.
    pub(super) fn certificates(pems: Pems) -> Result<Self, ProtectionError> {
        let text = |bytes| {
            String::from_utf8(bytes).map_err(|_| ProtectionError("PEM is text, and this is not".to_owned()))
        };
        Ok(Self::Certificates { ca: text(pems.ca)?, cert: text(pems.cert)?, key: text(pems.key)? })
    }

    /// Of the file given as `--psk`.
    pub(super) fn shared_key(key: &SharedKey) -> Self {
        Self::SharedKey { key: key.digits() }
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
