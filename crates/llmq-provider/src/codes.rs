use llmq_core::FailureClass;

use crate::classify::Refused;
use crate::error_body::ErrorBody;

/// What a provider's code says about the class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CodeMeaning {
    /// It says all.
    Class(FailureClass),
    /// A limit was hit; which one, the text says.
    RateLimit,
}

/// What the codes of `error` mean, the most precise first; `None` when the status decides.
pub(crate) fn meaning(error: &ErrorBody) -> Option<CodeMeaning> {
    codes(error).find_map(of_code)
}

/// What the codes of `error` say is refused, where they do.
pub(crate) fn refused(error: &ErrorBody) -> Option<Refused> {
    codes(error).find_map(|code| match code.to_ascii_lowercase().as_str() {
        // Groq's `model_permission_blocked_org` among them.
        code if code == "deploymentnotfound" || code.starts_with("model_") => Some(Refused::Model),
        "invalid_api_key"
        | "api_key_invalid"
        | "account_deactivated"
        | "organization_restricted"
        | "authentication_error"
        | "unsupported_country_region_territory" => Some(Refused::Key),
        _ => None,
    })
}

fn codes(error: &ErrorBody) -> impl Iterator<Item = &str> {
    [
        error.details.error_code.as_deref(),
        error.code.as_deref(),
        error.details.reason.as_deref(),
        error.metadata.error_type(),
        error.kind.as_deref(),
        error.word.as_deref(),
    ]
    .into_iter()
    .flatten()
}

/// Codes of OpenAI (guides "Error codes" and "Rate limits", autumn 2026), Anthropic ("Errors"),
/// Azure, Gemini (google.rpc.Code), Groq, OpenRouter and vLLM.
fn of_code(code: &str) -> Option<CodeMeaning> {
    use FailureClass as C;
    let code = code.to_ascii_lowercase();
    let class = match code.as_str() {
        "rate_limit_exceeded"
        | "rate_limit_error"
        | "rate_limited"
        | "resource_exhausted"
        | "ratelimitreached" => return Some(CodeMeaning::RateLimit),
        "insufficient_quota"
        | "credit_balance_exhausted"
        | "organization_usage_limit_exceeded"
        | "billing_hard_limit_reached"
        | "billing_not_active"
        | "billing_error"
        | "insufficient_credits"
        | "openrouter_credits"
        | "openrouter_key_limit" => C::Money,
        spend if spend.contains("_spend_limit_") => C::Money,
        "slow_down" | "ramp_limit_exceeded" => C::Ramp,
        "server_is_overloaded"
        | "overloaded_error"
        | "service_unavailable_error"
        | "capacity_exceeded"
        | "resource_unavailable"
        | "unavailable" => C::Overload,
        "model_not_found"
        | "deploymentnotfound"
        | "unknown_url"
        | "invalid_api_key"
        | "api_key_invalid"
        | "account_deactivated"
        | "organization_restricted"
        | "authentication_error"
        | "permission_error"
        | "unsupported_country_region_territory" => C::NoAccess,
        _ => return None,
    };
    Some(CodeMeaning::Class(class))
}

/// Whether a `finish_reason` says that there is no answer, or but a part of one: `error` at
/// OpenRouter and Mistral, `insufficient_system_resource` at DeepSeek (api-docs.deepseek.com,
/// "Create Chat Completion", 2026), `abort` at vLLM and SGLang.
pub(crate) fn is_failure(finish_reason: &str) -> bool {
    matches!(
        finish_reason,
        "error" | "insufficient_system_resource" | "abort"
    )
}

/// The status that an error stands for which came in a 200 body or in the middle of a stream:
/// its numeric code, else its type, else 500.
pub(crate) fn implied_status(error: &ErrorBody) -> u16 {
    let numeric = error.code.as_deref().and_then(|code| code.parse().ok());
    if let Some(status @ 400..=599) = numeric {
        return status;
    }
    [error.kind.as_deref(), error.code.as_deref()]
        .into_iter()
        .flatten()
        .find_map(of_type)
        .unwrap_or(500)
}

fn of_type(kind: &str) -> Option<u16> {
    Some(match kind {
        "invalid_request_error"
        | "context_length_exceeded"
        | "content_filter"
        | "content_policy_violation"
        | "bio_policy" => 400,
        "authentication_error" => 401,
        "billing_error" => 402,
        "permission_error" => 403,
        "not_found_error" => 404,
        "timeout_error" => 408,
        "request_too_large" => 413,
        "rate_limit_error" | "rate_limit_exceeded" | "insufficient_quota" => 429,
        "api_error" | "server_error" => 500,
        "server_is_overloaded" | "service_unavailable_error" | "slow_down" => 503,
        "overloaded_error" => 529,
        // The Responses API names what was wrong with the call: invalid_prompt, image_too_large, …
        fault if fault.starts_with("invalid_") || fault.starts_with("image_") => 400,
        _ => return None,
    })
}
