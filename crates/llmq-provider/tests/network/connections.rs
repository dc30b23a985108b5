//! How connections are kept for the next call, and when they are not.

use std::time::Duration;

use llmq_provider::{Cause, Operation, Provider, Request};
use llmq_testkit::{Guest, ScriptedServer};
use tokio::net::TcpStream;

use crate::server::{Called, chat};

/// One call and its answer on a connection that the server accepts for it.
async fn first_call(server: &ScriptedServer, provider: &Provider) -> Guest {
    let serve = async {
        let mut guest = server.serve().await;
        guest.answer("1").await;
        guest
    };
    let (answer, guest) = tokio::join!(provider.call(chat("{}")), serve);
    assert_eq!(answer.unwrap().collect().await.unwrap().body, "1");
    guest
}

/// The system has told of all that happened on any connection before.
async fn news_have_come(server: &ScriptedServer) {
    let (stream, _guest) = tokio::join!(TcpStream::connect(server.addr()), server.accept());
    stream.unwrap();
}

#[tokio::test]
async fn a_connection_serves_one_call_after_the_other_however_its_answer_ends() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let mut guest = first_call(&server, &provider).await;
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let serve = async {
        guest.read_call().await;
        guest.say(chunked).await;
        guest.say("1\r\n2\r\n0\r\n\r\n").await;
        guest.read_call().await;
        guest.say("HTTP/1.1 204 No Content\r\n\r\n").await;
        guest.read_call().await;
        guest.answer("4").await;
    };
    let call = async {
        for expected in ["2", "", "4"] {
            let answer = provider.call(chat("{}")).await.unwrap();
            assert_eq!(answer.collect().await.unwrap().body, expected);
        }
    };
    tokio::join!(serve, call);
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_replaced_and_the_call_sent_once() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    for end in [drop, Guest::reset] {
        end(first_call(&server, &provider).await);
        news_have_come(&server).await;
        let guest = first_call(&server, &provider).await;
        guest.reset();
        news_have_come(&server).await;
    }
}

#[tokio::test]
async fn a_connection_on_which_something_came_unasked_is_not_used_again() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let mut guest = first_call(&server, &provider).await;
    guest
        .say("HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
        .await;
    news_have_come(&server).await;
    first_call(&server, &provider).await;
    guest.closed().await;
}

#[tokio::test]
async fn a_server_that_says_so_gets_no_second_call_on_its_connection() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async {
        let mut guest = server.serve().await;
        guest
            .say("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\n1")
            .await;
        guest
    };
    let (answer, mut guest) = tokio::join!(provider.call(chat("{}")), serve);
    assert_eq!(answer.unwrap().collect().await.unwrap().body, "1");
    guest.closed().await;
    first_call(&server, &provider).await;
}

#[tokio::test]
async fn a_connection_that_nobody_uses_is_closed_in_time() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let mut guest = first_call(&server, &provider).await;
    tokio::time::pause();
    // Who looks after it may only now begin to wait.
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(26)).await;
    }
    tokio::time::resume();
    guest.closed().await;
}

#[tokio::test]
async fn connections_end_with_their_provider() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let mut guest = first_call(&server, &provider).await;
    drop(provider);
    guest.closed().await;
}

#[tokio::test]
async fn an_answer_that_comes_before_the_call_has_left_is_heard() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    // Far more than the socket buffers of both sides hold.
    let large = "x".repeat(64 << 20);
    let serve = async {
        let mut guest = server.accept().await;
        guest.readable().await;
        guest
            .say("HTTP/1.1 413 Content Too Large\r\ncontent-length: 1\r\n\r\n!")
            .await;
        guest
    };
    let call = Request::new(Operation::ChatCompletions, large);
    let (answer, mut guest) = tokio::join!(provider.call(call), serve);
    let answer = answer.unwrap();
    assert_eq!(answer.status(), 413);
    assert_eq!(answer.collect().await.unwrap().body, "!");
    // What is left of the call must not be taken for the next one.
    guest.closed().await;
    first_call(&server, &provider).await;
}

#[tokio::test]
async fn a_call_goes_on_leaving_while_its_answer_is_read() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let large = "x".repeat(64 << 20);
    let serve = async {
        let mut guest = server.accept().await;
        guest.readable().await;
        guest
            .say("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        let (_, body) = guest.read_call().await;
        guest
            .say(&format!("8\r\n{:08}\r\n0\r\n\r\n", body.len()))
            .await;
        guest
    };
    let call = Request::new(Operation::ChatCompletions, large);
    let call = async { provider.call(call).await.unwrap().collect().await.unwrap() };
    let (answer, mut guest) = tokio::join!(call, serve);
    assert_eq!(answer.body, "67108864");
    // All of it was read: the connection serves another one.
    let again = async {
        guest.read_call().await;
        guest.answer("2").await;
    };
    let (answer, ()) = tokio::join!(provider.call(chat("{}")), again);
    assert_eq!(answer.unwrap().collect().await.unwrap().body, "2");
}

#[tokio::test]
async fn an_answer_that_states_two_ends_is_none() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async {
        let mut guest = server.serve().await;
        guest
            .say("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}")
            .await;
        guest.closed().await;
    };
    let (answer, ()) = tokio::join!(provider.call(chat("{}")), serve);
    let error = answer.unwrap_err();
    assert!(
        matches!(error.cause(), Some(Cause::NotHttp(_))),
        "{error:?}"
    );
}
