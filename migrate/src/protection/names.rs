//! Who may be at the other end, by the names in its certificate.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
};

use super::files::Credentials;
use super::{ProtectionError, broken, provider};

/// A DNS name or an IP address, as `option` gave it.
pub(super) fn parse(name: &str, option: &str) -> Result<ServerName<'static>, ProtectionError> {
    ServerName::try_from(name.to_owned()).map_err(|_| {
        ProtectionError(format!(
            "{option}: \"{name}\" is neither a DNS name nor an IP address, as certificates have"
        ))
    })
}

/// Trusts a destination with a certificate of the CA, for the name that is dialled.
pub(super) fn destination(credentials: &Credentials) -> Result<Arc<WebPkiServerVerifier>, ProtectionError> {
    let authorities = Arc::new(credentials.authorities.clone());
    WebPkiServerVerifier::builder_with_provider(authorities, provider()).build().map_err(broken)
}

/// Trusts sources with a certificate of the CA that has one of these names; any name, if there are none.
pub(super) fn sources(
    credentials: &Credentials,
    names: &[String],
) -> Result<Arc<dyn ClientCertVerifier>, ProtectionError> {
    let authorities = Arc::new(credentials.authorities.clone());
    let any = WebPkiClientVerifier::builder_with_provider(authorities, provider()).build().map_err(broken)?;
    let names = names.iter().map(|name| parse(name, "--allow-source")).collect::<Result<Vec<_>, _>>()?;
    Ok(if names.is_empty() { any } else { Arc::new(Named { any, names }) })
}

/// Sources with one of these names.
#[derive(Debug)]
struct Named {
    any: Arc<dyn ClientCertVerifier>,
    names: Vec<ServerName<'static>>,
}

/// Its certificate is good, and not one of those that may come.
#[derive(Debug, thiserror::Error)]
#[error("its certificate is good, but has none of the names in --allow-source ({0})")]
struct NotAllowed(String);

impl Named {
    fn allows(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let certificate = ParsedCertificate::try_from(certificate)?;
        let has = |name| rustls::client::verify_server_name(&certificate, name).is_ok();
        if self.names.iter().any(has) {
            return Ok(());
        }
        let names: Vec<_> = self.names.iter().map(|name| name.to_str()).collect();
        let why = NotAllowed(names.join(", "));
        Err(CertificateError::Other(OtherError(Arc::new(why))).into())
    }
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.any.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.any.verify_client_cert(end_entity, intermediates, now)?;
        self.allows(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.any.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.any.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.any.supported_verify_schemes()
    }
}
