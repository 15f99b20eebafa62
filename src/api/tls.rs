//! TLS of the REST service: a certificate and its key, read again when their files change, so that a renewed one needs
//! no restart.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// The files are looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// TLS 1.2 and 1.3 with the certificate of these files.
///
/// # Errors
/// When a file cannot be read, or the key is not the certificate's; the message names the setting.
pub fn config(certificate: &Path, key: &Path) -> io::Result<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let files = Files {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        provider: Arc::clone(&provider),
    };
    // Before they are read: what is written meanwhile is noticed later.
    let changed = files.changed();
    let served = Served {
        current: Mutex::new(Current {
            read: files.read()?,
            changed,
            looked: Instant::now(),
        }),
        files,
    };
    Ok(ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(served)))
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
}

impl Files {
    fn read(&self) -> io::Result<Arc<CertifiedKey>> {
        let named = |setting: &str, path: &Path, why: String| {
            io::Error::other(format!("{setting}: {}: {why}", path.display()))
        };
        let certificate = |why| named("api.tls_certificate_file", &self.certificate, why);
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| certificate(error.to_string()))?;
        if chain.is_empty() {
            return Err(certificate("holds no certificate in PEM".into()));
        }
        let key = |why| named("api.tls_key_file", &self.key, why);
        let private =
            PrivateKeyDer::from_pem_file(&self.key).map_err(|error| key(error.to_string()))?;
        CertifiedKey::from_der(chain, private, &self.provider)
            .map(Arc::new)
            .map_err(|error| key(error.to_string()))
    }

    /// When they were last written, as far as the file system tells.
    fn changed(&self) -> [Option<SystemTime>; 2] {
        [&self.certificate, &self.key]
            .map(|path| std::fs::metadata(path).and_then(|it| it.modified()).ok())
    }
}

/// What is served now.
#[derive(Debug)]
struct Served {
    files: Files,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    read: Arc<CertifiedKey>,
    changed: [Option<SystemTime>; 2],
    looked: Instant,
}

impl Served {
    fn current(&self, now: Instant) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(current.looked) >= LOOK_EVERY {
            current.looked = now;
            let changed = self.files.changed();
            if changed != current.changed {
                // Between the writing of one and of the other they do not fit: the old ones serve until they do.
                match self.files.read() {
                    Ok(read) => {
                        current.read = read;
                        current.changed = changed;
                        tracing::info!("the certificate was renewed");
                    }
                    Err(error) => tracing::warn!(%error, "the renewed certificate is not taken"),
                }
            }
        }
        Arc::clone(&current.read)
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str) -> Vec<u8> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        std::fs::write(folder.join("cert.pem"), made.cert.pem()).expect("written");
        std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).expect("written");
        made.cert.der().to_vec()
    }

    #[test]
    fn a_renewed_certificate_is_served_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = write(folder.path(), "one.example");
        let files = Files {
            certificate: folder.path().join("cert.pem"),
            key: folder.path().join("key.pem"),
            provider: Arc::new(ring::default_provider()),
        };
        let begin = Instant::now();
        let served = Served {
            current: Mutex::new(Current {
                read: files.read().expect("reads"),
                // As if they had been written long before.
                changed: [None, None],
                looked: begin,
            }),
            files,
        };
        let at = |looks: u32| served.current(begin + LOOK_EVERY * looks).cert[0].to_vec();
        assert_eq!(at(0), first);
        let second = write(folder.path(), "two.example");
        assert_eq!(at(0), first, "not looked at yet");
        std::fs::write(folder.path().join("key.pem"), "no key").expect("written");
        assert_eq!(at(1), first, "the key is broken");
        let third = write(folder.path(), "three.example");
        assert_ne!(second, third);
        assert_eq!(at(2), third);
    }

    #[test]
    fn what_cannot_be_served_names_the_setting() {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), "one.example");
        let (cert, key) = (
            folder.path().join("cert.pem"),
            folder.path().join("key.pem"),
        );
        assert!(config(&cert, &key).is_ok());
        let told = |cert: &Path, key: &Path| config(cert, key).expect_err("refused").to_string();
        assert!(told(&folder.path().join("none"), &key).starts_with("api.tls_certificate_file"));
        assert!(told(&key, &key).starts_with("api.tls_certificate_file"));
        assert!(told(&cert, &cert).starts_with("api.tls_key_file"));
        let other = tempfile::tempdir().expect("a folder");
        write(other.path(), "two.example");
        let mismatched = told(&cert, &other.path().join("key.pem"));
        assert!(mismatched.starts_with("api.tls_key_file"), "{mismatched}");
    }
}
