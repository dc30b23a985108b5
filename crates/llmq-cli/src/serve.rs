//! `llmq serve`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use llmq_core::{Clock, LimitSpec};
use llmq_engine::config::{KeySource, ProviderKind, Settings, StoreUrl, UpstreamSettings};
use llmq_engine::{SystemClock, Tasks};
use llmq_limit::AdaptiveConfig;
use llmq_provider::Timeouts;
use llmq_provider::mock::{MockConfig, MockServer};
use llmq_server::observe::{CallLog, CallLogForm};
use llmq_server::{Gateway, GatewayOptions, serve as serve_on};
use llmq_store_sqlite::{Place, Store};

use crate::cli::{ConfigFile, Global};
use crate::config;
use crate::exit::{FAILED, Failure, with_causes};
use crate::log::{self, LogArgs, LogFormat};
use crate::signals::Signals;

/// The gateway: an OpenAI and Anthropic endpoint that waits instead of failing.
///
/// Point OPENAI_BASE_URL at http://ADDRESS/v1, or ANTHROPIC_BASE_URL at http://ADDRESS, and
/// change nothing else. Without a configuration it uses OPENAI_API_KEY and ANTHROPIC_API_KEY, and
/// learns the limits from the providers' headers.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq serve --mock
  OPENAI_API_KEY=… llmq serve
  llmq serve --config llmq.toml --listen 0.0.0.0:8080")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Serve from a stand-in provider inside: no key, no cost
    #[arg(long)]
    mock: bool,
    /// A limit of the stand-in, such as requests=200/2s; may be repeated
    #[arg(
        long = "mock-limit",
        value_name = "KIND=COUNT/PERIOD",
        requires = "mock"
    )]
    mock_limits: Vec<LimitSpec>,
    /// Where keys are kept: sqlite:PATH or memory:
    #[arg(long, value_name = "URL")]
    store: Option<Place>,
    /// Write a line about each call to FILE, never prompts or answers
    #[arg(long, value_name = "FILE", help_heading = "Progress and log")]
    call_log: Option<PathBuf>,
    #[command(flatten)]
    log: LogArgs,
}

pub(crate) fn serve(args: &ServeArgs, global: &Global) -> Result<(), Failure> {
    log::start(&args.log, global)?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Failure::wrong(&error))?;
    runtime.block_on(run(args, global))
}

async fn run(args: &ServeArgs, global: &Global) -> Result<(), Failure> {
    let mut loaded = config::load(&args.config)?;
    if let Some(listen) = args.listen {
        loaded = loaded.with_flag("server.listen", "--listen", listen.to_string());
    }
    let mut settings = loaded.check().map_err(|errors| config::mistakes(&errors))?;
    let mock = match args.mock {
        true => Some(stand_in(&mut settings, &args.mock_limits).await?),
        false => None,
    };
    let any_model = settings.models.is_empty();
    if settings.upstreams.is_empty() {
        from_environment(&mut settings);
    }
    if settings.upstreams.is_empty() {
        return Err(nothing_to_serve(args.config.path.as_ref()));
    }
    let mut signals = Signals::listen().map_err(|error| Failure::wrong(&error))?;
    let tasks = Tasks::new();
    let clock = SystemClock::new();
    let store = open_store(args, &settings, &clock)?;
    let options = GatewayOptions {
        any_model,
        store: store.clone(),
        log: call_log(args, &clock)?,
    };
    let gateway = Gateway::new(&settings, options, clock, &tasks)
        .await
        .map_err(|error| Failure::usage(with_causes(&error)))?;
    let listen = settings.server.listen;
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .map_err(|error| Failure {
            code: FAILED,
            message: format!("cannot listen on {listen}: {error}; --listen names another address"),
        })?;
    // Stopped first, so that calls in line still get their turn.
    let accepting = Tasks::new();
    let served = serve_on(Arc::clone(&gateway), listener, &accepting)
        .map_err(|error| Failure::wrong(&error))?;
    if !global.quiet {
        let addr = served.addr();
        say!("listening: OpenAI http://{addr}/v1, Anthropic http://{addr}");
        say!("Ctrl-C lets calls in flight end, and again leaves at once");
    }
    signals.next().await;
    if !global.quiet {
        say!("stopping: calls in flight have 30 s to end");
    }
    accepting.cancel();
    tokio::select! {
        () = served.stopped() => {}
        () = signals.next() => {}
    }
    tasks.cancel();
    drop(mock);
    if let Err(error) = gateway.close().await {
        tracing::warn!(%error, "what keys have used could not be written");
    }
    // What was being written is written.
    store.close();
    Ok(())
}

/// Opens where keys are kept. A gateway that is only tried out keeps nothing.
fn open_store(
    args: &ServeArgs,
    settings: &Settings,
    clock: &SystemClock,
) -> Result<Store, Failure> {
    let place = match (&settings.store.url, &args.store) {
        (_, Some(place)) => place.clone(),
        (_, None) if args.mock => Place::Memory,
        (StoreUrl::Sqlite(path), None) => Place::File(path.clone()),
        (StoreUrl::Memory, None) => Place::Memory,
        (StoreUrl::Redis(_) | StoreUrl::RedisCluster(_), None) => {
            return Err(Failure::usage(
                "store.url: this llmq keeps its keys in an embedded store only: use sqlite:PATH \
                 or memory:",
            ));
        }
    };
    Store::open(&place, clock.now().wall).map_err(|error| Failure {
        code: FAILED,
        message: with_causes(&error),
    })
}

/// One line a call, where it was asked for.
fn call_log(args: &ServeArgs, clock: &SystemClock) -> Result<CallLog, Failure> {
    let Some(path) = &args.call_log else {
        return Ok(CallLog::off());
    };
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    let form = match args.log.log_format {
        LogFormat::Text => CallLogForm::Text,
        LogFormat::Json => CallLogForm::Json,
    };
    let log = file.and_then(|file| CallLog::to(file, form, clock.clone()));
    log.map_err(|error| Failure {
        code: FAILED,
        message: format!("--call-log {}: {error}", path.display()),
    })
}

/// Starts a stand-in that speaks both dialects, and makes it the only provider where no other is
/// configured.
async fn stand_in(settings: &mut Settings, limits: &[LimitSpec]) -> Result<MockServer, Failure> {
    let config = MockConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        limits: limits.to_vec(),
        ..MockConfig::default()
    };
    let mock = MockServer::start(config).await.map_err(|error| Failure {
        code: FAILED,
        message: format!("cannot start the stand-in provider: {error}"),
    })?;
    let addr = mock.addr();
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
    Ok(mock)
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
        first_token: Timeouts::default().total,
        adaptive: Some(AdaptiveConfig::default()),
        shared_limits: Vec::new(),
        pass_headers: Vec::new(),
    }
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
