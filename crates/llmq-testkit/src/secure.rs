use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A provider over TLS. Its certificate is of an authority that was made for it, and that
/// nobody knows who is not told.
///
/// It speaks HTTP/1.1 and HTTP/2, as the client asks by ALPN, and answers every call with one
/// body; the header `x-version` says how it was asked. Dropping it ends it.
#[derive(Debug)]
pub struct SecureServer {
    addr: SocketAddr,
    authority: String,
    _tasks: JoinSet<()>,
}

impl SecureServer {
    /// Listens on a free port of this machine, with a certificate for `host`.
    ///
    /// # Panics
    ///
    /// When there is no free port, or `host` cannot be a name.
    pub async fn start(host: &str, body: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("this machine has a free port");
        let addr = listener.local_addr().expect("it listens somewhere");
        let identity = Identity::of(host, addr.port());
        let acceptor = identity.acceptor();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, acceptor, body));
        Self {
            addr,
            authority: identity.authority,
            _tasks: tasks,
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The base URL of an OpenAI-compatible provider at this address, by the name `host`.
    #[must_use]
    pub fn url(&self, host: &str) -> String {
        format!("https://{host}:{}/v1", self.addr.port())
    }

    /// The authority's certificate in PEM, as `SSL_CERT_FILE` names a file of.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

/// A certificate, its key, and who vouches for it.
#[derive(Debug)]
pub struct Identity {
    authority: String,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key: PrivateKeyDer<'static>,
    key_pem: String,
}

impl Identity {
    /// One for `host`. The authority's name holds `number`: of two with one name a client would
    /// only find that the signature is not that of the one it knows.
    ///
    /// # Panics
    ///
    /// When `host` cannot be a name.
    #[must_use]
    pub fn of(host: &str, number: u16) -> Self {
        let mut root = CertificateParams::default();
        let name = format!("authority {number} of a test");
        root.distinguished_name.push(DnType::CommonName, name);
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root_key = KeyPair::generate().expect("a key can be made");
        let authority = root.self_signed(&root_key).expect("it signs itself").pem();
        let issuer = Issuer::new(root, root_key);

        let key = KeyPair::generate().expect("a key can be made");
        let leaf = CertificateParams::new([host.to_owned()]).expect("a host's name");
        let leaf = leaf.signed_by(&key, &issuer).expect("it can be signed");
        Self {
            authority,
            certificate: leaf.der().clone(),
            certificate_pem: leaf.pem(),
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            key_pem: key.serialize_pem(),
        }
    }

    /// The certificate in PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        self.certificate_pem.clone()
    }

    /// Its private key in PEM.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.key_pem.clone()
    }

    /// What a client connects with that trusts this authority alone, and offers these protocols
    /// (ALPN).
    ///
    /// # Panics
    ///
    /// Never: the authority is a certificate.
    #[must_use]
    pub fn connector(&self, protocols: &[&[u8]]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(self.authority.as_bytes());
        let added = roots.add(authority.expect("it was made here"));
        added.expect("an authority's certificate");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions();
        let builder = builder
            .expect("ring has them")
            .with_root_certificates(roots);
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    fn acceptor(&self) -> TlsAcceptor {
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions();
        let builder = builder.expect("ring has them").with_no_client_auth();
        let chain = vec![self.certificate.clone()];
        let config = builder.with_single_cert(chain, self.key.clone_key());
        let mut config = config.expect("the key is the certificate's");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, body: &'static str) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, acceptor.clone(), body));
    }
}

/// Ends with the connection, however that ends: a client that refuses the certificate leaves.
async fn serve(stream: TcpStream, acceptor: TlsAcceptor, body: &'static str) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let service = service_fn(|request: http::Request<Incoming>| async move {
        let version = format!("{:?}", request.version());
        // An answer before the end of the call would be another test.
        let _ = request.into_body().collect().await;
        let answer = http::Response::builder()
            .header("content-type", "application/json")
            .header("x-version", version)
            .body(Full::new(Bytes::from_static(body.as_bytes())));
        Ok::<_, Infallible>(answer.expect("its headers are good"))
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}
