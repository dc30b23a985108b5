//! Connections that are made only to where webhooks may go.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

use super::Reach;

/// No name leads to more addresses that are tried.
const ADDRESSES_MAX: usize = 8;

/// Resolves a name and connects to one of its addresses, if webhooks may reach that. The
/// addresses are looked at after the name was resolved and are those connected to, so that a name
/// which leads elsewhere the second time gains nothing.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    reach: Reach,
}

/// Nothing that a name leads to may be reached. Found again in the error chain.
#[derive(Debug, thiserror::Error)]
#[error("{host} leads to a private address ({address}), which `[webhooks] allow` does not name")]
pub(super) struct Closed {
    host: String,
    address: std::net::IpAddr,
}

impl Connector {
    pub(super) fn new(reach: Reach) -> Self {
        Self { reach }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let reach = self.reach.clone();
        Box::pin(async move { connect(&reach, &uri).await.map(TokioIo::new) })
    }
}

async fn connect(reach: &Reach, uri: &Uri) -> Result<TcpStream, BoxError> {
    let host = uri.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let usual = if uri.scheme_str() == Some("https") {
        443
    } else {
        80
    };
    let port = uri.port_u16().unwrap_or(usual);
    let found: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    let mut error: BoxError = match found.first() {
        None => io::Error::new(io::ErrorKind::NotFound, "the name leads nowhere").into(),
        Some(first) => Closed {
            host: host.to_owned(),
            address: first.ip(),
        }
        .into(),
    };
    let open = found.iter().filter(|found| reach.permits(found.ip()));
    for address in open.take(ADDRESSES_MAX) {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(refused) => error = refused.into(),
        }
    }
    Err(error)
}
