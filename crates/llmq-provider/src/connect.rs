use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::ConfigError;
use crate::resolve::CachedResolver;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Tcp = HttpConnector<CachedResolver>;

/// A connection that is still idle on TCP level is probed after this time, so that one cut
/// by a firewall is found before a call is sent on it.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Opens connections: name lookup, TCP and TLS together within one time limit.
#[derive(Clone)]
pub(crate) struct Connector {
    transport: Transport,
    limit: Duration,
}

#[derive(Clone)]
enum Transport {
    Plain(Tcp),
    Tls(HttpsConnector<Tcp>),
}

/// The connection was not there in time. Found again by [`crate::CallError`]'s reading of the
/// error chain.
#[derive(Debug, thiserror::Error)]
#[error("no connection within {0:?}")]
pub(crate) struct ConnectTimeout(pub(crate) Duration);

impl Connector {
    /// The system's certificate authorities are read only for `https`, which takes
    /// milliseconds that a local server need not cost.
    pub(crate) fn new(https: bool, http2: bool, limit: Duration) -> Result<Self, ConfigError> {
        let mut tcp = HttpConnector::new_with_resolver(CachedResolver::default());
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(TCP_KEEPALIVE));
        tcp.enforce_http(false);
        let transport = if https {
            let schemes = HttpsConnectorBuilder::new()
                .with_native_roots()
                .map_err(|_: io::Error| ConfigError::NoRoots)?
                .https_only();
            Transport::Tls(if http2 {
                schemes.enable_all_versions().wrap_connector(tcp)
            } else {
                schemes.enable_http1().wrap_connector(tcp)
            })
        } else {
            Transport::Plain(tcp)
        };
        Ok(Self { transport, limit })
    }
}

pub(crate) type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match &mut self.transport {
            Transport::Plain(tcp) => tcp.poll_ready(cx).map_err(Into::into),
            Transport::Tls(tls) => tls.poll_ready(cx),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let limit = self.limit;
        let opening: Self::Future = match &mut self.transport {
            Transport::Plain(tcp) => {
                let opening = tcp.call(uri);
                Box::pin(async move { Ok(MaybeHttpsStream::Http(opening.await?)) })
            }
            Transport::Tls(tls) => Box::pin(tls.call(uri)),
        };
        Box::pin(async move {
            match tokio::time::timeout(limit, opening).await {
                Ok(opened) => opened,
                Err(_) => Err(ConnectTimeout(limit).into()),
            }
        })
    }
}
