//! Calls of one dialect served in the other.
//!
//! An input is a line with what is to be translated (`request`, `answer`, `stream` or `error`)
//! and into which dialect (`openai` or `anthropic`); the rest is its body.

use bytes::BytesMut;
use llmq_provider::translate::{
    StreamBroken, StreamOptions, StreamTranslator, Target, answer, error, request,
};
use llmq_provider::{Dialect, Operation, SseEvent, SseSplitter};
use serde_json::{Map, Value};

use crate::first_line;
use crate::pieces::cuts;

/// Any body is translated or refused; what is written is JSON that names the model asked for;
/// and how a stream is cut does not change what is written.
pub fn check(data: &[u8]) {
    let (line, body) = first_line(data);
    let Some((what, to)) = line.split_once(' ') else {
        return;
    };
    let (to, operation) = match to {
        "openai" => (Dialect::OpenAi, Operation::Messages),
        "anthropic" => (Dialect::Anthropic, Operation::ChatCompletions),
        _ => return,
    };
    match what {
        "request" => match request(operation, body, Target::new("the-model")) {
            Ok(translated) => {
                let written = object(&translated.body);
                assert_eq!(written["model"], "the-model");
                assert!(matches!(&written["messages"], Value::Array(_)));
            }
            Err(refused) => assert!(!refused.to_string().is_empty()),
        },
        "answer" => {
            if let Ok(written) = answer(to, body, 1_700_000_000) {
                object(&written);
            }
        }
        "error" => {
            object(&error(to, 500, body));
        }
        "stream" => stream(to, body),
        _ => {}
    }
}

fn object(json: &[u8]) -> Map<String, Value> {
    serde_json::from_slice(json).expect("what is written is a JSON object")
}

fn stream(to: Dialect, body: &[u8]) {
    let whole = translated(to, &[body]);
    for pieces in cuts(body) {
        assert_eq!(translated(to, &pieces), whole);
    }
    let mut splitter = SseSplitter::new();
    let sound = |event: SseEvent<'_>| {
        if event.data != b"[DONE]" {
            object(event.data);
        }
    };
    splitter.push(&whole.0, sound).expect("inputs are small");
    splitter.finish(|_| panic!("an event without its end was written"));
}

fn translated(to: Dialect, pieces: &[&[u8]]) -> (BytesMut, Result<(), StreamBroken>) {
    let options = StreamOptions {
        include_usage: true,
        created_s: 1_700_000_000,
    };
    let mut translator = StreamTranslator::new(to, options);
    let mut out = BytesMut::new();
    for piece in pieces {
        if let Err(broken) = translator.push(piece, &mut out) {
            return (out, Err(broken));
        }
    }
    let ended = translator.finish(&mut out);
    (out, ended)
}
