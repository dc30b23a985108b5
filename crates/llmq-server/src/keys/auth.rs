use http::HeaderMap;
use http::header::AUTHORIZATION;
use llmq_engine::config::Auth;
use std::net::IpAddr;

use super::token::PREFIX;

/// Who may call without a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthPolicy {
    /// Everybody. A key that is shown still says who calls.
    Open,
    /// Everybody while no key is in use, else those with a key.
    OpenUntilKeys,
    /// Nobody.
    Keys,
}

impl AuthPolicy {
    /// What the setting `auth` means for a server that listens on `listen`; `None` for `"none"`
    /// where others than this machine could call.
    #[must_use]
    pub fn of(auth: Auth, listen: IpAddr) -> Option<Self> {
        match auth {
            Auth::Auto if listen.is_loopback() => Some(Self::OpenUntilKeys),
            Auth::Auto | Auth::Keys => Some(Self::Keys),
            Auth::None => listen.is_loopback().then_some(Self::Open),
        }
    }
}

/// Why nobody knows who calls. Always 401; a key that is unknown and one that was revoked are
/// not told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// No key was shown.
    #[error("a key is needed: send it as `Authorization: Bearer llmq_…` or `x-api-key: llmq_…`")]
    Missing,
    /// What was shown is no key of llmq, such as one of a provider.
    #[error("this is no key of llmq: its keys begin with llmq_ and are made by `llmq keys create`")]
    NotOurs,
    /// There is no such key in use.
    #[error("this key is not valid: it does not exist, or it was revoked")]
    Refused,
}

/// What a request shows of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown<'a> {
    Nothing,
    /// Something that only a key of another service can be.
    Foreign,
    /// Something that begins like one of ours.
    Ours(&'a str),
}

/// Finds the key in `Authorization: Bearer` (RFC 6750 section 2.1) or `x-api-key` (Anthropic's
/// SDKs). Where both are there, the one that begins like ours counts: SDKs send what they find
/// in the environment.
pub(super) fn shown(headers: &HeaderMap) -> Shown<'_> {
    let bearer = headers.get(AUTHORIZATION).map(|value| {
        let text = value.to_str().unwrap_or_default();
        match text.split_once(' ') {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => key.trim(),
            _ => "",
        }
    });
    let api_key = headers.get("x-api-key");
    let api_key = api_key.map(|value| value.to_str().unwrap_or_default().trim());
    let mut found = [bearer, api_key].into_iter().flatten().peekable();
    if found.peek().is_none() {
        return Shown::Nothing;
    }
    found
        .find(|key| key.starts_with(PREFIX))
        .map_or(Shown::Foreign, Shown::Ours)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use http::HeaderValue;

    use super::*;

    fn check(headers: &[(&'static str, &'static str)], expected: Shown<'static>) {
        let headers: HeaderMap = headers
            .iter()
            .map(|&(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, HeaderValue::from_bytes(value.as_bytes()).unwrap())
            })
            .collect();
        assert_eq!(shown(&headers), expected, "{headers:?}");
    }

    #[test]
    fn a_key_is_found_where_sdks_put_it() {
        check(&[], Shown::Nothing);
        check(&[("authorization", "Bearer llmq_a")], Shown::Ours("llmq_a"));
        check(
            &[("authorization", "bearer  llmq_a ")],
            Shown::Ours("llmq_a"),
        );
        check(&[("x-api-key", "llmq_b")], Shown::Ours("llmq_b"));
        let both = [("authorization", "Bearer sk-1"), ("x-api-key", "llmq_b")];
        check(&both, Shown::Ours("llmq_b"));
        let both = [
            ("authorization", "Bearer llmq_a"),
            ("x-api-key", "sk-ant-1"),
        ];
        check(&both, Shown::Ours("llmq_a"));
    }

    #[test]
    fn what_is_no_key_of_ours_is_foreign() {
        check(&[("authorization", "Bearer sk-1")], Shown::Foreign);
        check(&[("authorization", "Basic bGxtcV9h")], Shown::Foreign);
        check(&[("authorization", "llmq_a")], Shown::Foreign);
        check(&[("authorization", "")], Shown::Foreign);
        check(&[("x-api-key", "\u{fc}")], Shown::Foreign);
    }

    #[test]
    fn none_is_for_loopback_only_and_auto_asks_for_keys_elsewhere() {
        let here = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv4Addr::new(127, 9, 9, 9)),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ];
        for listen in here {
            assert_eq!(AuthPolicy::of(Auth::None, listen), Some(AuthPolicy::Open));
            assert_eq!(AuthPolicy::of(Auth::Keys, listen), Some(AuthPolicy::Keys));
            let auto = AuthPolicy::of(Auth::Auto, listen);
            assert_eq!(auto, Some(AuthPolicy::OpenUntilKeys));
        }
        let everywhere = [
            IpAddr::from(Ipv4Addr::UNSPECIFIED),
            IpAddr::from(Ipv6Addr::UNSPECIFIED),
            IpAddr::from(Ipv4Addr::new(10, 0, 0, 1)),
        ];
        for listen in everywhere {
            assert_eq!(AuthPolicy::of(Auth::None, listen), None);
            assert_eq!(AuthPolicy::of(Auth::Auto, listen), Some(AuthPolicy::Keys));
        }
    }
}
