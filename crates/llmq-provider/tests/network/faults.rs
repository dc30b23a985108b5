use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use llmq_core::FailureClass;
use llmq_provider::{
    CallError, Cause, Dialect, Operation, Provider, ProviderConfig, Request, TlsFault,
};
use llmq_testkit::{FakeClock, ScriptedServer};
use tokio::net::TcpListener;

use crate::server::{Called, SOON, chat, provider, until_stuck};

async fn failed(provider: &Provider) -> CallError {
    provider.call(chat("{}")).await.unwrap_err()
}

/// The same for a fault in the body.
async fn cut_off(provider: &Provider) -> CallError {
    let answer = provider.call(chat("{}")).await.unwrap();
    answer.collect().await.unwrap_err()
}

/// A provider that is called over TLS; none on a machine without certificate authorities, where
/// that is told before any call.
fn secure(config: ProviderConfig) -> Option<Provider> {
    Provider::new(config, Arc::new(FakeClock::with_tokio())).ok()
}

#[tokio::test]
async fn a_refused_connection_was_never_sent() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", closed.local_addr().unwrap());
    drop(closed);
    let error = failed(&provider(ProviderConfig::new(Dialect::OpenAi, url))).await;
    assert!(
        matches!(
            error,
            CallError::NotSent {
                cause: Cause::Unreachable(_),
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(error.class(), FailureClass::Transient);
    assert!(!error.may_have_been_sent());
}

#[tokio::test]
async fn an_unknown_name_was_never_sent() {
    // RFC 6761 §6.4: this name never has an address.
    let config = ProviderConfig::new(Dialect::OpenAi, "http://llmq.invalid/v1");
    let error = failed(&provider(config)).await;
    assert!(
        matches!(
            error,
            CallError::NotSent {
                cause: Cause::Dns(_),
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_server_without_tls_was_never_sent_a_call() {
    let server = ScriptedServer::start().await;
    let mut config = server.config();
    config.base_url = server.url().replace("http:", "https:");
    let Some(provider) = secure(config) else {
        return;
    };
    let serve = async {
        let mut guest = server.accept().await;
        guest.say("HTTP/1.1 400 Bad Request\r\n\r\n").await;
        guest.closed().await;
    };
    let (error, ()) = tokio::join!(failed(&provider), serve);
    assert!(
        matches!(
            error,
            CallError::NotSent {
                cause: Cause::Tls(TlsFault::NotTls),
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_tls_handshake_that_hangs_ends_with_the_connect_timeout() {
    let server = ScriptedServer::start().await;
    let mut config = server.config();
    config.base_url = server.url().replace("http:", "https:");
    config.timeouts.connect = SOON;
    let Some(provider) = secure(config) else {
        return;
    };
    let (error, _guest) = tokio::join!(failed(&provider), server.accept());
    assert!(
        matches!(
            error,
            CallError::NotSent {
                cause: Cause::ConnectTimeout(SOON),
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn nothing_has_left_of_a_call_that_is_broken_off_while_it_connects() {
    let server = ScriptedServer::start().await;
    let mut config = server.config();
    config.base_url = server.url().replace("http:", "https:");
    let provider = secure(config).expect("a machine with certificate authorities");
    let has_left = Arc::new(AtomicBool::new(false));
    let call = Request {
        has_left: Some(Arc::clone(&has_left)),
        ..chat("{}")
    };
    tokio::select! {
        _ = provider.call(call) => panic!("nobody answers it"),
        _guest = server.accept() => {}
    }
    assert!(!has_left.load(Ordering::SeqCst));
}

/// Silence was bounded only once all of the call was written: what was taken in part hung for the
/// time of the whole call, ten minutes, and went there again.
#[tokio::test]
async fn a_server_that_stops_taking_the_call_is_silent() {
    let server = ScriptedServer::start().await;
    let mut config = server.config();
    config.timeouts.first_byte = SOON;
    let provider = provider(config);
    // More than any socket holds.
    let body = vec![b' '; 64 << 20];
    let has_left = Arc::new(AtomicBool::new(false));
    let call = provider.call(Request {
        has_left: Some(Arc::clone(&has_left)),
        ..Request::new(Operation::ChatCompletions, body)
    });
    let (error, _guest) = tokio::join!(call, server.accept());
    let error = error.unwrap_err();
    assert!(has_left.load(Ordering::SeqCst), "a part of it has");
    assert!(
        matches!(
            error,
            CallError::NoAnswer {
                cause: Cause::FirstByteTimeout(SOON),
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.is_silence());
}

/// It was told by an instant after the answer, as if it had been sent after all that was answered
/// in between.
#[tokio::test]
async fn a_call_that_is_answered_before_it_is_read_was_sent_before_that() {
    let server = ScriptedServer::start().await;
    let clock = Arc::new(FakeClock::new());
    let provider = Provider::new(server.config(), clock.clone()).unwrap();
    let told = Arc::new(Mutex::new(None));
    let hook = Arc::clone(&told);
    // More than any socket holds.
    let body = vec![b' '; 64 << 20];
    let call = Request::new(Operation::ChatCompletions, body);
    let call = call.on_sent(move |at| *hook.lock().unwrap() = Some(at));
    let serve = async {
        let mut guest = server.accept().await;
        guest.readable().await;
        until_stuck().await;
        clock.advance(SOON);
        guest
            .say("HTTP/1.1 429 Busy\r\ncontent-length: 0\r\n\r\n")
            .await;
        guest
    };
    let (answer, _guest) = tokio::join!(provider.call(call), serve);
    let times = answer.unwrap().times();
    assert_eq!(*told.lock().unwrap(), Some(times.sent));
    assert_eq!(times.head - times.sent, SOON);
}

#[tokio::test]
async fn a_reset_after_the_call_is_ambiguous() {
    let server = ScriptedServer::start().await;
    let sent = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&sent);
    let call = chat("{}").on_sent(move |_| told.store(true, Ordering::SeqCst));
    let provider = server.provider();
    let serve = async { server.serve().await.reset() };
    let (error, ()) = tokio::join!(provider.call(call), serve);
    let error = error.unwrap_err();
    assert!(
        matches!(
            error,
            CallError::NoAnswer {
                cause: Cause::Closed,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.class(), FailureClass::Ambiguous);
    assert!(sent.load(Ordering::SeqCst));
}

#[tokio::test]
async fn an_orderly_close_without_an_answer_is_ambiguous_too() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async { drop(server.serve().await) };
    let (error, ()) = tokio::join!(failed(&provider), serve);
    assert!(
        matches!(
            error,
            CallError::NoAnswer {
                cause: Cause::Closed,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn half_a_head_is_no_answer() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async {
        server
            .serve()
            .await
            .say("HTTP/1.1 200 OK\r\ncontent-le")
            .await;
    };
    let (error, ()) = tokio::join!(failed(&provider), serve);
    assert!(matches!(error, CallError::NoAnswer { .. }), "{error:?}");
}

#[tokio::test]
async fn what_is_not_http_is_no_answer() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async {
        let mut guest = server.serve().await;
        guest.say("SSH-2.0-OpenSSH_9.6\r\n\r\n").await;
        guest.closed().await;
    };
    let (error, ()) = tokio::join!(failed(&provider), serve);
    assert!(
        matches!(
            error,
            CallError::NoAnswer {
                cause: Cause::NotHttp(_),
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn silence_before_the_answer_ends_with_the_first_byte_timeout() {
    let server = ScriptedServer::start().await;
    let mut config = server.config();
    config.timeouts.first_byte = SOON;
    let provider = provider(config);
    let serve = async {
        let mut guest = server.serve().await;
        guest.closed().await;
    };
    let (error, ()) = tokio::join!(failed(&provider), serve);
    assert!(
        matches!(
            error,
            CallError::NoAnswer {
                cause: Cause::FirstByteTimeout(SOON),
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn silence_in_the_body_ends_with_the_idle_timeout() {
    let server = ScriptedServer::start().await;
    let mut config = server.config();
    config.timeouts.idle = SOON;
    let provider = provider(config);
    let serve = async {
        let mut guest = server.serve().await;
        guest
            .say("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{\"a\"")
            .await;
        guest.closed().await;
    };
    let (error, ()) = tokio::join!(cut_off(&provider), serve);
    assert!(
        matches!(
            error,
            CallError::CutOff {
                received_bytes: 4,
                cause: Cause::IdleTimeout(SOON),
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.class(), FailureClass::Transient);
}

#[tokio::test]
async fn a_body_that_trickles_for_ever_ends_with_the_total_timeout() {
    let server = ScriptedServer::start().await;
    let mut config = server.config();
    config.timeouts.total = SOON * 3;
    let provider = provider(config);
    let serve = async {
        let mut guest = server.serve().await;
        guest
            .say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        loop {
            tokio::select! {
                () = guest.closed() => break,
                () = tokio::time::sleep(SOON / 3) => {}
            }
            guest.say("1\r\n \r\n").await;
        }
    };
    let (error, ()) = tokio::join!(cut_off(&provider), serve);
    assert!(
        matches!(
            &error,
            CallError::CutOff {
                cause: Cause::TotalTimeout(_),
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_body_shorter_than_stated_is_cut_off() {
    for framing in ["content-length: 100", "transfer-encoding: chunked"] {
        let server = ScriptedServer::start().await;
        let provider = server.provider();
        let serve = async {
            let mut guest = server.serve().await;
            let head = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n5\r\nhello");
            guest.say(&head).await;
        };
        let (error, ()) = tokio::join!(cut_off(&provider), serve);
        assert!(
            matches!(
                error,
                CallError::CutOff {
                    cause: Cause::Closed,
                    ..
                }
            ),
            "{error:?}"
        );
        assert!(error.may_have_been_sent());
    }
}

#[tokio::test]
async fn an_answer_above_the_bound_is_given_up_early() {
    let server = ScriptedServer::start().await;
    let mut config = server.config();
    config.answer_bytes_max = 1_000;
    let provider = provider(config);
    let serve = async {
        let mut guest = server.serve().await;
        guest
            .say("HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n")
            .await;
        guest.say(&"x".repeat(2_000)).await;
        guest.closed().await;
    };
    let (error, ()) = tokio::join!(cut_off(&provider), serve);
    assert!(
        matches!(
            error,
            CallError::AnswerTooLarge {
                max_bytes: 1_000,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.class(), FailureClass::RowFault);
}

#[tokio::test]
async fn a_dropped_call_closes_its_connection() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let call = provider.call(chat("{}"));
    let mut guest = tokio::select! {
        answer = call => panic!("nobody answers: {answer:?}"),
        guest = server.serve() => guest,
    };
    guest.closed().await;
}

#[tokio::test]
async fn a_dropped_answer_closes_its_connection() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async {
        let mut guest = server.serve().await;
        guest
            .say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
            .await;
        guest
    };
    let (answer, mut guest) = tokio::join!(provider.call(chat("{}")), serve);
    drop(answer.unwrap());
    guest.closed().await;
}

#[tokio::test]
async fn a_slow_reader_is_not_taken_for_a_silent_server() {
    let server = ScriptedServer::start().await;
    let mut config = server.config();
    config.timeouts.idle = SOON;
    let provider = provider(config);
    let serve = async {
        let mut guest = server.serve().await;
        guest
            .say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        guest
    };
    let (answer, mut guest) = tokio::join!(provider.call(chat("{}")), serve);
    let mut answer = answer.unwrap();
    let (chunk, ()) = tokio::join!(answer.chunk(), guest.say("1\r\na\r\n"));
    assert_eq!(chunk.unwrap().unwrap(), "a");
    // The reader is away for longer than the idle limit, then the server goes on.
    tokio::time::timeout(SOON * 2, std::future::pending::<()>())
        .await
        .unwrap_err();
    let finish = async { guest.say("1\r\nb\r\n0\r\n\r\n").await };
    let (chunk, ()) = tokio::join!(answer.chunk(), finish);
    assert_eq!(chunk.unwrap().unwrap(), "b");
    assert_eq!(answer.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn no_error_shows_the_key() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async { server.serve().await.reset() };
    let (error, ()) = tokio::join!(failed(&provider), serve);
    let shown = format!("{error} {error:?} {provider:?} {:?}", server.config());
    assert!(!shown.contains("private"), "{shown}");
}
