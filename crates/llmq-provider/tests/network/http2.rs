use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use llmq_provider::{CallError, Cause, Dialect, Operation, Provider, ProviderConfig, Request};
use llmq_testkit::{FakeClock, ScriptedServer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::server::{Called, SOON, chat, provider, until_stuck};

/// Answers every HTTP/2 call with its own body.
async fn echo(listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(|request: http::Request<Incoming>| async move {
            let from = format!("{:?}", request.version());
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let answer = http::Response::builder().header("x-version", from);
            Ok::<_, Infallible>(answer.body(Full::new(body)).unwrap())
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service);
        connections.spawn(connection);
        assert_eq!(connections.len(), 1, "all calls share one connection");
    }
}

async fn start() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(echo(listener));
    (address, tasks)
}

fn http2(url: String) -> Provider {
    let mut config = ProviderConfig::new(Dialect::OpenAi, url);
    config.http2 = true;
    provider(config)
}

#[tokio::test]
async fn calls_share_one_connection() {
    let (address, _server) = start().await;
    let provider = http2(format!("http://{address}/v1"));
    let mut calls = JoinSet::new();
    for _ in 0..100 {
        let provider = provider.clone();
        calls.spawn(async move {
            let answer = provider.call(chat(r#"{"a":1}"#)).await.unwrap();
            assert_eq!(answer.headers()["x-version"], "HTTP/2.0");
            answer.collect().await.unwrap().body
        });
    }
    let bodies = calls.join_all().await;
    assert!(bodies.iter().all(|body| body == &Bytes::from(r#"{"a":1}"#)));
}

#[tokio::test]
async fn a_connection_that_closes_without_an_answer_is_no_answer() {
    let server = ScriptedServer::start().await;
    let provider = http2(server.url());
    let serve = async {
        // The preface is read, then the line goes dead.
        drop(server.accept().await);
    };
    let (error, ()) = tokio::join!(provider.call(chat("{}")), serve);
    let error = error.unwrap_err();
    assert!(
        matches!(
            error,
            CallError::NotSent { .. } | CallError::NoAnswer { .. }
        ),
        "{error:?}"
    );
}

/// Nobody saw it leave, so that silence was bounded by the time of the whole call alone, ten
/// minutes. Then it was told as a server that cannot be reached.
#[tokio::test]
async fn a_call_without_a_body_waits_no_longer_for_its_answer() {
    let server = ScriptedServer::start().await;
    let mut config = server.config();
    config.http2 = true;
    // Long enough for a busy machine to connect.
    config.timeouts.connect = SOON * 10;
    config.timeouts.first_byte = SOON;
    let provider = provider(config);
    let call = provider.call(Request::new(Operation::Models, ""));
    let (error, _guest) = tokio::join!(call, server.accept());
    let error = error.unwrap_err();
    assert!(error.is_silence(), "{error:?}");
    assert_eq!(error.cause(), Some(&Cause::FirstByteTimeout(SOON)));
    assert!(error.may_have_been_sent());
}

/// What is not there is not reached, however little of the call can be seen.
#[tokio::test]
async fn a_call_without_a_body_that_finds_nobody_was_not_sent() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    let provider = http2(format!("http://{address}/v1"));
    let error = provider.call(Request::new(Operation::Models, "")).await;
    let error = error.unwrap_err();
    assert!(matches!(error, CallError::NotSent { .. }), "{error:?}");
}

/// Answers every HTTP/2 call with a refusal, at its head, when no more of it comes.
async fn refuse(listener: TcpListener, clock: Arc<FakeClock>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let clock = Arc::clone(&clock);
        let service = service_fn(move |call: http::Request<Incoming>| {
            let clock = Arc::clone(&clock);
            async move {
                until_stuck().await;
                clock.advance(SOON);
                drop(call);
                let answer = http::Response::builder().status(429);
                Ok::<_, Infallible>(answer.body(Full::new(Bytes::new())).unwrap())
            }
        });
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service);
        connections.spawn(connection);
    }
}

/// It passed for a call that had never been sent, so that no limit counted it; and what was still
/// sent of it was told as if it were the next attempt's. Then it was told by an instant after the
/// answer.
#[tokio::test]
async fn a_call_that_is_answered_before_it_is_read_has_been_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    let clock = Arc::new(FakeClock::new());
    tasks.spawn(refuse(listener, Arc::clone(&clock)));
    let mut config = ProviderConfig::new(Dialect::OpenAi, format!("http://{address}/v1"));
    config.http2 = true;
    let provider = Provider::new(config, clock).unwrap();
    let body: &'static str = "x".repeat(8 << 20).leak();
    let told = Arc::new(AtomicU32::new(0));
    let hook = Arc::clone(&told);
    let call = chat(body).on_sent(move |_| {
        hook.fetch_add(1, Ordering::SeqCst);
    });
    let answer = provider.call(call).await.unwrap();
    assert_eq!(answer.status(), 429);
    assert_eq!(answer.times().head - answer.times().sent, SOON);
    assert_eq!(told.load(Ordering::SeqCst), 1);
    assert_eq!(Arc::strong_count(&told), 1, "nobody can tell it again");
}
