use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use llmq_core::{Backoffs, FailureClass, Host, LimitKind, LimitSpec};
use llmq_dispatch::{Capacity, Reserve};
use llmq_limit::{AdaptiveConfig, QuotaConfig, default_algorithm};
use llmq_provider::{Dialect, Secret, SecretError, Timeouts, host_of, is_own_server};
use rustc_hash::FxHashMap;

use crate::bulk::Price;

/// The configuration, checked: every value has its type and lies in its range, and every name
/// that is referred to exists.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What this installation is for.
    pub environment: Environment,
    /// Whether whole answers are written down.
    pub record_llm_responses: bool,
    /// `[server]`.
    pub server: ServerSettings,
    /// `[store]`.
    pub store: StoreSettings,
    /// `[upstreams.NAME]`.
    pub upstreams: BTreeMap<String, UpstreamSettings>,
    /// `[models.NAME]`.
    pub models: BTreeMap<String, ModelSettings>,
    /// `[limits.NAME]`.
    pub limits: BTreeMap<String, LimitTable>,
    /// `[quota]`; its own check has passed.
    pub quota: QuotaConfig,
    /// `[retry]`.
    pub retry: RetrySettings,
    /// `[webhooks]`.
    pub webhooks: WebhookSettings,
}

/// What an installation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Environment {
    /// Real work.
    #[default]
    Production,
    /// Trying things out.
    Development,
}

/// `[server]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSettings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Who may call.
    pub auth: Auth,
    /// How long a call waits for its turn unless it says otherwise.
    pub max_wait: Duration,
    /// The largest body, in bytes.
    pub max_body_bytes: u64,
    /// The largest file, in bytes.
    pub max_file_bytes: u64,
    /// The most lines of a batch.
    pub max_batch_lines: u32,
    /// Web origins whose pages may call.
    pub cors: Vec<String>,
    /// For https.
    pub tls: Option<Tls>,
}

/// Who may call the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Auth {
    /// Everybody on a loopback address while no key exists, else those with a key.
    #[default]
    Auto,
    /// Those with a key.
    Keys,
    /// Everybody; only on a loopback address.
    None,
}

/// Files for https, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// `[store]`.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreSettings {
    /// Where jobs are kept.
    pub url: StoreUrl,
    /// How much may wait, over all queues, and when new jobs are refused.
    pub capacity: Capacity,
    /// The time in which an accepted request must start.
    pub request_ttl: Duration,
    /// How long results can be fetched.
    pub keep_results: Duration,
    /// Copies that must have a write before it counts.
    pub wait_aof: Option<Copies>,
    /// What becomes of limits while Redis is away.
    pub on_store_loss: OnStoreLoss,
    /// Where new jobs go meanwhile.
    pub fallback: Fallback,
}

/// The address of a store. `Debug` shows no password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// A file of this machine.
    Sqlite(PathBuf),
    /// Nowhere: jobs end with the process.
    Memory,
    /// One Redis, or one behind Sentinel; the whole address.
    Redis(Secret),
    /// A Redis Cluster; the whole address.
    RedisCluster(Secret),
}

impl StoreUrl {
    pub(super) fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once(':')?;
        match scheme {
            "sqlite" if !rest.is_empty() => Some(Self::Sqlite(PathBuf::from(rest))),
            "memory" if rest.is_empty() => Some(Self::Memory),
            "redis" | "rediss" if rest.len() > 2 && rest.starts_with("//") => {
                Some(Self::Redis(Secret::new(url)))
            }
            "redis-cluster" if rest.len() > 2 && rest.starts_with("//") => {
                Some(Self::RedisCluster(Secret::new(url)))
            }
            _ => None,
        }
    }

    /// Whether it is on this machine, so that it cannot go away alone.
    #[must_use]
    pub fn is_local(&self) -> bool {
        matches!(self, Self::Sqlite(_) | Self::Memory)
    }
}

/// Redis copies that must have a write (`WAITAOF`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copies {
    /// 1: the server itself has it on disk; 0: it need not.
    pub local: u32,
    /// Replicas that have it on disk.
    pub replicas: u32,
}

/// What becomes of limits while the shared store is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnStoreLoss {
    /// Nothing new is sent.
    #[default]
    Wait,
    /// Each node uses an equal part of each limit.
    Share,
}

/// `[store.fallback]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fallback {
    /// A store of this machine.
    pub url: StoreUrl,
    /// The most jobs it takes.
    pub max_jobs: u64,
    /// The most bytes it takes.
    pub max_bytes: u64,
}

/// `[upstreams.NAME]`: one account at one provider.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamSettings {
    /// Who it is.
    pub provider: ProviderKind,
    /// The address up to the operation; empty for [`ProviderKind::Mock`], which has its own.
    pub base_url: String,
    /// Where its key is; none for servers without one.
    pub api_key: Option<KeySource>,
    /// Whether calls share one HTTP/2 connection.
    pub http2: bool,
    /// How long each part of a call may take.
    pub timeouts: Timeouts,
    /// How concurrency is found where no limit is set; none: not at all.
    pub adaptive: Option<AdaptiveConfig>,
    /// Names in [`Settings::limits`].
    pub shared_limits: Vec<String>,
    /// Headers of callers that choose whose limits are charged, and that it may see.
    pub pass_headers: Vec<HeaderName>,
}

impl UpstreamSettings {
    /// Whether it is a server of one's own, whose way of counting need not be asked before its
    /// limits are used in full.
    #[must_use]
    pub fn is_own(&self) -> bool {
        self.provider == ProviderKind::Mock || is_own_server(&self.base_url)
    }

    /// Who runs the server behind it, which decides how limits count.
    #[must_use]
    pub fn host(&self) -> Host {
        match self.provider {
            ProviderKind::Mock => Host::Mock,
            ProviderKind::Azure => Host::Azure,
            ProviderKind::OpenAi | ProviderKind::Anthropic => host_of(&self.base_url),
        }
    }
}

/// Which provider an upstream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ProviderKind {
    /// OpenAI, and every server that speaks its API.
    #[default]
    OpenAi,
    /// Anthropic.
    Anthropic,
    /// Azure OpenAI.
    Azure,
    /// The built-in stand-in.
    Mock,
}

impl ProviderKind {
    /// The words of the configuration, and what they mean.
    pub const WORDS: [(&'static str, Self); 4] = [
        ("openai", Self::OpenAi),
        ("anthropic", Self::Anthropic),
        ("azure", Self::Azure),
        ("mock", Self::Mock),
    ];

    /// Its word in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenAi => "openai",
            Self::Anthropic => "anthropic",
            Self::Azure => "azure",
            Self::Mock => "mock",
        }
    }

    /// Whose JSON it speaks.
    #[must_use]
    pub fn dialect(self) -> Dialect {
        match self {
            Self::Anthropic => Dialect::Anthropic,
            Self::OpenAi | Self::Azure | Self::Mock => Dialect::OpenAi,
        }
    }

    /// The address when nobody gives one.
    #[must_use]
    pub fn default_url(self) -> Option<&'static str> {
        match self {
            Self::OpenAi => Some("https://api.openai.com/v1"),
            Self::Anthropic => Some("https://api.anthropic.com"),
            Self::Azure | Self::Mock => None,
        }
    }

    /// The variable that holds its key when nobody names another.
    #[must_use]
    pub fn key_variable(self) -> Option<&'static str> {
        match self {
            Self::OpenAi => Some("OPENAI_API_KEY"),
            Self::Anthropic => Some("ANTHROPIC_API_KEY"),
            Self::Azure => Some("AZURE_OPENAI_API_KEY"),
            Self::Mock => None,
        }
    }

    /// The variable that holds its address when nobody gives one.
    #[must_use]
    pub fn url_variable(self) -> Option<&'static str> {
        match self {
            Self::OpenAi => Some("OPENAI_BASE_URL"),
            Self::Anthropic => Some("ANTHROPIC_BASE_URL"),
            Self::Azure | Self::Mock => None,
        }
    }
}

/// Where a key is. `Debug` never shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// In the variable of this name.
    Env(String),
    /// In the configuration itself.
    Literal(Secret),
}

impl KeySource {
    /// The key.
    ///
    /// # Errors
    ///
    /// [`SecretError`], which names the variable.
    pub fn resolve(&self) -> Result<Secret, SecretError> {
        match self {
            Self::Env(name) => Secret::from_env(name),
            Self::Literal(key) => Ok(key.clone()),
        }
    }
}

/// Limits as they are written in a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitTable {
    /// Short forms: what is counted, in which period, how many.
    pub short: Vec<(LimitKind, Duration, u64)>,
    /// Calls in flight.
    pub concurrency: Option<u64>,
    /// Limits in full.
    pub custom: Vec<LimitSpec>,
}

impl LimitTable {
    /// The limits; those in short form age as `host` is known to do it. Of two that differ in
    /// their counts alone the lower holds.
    #[must_use]
    pub fn specs(&self, host: Host) -> Vec<LimitSpec> {
        let short = self.short.iter().map(|&(kind, period, count)| {
            LimitSpec::per(kind, count, period, default_algorithm(host, period))
        });
        let all = short
            .chain(self.concurrency.map(LimitSpec::concurrency))
            .chain(self.custom.iter().copied());
        let mut limits: Vec<LimitSpec> = Vec::new();
        for limit in all {
            let count = limit.count;
            let same = |other: &&mut LimitSpec| LimitSpec { count, ..**other } == limit;
            match limits.iter_mut().find(same) {
                Some(other) => other.count = other.count.min(count),
                None => limits.push(limit),
            }
        }
        limits
    }
}

/// `[models.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSettings {
    /// Where it is served; at least one.
    pub upstreams: Vec<RouteSettings>,
    /// Models whose upstreams may serve it when its own cannot.
    pub fallback: Vec<String>,
    /// Models with a larger context.
    pub context_fallback: Vec<String>,
    /// What a stream that broke becomes.
    pub stream_recovery: StreamRecovery,
    /// Whether `include_usage` is added.
    pub stream_usage: StreamUsage,
    /// The cap of a call that sets none, where the upstream requires one; none: 1,024.
    pub max_tokens: Option<u32>,
    /// When a waiting stream gets its status.
    pub early_headers: Option<Duration>,
    /// Shares of every limit kept for urgent calls.
    pub reserve: Vec<Reserve>,
    /// What a call becomes that no upstream can serve now.
    pub on_unavailable: OnUnavailable,
    /// What it costs.
    pub price: Option<Price>,
}

/// One entry of a model's `upstreams`.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteSettings {
    /// A name in [`Settings::upstreams`].
    pub upstream: String,
    /// The model's name there; none: the same.
    pub model: Option<String>,
    /// Its share of the calls, above 0.
    pub weight: f64,
    /// Its own limits there.
    pub limits: LimitTable,
    /// Names in [`Settings::limits`].
    pub shared_limits: Vec<String>,
}

/// By account and the model's name there, the route that states limits of it. They hold on every
/// route that leads there, whichever model is asked for.
#[must_use]
pub fn stated_routes(
    models: &BTreeMap<String, ModelSettings>,
) -> FxHashMap<(String, String), RouteSettings> {
    let mut stated = FxHashMap::default();
    for (name, model) in models {
        let routes = model.upstreams.iter();
        for route in routes.filter(|route| route.states_limits()) {
            let key = (route.upstream.clone(), route.model_for(name).to_owned());
            stated.entry(key).or_insert_with(|| route.clone());
        }
    }
    stated
}

impl RouteSettings {
    /// What its account calls the model that people call `public`.
    #[must_use]
    pub fn model_for<'a>(&'a self, public: &'a str) -> &'a str {
        self.model.as_deref().unwrap_or(public)
    }

    /// Whether it says anything of the limits there.
    #[must_use]
    pub fn states_limits(&self) -> bool {
        self.limits != LimitTable::default() || !self.shared_limits.is_empty()
    }
}

/// What a stream that broke becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StreamRecovery {
    /// An error event.
    #[default]
    Error,
    /// Held until it is whole, and sent again if it breaks.
    Buffer,
}

/// Whether `include_usage` is added to streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StreamUsage {
    /// Where something needs the count.
    #[default]
    Auto,
    /// Always.
    Add,
    /// Never.
    Never,
}

/// What a call becomes that no upstream can serve now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnavailable {
    /// An error.
    #[default]
    Reject,
    /// An accepted job.
    Queue,
}

/// `[retry]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetrySettings {
    /// Attempts before a job fails, at least 1.
    pub max_attempts: u32,
    /// How long to wait between them.
    pub backoffs: Backoffs,
    /// What follows when the fate of an attempt is unknown.
    pub ambiguous: Ambiguous,
}

impl RetrySettings {
    /// Whether a call that failed so may be sent again at all: one that may have been billed, only
    /// where that is set.
    #[must_use]
    pub fn may_repeat(&self, class: FailureClass) -> bool {
        class != FailureClass::Ambiguous || self.ambiguous == Ambiguous::Retry
    }
}

/// What follows when a call was sent and no answer seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ambiguous {
    /// Another attempt; the first may have been billed.
    #[default]
    Retry,
    /// Failure.
    Fail,
}

/// `[webhooks]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WebhookSettings {
    /// Private networks that callbacks may reach.
    pub allow: Vec<Network>,
}

/// A network, such as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// An address in it.
    pub address: IpAddr,
    /// How many of its first bits belong to the network.
    pub prefix: u8,
}
