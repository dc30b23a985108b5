//! Calls over TLS, to servers whose certificates are of authorities that were made for a test.
//!
//! Whom a client trusts is told by `SSL_CERT_FILE`, as a user would tell it. A variable is the
//! whole process's, so each call is made in a process of its own: this one again, in which only
//! [`a_call`] does something.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::fmt::Debug;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use llmq_core::FailureClass;
use llmq_provider::{CallError, Cause, Dialect, Operation, Provider, ProviderConfig, Request};
use llmq_testkit::{FakeClock, PATIENCE, SecureServer};
use tokio::process::Command;

const BODY: &str = r#"{"id":"over-tls"}"#;
/// Where the call goes, and whether by HTTP/2.
const URL: &str = "LLMQ_TLS_TEST_URL";
const HTTP2: &str = "LLMQ_TLS_TEST_HTTP2";
/// What the calling process says begins with this.
const SAID: &str = "said: ";

/// What the other process makes: one call.
#[tokio::test]
async fn a_call() {
    let Ok(url) = std::env::var(URL) else {
        return;
    };
    let mut config = ProviderConfig::new(Dialect::OpenAi, url);
    config.http2 = std::env::var_os(HTTP2).is_some();
    match Provider::new(config, Arc::new(FakeClock::with_tokio())) {
        Ok(provider) => println!("{SAID}{}", outcome(&provider).await),
        Err(error) => println!("{SAID}{error}"),
    }
}

async fn outcome(provider: &Provider) -> String {
    let request = Request::new(Operation::ChatCompletions, "{}");
    let answer = match provider.call(request).await {
        Ok(answer) => answer,
        Err(error) => return refusal(&error),
    };
    let version = answer.headers()["x-version"].to_str().unwrap().to_owned();
    let body = answer.collect().await.unwrap().body;
    format!("{version} {}", std::str::from_utf8(&body).unwrap())
}

fn refusal(error: &CallError) -> String {
    let is_tls = matches!(error.cause(), Some(Cause::Tls(_)));
    let fields: [&dyn Debug; 3] = [&error.class(), &error.may_have_been_sent(), &is_tls];
    let remedy = error.cause().and_then(Cause::remedy);
    format!("{fields:?} {error} {remedy:?}")
}

/// How a refusal begins: the call never left, and may go well later. No row is at fault.
fn refused() -> String {
    format!(
        "[{:?}, false, true] could not reach ",
        FailureClass::Transient
    )
}

/// Makes one call in a process that trusts the authorities in `file` alone.
async fn said(file: &Path, url: &str, http2: bool) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "a_call", "--nocapture"])
        .env("SSL_CERT_FILE", file)
        .env_remove("SSL_CERT_DIR")
        .env(URL, url)
        .stderr(Stdio::inherit())
        .kill_on_drop(true);
    if http2 {
        command.env(HTTP2, "1");
    }
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let output = String::from_utf8(output.unwrap().unwrap().stdout).unwrap();
    // The harness writes the test's name before it on the same line.
    let (_, said) = output.split_once(SAID).expect("the call has an outcome");
    said.lines().next().unwrap().to_owned()
}

/// A server for `localhost`, and a file with its authority.
async fn start() -> (SecureServer, tempfile::NamedTempFile) {
    let server = SecureServer::start("localhost", BODY).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), server.authority()).unwrap();
    (server, file)
}

#[tokio::test]
async fn a_private_authority_is_trusted_when_the_user_says_so() {
    let (server, authority) = start().await;
    let url = server.url("localhost");
    for (http2, version) in [(false, "HTTP/1.1"), (true, "HTTP/2.0")] {
        let said = said(authority.path(), &url, http2).await;
        assert_eq!(said, format!("{version} {BODY}"));
    }
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_and_the_call_stays_here() {
    let (server, authority) = start().await;
    let url = server.url("127.0.0.1");
    for http2 in [false, true] {
        let said = said(authority.path(), &url, http2).await;
        assert!(said.starts_with(&refused()), "{said}");
        assert!(said.contains("not valid for name \"127.0.0.1\""), "{said}");
    }
}

#[tokio::test]
async fn an_unknown_authority_is_refused_and_the_call_stays_here() {
    let (server, _) = start().await;
    let (_, another) = start().await;
    let url = server.url("localhost");
    for http2 in [false, true] {
        let said = said(another.path(), &url, http2).await;
        assert!(said.starts_with(&refused()), "{said}");
        assert!(said.contains("does not know"), "{said}");
        assert!(said.contains("SSL_CERT_FILE"), "{said}");
    }
}

#[tokio::test]
async fn a_machine_without_authorities_is_told_before_any_call() {
    let (server, _) = start().await;
    let empty = tempfile::NamedTempFile::new().unwrap();
    let said = said(empty.path(), &server.url("localhost"), false).await;
    assert!(said.starts_with("no certificate authorities"), "{said}");
}
