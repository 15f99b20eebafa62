//! TLS as libpq's `sslmode` defines it, on rustls with ring.
//!
//! | mode          | encrypted   | certificate chain                | host name |
//! |---------------|-------------|----------------------------------|-----------|
//! | `disable`     | no          |                                  |           |
//! | `prefer`      | if offered  | only if `sslrootcert` was given  | no        |
//! | `require`     | yes         | only if `sslrootcert` was given  | no        |
//! | `verify-ca`   | yes         | yes                              | no        |
//! | `verify-full` | yes         | yes                              | yes       |
//!
//! Unlike libpq, `prefer` does not fall back to plain text after TLS was offered and failed, and a host name
//! is looked for among the subject's alternative names only (as browsers do), not in its common name.

use std::env;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How much TLS has to prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it.
    Prefer,
    /// TLS, with whomever.
    Require,
    /// TLS with somebody whom a root certificate vouches for.
    VerifyCa,
    /// TLS with the named host, vouched for.
    VerifyFull,
}

impl SslMode {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }

    /// What tokio-postgres has to know of it; the rest is the verifier's work.
    pub(super) fn negotiated(self) -> tokio_postgres::config::SslMode {
        use tokio_postgres::config::SslMode as Negotiated;
        match self {
            Self::Disable => Negotiated::Disable,
            Self::Prefer => Negotiated::Prefer,
            Self::Require | Self::VerifyCa | Self::VerifyFull => Negotiated::Require,
        }
    }
}

/// Who may vouch for the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCertificates {
    /// `~/.postgresql/root.crt`, if the mode asks for any.
    Default,
    /// The operating system's.
    System,
    /// A file in PEM.
    File(PathBuf),
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(
        "sslmode=verify-ca and verify-full need to know whom to trust: add sslrootcert=FILE (or sslrootcert=system with verify-full)"
    )]
    NoRoots,
    #[error("the root certificates in {path} cannot be read: {why}")]
    Roots { path: PathBuf, why: String },
    #[error(
        "the operating system has no root certificates: install ca-certificates, or name a file with sslrootcert=FILE"
    )]
    NoSystemRoots,
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

pub(super) fn connector(
    mode: SslMode,
    roots: &RootCertificates,
) -> Result<MakeRustlsConnect, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let trust = match (mode, roots) {
        (SslMode::Disable, _) | (SslMode::Prefer | SslMode::Require, RootCertificates::Default) => {
            None
        }
        (_, roots) => Some(Trust::load(roots)?),
    };
    let verifier = Verifier {
        trust,
        check_name: mode == SslMode::VerifyFull,
        provider: Arc::clone(&provider),
    };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

/// Root certificates, also as they were given.
#[derive(Debug)]
struct Trust {
    store: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

impl Trust {
    fn load(roots: &RootCertificates) -> Result<Self, TlsError> {
        let path = match roots {
            RootCertificates::System => {
                let mut store = RootCertStore::empty();
                store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                return if store.is_empty() {
                    Err(TlsError::NoSystemRoots)
                } else {
                    Ok(Self {
                        store,
                        certificates: Vec::new(),
                    })
                };
            }
            RootCertificates::File(path) => path.clone(),
            RootCertificates::Default => env::var_os("HOME")
                .map(|home| PathBuf::from(home).join(".postgresql/root.crt"))
                .filter(|path| path.exists())
                .ok_or(TlsError::NoRoots)?,
        };
        let unreadable = |why: String| TlsError::Roots {
            path: path.clone(),
            why,
        };
        let certificates = CertificateDer::pem_file_iter(&path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unreadable(error.to_string()))?;
        if certificates.is_empty() {
            return Err(unreadable("no certificate in it".to_owned()));
        }
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store
                .add(certificate.clone())
                .map_err(|error| unreadable(error.to_string()))?;
        }
        Ok(Self {
            store,
            certificates,
        })
    }
}

/// Checks what the mode asks for, and always that the server holds the key of the certificate it shows.
#[derive(Debug)]
struct Verifier {
    /// `None`: anybody, as `prefer` and `require` say.
    trust: Option<Trust>,
    check_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trust) = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        // A self-signed certificate given as its own root, as Postgres' manual makes one: it is trusted as it
        // stands. A chain cannot be built from it where it calls itself an authority.
        if !trust.certificates.contains(end_entity) {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &trust.store,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        if self.check_name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
