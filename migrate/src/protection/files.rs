//! The files of one host: its CA, its certificate, and its key, which nobody else may read.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::ProtectionError;

/// More than any key or certificate has, bytes.
const LARGEST: u64 = 1 << 20;

pub(super) const CA: &str = "ca.pem";
pub(super) const CERTIFICATE: &str = "cert.pem";
pub(super) const KEY: &str = "key.pem";

/// What a directory given as `--tls` holds.
pub(super) struct Credentials {
    pub(super) authorities: RootCertStore,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// The three files of such a directory as they are, and what each is called in errors.
pub(super) struct Pems {
    pub(super) ca: Vec<u8>,
    pub(super) cert: Vec<u8>,
    pub(super) key: Vec<u8>,
    names: [String; 3],
}

impl Pems {
    pub(super) fn read(dir: &Path) -> Result<Self, ProtectionError> {
        let [ca, cert, key] = [CA, CERTIFICATE, KEY].map(|name| dir.join(name));
        let (ca_pem, cert_pem, key_pem) = (content(&ca)?, content(&cert)?, secret(&key)?);
        let names = [ca, cert, key].map(|path| path.display().to_string());
        Ok(Self { ca: ca_pem, cert: cert_pem, key: key_pem, names })
    }

    /// Of files that somebody else has read.
    pub(super) fn given(ca: &str, cert: &str, key: &str) -> Self {
        let [ca, cert, key] = [ca, cert, key].map(|text| text.as_bytes().to_vec());
        Self { ca, cert, key, names: [CA, CERTIFICATE, KEY].map(str::to_owned) }
    }
}

impl Credentials {
    pub(super) fn read(dir: &Path) -> Result<Self, ProtectionError> {
        Self::of(&Pems::read(dir)?)
    }

    pub(super) fn of(pems: &Pems) -> Result<Self, ProtectionError> {
        let [ca, cert, key] = &pems.names;
        let mut authorities = RootCertStore::empty();
        for certificate in certificates(&pems.ca, ca)? {
            authorities
                .add(certificate)
                .map_err(|error| ProtectionError(format!("{ca}: not a CA's certificate: {error}")))?;
        }
        let chain = certificates(&pems.cert, cert)?;
        let key = PrivateKeyDer::from_pem_slice(&pems.key)
            .map_err(|error| ProtectionError(format!("{key} is not a private key in PEM: {error}")))?;
        Ok(Self { authorities, chain, key })
    }
}

/// All certificates in PEM: at least one.
fn certificates(bytes: &[u8], name: &str) -> Result<Vec<CertificateDer<'static>>, ProtectionError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(ProtectionError(format!("{name} has no certificate in PEM"))),
        Err(error) => Err(ProtectionError(format!("{name} is not PEM: {error}"))),
    }
}

/// The content of a file that anyone may read.
fn content(path: &Path) -> Result<Vec<u8>, ProtectionError> {
    read(path, &open(path)?)
}

/// The content of a file that nobody but its owner may read.
pub(super) fn secret(path: &Path) -> Result<Vec<u8>, ProtectionError> {
    let file = open(path)?;
    let mode = file.metadata().map_err(unread(path))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(ProtectionError(format!(
            "{path} is a secret that others can read (mode {mode:04o}): chmod 600 {path}",
            path = path.display()
        )));
    }
    read(path, &file)
}

fn open(path: &Path) -> Result<File, ProtectionError> {
    let file = File::open(path).map_err(unread(path))?;
    // Reading a named pipe could wait for ever.
    if file.metadata().map_err(unread(path))?.is_file() {
        return Ok(file);
    }
    Err(ProtectionError(format!("{} is not a file", path.display())))
}

fn read(path: &Path, file: &File) -> Result<Vec<u8>, ProtectionError> {
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).map_err(unread(path))?;
    Ok(bytes)
}

fn unread(path: &Path) -> impl FnOnce(std::io::Error) -> ProtectionError {
    let path = path.display().to_string();
    move |error| ProtectionError(format!("cannot read {path}: {error}"))
}

/// Writes a new file; one that is there already stays as it is, and is an error.
pub(super) fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<(), ProtectionError> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .map_err(|error| ProtectionError(format!("cannot write {}: {error}", path.display())))
}

/// For owner's eyes only.
pub(super) const SECRET_MODE: u32 = 0o600;
/// For everyone to read.
pub(super) const PUBLIC_MODE: u32 = 0o644;
