use proptest::prelude::*;

use super::prompt::FILES_MAX;
use super::*;
use crate::plain::tests::nearly_json;

const NAMES: [&str; 15] = [
    "model",
    "stream",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "messages",
    "prompt",
    "system",
    "content",
    "text",
    "role",
    "file",
    "source",
    "file_id",
    "other",
];

#[test]
fn the_usual_body_is_plain() {
    let body = r#"{"model":"m","messages":[{"role":"user","content":"say \"é\"\n"}],"max_tokens":9,"stream":true,"temperature":0.5}"#;
    let scan = scan_plain(body.as_bytes());
    assert_eq!(scan, scan_any(body.as_bytes(), TokenCounter::Chars).ok());
    assert!(scan.is_some());
    let twice = r#"{"model":"m","model":"n"}"#;
    assert_eq!(scan_plain(twice.as_bytes()), None);
}

fn scan(body: &str) -> RequestScan {
    scan_request(body.as_bytes(), TokenCounter::Chars).unwrap()
}

fn input(body: &str) -> u32 {
    scan(body).size.input_tokens
}

#[test]
fn text_is_counted_wherever_it_stands_and_divided_once() {
    let table = [
        (
            r#"{"messages":[{"role":"system","content":"ab"},{"role":"user","content":"cde"}]}"#,
            2,
        ),
        (
            r#"{"messages":[{"role":"user","content":[{"type":"text","text":"abcde"}]}]}"#,
            2,
        ),
        (
            r#"{"messages":[{"content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AAAAAAAAAA"}}]}]}"#,
            0,
        ),
        (
            r#"{"system":"abcd","messages":[{"role":"user","content":"e"}]}"#,
            2,
        ),
        (
            r#"{"system":[{"type":"text","text":"abcd","cache_control":{"type":"ephemeral"}}]}"#,
            1,
        ),
        (
            r#"{"messages":[{"content":[{"type":"tool_result","content":[{"type":"text","text":"abcd"}]}]}]}"#,
            1,
        ),
        (
            r#"{"messages":[{"content":null,"tool_calls":[{"function":{"name":"f","arguments":"{\"a\":1}"}}]}]}"#,
            2,
        ),
        (r#"{"instructions":"abcd","input":"efgh"}"#, 2),
        (
            r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"abcde"}]}]}"#,
            2,
        ),
        (r#"{"input":["abcd","efgh"]}"#, 2),
        (r#"{"input":[1,2,3]}"#, 3),
        (r#"{"prompt":[[1,2],[3]]}"#, 3),
        (r#"{"prompt":"h\u00e9\n!"}"#, 1),
        (r#"{"metadata":{"content":"not text of the call"}}"#, 0),
    ];
    for (body, tokens) in table {
        assert_eq!(input(body), tokens, "{body}");
    }
}

#[test]
fn caps_answers_and_flags_are_found() {
    let body = r#"{"max_completion_tokens":7,"max_tokens":9,"n":3,"stream":true,
        "stream_options":{"include_usage":true},"model":"m"}"#;
    let found = scan(body);
    assert_eq!(found.size.max_output_tokens, Some(7));
    assert_eq!(found.size.choices, 3);
    assert_eq!((found.stream, found.include_usage), (true, Some(true)));
    assert_eq!(
        scan(r#"{"max_output_tokens":16}"#).size.max_output_tokens,
        Some(16)
    );
    let odd =
        scan(r#"{"max_tokens":null,"n":"two","stream":null,"stream_options":null,"model":5.5}"#);
    assert_eq!(
        odd.size,
        CallSize {
            input_tokens: 0,
            max_output_tokens: None,
            choices: 1
        }
    );
    assert_eq!((odd.model, odd.stream), (None, false));
}

/// The answers of several prompts were taken for one: limits and budgets held for that alone, and
/// a stream looked whole when the shortest of them had ended.
#[test]
fn each_prompt_of_a_completion_has_its_own_answers() {
    let table = [
        (r#"{"prompt":"a"}"#, 1),
        (r#"{"prompt":["a"]}"#, 1),
        (r#"{"prompt":["a","b","c"]}"#, 3),
        (r#"{"n":2,"prompt":["a","b","c"]}"#, 6),
        (r#"{"prompt":["a","b"],"best_of":4}"#, 8),
        (r#"{"prompt":[1,2,3]}"#, 1),
        (r#"{"prompt":[[1,2],[3]]}"#, 2),
        (r#"{"prompt":[]}"#, 1),
        // One call for embeddings or a response, however many parts it has.
        (r#"{"input":["a","b"]}"#, 1),
        (
            r#"{"messages":[{"content":[{"text":"a"},{"text":"b"}]},{"content":"c"}]}"#,
            1,
        ),
        (
            r#"{"prompt":{"id":"pmpt_1","variables":{"a":["b","c"]}}}"#,
            1,
        ),
    ];
    for (body, answers) in table {
        assert_eq!(scan(body).size.choices, answers, "{body}");
    }
}

#[test]
fn a_choice_about_usage_is_told_from_none() {
    let table = [
        ("{}", None),
        (r#"{"stream_options":{"include_obfuscation":false}}"#, None),
        (r#"{"stream_options":{"include_usage":null}}"#, None),
        (r#"{"stream_options":{"include_usage":false}}"#, Some(false)),
        (r#"{"stream_options":{"include_usage":"yes"}}"#, Some(false)),
        (r#"{"stream_options":{"include_usage":true}}"#, Some(true)),
    ];
    for (body, choice) in table {
        assert_eq!(scan(body).include_usage, choice, "{body}");
    }
}

#[test]
fn what_was_made_earlier_is_named_in_one_of_three_ways() {
    let named = |member, name: &str| Some((member, name.to_owned()));
    let table = [
        (
            r#"{"previous_response_id":"resp_1"}"#,
            named("previous_response_id", "resp_1"),
        ),
        (
            r#"{"conversation":"conv_1"}"#,
            named("conversation", "conv_1"),
        ),
        (
            r#"{"conversation":{"id":"conv_1"}}"#,
            named("conversation", "conv_1"),
        ),
        (r#"{"previous_response_id":null,"conversation":{}}"#, None),
    ];
    for (body, names) in table {
        assert_eq!(scan(body).kept.earlier, names, "{body}");
    }
}

#[test]
fn files_that_are_only_named_are_found_where_dialects_name_them() {
    let part = |part: &str| format!(r#"{{"input":[{{"role":"user","content":[{part}]}}]}}"#);
    let found = |body: &str| scan(body).kept.files;
    for named in [
        r#"{"type":"input_file","file_id":"f"}"#,
        r#"{"type":"input_image","detail":"low","file_id":"f"}"#,
        r#"{"type":"file","file":{"file_id":"f"}}"#,
        r#"{"type":"document","source":{"type":"file","file_id":"f"}}"#,
        r#"{"type":"container_upload","file_id":"f"}"#,
        r#"{"type":"tool_result","content":[{"source":{"file_id":"f"}}]}"#,
        r#"{"type":"input_file","file\u005fid":"f"}"#,
    ] {
        assert_eq!(found(&part(named)), ["f"], "{named}");
        let body = part(named).replacen("input", "messages", 1);
        assert_eq!(found(&body), ["f"], "{body}");
    }
    for none in [
        r#"{"type":"input_file","file_data":"data:,x","filename":"file_id"}"#,
        r#"{"type":"file","file":{"file_data":"data:,x","filename":"x"}}"#,
        r#"{"type":"image","source":{"type":"base64","data":"file_id"}}"#,
        r#"{"type":"input_file","file_id":null}"#,
        r#"{"type":"text","text":"\"file_id\":\"f\""}"#,
        r#"{"type":"output_text","annotations":[{"file_id":"f"}]}"#,
        r#"{"type":"function_call","arguments":"{\"file_id\":\"f\"}"}"#,
    ] {
        assert!(found(&part(none)).is_empty(), "{none}");
    }
    let output = r#"{"input":[{"type":"function_call_output","output":[{"type":"input_file","file_id":"f"}]}]}"#;
    assert_eq!(found(output), ["f"]);
    let tool = r#"{"tools":[{"parameters":{"properties":{"file_id":{"type":"string"}}}}]}"#;
    assert!(found(tool).is_empty());
    let many = vec![r#"{"file_id":"f"}"#; 300].join(",");
    assert_eq!(found(&part(&many)).len(), FILES_MAX);
}

/// The quick way must not lose what the careful one finds.
#[test]
fn a_file_that_is_sent_along_is_plain() {
    let body = r#"{"model":"m","messages":[{"role":"user","content":[{"type":"file","file":{"file_data":"data:,x","filename":"x"}},{"type":"image","source":{"type":"base64","data":"x"}}]}]}"#;
    let scan = scan_plain(body.as_bytes());
    assert_eq!(scan, scan_any(body.as_bytes(), TokenCounter::Chars).ok());
    assert!(scan.is_some());
}

#[test]
fn the_prompt_begins_with_its_first_text() {
    let table = [
        (r#"{"model":"messages","messages":[1]}"#, Some(r#"":[1]}"#)),
        (r#"{"messages":[],"system":"s"}"#, Some(r#"":"s"}"#)),
        (r#"{"input":"a","x":1}"#, Some(r#"":"a","x":1}"#)),
        (r#"{"model":"m"}"#, None),
    ];
    for (body, rest) in table {
        assert_eq!(scan(body).prompt_at.map(|at| &body[at..]), rest, "{body}");
    }
}

#[test]
fn what_is_no_object_is_refused_without_quoting_it() {
    for body in [
        "",
        "null",
        "[]",
        "\"secret\"",
        "{\"a\":",
        "{} {}",
        "{\"secret\" 1}",
        "{\"secret\":tru}",
    ] {
        let error = scan_request(body.as_bytes(), TokenCounter::Chars).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
    let deep = format!("{{\"messages\":{}", "[".repeat(100_000));
    assert!(scan_request(deep.as_bytes(), TokenCounter::Chars).is_err());
}

proptest! {
    #[test]
    fn the_estimate_is_that_of_all_texts_together(texts in proptest::collection::vec(any::<String>(), 0..6)) {
        let messages: Vec<_> = texts.iter().map(|text| serde_json::json!({"role": "user", "content": text})).collect();
        let body = serde_json::to_vec(&serde_json::json!({"messages": messages})).unwrap();
        let chars: usize = texts.iter().map(|text| text.chars().count()).sum();
        let found = scan_request(&body, TokenCounter::Chars).unwrap();
        prop_assert_eq!(found.size.input_tokens as usize, chars.div_ceil(4));
    }

    #[test]
    fn a_plain_body_is_read_as_any_other(body in nearly_json(&NAMES)) {
        if let Some(scan) = scan_plain(&body) {
            prop_assert_eq!(scan_any(&body, TokenCounter::Chars), Ok(scan));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = scan_request(&bytes, TokenCounter::Chars);
    }
}
