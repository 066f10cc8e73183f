//! A certificate's dates, on a device that does not know the time: it may be 1970 there, or years ahead, and the time
//! comes over the same network. Name and chain of a certificate are checked as always. Called by `setup`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

/// How often the time is put where a chain's certificates want it: each has two ends.
const TRIES: usize = 8;

/// By which time a certificate is judged.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Dates {
    /// The system's clock.
    #[default]
    Clock,
    /// The clock is not known to be right: any time counts at which the certificate is valid, but none before this one
    /// (Unix seconds), which has passed for sure. Only for what is signed by itself: a certificate that was stolen
    /// later than that is believed for as long as the clock is not.
    After(u64),
}

/// Judges by a time that may be moved.
pub(crate) struct Doubting {
    by: Arc<dyn ServerCertVerifier>,
    floor: UnixTime,
}

impl Doubting {
    /// No time before `floor`, Unix seconds, is believed.
    pub(crate) fn new(by: Arc<dyn ServerCertVerifier>, floor: u64) -> Self {
        Doubting { by, floor: UnixTime::since_unix_epoch(Duration::from_secs(floor)) }
    }
}

impl fmt::Debug for Doubting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doubting").field("floor", &self.floor).finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Doubting {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut time = now.max(self.floor);
        let mut judged = self.by.verify_server_cert(certificate, chain, name, ocsp, time);
        for _ in 0..TRIES {
            let wanted = match &judged {
                Err(Error::InvalidCertificate(CertificateError::NotValidYetContext {
                    not_before, ..
                })) => *not_before,
                Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
                    *not_after
                }
                _ => break,
            };
            if wanted < self.floor || wanted == time {
                break;
            }
            time = wanted;
            judged = self.by.verify_server_cert(certificate, chain, name, ocsp, time);
        }
        judged
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.by.requires_raw_public_keys()
    }

    fn root_hint_subjects(&self) -> Option<&[DistinguishedName]> {
        self.by.root_hint_subjects()
    }
}
