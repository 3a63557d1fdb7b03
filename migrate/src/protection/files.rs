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

impl Credentials {
    pub(super) fn read(dir: &Path) -> Result<Self, ProtectionError> {
        let mut authorities = RootCertStore::empty();
        for certificate in certificates(&dir.join(CA))? {
            authorities.add(certificate).map_err(|error| {
                ProtectionError(format!("{}: not a CA's certificate: {error}", dir.join(CA).display()))
            })?;
        }
        let chain = certificates(&dir.join(CERTIFICATE))?;
        let path = dir.join(KEY);
        let key = PrivateKeyDer::from_pem_slice(&secret(&path)?).map_err(|error| {
            ProtectionError(format!("{} is not a private key in PEM: {error}", path.display()))
        })?;
        Ok(Self { authorities, chain, key })
    }
}

/// All certificates of a file: at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ProtectionError> {
    let bytes = read(path, &open(path)?)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(ProtectionError(format!("{} has no certificate in PEM", path.display()))),
        Err(error) => Err(ProtectionError(format!("{} is not PEM: {error}", path.display()))),
    }
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
