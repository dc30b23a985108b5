use std::collections::BTreeMap;
use std::time::Duration;

use llmq_core::{Host, LimitKind, Priority};
use llmq_dispatch::Reserve;
use llmq_limit::{AdaptiveConfig, LatencyPolicy, PlainPolicy};
use llmq_provider::{Timeouts, host_of};
use toml::Value;

use super::path::KeyPath;
use super::reader::{Section, alike};
use super::settings::{
    KeySource, LimitTable, ModelSettings, OnUnavailable, ProviderKind, RouteSettings, Settings,
    StreamRecovery, StreamUsage, UpstreamSettings,
};
use super::values;
use crate::bulk::Price;

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);
/// Half of a limit may be kept for urgent calls, so that the others still move.
const RESERVE_MAX: f64 = 0.5;
/// The priorities that have names.
const NAMED: [&str; 4] = ["low", "normal", "high", "critical"];

pub(super) fn upstream(name: &str, section: &Section<'_, '_>) -> UpstreamSettings {
    if name.contains('/') {
        section.wrong_here(format!(
            "an account's name has no `/`, which stands between it and the name of a model: call \
             it {:?}, here and in the models that name it",
            name.replace('/', "-")
        ));
    }
    let kind = section.read("provider", values::word(&ProviderKind::WORDS));
    if kind.is_none() && !section.file_keys().any(|(key, _)| key == "provider") {
        let message = "is missing: use openai, anthropic, azure or mock";
        section.wrong("provider", message.to_owned());
    }
    let provider = kind.unwrap_or_default();
    let given = section.read("base_url", |found| {
        values::base_url(found, provider.dialect())
    });
    let base_url = given.or_else(|| provider.default_url().map(str::to_owned));
    if base_url.is_none() && provider == ProviderKind::Azure {
        let message = "is missing: write it like https://NAME.openai.azure.com/openai/v1";
        section.wrong("base_url", message.to_owned());
    }
    let api_key = section.read_masked("api_key", values::key, values::masked_key);
    // A server of one's own may need none.
    let is_known = |url: &String| host_of(url) != Host::Unknown;
    let needs_key = provider == ProviderKind::Azure || base_url.as_ref().is_some_and(is_known);
    let default_key = || {
        let name = provider.key_variable().filter(|_| needs_key)?;
        Some(KeySource::Env(name.to_owned()))
    };
    UpstreamSettings {
        provider,
        base_url: base_url.unwrap_or_default(),
        api_key: api_key.or_else(default_key),
        http2: section.read_or("http2", false, values::flag),
        timeouts: section.table("timeouts", timeouts),
        adaptive: section.table("adaptive", adaptive),
        shared_limits: section.read_or("shared_limits", Vec::new(), values::texts),
        pass_headers: section.read_or("pass_headers", Vec::new(), values::account_headers),
    }
}

fn timeouts(section: &Section<'_, '_>) -> Timeouts {
    let defaults = Timeouts::default();
    Timeouts {
        connect: section.read_or("connect", defaults.connect, values::some_duration),
        first_byte: section.read_or("first_byte", defaults.first_byte, values::some_duration),
        first_token: section.read_or("first_token", defaults.first_token, values::some_duration),
        idle: section.read_or("idle", defaults.idle, values::some_duration),
        total: section.read_or("total", defaults.total, values::some_duration),
    }
}

#[derive(Clone, Copy)]
enum Policy {
    Latency,
    Plain,
}

fn adaptive(section: &Section<'_, '_>) -> Option<AdaptiveConfig> {
    let words = [("latency", Policy::Latency), ("plain", Policy::Plain)];
    let policy = section.read_or("policy", Policy::Latency, values::word(&words));
    let bounds = |initial, max| {
        let max = section.read_or("max", max, values::integer(0..=1_000_000));
        let initial = section.read_or("initial", initial, values::integer(1..=1_000_000));
        if max > 0 && initial > max && section.has("initial") {
            section.wrong("initial", format!("{initial} is above max, which is {max}"));
        }
        (initial.min(max.max(1)), max)
    };
    let (config, max) = match policy {
        Policy::Latency => {
            let defaults = LatencyPolicy::default();
            let (initial, max) = bounds(defaults.initial, defaults.max);
            (AdaptiveConfig::Latency(LatencyPolicy { initial, max }), max)
        }
        Policy::Plain => {
            let defaults = PlainPolicy::default();
            let (initial, max) = bounds(defaults.initial, defaults.max);
            let share = |key, default| section.read_or(key, default, values::number(0.0..=1.0));
            let policy = PlainPolicy {
                initial,
                max,
                error_down: share("error_down", defaults.error_down),
                use_down: share("use_down", defaults.use_down),
                success_up: share("success_up", defaults.success_up),
                use_up: share("use_up", defaults.use_up),
            };
            (AdaptiveConfig::Plain(policy), max)
        }
    };
    (max > 0).then_some(config)
}

pub(super) fn model(section: &Section<'_, '_>) -> ModelSettings {
    let upstreams = section.tables("upstreams", route);
    if upstreams.is_empty() {
        let message = "is missing: say where the model is served, [ { upstream = \"…\" } ]";
        section.wrong("upstreams", message.to_owned());
    }
    ModelSettings {
        upstreams,
        fallback: section.read_or("fallback", Vec::new(), values::texts),
        context_fallback: section.read_or("context_fallback", Vec::new(), values::texts),
        stream_recovery: section.read_or(
            "stream_recovery",
            StreamRecovery::default(),
            values::word(&[
                ("error", StreamRecovery::Error),
                ("buffer", StreamRecovery::Buffer),
            ]),
        ),
        stream_usage: section.read_or(
            "stream_usage",
            StreamUsage::default(),
            values::word(&[
                ("auto", StreamUsage::Auto),
                ("add", StreamUsage::Add),
                ("never", StreamUsage::Never),
            ]),
        ),
        max_tokens: section.read("max_tokens", values::small(1..=u32::MAX)),
        early_headers: section.read("early_headers", values::some_duration),
        reserve: section.table("reserve", reserve),
        on_unavailable: section.read_or(
            "on_unavailable",
            OnUnavailable::default(),
            values::word(&[
                ("reject", OnUnavailable::Reject),
                ("queue", OnUnavailable::Queue),
            ]),
        ),
        price: section.table_if_any("price", price),
    }
}

fn route(section: &Section<'_, '_>) -> RouteSettings {
    let upstream = section.read("upstream", values::non_empty);
    if upstream.is_none() && !section.has("upstream") {
        section.wrong(
            "upstream",
            "is missing: name one of [upstreams.NAME]".to_owned(),
        );
    }
    RouteSettings {
        upstream: upstream.unwrap_or_default(),
        model: section.read("model", values::non_empty),
        weight: section.read_or("weight", 1.0, |found| match values::any_number(found)? {
            weight if weight > 0.0 && weight.is_finite() => Ok(weight),
            weight => Err(format!("{weight} is out of range, use a number above 0")),
        }),
        limits: section.table("limits", limit_table),
        shared_limits: section.read_or("shared_limits", Vec::new(), values::texts),
    }
}

pub(super) fn limit_table(section: &Section<'_, '_>) -> LimitTable {
    use LimitKind as K;
    let short = [
        ("rpm", K::Requests, MINUTE),
        ("rpd", K::Requests, DAY),
        ("tpm", K::Tokens, MINUTE),
        ("tpd", K::Tokens, DAY),
        ("itpm", K::InputTokens, MINUTE),
        ("otpm", K::OutputTokens, MINUTE),
    ];
    let read = |(key, kind, period)| Some((kind, period, section.read(key, values::count)?));
    LimitTable {
        short: short.into_iter().filter_map(read).collect(),
        concurrency: section.read("concurrency", values::count),
        custom: section.read_or("custom", Vec::new(), values::limits),
    }
}

fn reserve(section: &Section<'_, '_>) -> Vec<Reserve> {
    section.any_key();
    let mut kept = Vec::new();
    // Those with names can be given by the environment as well.
    for name in NAMED {
        let share = section.read(name, values::number(0.0..=RESERVE_MAX));
        let named = share.zip(name.parse().ok());
        kept.extend(named.map(|(share, priority)| Reserve { priority, share }));
    }
    let numbers = |(key, _): &(&String, _)| !NAMED.contains(&key.as_str());
    for (name, value) in section.file_keys().filter(numbers) {
        let share = match value {
            Value::Float(share) => Some(*share),
            Value::Integer(0) => Some(0.0),
            _ => None,
        };
        match (name.parse::<Priority>(), share) {
            (Err(error), _) => section.wrong(name, error.to_string()),
            (Ok(priority), Some(share)) if (0.0..=RESERVE_MAX).contains(&share) => {
                kept.push(Reserve { priority, share });
            }
            _ => section.wrong(
                name,
                format!("{value} is out of range, use 0 to {RESERVE_MAX}"),
            ),
        }
    }
    kept
}

fn price(section: &Section<'_, '_>) -> Price {
    let dollars = || values::number(0.0..=f64::MAX);
    Price {
        input: section.read_or("input", 0.0, dollars()),
        output: section.read_or("output", 0.0, dollars()),
    }
}

/// Every name that is referred to must exist.
pub(super) fn check_references(root: &Section<'_, '_>, settings: &Settings) {
    let known_limits = || settings.limits.keys().map(String::as_str);
    let known_models = || settings.models.keys().map(String::as_str);
    let shared = |path: &str, names: &[String]| {
        for name in names {
            refer(
                root,
                &format!("{path}.shared_limits"),
                "limits",
                name,
                known_limits(),
            );
        }
    };
    for (name, upstream) in &settings.upstreams {
        shared(&path_of("upstreams", name), &upstream.shared_limits);
    }
    for (name, model) in &settings.models {
        let path = path_of("models", name);
        for (number, route) in model.upstreams.iter().enumerate() {
            let path = format!("{path}.upstreams[{number}]");
            if !route.upstream.is_empty() {
                let known = settings.upstreams.keys().map(String::as_str);
                refer(
                    root,
                    &format!("{path}.upstream"),
                    "upstreams",
                    &route.upstream,
                    known,
                );
            }
            shared(&path, &route.shared_limits);
        }
        for (key, others) in [
            ("fallback", &model.fallback),
            ("context_fallback", &model.context_fallback),
        ] {
            for other in others {
                refer(
                    root,
                    &format!("{path}.{key}"),
                    "models",
                    other,
                    known_models(),
                );
            }
        }
    }
}

/// An account's provider model is one upstream with one set of limits: of several models that
/// lead there, those that state any state the same.
pub(super) fn check_limits_agree(root: &Section<'_, '_>, settings: &Settings) {
    let mut stated: BTreeMap<(&str, &str), (String, &RouteSettings)> = BTreeMap::new();
    for (name, model) in &settings.models {
        let path = path_of("models", name);
        for (number, route) in model.upstreams.iter().enumerate() {
            if !route.states_limits() {
                continue;
            }
            let path = format!("{path}.upstreams[{number}]");
            let (account, model) = (route.upstream.as_str(), route.model_for(name));
            let (first, other) = stated
                .entry((account, model))
                .or_insert_with(|| (path.clone(), route));
            if (&other.limits, &other.shared_limits) != (&route.limits, &route.shared_limits) {
                let message = format!(
                    "has other limits than {first}, and both lead to {account}/{model}: state \
                     the limits of that once"
                );
                root.wrong_at(&path, message);
            }
        }
    }
}

fn path_of(table: &str, name: &str) -> String {
    KeyPath::default().child(table).child(name).to_string()
}

fn refer<'k>(
    root: &Section<'_, '_>,
    path: &str,
    table: &str,
    name: &str,
    known: impl Iterator<Item = &'k str> + Clone,
) {
    if known.clone().any(|known| known == name) {
        return;
    }
    let message = match alike(name, known) {
        Some(meant) => format!("there is no [{table}.{name}]; did you mean {meant:?}?"),
        None => format!("there is no [{table}.{name}]"),
    };
    root.wrong_at(path, message);
}
