use FailureClass as C;
use llmq_core::{Backoffs, WallTime};

use super::*;

/// 2026-01-10 07:00 UTC: 23:00 the day before in California.
const NOW: i64 = 1_768_028_400_000_000;

fn now() -> Now {
    Now {
        wall: WallTime::from_micros(NOW),
        ..Now::default()
    }
}

/// Status, headers, body.
type Failed<'a> = (u16, &'a [(&'static str, &'static str)], &'a str);

fn verdict(host: Host, failed: Failed<'_>) -> Verdict {
    let dialect = match host {
        Host::Anthropic => Dialect::Anthropic,
        _ => Dialect::OpenAi,
    };
    let (status, headers, body) = failed;
    let headers = headers
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect();
    let source = Source { host, dialect };
    let status = StatusCode::from_u16(status).unwrap();
    classify(source, status, &headers, body.as_bytes(), now())
}

/// Checks the class, and the told wait in seconds.
fn check(host: Host, table: &[(Failed<'_>, FailureClass, Option<f64>)]) {
    for (failed, class, wait) in table {
        let found = verdict(host, *failed);
        let told = found.wait.map(|wait| wait.as_secs_f64());
        assert_eq!((found.class, told), (*class, *wait), "{failed:?}");
        assert_eq!(found.status, Some(failed.0));
    }
}

const LIMITED: &str = r#"{"error":{"message":"Rate limit reached","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#;

#[test]
fn openai() {
    let money = |code: &str| {
        format!(r#"{{"error":{{"message":"m","type":"insufficient_quota","code":"{code}"}}}}"#)
    };
    for code in [
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "billing_hard_limit_reached",
        "something_new",
    ] {
        check(Host::OpenAi, &[((429, &[], &money(code)), C::Money, None)]);
    }
    check(
        Host::OpenAi,
        &[
            (
                (429, &[("retry-after", "42")], LIMITED),
                C::QuotaWindow,
                Some(42.0),
            ),
            (
                (
                    429,
                    &[("retry-after-ms", "350"), ("retry-after", "1")],
                    LIMITED,
                ),
                C::QuotaWindow,
                Some(0.35),
            ),
            (
                (429, &[("retry-after", "7200")], LIMITED),
                C::QuotaDay,
                Some(7_200.0),
            ),
            (
                (
                    429,
                    &[("retry-after", "1")],
                    r#"{"error":{"message":"Rate limit reached for m on tokens per min (TPM): Limit 10000, Used 8782, Requested 8172. Please try again in 41.724s.","type":"tokens","code":"rate_limit_exceeded"}}"#,
                ),
                C::QuotaWindow,
                Some(41.724),
            ),
            (
                (
                    429,
                    &[],
                    r#"{"error":{"message":"Rate limit reached for m on requests per day (RPD): Limit 200, Used 200, Requested 1. Please try again in 7m12s.","type":"requests","code":"rate_limit_exceeded"}}"#,
                ),
                C::QuotaDay,
                Some(432.0),
            ),
            (
                (
                    429,
                    &[],
                    r#"{"error":{"message":"Request too large for m on tokens per min (TPM): Limit 10000, Requested 250011.","type":"tokens","code":"rate_limit_exceeded"}}"#,
                ),
                C::TooLarge,
                None,
            ),
            (
                (
                    429,
                    &[("retry-after", "9")],
                    r#"{"error":{"message":"m","type":"rate_limit_error","code":"slow_down"}}"#,
                ),
                C::Ramp,
                Some(9.0),
            ),
            (
                (
                    429,
                    &[],
                    r#"{"error":{"message":"Resource Unavailable","code":null}}"#,
                ),
                C::Overload,
                None,
            ),
            ((429, &[], ""), C::QuotaWindow, None),
            ((429, &[], "<html>"), C::QuotaWindow, None),
            ((503, &[("retry-after", "7")], ""), C::Overload, Some(7.0)),
            (
                (503, &[], r#"{"error":{"message":"m","code":"slow_down"}}"#),
                C::Ramp,
                None,
            ),
            (
                (
                    503,
                    &[],
                    r#"{"error":{"message":"m","type":"service_unavailable_error","code":"server_is_overloaded"}}"#,
                ),
                C::Overload,
                None,
            ),
            ((500, &[], "<html>"), C::Transient, None),
            ((502, &[], "<html><h1>Bad gateway</h1>"), C::Transient, None),
            ((504, &[], ""), C::Transient, None),
            ((522, &[], ""), C::Transient, None),
            ((408, &[], ""), C::Transient, None),
            ((409, &[], ""), C::Transient, None),
            (
                (
                    400,
                    &[],
                    r#"{"error":{"message":"m","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
                ),
                C::RowFault,
                None,
            ),
            (
                (
                    401,
                    &[],
                    r#"{"error":{"message":"m","code":"invalid_api_key"}}"#,
                ),
                C::NoAccess,
                None,
            ),
            (
                (403, &[], r#"{"error":{"message":"m"}}"#),
                C::NoAccess,
                None,
            ),
            (
                (
                    404,
                    &[],
                    r#"{"error":{"message":"m","code":"model_not_found"}}"#,
                ),
                C::NoAccess,
                None,
            ),
            (
                (
                    404,
                    &[],
                    r#"{"error":{"message":"No such File object: file-1","code":null}}"#,
                ),
                C::RowFault,
                None,
            ),
            ((404, &[], "<html>not here"), C::NoAccess, None),
            ((413, &[], ""), C::RowFault, None),
            ((422, &[], ""), C::RowFault, None),
            ((301, &[("location", "https://x")], ""), C::NoAccess, None),
        ],
    );
}

#[test]
fn openai_failures_inside_a_200() {
    let failed = |code: &str| {
        format!(r#"{{"id":"r","status":"failed","error":{{"code":"{code}","message":"m"}}}}"#)
    };
    for (code, class) in [
        ("rate_limit_exceeded", C::QuotaWindow),
        ("server_error", C::Transient),
        ("invalid_prompt", C::RowFault),
        ("invalid_image_url", C::RowFault),
        ("something_new", C::Transient),
    ] {
        check(Host::OpenAi, &[((200, &[], &failed(code)), class, None)]);
    }
    let event = r#"{"type":"error","code":"rate_limit_exceeded","message":"Please try again in 2s.","param":null,"sequence_number":3}"#;
    check(
        Host::OpenAi,
        &[((200, &[], event), C::QuotaWindow, Some(2.0))],
    );
}

#[test]
fn anthropic() {
    let error = |kind: &str, code: &str| {
        format!(
            r#"{{"type":"error","error":{{"type":"{kind}","message":"m","details":{{"error_code":"{code}"}}}},"request_id":"r"}}"#
        )
    };
    let plain = |kind: &str| {
        format!(r#"{{"type":"error","error":{{"type":"{kind}","message":"m"}},"request_id":"r"}}"#)
    };
    check(
        Host::Anthropic,
        &[
            (
                (429, &[("retry-after", "17")], &plain("rate_limit_error")),
                C::QuotaWindow,
                Some(17.0),
            ),
            (
                (
                    429,
                    &[("retry-after", "3")],
                    &error("rate_limit_error", "ramp_limit_exceeded"),
                ),
                C::Ramp,
                Some(3.0),
            ),
            (
                (
                    429,
                    &[],
                    &error("rate_limit_error", "enforced_spend_limit_reached"),
                ),
                C::Money,
                None,
            ),
            (
                (
                    429,
                    &[],
                    &error("rate_limit_error", "contract_spend_limit_reached"),
                ),
                C::Money,
                None,
            ),
            ((529, &[], &plain("overloaded_error")), C::Overload, None),
            ((500, &[], &plain("api_error")), C::Transient, None),
            ((504, &[], &plain("timeout_error")), C::Transient, None),
            ((409, &[], &plain("conflict_error")), C::Transient, None),
            (
                (400, &[], &plain("invalid_request_error")),
                C::RowFault,
                None,
            ),
            (
                (401, &[], &plain("authentication_error")),
                C::NoAccess,
                None,
            ),
            ((402, &[], &plain("billing_error")), C::Money, None),
            ((403, &[], &plain("permission_error")), C::NoAccess, None),
            ((404, &[], &plain("not_found_error")), C::NoAccess, None),
            ((413, &[], &plain("request_too_large")), C::RowFault, None),
            // In the middle of a stream there is no status but the 200 it began with.
            ((200, &[], &plain("overloaded_error")), C::Overload, None),
            ((200, &[], &plain("rate_limit_error")), C::QuotaWindow, None),
            ((200, &[], &plain("api_error")), C::Transient, None),
            (
                (200, &[], &plain("invalid_request_error")),
                C::RowFault,
                None,
            ),
            (
                (
                    400,
                    &[("x-should-retry", "false")],
                    r#"{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API."}}"#,
                ),
                C::Money,
                None,
            ),
            (
                (
                    400,
                    &[],
                    r#"{"type":"error","error":{"type":"invalid_request_error","message":"You have reached your specified API usage limits. You will regain access on 2026-12-01."}}"#,
                ),
                C::Money,
                None,
            ),
        ],
    );
}

#[test]
fn azure() {
    check(
        Host::Azure,
        &[
            (
                (
                    429,
                    &[("retry-after-ms", "5500"), ("retry-after", "6")],
                    r#"{"error":{"code":"429","message":"Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-02-01 have exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 6 seconds."}}"#,
                ),
                C::QuotaWindow,
                Some(6.0),
            ),
            (
                (
                    429,
                    &[],
                    r#"{"error":{"code":"429","message":"The system is currently experiencing high demand and cannot process your request. Your request exceeds the maximum usage size allowed during peak load. Please retry after 6 seconds."}}"#,
                ),
                C::Ramp,
                Some(6.0),
            ),
            (
                (
                    404,
                    &[],
                    r#"{"error":{"code":"DeploymentNotFound","message":"The API deployment for this resource does not exist."}}"#,
                ),
                C::NoAccess,
                None,
            ),
            (
                (
                    400,
                    &[],
                    r#"{"error":{"code":"content_filter","message":"m"}}"#,
                ),
                C::RowFault,
                None,
            ),
            (
                (
                    401,
                    &[],
                    r#"{"error":{"code":"401","message":"Access denied"}}"#,
                ),
                C::NoAccess,
                None,
            ),
        ],
    );
}

#[test]
fn gemini() {
    let quota = |id: &str, message: &str| {
        format!(
            r#"[{{"error":{{"code":429,"status":"RESOURCE_EXHAUSTED","message":"{message}","details":[{{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{{"quotaId":"{id}"}}]}},{{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"38.2s"}}]}}}}]"#
        )
    };
    let minute = quota("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "m");
    let day = quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "m");
    let zero = quota("x", "Quota exceeded for metric: y, limit: 0, model: z");
    check(
        Host::Gemini,
        &[
            ((429, &[], &minute), C::QuotaWindow, Some(38.2)),
            // Its own delay is not believed when the day is used up: midnight is an hour off.
            ((429, &[], &day), C::QuotaDay, Some(3_600.0)),
            ((429, &[], &zero), C::NoAccess, None),
            (
                (
                    503,
                    &[],
                    r#"{"error":{"code":503,"status":"UNAVAILABLE","message":"overloaded"}}"#,
                ),
                C::Overload,
                None,
            ),
            ((402, &[], "{}"), C::Money, None),
            (
                (
                    400,
                    &[],
                    r#"[{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT","details":[{"reason":"API_KEY_INVALID"}]}}]"#,
                ),
                C::NoAccess,
                None,
            ),
        ],
    );
}

#[test]
fn mistral() {
    let body = r#"{"object":"error","message":"Requests rate limit exceeded","type":"rate_limited","param":null,"code":"1300"}"#;
    check(
        Host::Mistral,
        &[
            (
                (429, &[("x-ratelimit-limit-req-minute", "60")], body),
                C::QuotaWindow,
                None,
            ),
            (
                (429, &[("x-ratelimit-limit-req-minute", "0")], body),
                C::NoAccess,
                None,
            ),
            (
                (
                    422,
                    &[],
                    r#"{"object":"error","message":{"detail":[]},"type":"invalid_request_message_order"}"#,
                ),
                C::RowFault,
                None,
            ),
            (
                (401, &[], r#"{"detail":"Unauthorized"}"#),
                C::NoAccess,
                None,
            ),
        ],
    );
}

#[test]
fn groq() {
    let large = r#"{"error":{"message":"Request too large for model `l` on tokens per minute (TPM): Limit 6000, Requested 8000, please reduce your message size and try again.","type":"tokens","code":"rate_limit_exceeded"}}"#;
    let daily = r#"{"error":{"message":"Rate limit reached for model `l` on tokens per day (TPD): Limit 500000, Used 499900, Requested 900. Please try again in 2m18.24s.","type":"tokens","code":"rate_limit_exceeded"}}"#;
    check(
        Host::Groq,
        &[
            (
                (413, &[("x-should-retry", "false")], large),
                C::TooLarge,
                None,
            ),
            (
                (429, &[("retry-after", "139")], daily),
                C::QuotaDay,
                Some(139.0),
            ),
            (
                (
                    498,
                    &[],
                    r#"{"error":{"message":"m","code":"capacity_exceeded"}}"#,
                ),
                C::Overload,
                None,
            ),
            ((498, &[], ""), C::Overload, None),
        ],
    );
}

#[test]
fn openrouter() {
    check(
        Host::OpenRouter,
        &[
            (
                (
                    429,
                    &[],
                    r#"{"error":{"code":429,"message":"Rate limit exceeded: free-models-per-day","metadata":{"headers":{"X-RateLimit-Limit":"50","X-RateLimit-Remaining":"0","X-RateLimit-Reset":"1768028460000"}}}}"#,
                ),
                C::QuotaDay,
                Some(60.0),
            ),
            (
                (
                    402,
                    &[("retry-after", "2")],
                    r#"{"error":{"code":402,"message":"m","metadata":{"reason":"in_flight_budget_exhausted"}}}"#,
                ),
                C::Overload,
                Some(2.0),
            ),
            (
                (
                    402,
                    &[],
                    r#"{"error":{"code":402,"message":"m","metadata":{"reason":"weight_exceeds_budget"}}}"#,
                ),
                C::Money,
                None,
            ),
            (
                (
                    402,
                    &[],
                    r#"{"error":{"code":402,"message":"Insufficient credits"}}"#,
                ),
                C::Money,
                None,
            ),
            (
                (
                    403,
                    &[],
                    r#"{"error":{"code":403,"message":"flagged","metadata":{"reasons":["violence"],"flagged_input":"…"}}}"#,
                ),
                C::RowFault,
                None,
            ),
            (
                (403, &[], r#"{"error":{"code":403,"message":"m"}}"#),
                C::NoAccess,
                None,
            ),
            (
                (
                    200,
                    &[],
                    r#"{"error":{"code":502,"message":"Provider returned error"}}"#,
                ),
                C::Transient,
                None,
            ),
            (
                (
                    200,
                    &[],
                    r#"{"id":"g","error":{"code":429,"message":"m"},"choices":[{"finish_reason":"error"}]}"#,
                ),
                C::QuotaWindow,
                None,
            ),
        ],
    );
}

#[test]
fn self_hosted() {
    check(
        Host::Unknown,
        &[
            ((503, &[], "Service Unavailable"), C::Overload, None),
            ((529, &[], ""), C::Overload, None),
            (
                (429, &[("retry-after", "3")], ""),
                C::QuotaWindow,
                Some(3.0),
            ),
            (
                (
                    404,
                    &[],
                    r#"{"object":"error","message":"The model `x` does not exist.","type":"NotFoundError","param":null,"code":404}"#,
                ),
                C::NoAccess,
                None,
            ),
            ((404, &[], r#"{"detail":"Not Found"}"#), C::RowFault, None),
            (
                (
                    404,
                    &[],
                    r#"{"error":"model 'x' not found, try pulling it first"}"#,
                ),
                C::NoAccess,
                None,
            ),
            (
                (
                    400,
                    &[],
                    r#"{"object":"error","message":"This model's maximum context length is 4096 tokens.","type":"BadRequestError","code":400}"#,
                ),
                C::RowFault,
                None,
            ),
            ((500, &[], r#"{"error":"boom"}"#), C::Transient, None),
        ],
    );
}

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

#[test]
fn waits_follow_the_published_table() {
    let waits = |failed| {
        let verdict = verdict(Host::OpenAi, failed);
        (1..=5)
            .filter_map(|n| Backoffs::default().wait(verdict.class, verdict.wait, n, 0.0))
            .map(|wait| wait.as_secs_f64())
            .collect::<Vec<_>>()
    };
    assert_eq!(waits((429, &[], "")), [60.0, 120.0, 240.0, 300.0, 300.0]);
    assert_eq!(waits((503, &[], "")), [0.5, 1.0, 2.0, 4.0, 4.0]);
    assert_eq!(waits((529, &[], "")), [0.5, 1.0, 2.0, 4.0, 4.0]);
    assert_eq!(waits((502, &[], "<html>")), [0.5, 1.0, 2.0, 4.0, 4.0]);
    assert!(waits((400, &[], "")).is_empty());
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
