//! A small CA of one's own, and files for each host: `migrate tls`.
//!
//! Nothing that is there is ever overwritten. The CA's key stays where it was made; a host gets its own directory only.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::UnixTime;

use super::files::{CA, CERTIFICATE, Credentials, KEY, PUBLIC_MODE, SECRET_MODE, secret, write_new};
use super::{ProtectionError, names};

/// The CA's key, beside `ca.pem`.
pub const CA_KEY: &str = "ca-key.pem";

/// Whom a CA made here calls itself. A second CA of the same name has another key, so nothing is confused.
const CA_NAME: &str = "CA of migrate";

const DAY: Duration = Duration::from_secs(86_400);
const CA_LASTS: Duration = Duration::from_secs(3650 * 86_400);
const HOST_LASTS: Duration = Duration::from_secs(1825 * 86_400);

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Whether the CA is new.
    pub authority: bool,
    /// The directories of the hosts.
    pub hosts: Vec<PathBuf>,
}

/// Makes a CA in `dir` unless there is one, and for each of `hosts` (a DNS name or an IP address) a directory in it with all
/// that the host needs.
///
/// # Errors
/// When a name is none, a host's directory is there already, or a file cannot be read or written.
pub fn init(dir: &Path, hosts: &[String]) -> Result<Made, ProtectionError> {
    for host in hosts {
        names::parse(host, "--host")?;
        if dir.join(host).exists() {
            return Err(ProtectionError(format!(
                "{} is there already; remove it if {host} is to have a new key",
                dir.join(host).display()
            )));
        }
    }
    make_dir(dir)?;
    let authority = !dir.join(CA).exists() && !dir.join(CA_KEY).exists();
    if authority {
        let key = KeyPair::generate().map_err(unmade("a key"))?;
        let certificate = authority_params().self_signed(&key).map_err(unmade("a CA"))?;
        write_new(&dir.join(CA_KEY), key.serialize_pem().as_bytes(), SECRET_MODE)?;
        write_new(&dir.join(CA), certificate.pem().as_bytes(), PUBLIC_MODE)?;
    }
    let hosts = hosts.iter().map(|host| add_host(dir, host)).collect::<Result<_, _>>()?;
    Ok(Made { authority, hosts })
}

/// Makes a file with a key for `--psk`: 32 random bytes in hexadecimal digits.
///
/// # Errors
/// When it is there already or cannot be written.
pub fn shared_key(path: &Path) -> Result<(), ProtectionError> {
    super::shared_key::create(path)
}

fn add_host(dir: &Path, host: &str) -> Result<PathBuf, ProtectionError> {
    let (ca, ca_key) = (dir.join(CA), dir.join(CA_KEY));
    let text = String::from_utf8(secret(&ca_key)?);
    let text = text.map_err(|_| ProtectionError(format!("{} is not PEM", ca_key.display())))?;
    let issuer_key = KeyPair::from_pem(&text).map_err(unmade("use of the CA's key"))?;
    let issuer = Issuer::new(authority_params(), issuer_key);
    let key = KeyPair::generate().map_err(unmade("a key"))?;
    let certificate = host_params(host)?.signed_by(&key, &issuer).map_err(unmade("a certificate"))?;
    let folder = dir.join(host);
    make_dir(&folder)?;
    let authority =
        fs::read(&ca).map_err(|error| ProtectionError(format!("cannot read {}: {error}", ca.display())))?;
    write_new(&folder.join(KEY), key.serialize_pem().as_bytes(), SECRET_MODE)?;
    write_new(&folder.join(CERTIFICATE), certificate.pem().as_bytes(), PUBLIC_MODE)?;
    write_new(&folder.join(CA), &authority, PUBLIC_MODE)?;
    check(&folder, host)?;
    Ok(folder)
}

/// Whether the new certificate is good: not if `ca.pem` is another CA's.
fn check(folder: &Path, host: &str) -> Result<(), ProtectionError> {
    let made = Credentials::read(folder)?;
    let name = names::parse(host, "--host")?;
    let verified =
        names::destination(&made)?.verify_server_cert(&made.chain[0], &[], &name, &[], UnixTime::now());
    verified.map(drop).map_err(|error| {
        let _ = fs::remove_dir_all(folder);
        ProtectionError(format!(
            "the CA in {CA} and {CA_KEY} was not made by `migrate tls init`: {error}; use an empty --dir, or make {host}'s \
             certificate with the CA's own tools"
        ))
    })
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, CA_LASTS);
    params
}

fn host_params(host: &str) -> Result<CertificateParams, ProtectionError> {
    let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(unmade("a certificate"))?;
    params.distinguished_name.push(DnType::CommonName, host);
    // A host is source and destination by turns.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, HOST_LASTS);
    Ok(params)
}

/// From yesterday: the hosts' clocks may differ.
fn valid_for(params: &mut CertificateParams, time: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - DAY).into();
    params.not_after = (now + time).into();
}

fn make_dir(dir: &Path) -> Result<(), ProtectionError> {
    fs::create_dir_all(dir)
        .map_err(|error| ProtectionError(format!("cannot make the directory {}: {error}", dir.display())))
}

fn unmade(what: &'static str) -> impl FnOnce(rcgen::Error) -> ProtectionError {
    move |error| ProtectionError(format!("cannot make {what}: {error}"))
}
