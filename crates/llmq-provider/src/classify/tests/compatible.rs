//! Hosts that speak OpenAI's dialect, with failures of their own.

use FailureClass as C;

use super::*;

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

/// They were taken at their word: an upstream was parked for centuries, and that was saved.
#[test]
fn no_wait_that_a_body_names_is_longer_than_a_month() {
    let month = 31.0 * 86_400.0;
    for (host, body) in [
        (
            Host::OpenRouter,
            r#"{"error":{"code":429,"message":"Rate limit exceeded: free-models-per-day","metadata":{"headers":{"X-RateLimit-Reset":"1768028460000000"}}}}"#,
        ),
        (
            Host::OpenAi,
            r#"{"error":{"message":"Rate limit reached. Please try again in 4000000h.","code":"rate_limit_exceeded"}}"#,
        ),
        (
            Host::Unknown,
            r#"{"error":{"code":429,"message":"m","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"9999999999s"}]}}"#,
        ),
    ] {
        let told = verdict(host, (429, &[], body)).wait.unwrap();
        assert!(told.as_secs_f64() <= month, "{host:?} {told:?}");
    }
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
            // Its clock is an hour behind ours: it was measured by ours, and waited for a minute.
            (
                (
                    429,
                    &[("date", "Sat, 10 Jan 2026 06:00:00 GMT")],
                    r#"{"error":{"code":429,"message":"Rate limit exceeded: free-models-per-day","metadata":{"headers":{"X-RateLimit-Reset":"1768028460000"}}}}"#,
                ),
                C::QuotaDay,
                Some(3_660.0),
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
