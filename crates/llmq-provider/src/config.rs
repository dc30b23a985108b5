use std::fmt;
use std::sync::Arc;

use http::Uri;
use http::uri::{Parts, PathAndQuery, Scheme};
use llmq_core::Host;

use crate::{Dialect, Item, Operation, Recorder, Secret, Timeouts, host_of};

/// The most an answer may hold when it is collected: 64 MiB.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Where a provider is and how to talk to it. Checked by [`crate::Provider::new`].
#[derive(Clone)]
pub struct ProviderConfig {
    /// Whose JSON it speaks.
    pub dialect: Dialect,
    /// The address up to the operation: `https://api.openai.com/v1`,
    /// `https://api.anthropic.com` (with or without `/v1`). A query is kept.
    pub base_url: String,
    /// The key; none for servers without one.
    pub api_key: Option<Secret>,
    /// Who runs the server: it decides how errors are read and how the key is sent.
    pub host: Host,
    /// How long each part of a call may take.
    pub timeouts: Timeouts,
    /// HTTP/2 instead of HTTP/1.1: by ALPN with `https`, with prior knowledge with `http`.
    /// All calls share one connection, so the server's stream limit caps concurrency.
    pub http2: bool,
    /// The most bytes an answer may hold when it is collected.
    pub answer_bytes_max: usize,
    /// Writes down each call and its answer; for development.
    pub recorder: Option<Arc<Recorder>>,
}

impl fmt::Debug for ProviderConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProviderConfig")
            .field("dialect", &self.dialect)
            .field("base_url", &without_secrets(&self.base_url))
            .field("api_key", &self.api_key)
            .field("host", &self.host)
            .field("timeouts", &self.timeouts)
            .field("http2", &self.http2)
            .field("answer_bytes_max", &self.answer_bytes_max)
            .finish()
    }
}

/// A URL without its query and without a name or password: servers take keys in either.
fn without_secrets(url: &str) -> String {
    let url = url.split(['?', '#']).next().unwrap_or_default();
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let server = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{server}{path}")
        }
        None => url.rsplit('@').next().unwrap_or_default().to_owned(),
    }
}

/// An address or key that cannot be used. Messages never show keys, user names or queries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The text is no URL at all.
    #[error("the base URL is not a URL: write it like https://api.openai.com/v1")]
    NotAUrl,
    /// Neither `http` nor `https`.
    #[error("the base URL starts with `{scheme}:`: use https:// or http://")]
    Scheme {
        /// What it starts with.
        scheme: String,
    },
    /// The URL lacks its scheme.
    #[error("the base URL does not say https:// or http://")]
    NoScheme,
    /// A name or password before the host.
    #[error("the base URL holds a user name or password: give the key separately")]
    UserInfo,
    /// A part that is never sent.
    #[error("the base URL holds a `#` part, which is never sent")]
    Fragment,
    /// The base URL already names an operation.
    #[error("the base URL ends with {path}, which is added by itself: leave it out")]
    HoldsOperation {
        /// The operation's path.
        path: &'static str,
    },
    /// The key cannot stand in a header.
    #[error("the API key holds characters that cannot stand in a header")]
    Key,
    /// The system's list of certificate authorities could not be read.
    #[error(
        "no certificate authorities found for https: install ca-certificates or set SSL_CERT_FILE"
    )]
    NoRoots,
}

impl ProviderConfig {
    /// A configuration with the defaults for `base_url`, without a key.
    ///
    /// ```
    /// use llmq_provider::{Dialect, ProviderConfig};
    /// let config = ProviderConfig::new(Dialect::OpenAi, "https://api.openai.com/v1");
    /// assert!(!config.http2);
    /// ```
    pub fn new(dialect: Dialect, base_url: impl Into<String>) -> Self {
        let base_url = base_url.into();
        Self {
            dialect,
            host: host_of(&base_url),
            base_url,
            api_key: None,
            timeouts: Timeouts::default(),
            http2: false,
            answer_bytes_max: ANSWER_BYTES_MAX,
            recorder: None,
        }
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(mut self, key: Secret) -> Self {
        self.api_key = Some(key);
        self
    }
}

/// Whether calls in `dialect` can go to `base_url`, as [`crate::Provider::new`] checks it.
///
/// # Errors
///
/// [`ConfigError`] says what is wrong with it.
pub fn check_base_url(dialect: Dialect, base_url: &str) -> Result<(), ConfigError> {
    Addresses::of(dialect, base_url).map(drop)
}

/// A base URL that was checked, with the full address of each operation.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    by_operation: Vec<Uri>,
    /// Scheme and authority.
    pub(crate) server: Uri,
    pub(crate) authority: Arc<str>,
    pub(crate) https: bool,
}

impl Addresses {
    pub(crate) fn of(dialect: Dialect, base_url: &str) -> Result<Self, ConfigError> {
        let base_url = base_url.trim();
        if base_url.contains('#') {
            return Err(ConfigError::Fragment);
        }
        if !base_url.contains("://") {
            return Err(if base_url.parse::<Uri>().is_ok() {
                ConfigError::NoScheme
            } else {
                ConfigError::NotAUrl
            });
        }
        let uri: Uri = base_url.parse().map_err(|_| ConfigError::NotAUrl)?;
        let https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) => {
                return Err(ConfigError::Scheme {
                    scheme: scheme.to_string(),
                });
            }
            None => return Err(ConfigError::NoScheme),
        };
        let authority = uri.authority().ok_or(ConfigError::NotAUrl)?;
        if authority.as_str().contains('@') {
            return Err(ConfigError::UserInfo);
        }
        let prefix = prefix(dialect, uri.path())?;
        let by_operation: Vec<Uri> = Operation::ALL
            .into_iter()
            .map(|operation| address(&uri, &prefix, operation))
            .collect::<Result<_, _>>()?;
        let mut server = Parts::default();
        server.scheme = uri.scheme().cloned();
        server.authority = Some(authority.clone());
        server.path_and_query = Some(PathAndQuery::from_static("/"));
        Ok(Self {
            by_operation,
            server: Uri::from_parts(server).map_err(|_| ConfigError::NotAUrl)?,
            authority: authority.as_str().into(),
            https,
        })
    }

    /// What stands in the `Host` header: the scheme's own port is left out (RFC 9110, 4.2.3).
    pub(crate) fn host(&self) -> &str {
        let own_port = if self.https { ":443" } else { ":80" };
        self.authority
            .strip_suffix(own_port)
            .unwrap_or(&self.authority)
    }

    pub(crate) fn uri(&self, operation: Operation) -> &Uri {
        &self.by_operation[operation.index()]
    }

    /// The address of one thing below an operation's; it has one, see [`Addresses::has`].
    pub(crate) fn below(&self, operation: Operation, item: &Item) -> Uri {
        let uri = self.try_below(operation, item);
        uri.unwrap_or_else(|| self.uri(operation).clone())
    }

    /// Whether the name of one thing can stand in an address.
    pub(crate) fn has(&self, operation: Operation, item: &Item) -> bool {
        self.try_below(operation, item).is_some()
    }

    fn try_below(&self, operation: Operation, item: &Item) -> Option<Uri> {
        let whole = self.uri(operation);
        let queries = [whole.query(), item.query.as_deref()];
        let queries: Vec<&str> = queries.into_iter().flatten().collect();
        let mut target = format!("{}/{}", whole.path(), item.path);
        if !queries.is_empty() {
            target = format!("{target}?{}", queries.join("&"));
        }
        let mut parts = whole.clone().into_parts();
        parts.path_and_query = Some(target.parse().ok()?);
        Uri::from_parts(parts).ok()
    }
}

/// The path before the operation. Anthropic's own SDKs add `/v1` themselves, so both ways of
/// writing its base URL are in use.
fn prefix(dialect: Dialect, path: &str) -> Result<String, ConfigError> {
    let path = path.trim_end_matches('/');
    for operation in Operation::ALL {
        if path.ends_with(operation.path()) {
            return Err(ConfigError::HoldsOperation {
                path: operation.path(),
            });
        }
    }
    let adds_version = dialect == Dialect::Anthropic && !path.ends_with("/v1");
    Ok(if adds_version {
        format!("{path}/v1")
    } else {
        path.to_owned()
    })
}

fn address(base: &Uri, prefix: &str, operation: Operation) -> Result<Uri, ConfigError> {
    let query = base
        .query()
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let mut parts = base.clone().into_parts();
    let target = format!("{prefix}{}{query}", operation.path());
    parts.path_and_query = Some(target.parse().map_err(|_| ConfigError::NotAUrl)?);
    Uri::from_parts(parts).map_err(|_| ConfigError::NotAUrl)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(base: &str) -> String {
        let addresses = Addresses::of(Dialect::OpenAi, base).unwrap();
        addresses.uri(Operation::ChatCompletions).to_string()
    }

    fn messages(base: &str) -> String {
        let addresses = Addresses::of(Dialect::Anthropic, base).unwrap();
        addresses.uri(Operation::Messages).to_string()
    }

    #[test]
    fn a_configuration_can_be_logged_whole() {
        let config = ProviderConfig::new(
            Dialect::OpenAi,
            "https://name:word@x.example:1/v1?key=hidden",
        )
        .with_key(Secret::new("sk-private"));
        let shown = format!("{config:?}");
        assert!(shown.contains("\"https://x.example:1/v1\""), "{shown}");
        for secret in ["hidden", "word", "sk-private"] {
            assert!(!shown.contains(secret), "{shown}");
        }
    }

    #[test]
    fn the_operation_follows_the_path_and_stands_before_the_query() {
        let expected = "https://api.openai.com/v1/chat/completions";
        assert_eq!(chat("https://api.openai.com/v1"), expected);
        assert_eq!(chat(" https://api.openai.com/v1/ "), expected);
        assert_eq!(
            chat("http://127.0.0.1:8000"),
            "http://127.0.0.1:8000/chat/completions"
        );
        assert_eq!(
            chat("https://r.openai.azure.com/openai/deployments/d?api-version=2024-10-21"),
            "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21"
        );
    }

    #[test]
    fn an_item_stands_below_its_operation_and_keeps_both_queries() {
        let item = Item {
            method: http::Method::GET,
            path: "resp_1/input_items".to_owned(),
            query: Some("limit=2".to_owned()),
        };
        let base = "https://r.openai.azure.com/openai/v1?api-version=1";
        let addresses = Addresses::of(Dialect::OpenAi, base).unwrap();
        assert_eq!(
            addresses.below(Operation::Responses, &item),
            "https://r.openai.azure.com/openai/v1/responses/resp_1/input_items?api-version=1&limit=2"
        );
    }

    /// What was meant for one thing went to the operation itself: a DELETE to the collection.
    #[test]
    fn an_item_that_has_no_address_is_not_taken_for_its_operation() {
        let item = Item {
            method: http::Method::DELETE,
            path: "resp 1".to_owned(),
            query: None,
        };
        let addresses = Addresses::of(Dialect::OpenAi, "https://x.example/v1").unwrap();
        assert!(!addresses.has(Operation::Responses, &item));
    }

    #[test]
    fn anthropic_is_found_with_and_without_its_version() {
        let expected = "https://api.anthropic.com/v1/messages";
        assert_eq!(messages("https://api.anthropic.com"), expected);
        assert_eq!(messages("https://api.anthropic.com/v1/"), expected);
    }

    #[test]
    fn a_bad_base_url_is_refused_by_its_fault_and_never_shown() {
        let table = [
            ("", "not a URL"),
            ("https://", "not a URL"),
            ("http://a b/", "not a URL"),
            ("api.openai.com/v1", "not a URL"),
            ("api.openai.com", "does not say https://"),
            ("/v1", "does not say https://"),
            ("ftp://example.com/v1", "starts with `ftp:`"),
            ("https://user:pw@example.com/v1", "user name or password"),
            ("https://example.com/v1#part", "`#` part"),
            (
                "https://api.openai.com/v1/chat/completions",
                "ends with /chat/completions",
            ),
        ];
        for (url, fault) in table {
            let error = Addresses::of(Dialect::OpenAi, url).unwrap_err().to_string();
            assert!(error.contains(fault), "{url}: {error}");
            assert!(!error.contains("pw"), "{error}");
        }
    }
}
