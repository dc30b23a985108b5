use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use llmq_core::{Clock, LimitKind};
use llmq_engine::bulk::RouteOptions;
use llmq_engine::config::{KeySource, ProviderKind};
use llmq_provider::mock::{MockConfig, MockServer};
use llmq_provider::{Provider, ProviderConfig, Secret};

use super::choose::{Chosen, ChosenUpstream, Key};
use crate::exit::{FAILED, Failure, with_causes};

/// What was chosen, ready to be called.
pub(crate) struct Opened {
    pub(crate) routes: Vec<RouteOptions>,
    /// The stand-ins that were started for it; they end when this is dropped.
    pub(crate) mocks: Vec<MockServer>,
}

/// Reads the keys, prepares the connections and starts stand-ins. Sends nothing.
pub(crate) async fn open(chosen: &Chosen, clock: &Arc<dyn Clock>) -> Result<Opened, Failure> {
    let mut opened = Opened {
        routes: Vec::new(),
        mocks: Vec::new(),
    };
    for (number, upstream) in chosen.upstreams.iter().enumerate() {
        let mut base_url = upstream.settings.base_url.clone();
        if base_url.is_empty() && upstream.settings.provider == ProviderKind::Mock {
            let mock = start_mock(upstream).await?;
            base_url = format!("http://{}/v1", mock.addr());
            opened.mocks.push(mock);
        }
        let route = RouteOptions {
            credential: credential(chosen, number),
            ..route(upstream, base_url, Arc::clone(clock))?
        };
        opened.routes.push(route);
    }
    Ok(opened)
}

fn route(
    upstream: &ChosenUpstream,
    base_url: String,
    clock: Arc<dyn Clock>,
) -> Result<RouteOptions, Failure> {
    let settings = &upstream.settings;
    let config = ProviderConfig {
        api_key: key(upstream)?,
        host: settings.host(),
        timeouts: settings.timeouts,
        http2: settings.http2,
        ..ProviderConfig::new(settings.provider.dialect(), base_url)
    };
    let provider = Provider::new(config, clock)
        .map_err(|error| Failure::usage(format!("{}: {}", upstream.name, with_causes(&error))))?;
    let limits = upstream.limits.clone();
    let shared = upstream.shared.iter().flat_map(|(_, limits)| limits);
    let states_concurrency = limits
        .iter()
        .chain(shared)
        .any(|limit| limit.kind == LimitKind::Concurrency);
    Ok(RouteOptions {
        name: upstream.name.clone(),
        provider,
        model: upstream.model.clone(),
        weight: upstream.weight,
        limits,
        shared: upstream.shared.clone(),
        adaptive: settings.adaptive.filter(|_| !states_concurrency),
        learn: upstream.learn,
        headers: upstream.headers.clone(),
        credential: None,
    })
}

/// The number of the first upstream with the same key at the same server.
fn credential(chosen: &Chosen, number: usize) -> Option<u32> {
    let upstream = &chosen.upstreams[number];
    let same = |other: &ChosenUpstream| {
        other.key == upstream.key && other.settings.base_url == upstream.settings.base_url
    };
    let first = chosen.upstreams.iter().position(same)?;
    u32::try_from(first).ok()
}

fn key(upstream: &ChosenUpstream) -> Result<Option<Secret>, Failure> {
    let source = match &upstream.key {
        Key::None => return Ok(None),
        Key::IfSet(name) => match std::env::var_os(name) {
            Some(value) if !value.is_empty() => KeySource::Env((*name).to_owned()),
            _ => return Ok(None),
        },
        Key::In(source) => source.clone(),
    };
    source.resolve().map(Some).map_err(|error| {
        Failure::usage(format!(
            "no key for {}: {error}; set it, or name another variable with --api-key-env",
            upstream.name
        ))
    })
}

/// A stand-in with the same limits as are kept here.
async fn start_mock(upstream: &ChosenUpstream) -> Result<MockServer, Failure> {
    let shared = upstream.shared.iter().flat_map(|(_, limits)| limits);
    let config = MockConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        limits: upstream.limits.iter().chain(shared).copied().collect(),
        ..MockConfig::default()
    };
    MockServer::start(config).await.map_err(|error| Failure {
        code: FAILED,
        message: format!("cannot start the stand-in provider: {error}"),
    })
}
