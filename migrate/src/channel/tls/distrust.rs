//! What TLS says of a peer, in words that name the way out.

use std::io::{self, ErrorKind};

use rustls::{AlertDescription, CertificateError, PeerIncompatible};

/// Why a peer is not trusted, or does not trust: words for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Distrust(pub String);

impl From<Distrust> for io::Error {
    fn from(why: Distrust) -> Self {
        Self::new(ErrorKind::PermissionDenied, why)
    }
}

impl Distrust {
    /// If that is what the error is about.
    pub(crate) fn in_error(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// What TLS says, in words that name the way out.
    pub(super) fn of(error: rustls::Error) -> io::Error {
        use rustls::Error;
        let why = match error {
            Error::InvalidCertificate(reason) => certificate(&reason),
            Error::AlertReceived(alert) => refused(alert),
            Error::NoCertificatesPresented
            | Error::PeerIncompatible(
                PeerIncompatible::IncorrectCertificateTypeExtension
                | PeerIncompatible::UnsolicitedCertificateTypeExtension,
            ) => ONE_OF_EACH.to_owned(),
            Error::InvalidMessage(_) => "what it says is not TLS".to_owned(),
            other => format!("TLS failed: {other}"),
        };
        Self(why).into()
    }
}

const ONE_OF_EACH: &str = "it shows no certificate; give both sides --tls with certificates of one CA, or both --psk with the same key";

/// What is wrong with the peer's certificate.
fn certificate(reason: &CertificateError) -> String {
    use CertificateError as Wrong;
    match reason {
        Wrong::UnknownIssuer | Wrong::BadSignature => {
            "its certificate is not of the CA in ca.pem here; both sides need certificates of the same CA"
                .to_owned()
        }
        Wrong::Expired | Wrong::ExpiredContext { .. } => {
            "its certificate has expired; make a new one there, or set the clocks right".to_owned()
        }
        Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => {
            "its certificate is not valid yet; set the clocks right".to_owned()
        }
        // The project's own verifiers say it in words.
        Wrong::Other(other) => other.0.to_string(),
        Wrong::NotValidForName | Wrong::NotValidForNameContext { .. } => {
            format!("its certificate has another name: {reason}; --tls-name says which one to expect")
        }
        other => format!("its certificate cannot be trusted: {other}"),
    }
}

/// What the peer says is wrong with what it was shown.
fn refused(alert: AlertDescription) -> String {
    use AlertDescription as Alert;
    match alert {
        Alert::UnknownCA | Alert::DecryptError => {
            "it does not know the CA of the certificate here; both sides need certificates of the same CA".to_owned()
        }
        Alert::CertificateExpired => {
            "it says that the certificate here is not valid now; make a new one, or set the clocks right".to_owned()
        }
        Alert::CertificateUnknown | Alert::AccessDenied => {
            "it does not let this host in: the name in the certificate is not in its --allow-source, or the pre-shared keys \
             differ"
                .to_owned()
        }
        Alert::CertificateRequired | Alert::UnsupportedCertificate | Alert::BadCertificate => {
            "it does not take the certificate here: a wrong name, another kind, or none; is it the same --tls or --psk?"
                .to_owned()
        }
        other => format!("it ended the TLS handshake: {other:?}; is it the same --tls or --psk there?"),
    }
}
