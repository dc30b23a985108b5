//! Where the settings of a gateway come from: a file, flags, the environment, a stand-in.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use hyper::Uri;
use llmq_core::LimitSpec;
use llmq_engine::config::{KeySource, Origin, ProviderKind, Settings, UpstreamSettings};
use llmq_limit::AdaptiveConfig;
use llmq_provider::Timeouts;
use llmq_provider::mock::{MockConfig, MockServer};

use crate::cli::ConfigFile;
use crate::config;
use crate::exit::{FAILED, Failure};

/// What settings are made of, at the start and whenever they change.
pub(super) struct Source {
    pub(super) config: ConfigFile,
    pub(super) listen: Option<SocketAddr>,
    /// Where the stand-in listens, if there is one.
    pub(super) mock: Option<SocketAddr>,
}

/// The settings in force.
pub(super) struct Found {
    pub(super) settings: Settings,
    /// Any model name leads to an account: none was configured.
    pub(super) any_model: bool,
    /// The file or the environment says where the store is.
    pub(super) names_store: bool,
}

impl Source {
    /// Reads them.
    pub(super) fn read(&self) -> Result<Found, Failure> {
        let mut loaded = config::load(&self.config)?;
        if let Some(listen) = self.listen {
            loaded = loaded.with_flag("server.listen", "--listen", listen.to_string());
        }
        let mut settings = loaded.check().map_err(|errors| config::mistakes(&errors))?;
        if let Some(addr) = self.mock {
            use_stand_in(&mut settings, addr);
        }
        let names_store = loaded
            .entries()
            .iter()
            .any(|entry| entry.path == "store.url" && entry.origin != Origin::Default);
        let any_model = settings.models.is_empty();
        if settings.upstreams.is_empty() {
            from_environment(&mut settings);
        }
        if settings.upstreams.is_empty() {
            return Err(nothing_to_serve(self.config.path.as_ref()));
        }
        let listen = settings.server.listen;
        for (name, upstream) in &settings.upstreams {
            if leads_to(&upstream.base_url, listen) {
                return Err(calls_itself(name, listen));
            }
        }
        Ok(Found {
            settings,
            any_model,
            names_store,
        })
    }

    /// The files whose change is a change of settings.
    pub(super) fn files(&self, settings: &Settings) -> Vec<PathBuf> {
        let tls = settings.server.tls.iter();
        let tls = tls.flat_map(|tls| [tls.cert.clone(), tls.key.clone()]);
        self.config.path.iter().cloned().chain(tls).collect()
    }
}

/// Starts a stand-in that speaks both dialects.
pub(super) async fn stand_in(limits: &[LimitSpec]) -> Result<MockServer, Failure> {
    let config = MockConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        limits: limits.to_vec(),
        ..MockConfig::default()
    };
    MockServer::start(config).await.map_err(|error| Failure {
        code: FAILED,
        message: format!("cannot start the stand-in provider: {error}"),
    })
}

/// Makes the stand-in the provider of those that have no address, and the only one where no
/// model is configured.
fn use_stand_in(settings: &mut Settings, addr: SocketAddr) {
    let unaddressed = settings
        .upstreams
        .values_mut()
        .filter(|upstream| upstream.provider == ProviderKind::Mock && upstream.base_url.is_empty());
    for upstream in unaddressed {
        upstream.base_url = format!("http://{addr}/v1");
    }
    if settings.models.is_empty() {
        settings.upstreams.clear();
        let ways = [
            ("mock", ProviderKind::Mock, format!("http://{addr}/v1")),
            (
                "mock-anthropic",
                ProviderKind::Anthropic,
                format!("http://{addr}"),
            ),
        ];
        for (name, provider, base_url) in ways {
            let upstream = upstream(provider, base_url, None);
            settings.upstreams.insert(name.to_owned(), upstream);
        }
    }
}

/// The providers whose keys are in the environment.
fn from_environment(settings: &mut Settings) {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    for provider in [ProviderKind::OpenAi, ProviderKind::Anthropic] {
        let Some(key) = provider.key_variable().filter(|name| set(name).is_some()) else {
            continue;
        };
        let url = provider.url_variable().and_then(set);
        let url = url.or_else(|| provider.default_url().map(str::to_owned));
        let key = KeySource::Env(key.to_owned());
        let upstream = upstream(provider, url.unwrap_or_default(), Some(key));
        settings
            .upstreams
            .insert(provider.as_str().to_owned(), upstream);
    }
}

fn upstream(
    provider: ProviderKind,
    base_url: String,
    api_key: Option<KeySource>,
) -> UpstreamSettings {
    UpstreamSettings {
        provider,
        base_url,
        api_key,
        http2: false,
        timeouts: Timeouts::default(),
        adaptive: Some(AdaptiveConfig::default()),
        shared_limits: Vec::new(),
        pass_headers: Vec::new(),
    }
}

/// Whether an address is where the gateway itself is to listen.
fn leads_to(url: &str, listen: SocketAddr) -> bool {
    let Ok(url) = url.parse::<Uri>() else {
        return false;
    };
    let port = url.port_u16().or_else(|| match url.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ => None,
    });
    let host = url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let (ip, everywhere) = (listen.ip(), listen.ip().is_unspecified());
    let is_here = match host.parse::<IpAddr>() {
        Ok(host) => host == ip || everywhere && host.is_loopback(),
        Err(_) => host == "localhost" && (ip.is_loopback() || everywhere),
    };
    is_here && listen.port() != 0 && port == Some(listen.port())
}

/// Each of its calls would become another one, until no connection is left.
fn calls_itself(name: &str, listen: SocketAddr) -> Failure {
    let variable = match name {
        "openai" => "OPENAI_BASE_URL",
        "anthropic" => "ANTHROPIC_BASE_URL",
        _ => "its base_url",
    };
    Failure::usage(format!(
        "the upstream {name} is the address {listen}, where this gateway is to listen: it would \
         call itself. Take {variable} away, or name another address with --listen"
    ))
}

fn nothing_to_serve(config: Option<&PathBuf>) -> Failure {
    let start = match config {
        Some(path) => format!("{} configures no upstream", path.display()),
        None => "there is no provider to serve from".to_owned(),
    };
    Failure::usage(format!(
        "{start}: give a file with --config FILE (llmq config default prints one), set \
         OPENAI_API_KEY or ANTHROPIC_API_KEY, or try it with --mock"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_at_the_gateways_own_address_is_found() {
        let check = |url: &str, listen: &str, same: bool| {
            let listen = listen.parse().unwrap();
            assert_eq!(leads_to(url, listen), same, "{url} {listen}");
        };
        check("http://127.0.0.1:8080/v1", "127.0.0.1:8080", true);
        check("http://localhost:8080/v1", "127.0.0.1:8080", true);
        check("http://[::1]:8080", "[::1]:8080", true);
        check("http://127.0.0.1:8080", "0.0.0.0:8080", true);
        check("http://127.0.0.1", "127.0.0.1:80", true);
        check("http://127.0.0.1:8081/v1", "127.0.0.1:8080", false);
        check("http://127.0.0.2:8080/v1", "127.0.0.1:8080", false);
        check("https://api.openai.com/v1", "127.0.0.1:443", false);
        check("http://other:8080", "0.0.0.0:8080", false);
        check("", "127.0.0.1:8080", false);
    }
}
