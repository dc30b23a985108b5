use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::StreamBroken;
use super::fold;
use super::samples::{ANTHROPIC_CALL, ANTHROPIC_THOUGHT, OPENAI_CALLS, OPENAI_TEXT};
use super::streams::translated;
use crate::{Dialect, EVENT_BYTES_MAX};

fn has_end(out: &[u8]) -> bool {
    let out = String::from_utf8_lossy(out);
    let is_end = |line: &str| line == "data: [DONE]" || line == "event: message_stop";
    out.lines().any(is_end) || out.contains("\"delta\":{},\"logprobs\":null,\"finish_reason\":\"")
}

#[test]
fn a_message_that_is_cut_anywhere_is_never_whole() {
    let stream = ANTHROPIC_CALL.as_bytes();
    let end = ANTHROPIC_CALL.find("event: message_stop").unwrap();
    for at in 0..=end + "event: message_stop\ndata: {\"type\":\"message_stop\"".len() {
        let (out, ended) = translated(Dialect::OpenAi, &[&stream[..at]]);
        assert!(ended.is_err(), "at {at}");
        assert!(!has_end(&out), "at {at}");
    }
}

#[test]
fn a_chat_completion_that_is_cut_before_its_reason_is_never_whole() {
    for stream in [OPENAI_TEXT, OPENAI_CALLS] {
        let end = stream.find("\"finish_reason\":\"").unwrap();
        for at in 0..=end {
            let (out, ended) = translated(Dialect::Anthropic, &[&stream.as_bytes()[..at]]);
            assert!(ended.is_err(), "at {at}");
            assert!(!has_end(&out), "at {at}");
        }
    }
}

#[test]
fn a_chat_completion_without_its_mark_is_whole_with_its_usage() {
    let stream = OPENAI_TEXT.strip_suffix("data: [DONE]\n\n").unwrap();
    let (out, ended) = translated(Dialect::Anthropic, &[stream.as_bytes()]);
    assert_eq!(ended, Ok(()));
    assert_eq!(fold::message(&out)["usage"]["output_tokens"], 10);
}

#[test]
fn nothing_is_no_answer() {
    for to in [Dialect::OpenAi, Dialect::Anthropic] {
        for stream in ["", ": comment\n\n"] {
            let (out, ended) = translated(to, &[stream.as_bytes()]);
            assert_eq!((out.len(), ended), (0, Err(StreamBroken::CutOff)));
        }
    }
    let (out, ended) = translated(Dialect::Anthropic, &[b"data: [DONE]\n\n"]);
    assert!(out.is_empty());
    assert!(matches!(ended, Err(StreamBroken::Malformed(_))));
}

#[test]
fn a_failure_in_the_middle_is_told_in_the_others_words() {
    let start = &ANTHROPIC_CALL[..ANTHROPIC_CALL.find("event: ping").unwrap()];
    let failure = "event: error\ndata: {\"type\": \"error\", \"error\": {\"type\": \"overloaded_error\", \"message\": \"Overloaded\"}}\n\n";
    let after = "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";
    let pieces = [start.as_bytes(), failure.as_bytes(), after.as_bytes()];
    let (out, ended) = translated(Dialect::OpenAi, &pieces);
    let message = "Overloaded".to_owned();
    assert_eq!(
        ended,
        Err(StreamBroken::Failed {
            status: 529,
            message
        })
    );
    let error = json!({"message": "Overloaded", "type": "service_unavailable_error", "param": null, "code": "server_is_overloaded"});
    assert_eq!(
        fold::events(&out).pop().unwrap(),
        (String::new(), json!({"error": error}))
    );
    assert!(!has_end(&out));

    let start = &OPENAI_TEXT[..OPENAI_TEXT.find("data: {\"id\":\"chatcmpl-123\"").unwrap()];
    let failure = "data: {\"error\":{\"message\":\"Slow down\",\"type\":\"tokens\",\"param\":null,\"code\":\"rate_limit_exceeded\"}}\n\n";
    let pieces = [start.as_bytes(), failure.as_bytes(), b"data: [DONE]\n\n"];
    let (out, ended) = translated(Dialect::Anthropic, &pieces);
    let message = "Slow down".to_owned();
    assert_eq!(
        ended,
        Err(StreamBroken::Failed {
            status: 429,
            message
        })
    );
    let error =
        json!({"type": "error", "error": {"type": "rate_limit_error", "message": "Slow down"}});
    assert_eq!(
        fold::events(&out).pop().unwrap(),
        ("error".to_owned(), error)
    );
    assert!(!has_end(&out));
}

#[test]
fn a_failure_is_known_by_its_name_too() {
    let failure = b"event: error\ndata: {\"message\":\"gone\"}\n\n";
    for to in [Dialect::OpenAi, Dialect::Anthropic] {
        let (out, ended) = translated(to, &[failure]);
        let message = "gone".to_owned();
        assert_eq!(
            ended,
            Err(StreamBroken::Failed {
                status: 500,
                message
            })
        );
        assert!(String::from_utf8(out).unwrap().contains("gone"));
    }
}

#[test]
fn what_comes_after_the_end_says_nothing() {
    for (to, stream) in [
        (Dialect::OpenAi, ANTHROPIC_CALL),
        (Dialect::Anthropic, OPENAI_CALLS),
    ] {
        let alone = translated(to, &[stream.as_bytes()]);
        let after = b"data: {\"error\":{\"message\":\"late\"}}\n\ndata: {half";
        assert_eq!(translated(to, &[stream.as_bytes(), after]), alone);
        let together = [stream.as_bytes(), after].concat();
        assert_eq!(translated(to, &[&together]), alone);
    }
}

#[test]
fn an_event_out_of_place_breaks_the_stream() {
    let start = &ANTHROPIC_CALL[..ANTHROPIC_CALL.find("event: ping").unwrap()];
    let event = |data: &Value| format!("data: {data}\n\n");
    let block =
        json!({"type": "content_block_start", "index": 1, "content_block": {"type": "text"}});
    for bad in [
        "data: {\"type\":\"content_block_delta\",\"ind\n\n".to_owned(),
        "data: []\n\n".to_owned(),
        event(&block),
        event(&json!({"type": "content_block_delta", "index": 5, "delta": {}})),
        event(&json!({"type": "content_block_delta", "index": 0})),
        event(&json!({"type": "content_block_stop", "index": 1})),
    ] {
        let rest = &ANTHROPIC_CALL[start.len()..];
        let pieces = [start.as_bytes(), bad.as_bytes(), rest.as_bytes()];
        let (out, ended) = translated(Dialect::OpenAi, &pieces);
        assert!(matches!(ended, Err(StreamBroken::Malformed(_))), "{bad}");
        assert!(!has_end(&out));
    }
    let early = event(&block);
    let (out, ended) = translated(Dialect::OpenAi, &[early.as_bytes()]);
    assert!(out.is_empty() && matches!(ended, Err(StreamBroken::Malformed(_))));
}

#[test]
fn a_call_that_goes_on_after_the_next_has_begun_breaks_the_stream() {
    let late = "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"x\"}}]}}]}\n\n";
    let at = OPENAI_CALLS.find("data: {\"id\":\"chatcmpl-9\",\"model\":\"gpt-4o-mini\",\"choices\":[{\"index\":0,\"delta\":{},").unwrap();
    let (start, rest) = OPENAI_CALLS.split_at(at);
    let (out, ended) = translated(
        Dialect::Anthropic,
        &[start.as_bytes(), late.as_bytes(), rest.as_bytes()],
    );
    assert!(matches!(ended, Err(StreamBroken::Malformed(_))));
    assert!(!has_end(&out));
}

#[test]
fn an_event_without_end_is_an_error_and_not_memory() {
    let piece = vec![b'x'; 1 << 20];
    let pieces: Vec<&[u8]> = std::iter::repeat_n(&piece[..], (EVENT_BYTES_MAX >> 20) + 1).collect();
    let (out, ended) = translated(Dialect::OpenAi, &pieces);
    assert!(out.is_empty() && matches!(ended, Err(StreamBroken::TooLarge(_))));
}

proptest! {
    #[test]
    fn however_it_is_damaged_a_stream_has_its_end_exactly_when_it_is_whole(
        which in 0..4_usize,
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 1..4),
    ) {
        let (to, stream) = [
            (Dialect::OpenAi, ANTHROPIC_CALL),
            (Dialect::OpenAi, ANTHROPIC_THOUGHT),
            (Dialect::Anthropic, OPENAI_TEXT),
            (Dialect::Anthropic, OPENAI_CALLS),
        ][which];
        let mut stream = stream.as_bytes().to_vec();
        for (at, byte, how) in damage {
            let at = at.index(stream.len());
            match how {
                0 => stream[at] = byte,
                1 => drop(stream.remove(at)),
                _ => stream.insert(at, byte),
            }
        }
        let (out, ended) = translated(to, &[&stream]);
        prop_assert_eq!(ended.is_ok(), has_end(&out));
    }
}
