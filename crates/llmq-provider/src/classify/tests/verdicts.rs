//! What goes into a verdict besides the codes of a provider, and what follows from it.

use FailureClass as C;
use llmq_core::Backoffs;

use super::*;

#[test]
fn should_retry_overrules_the_status_and_not_the_codes() {
    let no = &[("x-should-retry", "false")];
    let yes = &[("x-should-retry", "true")];
    check(
        Host::OpenAi,
        &[
            ((500, no, ""), C::RowFault, None),
            ((400, yes, ""), C::Transient, None),
            ((429, no, LIMITED), C::QuotaWindow, None),
            ((401, yes, ""), C::NoAccess, None),
        ],
    );
    // A gateway says so of a time that is too long for an SDK to sleep, and a run that goes
    // through it took the row for the one at fault.
    let much_later = &[("x-should-retry", "false"), ("retry-after", "300")];
    check(
        Host::OpenAi,
        &[((500, much_later, ""), C::Transient, Some(300.0))],
    );
}

#[test]
fn a_refused_model_leaves_the_credential_alone_and_a_refused_key_does_not() {
    let model = r#"{"error":{"message":"m","code":"model_not_found"}}"#;
    assert_eq!(
        verdict(Host::OpenAi, (404, &[], model)).pause,
        Pause::Upstream
    );
    assert_eq!(
        verdict(Host::OpenAi, (401, &[], "")).pause,
        Pause::Credential
    );
}

/// It was known of OpenAI and Anthropic alone, and no larger context helped at the others.
#[test]
fn a_prompt_that_is_too_long_is_known_in_every_servers_words() {
    let says = |message: &str, more: &str| format!(r#"{{"message":"{message}"{more}}}"#);
    let within = |error: String| format!(r#"{{"error":{error}}}"#);
    let table = [
        within(says(
            "m",
            r#","type":"invalid_request_error","code":"context_length_exceeded""#,
        )),
        within(says(
            "prompt is too long: 210000 tokens > 200000 maximum",
            r#","type":"invalid_request_error""#,
        )),
        // vLLM, of 2025 and of 2026.
        within(says(
            "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
            r#","type":"BadRequestError","param":null,"code":400"#,
        )),
        within(says(
            "You passed 5000 input tokens and requested 1 output tokens. However, the model's context length is only 4096 tokens, resulting in a maximum input length of 4095 tokens.",
            r#","type":"BadRequestError","code":400"#,
        )),
        // OpenRouter.
        within(says(
            "This endpoint's maximum context length is 131072 tokens. However, you requested about 141607 tokens",
            r#","code":400,"metadata":{"provider_name":"Chutes"}"#,
        )),
        // llama.cpp.
        within(says(
            "request (9412 tokens) exceeds the available context size (8192 tokens), try increasing it",
            r#","code":400,"type":"exceed_context_size_error","n_ctx":8192"#,
        )),
        // Gemini.
        format!(
            "[{}]",
            within(says(
                "The input token count (3475108) exceeds the maximum number of tokens allowed (1048576).",
                r#","code":400,"status":"INVALID_ARGUMENT""#
            ))
        ),
        // Groq, without its code, and Cerebras.
        within(says(
            "Please reduce the length of the messages or completion.",
            r#","type":"invalid_request_error","param":"messages""#,
        )),
        // Mistral.
        says(
            "Prompt contains 40000 tokens, too large for model with 32768 maximum context length",
            r#","object":"error","type":"invalid_request_error","code":3051"#,
        ),
        // xAI.
        within(says(
            "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
            "",
        )),
        within(says(
            "Your input exceeds the context window of this model. Please adjust your input and try again.",
            r#","type":"invalid_request_error""#,
        )),
    ];
    for body in &table {
        let verdict = verdict(Host::OpenAi, (400, &[], body));
        assert_eq!(verdict.class, C::RowFault, "{body}");
        assert!(verdict.exceeds_context(), "{body}");
    }
    // Elsewhere the same words say nothing of the kind.
    for (status, body) in [(500, &table[2]), (401, &table[2])] {
        assert!(!verdict(Host::OpenAi, (status, &[], body)).exceeds_context());
    }
    let other = within(says(
        "Unknown parameter: 'x'",
        r#","type":"invalid_request_error""#,
    ));
    assert!(!verdict(Host::OpenAi, (400, &[], &other)).exceeds_context());
}

/// The failure that a stream of the Responses API begins with is one event, and was taken for a
/// hiccup of the server.
#[test]
fn a_failure_with_status_200_stands_for_the_status_of_its_code() {
    let table = [
        (
            200,
            r#"{"error":{"type":"error","code":"context_length_exceeded"}}"#,
            C::RowFault,
            400,
        ),
        (
            200,
            r#"{"error":{"code":"content_filter"}}"#,
            C::RowFault,
            400,
        ),
        (
            200,
            r#"{"error":{"code":"image_too_large"}}"#,
            C::RowFault,
            400,
        ),
        (
            200,
            r#"{"error":{"code":"rate_limit_exceeded"}}"#,
            C::QuotaWindow,
            429,
        ),
        (
            200,
            r#"{"error":{"code":"RESOURCE_EXHAUSTED"}}"#,
            C::QuotaWindow,
            429,
        ),
        (
            200,
            r#"{"error":{"code":"insufficient_quota"}}"#,
            C::Money,
            429,
        ),
        (
            200,
            r#"{"error":{"code":"server_is_overloaded"}}"#,
            C::Overload,
            503,
        ),
        (200, r#"{"error":{"code":429}}"#, C::QuotaWindow, 429),
        (
            200,
            r#"{"error":{"code":"server_error"}}"#,
            C::Transient,
            502,
        ),
        (200, "{}", C::Transient, 502),
        (308, "<html>", C::NoAccess, 502),
        (
            500,
            r#"{"error":{"code":"server_error"}}"#,
            C::Transient,
            500,
        ),
    ];
    for (status, body, class, told) in table {
        assert_eq!(
            verdict(Host::OpenAi, (status, &[], body)).class,
            class,
            "{body}"
        );
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(
            failed_status(status, body.as_bytes()).as_u16(),
            told,
            "{body}"
        );
    }
}

/// The seconds a call waits after each of six failures of this class, at the least and at the
/// most that jitter makes of it.
fn waits(class: C, told: Option<Duration>) -> [Vec<f64>; 2] {
    [0.0, 1.0].map(|random| {
        let waits = (1..=6).map(|n| Backoffs::default().wait(class, told, n, random));
        waits.flatten().map(|wait| wait.as_secs_f64()).collect()
    })
}

/// A page of a firewall for one prompt closed every model of the account, and a path that a
/// server lacks closed the model to everybody, until a person acted.
#[test]
fn what_may_be_one_calls_fault_is_told_apart_from_a_refused_key() {
    let refused = |failed| verdict(Host::OpenAi, failed).refused;
    for (failed, expected) in [
        ((401, ""), Refused::Key),
        ((403, r#"{"error":{"message":"m"}}"#), Refused::Key),
        (
            (400, r#"{"error":{"message":"m","code":"api_key_invalid"}}"#),
            Refused::Key,
        ),
        // Every row of a run failed for good where a key is refused with 400: at xAI, Groq and
        // Gemini.
        (
            (
                400,
                r#"{"code":"Client specified an invalid argument","error":"Incorrect API key provided: sk***y1. You can obtain an API key from https://console.x.ai."}"#,
            ),
            Refused::Key,
        ),
        (
            (
                400,
                r#"{"error":{"message":"Organization has been restricted.","type":"invalid_request_error","code":"organization_restricted"}}"#,
            ),
            Refused::Key,
        ),
        (
            (
                400,
                r#"[{"error":{"code":400,"message":"User location is not supported for the API use.","status":"FAILED_PRECONDITION"}}]"#,
            ),
            Refused::Key,
        ),
        ((403, "<html>blocked"), Refused::Unclear),
        ((404, "404 page not found"), Refused::Unclear),
        (
            (404, r#"{"error":{"message":"m","code":"unknown_url"}}"#),
            Refused::Unclear,
        ),
        (
            (404, r#"{"error":{"message":"m","code":"model_not_found"}}"#),
            Refused::Model,
        ),
        (
            (404, r#"{"error":{"message":"no such model"}}"#),
            Refused::Model,
        ),
        // One model that is not allowed closed all models of the account: at Groq, OpenAI and
        // Anthropic.
        (
            (
                403,
                r#"{"error":{"message":"m","type":"permissions_error","code":"model_permission_blocked_org"}}"#,
            ),
            Refused::Model,
        ),
        (
            (
                403,
                r#"{"error":{"message":"You are not allowed to sample from this model","code":null}}"#,
            ),
            Refused::Model,
        ),
        (
            (
                403,
                r#"{"type":"error","error":{"type":"permission_error","message":"You may not use model: c"}}"#,
            ),
            Refused::Model,
        ),
        (
            (
                403,
                r#"{"type":"error","error":{"type":"permission_error","message":"m"}}"#,
            ),
            Refused::Key,
        ),
        ((403, "<html>this model is blocked"), Refused::Unclear),
    ] {
        let (status, body) = failed;
        assert_eq!(refused((status, &[], body)), Some(expected), "{body}");
    }
    let page = verdict(Host::OpenAi, (403, &[], "<html>blocked"));
    assert_eq!(page.pause, Pause::Upstream);
    assert!(page.may_be_the_calls());
    assert_eq!(refused((500, &[], "")), None);
    let quoted = r#"{"error":{"message":"Invalid value: 'Incorrect API key provided'"}}"#;
    assert_eq!(refused((400, &[], quoted)), None, "the caller's own words");
}

#[test]
fn every_published_answer_has_its_class_and_its_waits() {
    let limited = |message: &str| {
        format!(r#"{{"error":{{"message":"{message}","code":"rate_limit_exceeded"}}}}"#)
    };
    let day = limited("Limit 200 on requests per day (RPD). Please try again in 7m12s.");
    let large = limited("Request too large for m: Limit 10000, Requested 250011.");
    let money = r#"{"error":{"message":"m","code":"insufficient_quota"}}"#;
    let ramp = r#"{"error":{"message":"m","code":"slow_down"}}"#;
    let overloaded = r#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#;
    let unknown = r#"{"error":{"message":"m","code":"model_not_found"}}"#;
    let finer: &[_] = &[("retry-after-ms", "350"), ("retry-after", "1")];
    let minutes = [60.0, 120.0, 240.0, 300.0, 300.0, 300.0];
    let hours = [300.0, 600.0, 1_200.0, 2_400.0, 3_600.0, 3_600.0];
    let server = [0.5, 1.0, 2.0, 4.0, 4.0, 4.0];
    let html = "<html><h1>Bad gateway</h1>";
    let (openai, anthropic) = (Host::OpenAi, Host::Anthropic);
    let table: [(Host, Failed<'_>, C, &[f64]); 20] = [
        (
            openai,
            (429, &[("retry-after", "42")], LIMITED),
            C::QuotaWindow,
            &[42.0; 6],
        ),
        (openai, (429, finer, LIMITED), C::QuotaWindow, &[0.35; 6]),
        (openai, (429, &[], &day), C::QuotaDay, &[432.0; 6]),
        (openai, (429, &[], money), C::Money, &hours),
        (openai, (429, &[], &large), C::TooLarge, &[]),
        (
            openai,
            (429, &[("retry-after", "9")], ramp),
            C::Ramp,
            &[9.0; 6],
        ),
        (
            openai,
            (503, &[("retry-after", "7")], ""),
            C::Overload,
            &[7.0; 6],
        ),
        (openai, (503, &[], ""), C::Overload, &server),
        (openai, (529, &[], ""), C::Overload, &server),
        (anthropic, (529, &[], overloaded), C::Overload, &server),
        (openai, (500, &[], html), C::Transient, &server),
        (openai, (502, &[], html), C::Transient, &server),
        (openai, (504, &[], html), C::Transient, &server),
        (openai, (400, &[], ""), C::RowFault, &[]),
        (openai, (404, &[], unknown), C::NoAccess, &[]),
        (openai, (401, &[], ""), C::NoAccess, &[]),
        (openai, (413, &[], ""), C::RowFault, &[]),
        (openai, (422, &[], ""), C::RowFault, &[]),
        (openai, (429, &[], ""), C::QuotaWindow, &minutes),
        (anthropic, (429, &[], ""), C::QuotaWindow, &minutes),
    ];
    for (host, failed, class, expected) in table {
        let found = verdict(host, failed);
        assert_eq!(found.class, class, "{failed:?}");
        check_waits(class, found.wait, expected);
    }
    // Sent, and no answer came.
    check_waits(C::Ambiguous, None, &server);
    assert!(C::Ambiguous.rule().counts_attempt);
}

fn check_waits(class: C, told: Option<Duration>, expected: &[f64]) {
    let [least, most] = waits(class, told);
    assert_eq!(least, expected, "{class:?}");
    for (most, asked) in most.iter().zip(expected) {
        assert!(
            *most > *asked && *most <= asked * 1.1 + 1e-9,
            "{class:?}: {most}"
        );
    }
}

#[test]
fn a_200_that_is_cut_off_or_no_json_is_transient() {
    let source = Source {
        host: Host::Unknown,
        dialect: Dialect::OpenAi,
    };
    for body in ["", r#"{"choices":[{"mess"#, "<html>busy</html>"] {
        let verdict = check_answer(source, &answer(200, body), now()).unwrap_err();
        assert_eq!(verdict.class, C::Transient, "{body}");
    }
    let whole = r#"{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}"#;
    let facts = check_answer(source, &answer(200, whole), now()).unwrap();
    assert_eq!(facts.usage.unwrap().total(), 3);
}

fn answer(status: u16, body: &'static str) -> WholeAnswer {
    WholeAnswer {
        status: StatusCode::from_u16(status).unwrap(),
        headers: HeaderMap::new(),
        body: body.into(),
        times: crate::Times {
            sent: llmq_core::Timestamp::ZERO,
            head: llmq_core::Timestamp::ZERO,
        },
    }
}

#[test]
fn a_verdict_says_what_the_provider_said() {
    let said = verdict(
        Host::OpenAi,
        (
            400,
            &[],
            r#"{"error":{"message":"bad\nthing","type":"t","code":"c"}}"#,
        ),
    );
    assert_eq!(said.to_string(), "400: bad thing");
    assert_eq!(said.code.as_deref(), Some("c"));
}

#[test]
fn the_way_to_an_answer_decides_the_class_when_there_is_none() {
    let authority = "h:1".to_owned();
    let cause = crate::Cause::Closed;
    let lost = CallError::NoAnswer {
        authority: authority.clone(),
        cause: cause.clone(),
    };
    assert_eq!(Verdict::from(&lost).class, C::Ambiguous);
    let refused = CallError::NotSent { authority, cause };
    assert_eq!(Verdict::from(&refused).class, C::Transient);
}

#[test]
fn a_stream_is_judged_by_its_end() {
    let source = Source {
        host: Host::Anthropic,
        dialect: Dialect::Anthropic,
    };
    let judge = |end| {
        let headers = HeaderMap::new();
        check_stream(source, StatusCode::OK, &headers, &end, now()).map_err(|verdict| verdict.class)
    };
    assert_eq!(judge(StreamEnd::Whole), Ok(()));
    assert_eq!(judge(StreamEnd::CutOff), Err(C::Transient));
    let overloaded = br#"{"type":"error","error":{"type":"overloaded_error","message":"m"}}"#;
    assert_eq!(
        judge(StreamEnd::Failed(overloaded.to_vec())),
        Err(C::Overload)
    );
}

#[test]
fn no_answer_makes_the_classifier_panic() {
    use proptest::prelude::*;
    let cases = (
        100u16..1_000,
        proptest::collection::vec(any::<u8>(), 0..200),
        "[ -~]{0,40}",
    );
    proptest!(|((status, body, header) in cases)| {
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", header.parse().unwrap());
        headers.insert("x-should-retry", header.parse().unwrap());
        for host in [Host::OpenAi, Host::Gemini, Host::OpenRouter] {
            let source = Source { host, dialect: Dialect::OpenAi };
            let status = StatusCode::from_u16(status).unwrap();
            let verdict = classify(source, status, &headers, &body, now());
            prop_assert!(verdict.message.chars().count() <= 1_000);
        }
    });
}
