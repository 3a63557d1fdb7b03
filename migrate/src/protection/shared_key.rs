//! A key that both sides were given before, in the place of certificates.
//!
//! The TLS library knows no pre-shared keys from outside. So two key pairs are made of the key, one for the source and one for the
//! destination (HKDF-SHA256 with a label each, Ed25519). Whoever has the key can compute both; so each side knows exactly
//! which public key the other must show (RFC 7250, without a certificate), and can prove its own. TLS 1.3 with both sides
//! authenticated does the rest: its traffic keys are fresh every time and do not depend on this key.

use std::path::Path;
use std::sync::Arc;

use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    SignatureScheme,
};

use super::files::{SECRET_MODE, secret, write_new};
use super::{ProtectionError, broken, provider};

/// A shorter key could be guessed: what a side shows of itself is enough to try guesses on, without asking it again.
const SHORTEST: usize = 16;

/// What [`create`] makes, bytes.
const USUAL: usize = 32;

/// Separates these keys from whatever else may be made of the same secret.
const SALT: &[u8] = b"vmm migration, pre-shared key, version 1";

/// RFC 8410: what stands before the bytes of an Ed25519 key, private in PKCS #8 and public.
const PRIVATE_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
const PUBLIC_HEAD: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Who shows a key pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Source,
    Destination,
}

/// The key as it was given.
pub(super) struct SharedKey(Vec<u8>);

/// Makes a file with a new key, which only its owner may read: 64 hexadecimal digits and an end of line.
pub(super) fn create(path: &Path) -> Result<(), ProtectionError> {
    let mut key = [0; USUAL];
    SystemRandom::new().fill(&mut key).map_err(broken)?;
    let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    write_new(path, format!("{digits}\n").as_bytes(), SECRET_MODE)
}

impl SharedKey {
    /// Reads hexadecimal digits, or else the bytes as they are.
    pub(super) fn read(path: &Path) -> Result<Self, ProtectionError> {
        let bytes = secret(path)?;
        Self::of(digits(bytes.trim_ascii()).unwrap_or(bytes), &path.display().to_string())
    }

    /// Of hexadecimal digits.
    pub(super) fn of_digits(text: &str) -> Result<Self, ProtectionError> {
        let wrong = || ProtectionError("the key is not in hexadecimal digits".to_owned());
        Self::of(digits(text.as_bytes()).ok_or_else(wrong)?, "the key")
    }

    fn of(key: Vec<u8>, name: &str) -> Result<Self, ProtectionError> {
        if key.len() < SHORTEST {
            return Err(ProtectionError(format!(
                "{name}: a key of {} bytes can be guessed; {SHORTEST} are the least, and `migrate tls psk --out FILE` makes one of {USUAL}",
                key.len()
            )));
        }
        Ok(Self(key))
    }

    /// As hexadecimal digits.
    pub(super) fn digits(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The private key of a part.
    fn seed(&self, part: Part) -> Result<[u8; 32], ProtectionError> {
        let label: &[u8] = match part {
            Part::Source => b"source",
            Part::Destination => b"destination",
        };
        let mut seed = [0; 32];
        let derived = Salt::new(HKDF_SHA256, SALT).extract(&self.0);
        derived.expand(&[label], HKDF_SHA256).and_then(|okm| okm.fill(&mut seed)).map_err(broken)?;
        Ok(seed)
    }

    /// The public key of a part, as a SubjectPublicKeyInfo.
    fn public(&self, part: Part) -> Result<Vec<u8>, ProtectionError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(&self.seed(part)?).map_err(broken)?;
        Ok([&PUBLIC_HEAD, pair.public_key().as_ref()].concat())
    }

    fn certified(&self, part: Part) -> Result<Arc<CertifiedKey>, ProtectionError> {
        let private = [&PRIVATE_HEAD[..], &self.seed(part)?].concat();
        let signing = any_eddsa_type(&PrivatePkcs8KeyDer::from(private)).map_err(broken)?;
        Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(self.public(part)?)], signing)))
    }

    pub(super) fn shown_by_source(&self) -> Result<Arc<AlwaysResolvesClientRawPublicKeys>, ProtectionError> {
        Ok(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.certified(Part::Source)?)))
    }

    pub(super) fn shown_by_destination(
        &self,
    ) -> Result<Arc<AlwaysResolvesServerRawPublicKeys>, ProtectionError> {
        Ok(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.certified(Part::Destination)?)))
    }

    /// Trusts nobody but this part.
    pub(super) fn verifier(&self, part: Part) -> Result<Arc<Pinned>, ProtectionError> {
        let algorithms = provider().signature_verification_algorithms;
        Ok(Arc::new(Pinned { public: self.public(part)?, algorithms }))
    }
}

/// The one public key that is trusted.
#[derive(Debug)]
pub(super) struct Pinned {
    public: Vec<u8>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The peer made its keys of another secret.
#[derive(Debug, thiserror::Error)]
#[error("its pre-shared key is not the one here; give both sides --psk with the same key")]
struct OtherKey;

impl Pinned {
    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        if shown.as_ref() == self.public {
            return Ok(());
        }
        Err(CertificateError::Other(OtherError(Arc::new(OtherKey))).into())
    }

    fn signed(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let public = SubjectPublicKeyInfoDer::from(shown.as_ref());
        verify_tls13_signature_with_raw_key(message, &public, signature, &self.algorithms)
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Bytes written as hexadecimal digits.
fn digits(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    let pair = |pair: &[u8]| Some((digit(&pair[0])? << 4 | digit(&pair[1])?) as u8);
    text.len().is_multiple_of(2).then(|| text.chunks(2).map(pair).collect()).flatten()
}
