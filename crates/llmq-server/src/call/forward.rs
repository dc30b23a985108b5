//! Which headers pass through, in either direction.

use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, HeaderMap, HeaderName, LOCATION, PROXY_AUTHENTICATE, SERVER,
    SET_COOKIE, STRICT_TRANSPORT_SECURITY, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    WWW_AUTHENTICATE,
};
use llmq_provider::Dialect;
use smallvec::SmallVec;

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

/// What of a provider's headers is about its connection to us, its own name, or our key.
const NOT_TO_CALLER: [HeaderName; 15] = [
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
    // A browser would keep to it for the gateway's name, and for all below that.
    STRICT_TRANSPORT_SECURITY,
    LOCATION,
    WWW_AUTHENTICATE,
    PROXY_AUTHENTICATE,
];

/// Which pages may read an answer (CORS) is for this server to say, not for a provider.
const OF_PAGES: &str = "access-control-";

pub(crate) fn for_provider(headers: &HeaderMap) -> HeaderMap {
    only(headers, &TO_PROVIDER)
}

/// Those that choose an account.
pub(crate) fn of_account(headers: &HeaderMap) -> HeaderMap {
    only(headers, &OF_ACCOUNT)
}

fn only(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut passed = HeaderMap::new();
    // A look at each header that is there costs less than looking for each name.
    for (name, value) in headers {
        if names.contains(name) {
            passed.append(name, value.clone());
        }
    }
    passed
}

/// The provider's headers without those of its connection; the rate-limit headers stay.
pub(crate) fn for_caller(mut headers: HeaderMap) -> HeaderMap {
    // A bit for each that is there: most are not, and looking for each costs more.
    let mut found = 0_u16;
    let mut of_pages = SmallVec::<[HeaderName; 4]>::new();
    for name in headers.keys() {
        if let Some(at) = NOT_TO_CALLER.iter().position(|ours| ours == name) {
            found |= 1 << at;
        } else if name.as_str().starts_with(OF_PAGES) {
            of_pages.push(name.clone());
        }
    }
    for name in of_pages {
        headers.remove(name);
    }
    for (at, name) in NOT_TO_CALLER.iter().enumerate() {
        if found & (1 << at) != 0 {
            headers.remove(name);
        }
    }
    headers
}

/// The header in which SDKs of a dialect look for the name of a request.
pub(crate) fn request_id_of(dialect: Dialect) -> HeaderName {
    match dialect {
        Dialect::OpenAi => HeaderName::from_static("x-request-id"),
        Dialect::Anthropic => HeaderName::from_static("request-id"),
    }
}

/// The provider's name for the request, where the SDKs of `dialect`, which is not the provider's,
/// look for it.
pub(crate) fn translate_request_id(headers: &mut HeaderMap, dialect: Dialect) {
    let theirs = match dialect {
        Dialect::OpenAi => Dialect::Anthropic,
        Dialect::Anthropic => Dialect::OpenAi,
    };
    if let Some(id) = headers.remove(request_id_of(theirs)) {
        headers.insert(request_id_of(dialect), id);
    }
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

    /// Once the errors and answers of translated calls had no request id in any SDK.
    #[test]
    fn a_translated_answer_names_its_request_where_the_callers_sdk_looks() {
        for (to, from) in [
            (Dialect::OpenAi, Dialect::Anthropic),
            (Dialect::Anthropic, Dialect::OpenAi),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(request_id_of(from), HeaderValue::from_static("req_1"));
            translate_request_id(&mut headers, to);
            assert_eq!(headers[request_id_of(to)], "req_1");
            assert!(!headers.contains_key(request_id_of(from)));
        }
    }

    /// A provider's `access-control-allow-origin: *` once let every page read the gateway's answers.
    #[test]
    fn limits_reach_the_caller_and_what_is_between_the_provider_and_us_does_not() {
        let mut headers = HeaderMap::new();
        for name in [
            "x-ratelimit-remaining-requests",
            "connection",
            "content-length",
            "access-control-allow-origin",
            "access-control-allow-credentials",
            "access-control-expose-headers",
            "www-authenticate",
            "proxy-authenticate",
            "strict-transport-security",
            "location",
        ] {
            headers.insert(name, HeaderValue::from_static("1"));
        }
        let passed = for_caller(headers);
        let names: Vec<&str> = passed.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-ratelimit-remaining-requests"]);
    }
}
