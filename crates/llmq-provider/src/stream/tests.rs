use proptest::prelude::*;

use super::*;

const CHAT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"the \\\"usage\\\" of it\"}}],\"usage\":null}\n\n: keep-alive\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":163}}\n\ndata: [DONE]\n\n";
const RESPONSES: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\nevent: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\",\"error\":null,\"usage\":{\"input_tokens\":36,\"output_tokens\":87}}}\n\n";
const ANTHROPIC: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"cache_read_input_tokens\":5,\"output_tokens\":1}}}\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

const STREAMS: [(Dialect, Operation, &str, u64); 3] = [
    (Dialect::OpenAi, Operation::ChatCompletions, CHAT, 175),
    (Dialect::OpenAi, Operation::Responses, RESPONSES, 123),
    (Dialect::Anthropic, Operation::Messages, ANTHROPIC, 45),
];

fn read(dialect: Dialect, operation: Operation, text: &str) -> (StreamEnd, Option<u64>) {
    let mut reader = StreamReader::new(dialect, operation);
    reader.push(text.as_bytes()).unwrap();
    (reader.finish(), reader.usage().map(|usage| usage.total()))
}

#[test]
fn each_dialect_ends_in_its_own_way_and_tells_its_usage() {
    for (dialect, operation, text, tokens) in STREAMS {
        assert_eq!(
            read(dialect, operation, text),
            (StreamEnd::Whole, Some(tokens))
        );
    }
}

#[test]
fn the_output_so_far_is_never_more_than_the_whole() {
    for (dialect, operation, text, least) in [
        (Dialect::OpenAi, Operation::ChatCompletions, CHAT, 1),
        (
            Dialect::OpenAi,
            Operation::ChatCompletions,
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
             data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
             data: {\"choices\":[{\"text\":\"b\"}]}\n\n\
             data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
             data: [DONE]\n\n",
            2,
        ),
        (
            Dialect::OpenAi,
            Operation::Responses,
            "event: response.output_text.delta\ndata: {\"delta\":\"a\"}\n\n\
             event: response.output_text.done\ndata: {\"text\":\"a\"}\n\n",
            1,
        ),
        (
            Dialect::Anthropic,
            Operation::Messages,
            "event: message_start\ndata: {\"type\":\"message_start\"}\n\n\
             event: content_block_delta\ndata: {\"delta\":{\"type\":\"text_delta\",\"text\":\"a\"}}\n\n\
             data: {\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"\"}}\n\n\
             data: {\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\"}}\n\n\
             data: {\"delta\":{\"type\":\"signature_delta\",\"signature\":\"x\"}}\n\n\
             event: message_delta\ndata: {\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n\
             event: content_block_stop\ndata: {\"type\":\"content_block_stop\"}\n\n",
            2,
        ),
    ] {
        let mut reader = StreamReader::new(dialect, operation).counting();
        reader.push(text.as_bytes()).unwrap();
        assert_eq!(reader.output_at_least(), Some(least), "{text}");
    }
    let reader = StreamReader::new(Dialect::OpenAi, Operation::ChatCompletions);
    assert_eq!(reader.output_at_least(), None);
}

#[test]
fn a_stream_cut_anywhere_before_its_end_is_never_whole() {
    for (dialect, operation, text, _) in STREAMS {
        // The last bytes are line ends, and the brace that closes the last object.
        let last = text.trim_end().len() - 1;
        for cut in 0..last {
            let (end, _) = read(dialect, operation, &text[..cut]);
            assert_eq!(end, StreamEnd::CutOff, "{}", &text[..cut]);
        }
    }
}

#[test]
fn a_stream_that_has_finished_is_whole_without_its_last_event() {
    let text = "data: {\"choices\":[{\"delta\":{},\"finish_reason\": \"stop\"}]}\n\n";
    let chat = Operation::ChatCompletions;
    assert_eq!(read(Dialect::OpenAi, chat, text).0, StreamEnd::Whole);
    for open in ["null", "\"\""] {
        let open = text.replace("\"stop\"", open);
        assert_eq!(read(Dialect::OpenAi, chat, &open).0, StreamEnd::CutOff);
    }
}

/// Each prefix of such a stream looked whole, and a cut one was ended cleanly.
#[test]
fn a_stream_whose_every_chunk_gives_a_reason_is_whole_with_its_last_event_alone() {
    let chunk = |word: &str| {
        format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{word}\"}},\
             \"finish_reason\":\"stop\"}}]}}\n\n"
        )
    };
    let chat = Operation::ChatCompletions;
    let begun = format!("{}{}", chunk("a"), chunk("b"));
    assert_eq!(read(Dialect::OpenAi, chat, &begun).0, StreamEnd::CutOff);
    let whole = format!("{begun}data: [DONE]\n\n");
    assert_eq!(read(Dialect::OpenAi, chat, &whole).0, StreamEnd::Whole);
}

/// The first chunk of such a stream looked like a whole answer, and its connection was not
/// waited for.
#[test]
fn a_reason_in_the_first_chunk_makes_no_whole_of_a_body_that_broke() {
    let chunk = |delta: &str, reason: &str| {
        format!("data: {{\"choices\":[{{\"delta\":{delta},\"finish_reason\":{reason}}}]}}\n\n")
    };
    let role = r#"{"role":"assistant","content":""}"#;
    let word = r#"{"content":"a"}"#;
    let (stop, none) = ("\"stop\"", "null");
    for (text, is_whole) in [
        (chunk(role, stop), false),
        (chunk(word, stop), false),
        (format!("{}{}", chunk(role, none), chunk(word, stop)), false),
        (format!("{}{}", chunk(word, none), chunk("{}", stop)), true),
        (format!("{}{}", chunk(role, none), chunk("{}", stop)), true),
        (format!("{}data: [DONE]", chunk(word, stop)), true),
    ] {
        let mut reader = StreamReader::new(Dialect::OpenAi, Operation::ChatCompletions);
        reader.push(text.as_bytes()).unwrap();
        let is_done = text.ends_with("[DONE]");
        assert_eq!(reader.is_all_there(), is_whole && !is_done, "{text}");
        assert_eq!(reader.broke() == StreamEnd::Whole, is_whole, "{text}");
        // A body that ended in order says that there is no more.
        let (end, _) = read(Dialect::OpenAi, Operation::ChatCompletions, &text);
        assert_eq!(end, StreamEnd::Whole, "{text}");
    }
}

/// A thought, or the next word, may take longer than a last event.
#[test]
fn what_goes_on_after_its_reason_is_not_all_there() {
    let mut reader = StreamReader::new(Dialect::OpenAi, Operation::ChatCompletions);
    let mut push = |delta: &str, reason: &str| {
        let text =
            format!("data: {{\"choices\":[{{\"delta\":{delta},\"finish_reason\":{reason}}}]}}\n\n");
        reader.push(text.as_bytes()).unwrap();
        reader.is_all_there()
    };
    let word = r#"{"content":"a"}"#;
    assert!(!push(word, "null"));
    assert!(push(word, "\"stop\""));
    assert!(!push(word, "\"stop\""));
    assert!(!push("{}", "\"stop\""));
}

/// The first of several answers to end made a stream whole that was cut in the middle of the
/// others.
#[test]
fn a_stream_of_several_answers_is_whole_when_all_of_them_have_finished() {
    let choice = |index: u32, reason: &str| {
        format!("{{\"index\":{index},\"delta\":{{}},\"finish_reason\":{reason}}}")
    };
    let event = |choices: &[String]| format!("data: {{\"choices\":[{}]}}\n\n", choices.join(","));
    let end = |text: &str| {
        let mut reader = StreamReader::new(Dialect::OpenAi, Operation::ChatCompletions).of(2);
        reader.push(text.as_bytes()).unwrap();
        reader.finish()
    };
    let one = event(&[choice(0, "null"), choice(1, "\"stop\"")]);
    assert_eq!(end(&one), StreamEnd::CutOff);
    let other = event(&[choice(0, "\"length\"")]);
    assert_eq!(end(&format!("{one}{other}")), StreamEnd::Whole);
}

/// A failed response repeats what was asked. Long instructions pushed the error out of what
/// was kept, and a used-up limit became a hiccup.
#[test]
fn a_failure_is_kept_however_long_what_stands_beside_it_is() {
    let long = "x".repeat(ERROR_BYTES_MAX);
    let error = "{\"code\":\"rate_limit_exceeded\"}";
    let kept = StreamEnd::Failed(format!("{{\"error\":{error}}}").into_bytes());
    let response = format!(
        "event: response.failed\ndata: {{\"type\":\"response.failed\",\"response\":{{\"instructions\":\"{long}\",\"error\":{error}}}}}\n\n"
    );
    assert_eq!(
        read(Dialect::OpenAi, Operation::Responses, &response).0,
        kept
    );
    let chunk = format!("data: {{\"debug\":\"{long}\",\"error\":{error}}}\n\n");
    let chat = read(Dialect::OpenAi, Operation::ChatCompletions, &chunk);
    assert_eq!(chat.0, kept);
}

#[test]
fn an_event_that_is_no_object_breaks_the_stream() {
    let text = "data: {\"choices\":[{\"de\n\ndata: {\"choices\":[]}\n\ndata: [DONE]\n\n";
    let chat = Operation::ChatCompletions;
    assert_eq!(read(Dialect::OpenAi, chat, text).0, StreamEnd::Malformed);
}

#[test]
fn names_of_events_may_be_missing_and_foreign_ends_do_not_count() {
    let nameless = ANTHROPIC.replace("event: message_stop\n", "");
    let anthropic = read(Dialect::Anthropic, Operation::Messages, &nameless);
    assert_eq!(anthropic.0, StreamEnd::Whole);
    let done = "data: [DONE]\n\n";
    let responses = read(Dialect::OpenAi, Operation::Responses, done);
    assert_eq!(responses.0, StreamEnd::CutOff);
}

#[test]
fn failures_in_the_middle_are_kept_for_the_classifier() {
    let table = [
        (
            Dialect::Anthropic,
            Operation::Messages,
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
            "{\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}",
        ),
        (
            Dialect::OpenAi,
            Operation::Responses,
            "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"server_error\"}}}\n\n",
            "{\"error\":{\"code\":\"server_error\"}}",
        ),
        (
            Dialect::OpenAi,
            Operation::Responses,
            "event: error\ndata: {\"type\":\"error\",\"code\":\"context_length_exceeded\"}\n\n",
            "{\"error\":{\"type\":\"error\",\"code\":\"context_length_exceeded\"}}",
        ),
        (
            Dialect::OpenAi,
            Operation::ChatCompletions,
            "data: {\"error\":{\"code\":502}}\n\ndata: [DONE]\n\n",
            "{\"error\":{\"code\":502}}",
        ),
        // It was a success, as a whole answer with this reason is none.
        (
            Dialect::OpenAi,
            Operation::ChatCompletions,
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"error\"}]}\n\ndata: [DONE]\n\n",
            "{\"choices\":[{\"delta\":{},\"finish_reason\":\"error\"}]}",
        ),
        (
            Dialect::OpenAi,
            Operation::ChatCompletions,
            "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"abort\"}]}\n\ndata: [DONE]\n\n",
            "{\"choices\":[{\"delta\":{},\"finish_reason\":\"abort\"}]}",
        ),
    ];
    for (dialect, operation, text, kept) in table {
        let failed = StreamEnd::Failed(kept.as_bytes().to_vec());
        assert_eq!(read(dialect, operation, text).0, failed);
    }
}

/// What came in one piece with it was passed on behind it, `[DONE]` too.
#[test]
fn nothing_behind_a_failure_is_read() {
    let done = "data: [DONE]";
    for failed in [
        r#"data: {"error":{"code":502}}"#,
        r#"data: {"choices":[{"delta":{},"finish_reason":"error"}]}"#,
    ] {
        for line_end in ["\n", "\r\n"] {
            let failure = format!("{failed}{line_end}{line_end}").len();
            let text = format!("{failed}{line_end}{line_end}{done}{line_end}{line_end}");
            for cut in 0..failure - 1 {
                let (begun, rest) = text.as_bytes().split_at(cut);
                let mut reader = StreamReader::new(Dialect::OpenAi, Operation::ChatCompletions);
                reader.push(begun).unwrap();
                assert_eq!((reader.taken(), reader.is_broken()), (cut, false));
                reader.push(rest).unwrap();
                assert_eq!((cut + reader.taken(), reader.is_broken()), (failure, true));
            }
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_look_whole(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for (dialect, operation, _, _) in STREAMS {
            let mut reader = StreamReader::new(dialect, operation);
            prop_assert_eq!(reader.push(&bytes), Ok(()));
            prop_assert_ne!(reader.finish(), StreamEnd::Whole);
        }
    }
}
