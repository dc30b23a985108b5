//! A bare reverse proxy: what the gateway's cost is measured against.
//!
//! `bare_proxy LISTEN UPSTREAM`, both as `host:port`. It forwards every request to the one
//! upstream on pooled connections and does nothing else: no limits, no keys, no look at the
//! bytes. It is written as one would who wants it short and quick, and is not tuned further.

use std::error::Error;
use std::net::SocketAddr;

use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{Either, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

type Failure = Box<dyn Error + Send + Sync>;
type Pool = Client<HttpConnector, Incoming>;
type Answer = Response<Either<Incoming, Empty<Bytes>>>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut words = std::env::args().skip(1);
    let mut word = || words.next().ok_or("usage: bare_proxy LISTEN UPSTREAM");
    let listen: SocketAddr = word()?.parse()?;
    let upstream: Authority = word()?.parse()?;

    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let pool = Client::builder(TokioExecutor::new()).build(connector);
    let listener = TcpListener::bind(listen).await?;
    println!("listening: http://{}", listener.local_addr()?);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                stream.set_nodelay(true)?;
                connections.spawn(serve(stream, pool.clone(), upstream.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, pool: Pool, upstream: Authority) {
    let service = service_fn(|request| forward(request, &pool, &upstream));
    // A client that leaves ends its connection with an error, which concerns nobody else.
    let _ended = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn forward(
    mut request: Request<Incoming>,
    pool: &Pool,
    upstream: &Authority,
) -> Result<Answer, Failure> {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(upstream.clone());
    *request.uri_mut() = Uri::from_parts(parts)?;
    let host = HeaderValue::from_str(upstream.as_str())?;
    request.headers_mut().insert(HOST, host);
    match pool.request(request).await {
        Ok(answer) => Ok(answer.map(Either::Left)),
        Err(_) => {
            let mut answer = Response::new(Either::Right(Empty::new()));
            *answer.status_mut() = StatusCode::BAD_GATEWAY;
            Ok(answer)
        }
    }
}
