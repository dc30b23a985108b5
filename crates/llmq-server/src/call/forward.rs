//! Which headers pass through, in either direction.

use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, HeaderName, SERVER, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};

/// What of a caller's headers is meant for every provider.
const TO_PROVIDER: [HeaderName; 7] = [
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("baggage"),
    HeaderName::from_static("x-client-request-id"),
];

/// What chooses whose limits are charged. The account is the gateway's, so these pass only to
/// upstreams whose configuration says so (`pass_headers`).
const OF_ACCOUNT: [HeaderName; 3] = [
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
    HeaderName::from_static("anthropic-workspace-id"),
];

/// What of a provider's headers is about its connection to us.
const NOT_TO_CALLER: [HeaderName; 11] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    CONTENT_LENGTH,
    DATE,
    SERVER,
    SET_COOKIE,
    HeaderName::from_static("alt-svc"),
];

pub(crate) fn for_provider(headers: &HeaderMap) -> HeaderMap {
    only(headers, &TO_PROVIDER)
}

/// Those that choose an account.
pub(crate) fn of_account(headers: &HeaderMap) -> HeaderMap {
    only(headers, &OF_ACCOUNT)
}

fn only(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut passed = HeaderMap::new();
    for name in names {
        for value in headers.get_all(name) {
            passed.append(name, value.clone());
        }
    }
    passed
}

/// The provider's headers without those of its connection; the rate-limit headers stay.
pub(crate) fn for_caller(mut headers: HeaderMap) -> HeaderMap {
    for name in &NOT_TO_CALLER {
        headers.remove(name);
    }
    headers
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn nothing_that_chooses_an_account_passes() {
        let mut headers = HeaderMap::new();
        for name in [
            "authorization",
            "x-api-key",
            "openai-organization",
            "openai-project",
            "anthropic-workspace-id",
            "cookie",
            "x-llmq-priority",
            "anthropic-beta",
            "traceparent",
        ] {
            headers.append(name, HeaderValue::from_static("v"));
        }
        let passed = for_provider(&headers);
        let mut names: Vec<&str> = passed.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["anthropic-beta", "traceparent"]);
    }

    #[test]
    fn limits_reach_the_caller_and_the_connections_headers_do_not() {
        let mut headers = HeaderMap::new();
        for name in [
            "x-ratelimit-remaining-requests",
            "connection",
            "content-length",
        ] {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        let passed = for_caller(headers);
        assert_eq!(passed.len(), 1);
    }
}
