use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST,
    HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use llmq_core::Host;

use crate::{ConfigError, Dialect, ProviderConfig};

/// The API version sent when the caller names none (docs.anthropic.com, "Versions").
const ANTHROPIC_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// The headers of every call.
pub(crate) fn headers(config: &ProviderConfig) -> Result<HeaderMap, ConfigError> {
    const JSON: HeaderValue = HeaderValue::from_static("application/json");
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(ACCEPT, JSON);
    // Compressed answers could not be forwarded as they come and read on their way.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let agent = concat!("llmq/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    if config.dialect == Dialect::Anthropic {
        let name = HeaderName::from_static("anthropic-version");
        headers.insert(name, ANTHROPIC_VERSION);
    }
    if let Some(key) = &config.api_key {
        let (name, text) = match (config.host, config.dialect) {
            (Host::Azure, Dialect::OpenAi) => (API_KEY, key.expose().to_owned()),
            (_, Dialect::Anthropic) => (X_API_KEY, key.expose().to_owned()),
            (_, Dialect::OpenAi) => (AUTHORIZATION, format!("Bearer {}", key.expose())),
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| ConfigError::Key)?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

const API_KEY: HeaderName = HeaderName::from_static("api-key");
const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const NOT_THE_CALLERS: [HeaderName; 11] = [
    HOST,
    CONNECTION,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    TE,
    UPGRADE,
    ACCEPT_ENCODING,
    AUTHORIZATION,
    API_KEY,
    X_API_KEY,
    HeaderName::from_static("keep-alive"),
];

/// Ours and the caller's, whose own win where they may.
pub(crate) fn merged(ours: &HeaderMap, mut extra: HeaderMap) -> HeaderMap {
    let mut headers = ours.clone();
    if extra.is_empty() {
        return headers;
    }
    for name in NOT_THE_CALLERS {
        extra.remove(name);
    }
    for name in extra.keys() {
        headers.remove(name);
    }
    for (name, value) in &extra {
        headers.append(name, value.clone());
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;

    fn config(dialect: Dialect, url: &str) -> ProviderConfig {
        ProviderConfig::new(dialect, url).with_key(Secret::new("k-1"))
    }

    #[test]
    fn each_server_gets_the_key_where_it_looks_for_it() {
        let sent = |dialect, url, name: &str| {
            headers(&config(dialect, url))
                .unwrap()
                .remove(name)
                .unwrap()
        };
        let openai = sent(
            Dialect::OpenAi,
            "https://api.openai.com/v1",
            "authorization",
        );
        assert_eq!(openai, "Bearer k-1");
        assert!(openai.is_sensitive());
        let azure = "https://r.openai.azure.com/openai/v1";
        assert_eq!(sent(Dialect::OpenAi, azure, "api-key"), "k-1");
        let anthropic = "https://api.anthropic.com";
        assert_eq!(sent(Dialect::Anthropic, anthropic, "x-api-key"), "k-1");
    }

    #[test]
    fn a_key_with_a_line_end_is_refused_without_showing_it() {
        let config = ProviderConfig::new(Dialect::OpenAi, "http://localhost")
            .with_key(Secret::new("sk\nprivate"));
        assert_eq!(headers(&config).unwrap_err(), ConfigError::Key);
        assert!(!format!("{config:?}").contains("private"));
    }

    #[test]
    fn the_callers_version_wins_and_its_credentials_do_not() {
        let ours = headers(&config(Dialect::Anthropic, "https://api.anthropic.com")).unwrap();
        let mut extra = HeaderMap::new();
        extra.insert("anthropic-version", HeaderValue::from_static("2026-10-21"));
        extra.insert("x-api-key", HeaderValue::from_static("llmq-key"));
        extra.insert("accept-encoding", HeaderValue::from_static("gzip"));
        extra.append("anthropic-beta", HeaderValue::from_static("a"));
        extra.append("anthropic-beta", HeaderValue::from_static("b"));
        let merged = merged(&ours, extra);
        assert_eq!(merged["anthropic-version"], "2026-10-21");
        assert_eq!(merged["x-api-key"], "k-1");
        assert_eq!(merged["accept-encoding"], "identity");
        assert_eq!(merged.get_all("anthropic-beta").iter().count(), 2);
    }
}
