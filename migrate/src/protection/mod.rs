//! Who may take part in a migration: certificates of a CA, or a key that both sides were given before.
//!
//! What was asked for ([`Protection`], [`Admission`]) names files; they are read when a side begins, and become an identity:
//! who it is, and whom it lets in. Both ways end in TLS 1.3 with authentication of both sides; nothing older is spoken,
//! nothing is resumed, and no byte is sent before both are known. What this protects, and what not, is in docs/security.md.

pub mod authority;
mod files;
mod held;
mod names;
mod shared_key;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::ServerName;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, ServerConfig, version};

use self::files::{Credentials, Pems};
pub use self::held::Held;
use self::shared_key::{Part, SharedKey};

/// Why there is no identity: one line that names the file and the way out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProtectionError(pub(crate) String);

/// How a source is to be protected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Protection {
    /// Not at all: anyone on the way can read and change what passes.
    #[default]
    None,
    /// By certificates.
    Certificates {
        /// Holds `ca.pem`, `cert.pem` and `key.pem`.
        dir: PathBuf,
        /// The name that the destination's certificate must have; `None`: the host that is dialled.
        name: Option<String>,
    },
    /// By a key that both sides have.
    SharedKey {
        /// The file with the key.
        file: PathBuf,
    },
    /// By what was in such files.
    Held {
        /// That.
        held: Held,
        /// As of `Certificates`.
        name: Option<String>,
    },
}

/// Whom a destination lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Those with certificates.
    Certificates {
        /// Holds `ca.pem`, `cert.pem` and `key.pem`.
        dir: PathBuf,
        /// The names of which a source must have one; none: any certificate of the CA will do.
        sources: Vec<String>,
    },
    /// Those who have a key.
    SharedKey {
        /// The file with the key.
        file: PathBuf,
    },
}

/// What a source shows, and whom it trusts.
#[derive(Clone)]
pub struct SourceIdentity {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
}

/// What a destination shows, and whom it lets in.
#[derive(Clone)]
pub struct DestinationIdentity {
    pub(crate) config: Arc<ServerConfig>,
}

impl Protection {
    /// Reads the files, for a migration to `to`, a `HOST:PORT`. `None` without protection.
    ///
    /// # Errors
    /// When a file is missing, is not what it should be, or can be read by others and must not; when the name is none.
    pub fn identity(&self, to: &str) -> Result<Option<SourceIdentity>, ProtectionError> {
        match self {
            Self::None => Ok(None),
            Self::Certificates { dir, name } => {
                let credentials = Credentials::read(dir)?;
                by_certificates(credentials, name.as_deref(), to, dir).map(Some)
            }
            Self::SharedKey { file } => by_shared_key(&SharedKey::read(file)?).map(Some),
            Self::Held { held: Held::Certificates { ca, cert, key }, name } => {
                let credentials = Credentials::of(&Pems::given(ca, cert, key))?;
                by_certificates(credentials, name.as_deref(), to, Path::new("--tls")).map(Some)
            }
            Self::Held { held: Held::SharedKey { key }, .. } => {
                by_shared_key(&SharedKey::of_digits(key)?).map(Some)
            }
        }
    }

    /// Reads the files and looks whether they will do for a migration to `to`: what a VMM that cannot read them is given.
    /// `None` without protection.
    ///
    /// # Errors
    /// As for [`identity`](Self::identity).
    pub fn held(&self, to: &str) -> Result<Option<Held>, ProtectionError> {
        match self {
            Self::None => Ok(None),
            Self::Certificates { dir, name } => {
                let pems = Pems::read(dir)?;
                by_certificates(Credentials::of(&pems)?, name.as_deref(), to, dir)?;
                Held::certificates(pems).map(Some)
            }
            Self::SharedKey { file } => {
                let key = SharedKey::read(file)?;
                by_shared_key(&key)?;
                Ok(Some(Held::shared_key(&key)))
            }
            Self::Held { held, .. } => Ok(Some(held.clone())),
        }
    }
}

impl Admission {
    /// Reads the files.
    ///
    /// # Errors
    /// As for [`Protection::identity`].
    pub fn identity(&self) -> Result<DestinationIdentity, ProtectionError> {
        match self {
            Self::Certificates { dir, sources } => {
                let credentials = Credentials::read(dir)?;
                let verifier = names::sources(&credentials, sources)?;
                let config = destination(verifier)?
                    .with_single_cert(credentials.chain, credentials.key)
                    .map_err(unusable(dir))?;
                Ok(DestinationIdentity::new(config))
            }
            Self::SharedKey { file } => {
                let key = SharedKey::read(file)?;
                let config = destination(key.verifier(Part::Source)?)?;
                Ok(DestinationIdentity::new(config.with_cert_resolver(key.shown_by_destination()?)))
            }
        }
    }
}

fn by_certificates(
    credentials: Credentials,
    name: Option<&str>,
    to: &str,
    dir: &Path,
) -> Result<SourceIdentity, ProtectionError> {
    let (name, option) = name.map_or_else(|| (host(to), "--to"), |name| (name, "--tls-name"));
    let verifier = names::destination(&credentials)?;
    let config =
        source(verifier)?.with_client_auth_cert(credentials.chain, credentials.key).map_err(unusable(dir))?;
    Ok(SourceIdentity::new(config, names::parse(name, option)?))
}

fn by_shared_key(key: &SharedKey) -> Result<SourceIdentity, ProtectionError> {
    let config = source(key.verifier(Part::Destination)?)?;
    let config = config.with_client_cert_resolver(key.shown_by_source()?);
    Ok(SourceIdentity::new(config, names::parse("destination", "--psk")?))
}

impl SourceIdentity {
    fn new(mut config: ClientConfig, name: ServerName<'static>) -> Self {
        config.resumption = Resumption::disabled();
        // The names in certificates are for the two sides alone.
        config.enable_sni = false;
        Self { config: Arc::new(config), name }
    }
}

impl DestinationIdentity {
    fn new(mut config: ServerConfig) -> Self {
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Self { config: Arc::new(config) }
    }
}

impl fmt::Debug for SourceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceIdentity").field("trusts", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for DestinationIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DestinationIdentity").finish_non_exhaustive()
    }
}

/// All cryptography. The fastest cipher first: the processor has instructions for AES.
fn provider() -> Arc<CryptoProvider> {
    use ring::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..ring::default_provider() })
}

fn source(
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, ProtectionError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&version::TLS13]);
    Ok(builder.map_err(broken)?.dangerous().with_custom_certificate_verifier(verifier))
}

fn destination(
    verifier: Arc<dyn ClientCertVerifier>,
) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>, ProtectionError> {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&version::TLS13]);
    Ok(builder.map_err(broken)?.with_client_cert_verifier(verifier))
}

/// What cannot be wrong unless this program is.
fn broken(error: impl fmt::Display) -> ProtectionError {
    ProtectionError(format!("TLS cannot be set up: {error}"))
}

fn unusable(dir: &Path) -> impl FnOnce(rustls::Error) -> ProtectionError {
    let dir = dir.display().to_string();
    move |error| {
        ProtectionError(format!(
            "{dir}/cert.pem and {dir}/key.pem do not belong together: {error}; copy both from where they were made"
        ))
    }
}

/// The host of a `HOST:PORT`; an IPv6 address without its brackets.
fn host(to: &str) -> &str {
    let host = to.rsplit_once(':').map_or(to, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}
