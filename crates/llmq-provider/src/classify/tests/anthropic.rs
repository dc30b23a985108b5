//! Anthropic itself.

use FailureClass as C;

use super::*;

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
            // A file or batch that is not there is the call's own fault.
            ((404, &[], &plain("not_found_error")), C::RowFault, None),
            (
                (
                    404,
                    &[],
                    r#"{"type":"error","error":{"type":"not_found_error","message":"model: claude-9"}}"#,
                ),
                C::NoAccess,
                None,
            ),
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
