//! OpenAI itself.

use FailureClass as C;

use super::*;

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
