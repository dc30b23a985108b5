use std::sync::{Arc, Mutex};

use llmq_core::{FailureClass, Now};
use llmq_provider::{Operation, Request, Source, StreamEnd, StreamReader, check_answer};
use llmq_testkit::ScriptedServer;

use crate::server::{Called, chat};

#[tokio::test]
async fn the_call_arrives_as_written_with_key_and_version() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async {
        let mut guest = server.accept().await;
        let call = guest.read_call().await;
        guest.answer("{}").await;
        call
    };
    let (answer, (head, body)) = tokio::join!(provider.call(chat(r#"{"a": 1}"#)), serve);
    assert_eq!(answer.unwrap().collect().await.unwrap().body, "{}");
    assert_eq!(body, br#"{"a": 1}"#);
    assert!(
        head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"),
        "{head}"
    );
    for line in [
        "authorization: Bearer sk-very-private",
        "content-type: application/json",
        "accept-encoding: identity",
        "content-length: 8",
    ] {
        assert!(
            head.lines().any(|found| found == line),
            "{line} is not in {head}"
        );
    }
}

#[tokio::test]
async fn a_get_has_no_body() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async {
        let mut guest = server.accept().await;
        let (head, _) = guest.read_call().await;
        guest.answer(r#"{"object":"list","data":[]}"#).await;
        head
    };
    let (answer, head) = tokio::join!(provider.call(Request::new(Operation::Models, "")), serve);
    assert!(answer.unwrap().status().is_success());
    assert!(head.starts_with("GET /v1/models HTTP/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn the_last_byte_is_told_once_before_the_answer_and_large_bodies_arrive_whole() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let large = "x".repeat(3 << 20);
    let times = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&times);
    let call = Request::new(Operation::ChatCompletions, large.clone())
        .on_sent(move |at| told.lock().unwrap().push(at));
    let serve = async {
        let mut guest = server.accept().await;
        let (_, body) = guest.read_call().await;
        guest.answer("{}").await;
        body
    };
    let (answer, body) = tokio::join!(provider.call(call), serve);
    let answer = answer.unwrap();
    assert!(body == large.as_bytes());
    let times = times.lock().unwrap().clone();
    assert_eq!(times, [answer.times().sent]);
    assert!(answer.times().sent <= answer.times().head);
}

#[tokio::test]
async fn a_large_call_is_not_told_as_sent_while_the_server_does_not_read() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    // Far more than the socket buffers of both sides hold.
    let large = "x".repeat(64 << 20);
    let sent = Arc::new(Mutex::new(None));
    let told = Arc::clone(&sent);
    let call = Request::new(Operation::ChatCompletions, large)
        .on_sent(move |at| *told.lock().unwrap() = Some(at));
    let calling = provider.call(call);
    tokio::pin!(calling);
    let mut guest = tokio::select! {
        answer = &mut calling => panic!("nobody answers: {answer:?}"),
        guest = async {
            let guest = server.accept().await;
            guest.readable().await;
            guest
        } => guest,
    };
    assert_eq!(*sent.lock().unwrap(), None);
    let serve = async {
        guest.read_call().await;
        guest.answer("{}").await;
    };
    let (answer, ()) = tokio::join!(calling, serve);
    assert_eq!(Some(answer.unwrap().times().sent), *sent.lock().unwrap());
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async {
        let mut guest = server.serve().await;
        guest
            .say("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n")
            .await;
        guest
    };
    let (answer, _guest) = tokio::join!(provider.call(chat("{}")), serve);
    assert_eq!(answer.unwrap().status(), 302);
}

#[tokio::test]
async fn a_page_from_a_proxy_is_transient() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async {
        let mut guest = server.serve().await;
        let page = "HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<html>Bad gateway</html>";
        guest.say(page).await;
    };
    let (answer, ()) = tokio::join!(provider.call(chat("{}")), serve);
    let whole = answer.unwrap().collect().await.unwrap();
    let source = Source {
        host: provider.host(),
        dialect: provider.dialect(),
    };
    let verdict = check_answer(source, &whole, Now::default()).unwrap_err();
    assert_eq!(verdict.class, FailureClass::Transient);
    assert_eq!(verdict.to_string(), "502: <html>Bad gateway</html>");
}

#[tokio::test]
async fn a_stream_passes_byte_for_byte_however_it_is_cut() {
    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"hé\"}}]}\r\n\r\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":3}}\n\ndata: [DONE]\n\n";
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async {
        let mut guest = server.serve().await;
        guest
            .say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n")
            .await;
        // One byte a chunk, so that even the é is cut in two.
        for byte in STREAM.as_bytes() {
            guest.say_bytes(b"1\r\n").await;
            guest.say_bytes(&[*byte]).await;
            guest.say_bytes(b"\r\n").await;
        }
        guest.say("0\r\n\r\n").await;
        guest
    };
    let call = async {
        let mut answer = provider.call(chat("{}")).await.unwrap();
        assert!(answer.is_event_stream());
        let mut reader = StreamReader::new(provider.dialect(), Operation::ChatCompletions);
        let mut passed = Vec::new();
        while let Some(piece) = answer.chunk().await.unwrap() {
            reader.push(&piece).unwrap();
            passed.extend_from_slice(&piece);
        }
        assert_eq!(passed, STREAM.as_bytes());
        assert_eq!(reader.finish(), StreamEnd::Whole);
        assert_eq!(reader.usage().unwrap().total(), 5);
    };
    tokio::join!(serve, call);
}

#[tokio::test]
async fn a_stream_that_ends_with_its_connection_is_told_from_a_whole_one() {
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async {
        let mut guest = server.serve().await;
        guest
            .say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: {\"choices\":[]}\n\n")
            .await;
    };
    let call = async {
        let mut answer = provider.call(chat("{}")).await.unwrap();
        let mut reader = StreamReader::new(provider.dialect(), Operation::ChatCompletions);
        while let Some(piece) = answer.chunk().await.unwrap() {
            reader.push(&piece).unwrap();
        }
        assert_eq!(reader.finish(), StreamEnd::CutOff);
    };
    tokio::join!(serve, call);
}

#[tokio::test]
async fn hundreds_of_calls_are_in_flight_at_once() {
    const CALLS: usize = 500;
    let server = ScriptedServer::start().await;
    let provider = server.provider();
    let serve = async {
        // Nobody is answered before all are there.
        let mut guests = Vec::new();
        for _ in 0..CALLS {
            guests.push(server.serve().await);
        }
        for guest in &mut guests {
            guest.answer("{}").await;
        }
        guests
    };
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..CALLS {
        let provider = provider.clone();
        calls.spawn(async move {
            provider
                .call(chat("{}"))
                .await
                .unwrap()
                .collect()
                .await
                .unwrap()
        });
    }
    let (answers, _guests) = tokio::join!(calls.join_all(), serve);
    assert!(answers.iter().all(|answer| answer.body == "{}"));
}
