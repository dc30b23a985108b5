//! https towards callers.

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use llmq_testkit::Identity;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::world::{SHORT, World, all, get, is, settings};

/// A gateway with the certificate of `identity`, and where its files lie.
async fn secure(identity: &Identity) -> (World, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    put(&directory, identity);
    (World::new(&setting(&directory), SHORT).await, directory)
}

fn put(directory: &TempDir, identity: &Identity) {
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("cert.pem"), identity.certificate_pem()).unwrap();
    std::fs::write(path("key.pem"), identity.key_pem()).unwrap();
}

fn setting(directory: &TempDir) -> String {
    let path = |name: &str| directory.path().join(name);
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    format!("tls = {{ cert = {cert:?}, key = {key:?} }}")
}

async fn connect(
    world: &World,
    identity: &Identity,
    protocols: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from("localhost").unwrap();
    let stream = world.connect().await;
    identity.connector(protocols).connect(name, stream).await
}

#[tokio::test]
async fn callers_speak_http_1_or_2_over_tls_as_they_prefer() {
    let identity = Identity::of("localhost", 1);
    let (world, _files) = secure(&identity).await;
    let request = |uri: &str| {
        let request = http::Request::get(uri).header("host", "localhost");
        request.body(Empty::<Bytes>::new()).unwrap()
    };
    let mut driving = JoinSet::new();

    let stream = connect(&world, &identity, &[b"h2", b"http/1.1"])
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));
    let executor = TokioExecutor::new();
    let (mut two, connection) = http2::handshake(executor, TokioIo::new(stream))
        .await
        .unwrap();
    driving.spawn(async move { drop(connection.await) });
    let answer = two
        .send_request(request("https://localhost/health"))
        .await
        .unwrap();
    assert_eq!(
        (answer.status(), answer.version()),
        (http::StatusCode::OK, http::Version::HTTP_2)
    );

    for protocols in [&[b"http/1.1".as_slice()][..], &[]] {
        let stream = connect(&world, &identity, protocols).await.unwrap();
        let (mut one, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        driving.spawn(async move { drop(connection.await) });
        let answer = one.send_request(request("/health")).await.unwrap();
        assert_eq!(answer.version(), http::Version::HTTP_11);
        assert_eq!(answer.status(), http::StatusCode::OK);
    }
}

#[tokio::test]
async fn a_caller_without_tls_or_that_never_ends_its_handshake_is_left() {
    let identity = Identity::of("localhost", 2);
    let (world, _files) = secure(&identity).await;
    let plain = world.exchange(get("/health", "")).await;
    assert!(!plain.contains("200 OK"), "{plain}");
    let mut silent = world.connect().await;
    assert_eq!(all(&mut silent).await, "");
    let mut begun = world.connect().await;
    // The first bytes of a ClientHello's record (RFC 8446 §5.1).
    begun.write_all(&[22, 3, 1]).await.unwrap();
    assert_eq!(all(&mut begun).await, "");
    // And the next one is served as ever.
    assert!(connect(&world, &identity, &[]).await.is_ok());
}

#[tokio::test]
async fn a_certificate_is_read_again_and_kept_when_the_new_one_is_none() {
    let (before, after) = (Identity::of("localhost", 3), Identity::of("localhost", 4));
    let (world, files) = secure(&before).await;
    let settings = settings(&setting(&files));
    let mut kept = connect(&world, &before, &[]).await.unwrap();

    std::fs::write(files.path().join("key.pem"), "no key").unwrap();
    let refused = world
        .gateway
        .reload(&settings, false)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("key.pem"), "{refused}");
    assert!(connect(&world, &before, &[]).await.is_ok());

    put(&files, &after);
    world.gateway.reload(&settings, false).unwrap();
    assert!(connect(&world, &after, &[]).await.is_ok());
    assert!(connect(&world, &before, &[]).await.is_err());
    // Connections that stand go on.
    kept.write_all(get("/health", "").as_bytes()).await.unwrap();
    assert!(all(&mut kept).await.contains("200 OK"));
}

#[tokio::test]
async fn browsers_and_keys_follow_other_settings() {
    let world = World::new("", SHORT).await;
    let from_app = || get("/v1/models", "origin: https://app.example\r\n");
    assert!(!world.exchange(from_app()).await.contains("access-control"));
    let other = settings("cors = [\"https://app.example\"]\nauth = \"keys\"\nmax_body = \"10KB\"");
    world.gateway.reload(&other, false).unwrap();
    let answer = world.exchange(from_app()).await;
    assert!(answer.contains("access-control-allow-origin"), "{answer}");
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    let elsewhere = settings("listen = \"127.0.0.1:1\"");
    let refused = world
        .gateway
        .reload(&elsewhere, false)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("server.listen"), "{refused}");
}

/// Once these were what they had been at the start, and the reload said nothing of that.
#[tokio::test]
async fn all_that_is_not_for_a_restart_is_in_force_after_a_reload() {
    let world = World::new("max_body = \"100KB\"", SHORT).await;
    let post = |path: &str, body: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let large = format!("{{\"pad\":\"{}\"}}", "x".repeat(20_000));
    let private = r#"{"url":"http://127.0.0.1:9/","events":["*"]}"#;
    is(
        &world.exchange(post("/api/requests", &large)).await,
        400,
        "",
    );
    is(
        &world.exchange(post("/api/webhooks", private)).await,
        400,
        "",
    );
    let text = "max_body = \"10KB\"\n[webhooks]\nallow = [\"127.0.0.0/8\"]";
    world.gateway.reload(&settings(text), false).unwrap();
    is(
        &world.exchange(post("/api/requests", &large)).await,
        413,
        "10000",
    );
    is(
        &world.exchange(post("/api/webhooks", private)).await,
        201,
        "",
    );
    let fails = settings("max_body = \"10KB\"\n[retry]\nambiguous = \"fail\"");
    let refused = world.gateway.reload(&fails, false).unwrap_err();
    assert!(refused.to_string().contains("retry.ambiguous"), "{refused}");
}
