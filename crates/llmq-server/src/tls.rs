//! https for callers: the certificate and its key, from files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use llmq_engine::config::Tls;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{Error as PemError, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Why https cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or holds nothing of what it should.
    #[error("server.tls.{setting}: {}: {why}", .path.display())]
    File {
        /// Which setting names it.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The two do not belong together, or the certificate is none that can be served.
    #[error("server.tls: {} and {} cannot be used together: {why}", .cert.display(), .key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// Whether https can be served with these files.
///
/// # Errors
///
/// [`TlsError`], which names the file.
pub fn check_tls(files: &Tls) -> Result<(), TlsError> {
    acceptor(files).map(|_| ())
}

/// What TLS connections are accepted with: HTTP/2 or HTTP/1.1, as the caller prefers (ALPN,
/// RFC 7301). The files are read here and not again.
pub(crate) fn acceptor(files: &Tls) -> Result<TlsAcceptor, TlsError> {
    let chain = chain(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unusable("key", &files.key, &error, "private key"))?;
    let pair = |error: tokio_rustls::rustls::Error| TlsError::Pair {
        cert: files.cert.clone(),
        key: files.key.clone(),
        why: error.to_string(),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error: &PemError| unusable("cert", path, error, "certificate");
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| failed(&error))?;
    if chain.is_empty() {
        return Err(failed(&PemError::NoItemsFound));
    }
    Ok(chain)
}

fn unusable(setting: &'static str, path: &Path, error: &PemError, wanted: &str) -> TlsError {
    let why = match error {
        PemError::NoItemsFound => format!("there is no {wanted} in PEM in it"),
        PemError::Io(source) => source.to_string(),
        other => other.to_string(),
    };
    TlsError::File {
        setting,
        path: path.to_owned(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use llmq_testkit::Identity;

    use super::*;

    fn files(cert: &str, key: &str) -> (tempfile::TempDir, Tls) {
        let directory = tempfile::tempdir().unwrap();
        let tls = Tls {
            cert: directory.path().join("cert.pem"),
            key: directory.path().join("key.pem"),
        };
        std::fs::write(&tls.cert, cert).unwrap();
        std::fs::write(&tls.key, key).unwrap();
        (directory, tls)
    }

    fn check(cert: &str, key: &str, parts: &[&str]) {
        let (_directory, tls) = files(cert, key);
        let error = acceptor(&tls).err().unwrap().to_string();
        for part in parts {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_the_name_of_its_file() {
        let (one, two) = (Identity::of("localhost", 1), Identity::of("localhost", 2));
        let (cert, key) = (one.certificate_pem(), one.key_pem());
        let (_directory, tls) = files(&cert, &key);
        assert!(acceptor(&tls).is_ok());
        check("", &key, &["server.tls.cert", "cert.pem", "no certificate"]);
        check(&cert, "", &["server.tls.key", "key.pem", "no private key"]);
        check(&cert, &cert, &["key.pem", "no private key"]);
        let broken = cert.replace("END CERTIFICATE", "END");
        check(&broken, &key, &["cert.pem"]);
        check(&cert, &two.key_pem(), &["cert.pem", "key.pem", "together"]);
        let nowhere = Tls {
            cert: "/nowhere/cert.pem".into(),
            ..tls
        };
        let error = acceptor(&nowhere).err().unwrap().to_string();
        assert!(error.contains("/nowhere/cert.pem: No such file"), "{error}");
    }
}
