use std::time::Duration;

use hyper::HeaderMap;
use llmq_core::{Host, LimitSpec};
use llmq_engine::bulk::Price;
use llmq_engine::config::{KeySource, ProviderKind, Settings, UpstreamSettings, stated_routes};
use llmq_limit::AdaptiveConfig;
use llmq_provider::{Dialect, Timeouts};

use super::args::ProviderArgs;
use crate::exit::Failure;
use crate::limits::LimitArgs;

/// What was chosen, before anything is opened.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    /// At least one.
    pub(crate) upstreams: Vec<ChosenUpstream>,
    /// Whose JSON all of them speak.
    pub(crate) dialect: Dialect,
    /// What tokens cost.
    pub(crate) price: Option<Price>,
}

/// One way for calls.
#[derive(Debug, Clone)]
pub(crate) struct ChosenUpstream {
    pub(crate) name: String,
    pub(crate) settings: UpstreamSettings,
    pub(super) key: Key,
    pub(crate) model: Option<String>,
    pub(super) weight: f64,
    pub(crate) limits: Vec<LimitSpec>,
    pub(crate) shared: Vec<(String, Vec<LimitSpec>)>,
    /// Sent with each call.
    pub(super) headers: HeaderMap,
    /// Whether to keep limits that its answers tell of.
    pub(super) learn: bool,
}

/// Where the key is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    /// Here, and nowhere else.
    In(KeySource),
    /// In this variable, if it is set: the server may need none.
    IfSet(&'static str),
    None,
}

impl ChosenUpstream {
    /// The variable that holds its key, if one does.
    pub(crate) fn key_variable(&self) -> Option<&str> {
        match &self.key {
            Key::In(KeySource::Env(name)) => Some(name),
            Key::IfSet(name) if std::env::var_os(name).is_some() => Some(name),
            Key::In(KeySource::Literal(_)) | Key::IfSet(_) | Key::None => None,
        }
    }
}

impl Chosen {
    /// The model that is asked for when nobody names one.
    pub(crate) fn default_model(&self) -> Option<&'static str> {
        let is_mock = |upstream: &ChosenUpstream| upstream.settings.provider == ProviderKind::Mock;
        self.upstreams.iter().all(is_mock).then_some("mock")
    }

    /// What prompts ask for where no model is named.
    pub(crate) fn model(&self) -> &str {
        let first = self.upstreams.first();
        let model = first.and_then(|upstream| upstream.model.as_deref());
        model.unwrap_or_default()
    }

    /// Whether to hold back until the provider's way of counting is known: everywhere but at
    /// servers of one's own.
    pub(crate) fn ask_before_betting(&self) -> bool {
        self.upstreams
            .iter()
            .any(|upstream| !upstream.settings.is_own())
    }
}

/// Chooses by the flags, or by the configured model of that name.
pub(crate) fn choose(
    args: &ProviderArgs,
    limits: &LimitArgs,
    model: Option<&str>,
    settings: &Settings,
) -> Result<Chosen, Failure> {
    let by_flags = args.provider.is_some() || args.base_url.is_some() || args.api_key_env.is_some();
    if by_flags || settings.models.is_empty() {
        by_the_flags(args, limits, model, settings)
    } else {
        by_the_configuration(args, limits, model, settings)
    }
}

fn by_the_flags(
    args: &ProviderArgs,
    limits: &LimitArgs,
    model: Option<&str>,
    settings: &Settings,
) -> Result<Chosen, Failure> {
    let provider = args.provider.map_or(ProviderKind::OpenAi, Into::into);
    let from_env = || {
        std::env::var(provider.url_variable()?)
            .ok()
            .filter(|url| !url.is_empty())
    };
    let configured = settings.upstreams.get(provider.as_str());
    // Another address is another account, and a configuration with models has them chosen by name.
    let is_meant = |upstream: &&UpstreamSettings| {
        settings.models.is_empty()
            && args.base_url.is_none()
            && from_env().is_none()
            && upstream.provider == provider
    };
    if let Some(upstream) = configured.filter(is_meant) {
        return Ok(of_configured(upstream, args, limits, model, settings));
    }
    let default = || provider.default_url().map(str::to_owned);
    let base_url = args.base_url.clone().or_else(from_env).or_else(default);
    let upstream = at(provider, base_url.unwrap_or_default(), args.timeout);
    let host = upstream.host();
    let key = match (&args.api_key_env, provider.key_variable()) {
        (Some(name), _) => Key::In(KeySource::Env(name.clone())),
        (None, Some(name)) if host == Host::Unknown => Key::IfSet(name),
        (None, Some(name)) => Key::In(KeySource::Env(name.to_owned())),
        (None, None) => Key::None,
    };
    let named_model = model.and_then(|model| settings.models.get(model));
    let chosen = ChosenUpstream {
        name: named(provider, model),
        settings: upstream,
        key,
        model: None,
        weight: 1.0,
        limits: limits.specs(host),
        shared: Vec::new(),
        headers: HeaderMap::new(),
        learn: true,
    };
    Ok(Chosen {
        upstreams: vec![chosen],
        dialect: provider.dialect(),
        price: args.price.or_else(|| named_model?.price),
    })
}

/// The configured upstream that is called as its provider is, where no models are configured.
fn of_configured(
    upstream: &UpstreamSettings,
    args: &ProviderArgs,
    limits: &LimitArgs,
    model: Option<&str>,
    settings: &Settings,
) -> Chosen {
    let provider = upstream.provider;
    let host = upstream.host();
    let key = match &args.api_key_env {
        Some(name) => Key::In(KeySource::Env(name.clone())),
        None => upstream.api_key.clone().map_or(Key::None, Key::In),
    };
    let chosen = ChosenUpstream {
        name: named(provider, model),
        key,
        model: None,
        weight: 1.0,
        limits: limits.specs(host),
        shared: shared_of(settings, &upstream.shared_limits, host),
        headers: HeaderMap::new(),
        learn: true,
        settings: UpstreamSettings {
            timeouts: timeouts(upstream.timeouts, args.timeout),
            ..upstream.clone()
        },
    };
    Chosen {
        upstreams: vec![chosen],
        dialect: provider.dialect(),
        price: args.price,
    }
}

fn named(provider: ProviderKind, model: Option<&str>) -> String {
    match model {
        Some(model) => format!("{}/{model}", provider.as_str()),
        None => provider.as_str().to_owned(),
    }
}

/// The limits of these names, which the configuration has since it was checked.
fn shared_of<'a>(
    settings: &Settings,
    names: impl IntoIterator<Item = &'a String>,
    host: Host,
) -> Vec<(String, Vec<LimitSpec>)> {
    let found = names
        .into_iter()
        .filter_map(|name| Some((name.clone(), settings.limits.get(name)?.specs(host))));
    found.collect()
}

/// What is usual, at an address that a flag or a variable names.
pub(super) fn at(
    provider: ProviderKind,
    base_url: String,
    timeout: Option<Duration>,
) -> UpstreamSettings {
    UpstreamSettings {
        provider,
        base_url,
        api_key: None,
        pass_headers: Vec::new(),
        http2: false,
        timeouts: timeouts(Timeouts::default(), timeout),
        adaptive: Some(AdaptiveConfig::default()),
        shared_limits: Vec::new(),
    }
}

fn by_the_configuration(
    args: &ProviderArgs,
    limits: &LimitArgs,
    model: Option<&str>,
    settings: &Settings,
) -> Result<Chosen, Failure> {
    let known = || {
        settings
            .models
            .keys()
            .cloned()
            .collect::<Vec<_>>()
            .join(", ")
    };
    let Some(name) = model else {
        let message = format!(
            "no model is named: say --model; the configuration has {}",
            known()
        );
        return Err(Failure::usage(message));
    };
    let Some(configured) = settings.models.get(name) else {
        let message = format!(
            "--model: the configuration has no model {name:?}, only {}; \
             say --provider to go without the configuration's upstreams",
            known()
        );
        return Err(Failure::usage(message));
    };
    if configured.upstreams.len() > 1 && !limits.is_empty() {
        let message = format!(
            "the configuration serves {name} by several upstreams: \
             give their limits there, and not as flags"
        );
        return Err(Failure::usage(message));
    }
    let stated = stated_routes(&settings.models);
    let mut upstreams = Vec::new();
    for route in &configured.upstreams {
        // The configuration was checked: what it refers to exists.
        let Some(upstream) = settings.upstreams.get(&route.upstream) else {
            continue;
        };
        let mut upstream = upstream.clone();
        upstream.timeouts = timeouts(upstream.timeouts, args.timeout);
        let host = upstream.host();
        let provider_model = route.model_for(name);
        let made = (route.upstream.clone(), provider_model.to_owned());
        let limits_from = stated.get(&made).unwrap_or(route);
        let mut shared: Vec<&String> = limits_from.shared_limits.iter().collect();
        let of_account = upstream.shared_limits.iter();
        shared.extend(of_account.filter(|name| !limits_from.shared_limits.contains(name)));
        let shared = shared_of(settings, shared, host);
        upstreams.push(ChosenUpstream {
            name: format!("{}/{provider_model}", route.upstream),
            key: upstream.api_key.clone().map_or(Key::None, Key::In),
            model: (provider_model != name).then(|| provider_model.to_owned()),
            weight: route.weight,
            limits: limits.over(limits_from.limits.specs(host), host),
            shared,
            headers: HeaderMap::new(),
            learn: true,
            settings: upstream,
        });
    }
    let dialects = || {
        upstreams
            .iter()
            .map(|upstream| upstream.settings.provider.dialect())
    };
    let dialect = dialects().next().unwrap_or(Dialect::OpenAi);
    if dialects().any(|other| other != dialect) {
        let message = format!(
            "the upstreams of {name} speak different APIs, and a file of calls is written in one"
        );
        return Err(Failure::usage(message));
    }
    Ok(Chosen {
        upstreams,
        dialect,
        price: args.price.or(configured.price),
    })
}

/// Answers of a run come whole, so the first byte of one may take as long as all of it.
fn timeouts(configured: Timeouts, total: Option<Duration>) -> Timeouts {
    let total = total.unwrap_or(configured.total);
    Timeouts {
        connect: configured.connect.min(total),
        first_byte: total,
        first_token: total,
        idle: configured.idle.min(total),
        total,
    }
}

#[cfg(test)]
mod tests {
    use llmq_engine::config::Config;

    use super::super::args::ProviderArg;
    use super::*;

    fn chosen(
        toml: &str,
        args: &ProviderArgs,
        limits: &LimitArgs,
        model: &str,
    ) -> Result<Chosen, Failure> {
        let settings = Config::parse("t", toml).unwrap().check().unwrap();
        choose(args, limits, Some(model), &settings)
    }

    const TWO: &str = "
        [upstreams.here]
        provider = \"openai\"
        base_url = \"http://localhost:1/v1\"
        [upstreams.there]
        provider = \"openai\"
        shared_limits = [\"account\"]
        [upstreams.other]
        provider = \"anthropic\"
        [limits.account]
        rpm = 10
        [models.one]
        upstreams = [ { upstream = \"there\", model = \"uno\", limits = { rpm = 5, tpm = \"1k\" } } ]
        price = { input = 1, output = 2 }
        [models.two]
        upstreams = [ { upstream = \"here\", weight = 3 }, { upstream = \"there\" } ]
        [models.mixed]
        upstreams = [ { upstream = \"here\" }, { upstream = \"other\" } ]
    ";

    #[test]
    fn a_configured_model_brings_its_upstreams_limits_and_price() {
        let flags = LimitArgs {
            rpm: Some(7),
            ..LimitArgs::default()
        };
        let one = chosen(TWO, &ProviderArgs::default(), &flags, "one").unwrap();
        let upstream = &one.upstreams[0];
        assert_eq!(
            (upstream.name.as_str(), upstream.model.as_deref()),
            ("there/uno", Some("uno"))
        );
        let limits: Vec<_> = upstream.limits.iter().map(ToString::to_string).collect();
        assert_eq!(limits, ["requests=7/1m:bucket", "tokens=1k/1m:bucket"]);
        assert_eq!(upstream.shared[0].0, "account");
        assert_eq!(
            one.price,
            Some(Price {
                input: 1.0,
                output: 2.0
            })
        );
        assert!(one.ask_before_betting());
    }

    /// A check of the configuration demands that limits of one account and model are stated once;
    /// the model that did not state them was sent without any.
    #[test]
    fn limits_that_another_model_states_of_the_same_place_are_kept() {
        let toml = "
            [upstreams.there]
            provider = \"openai\"
            shared_limits = [\"account\"]
            [limits.account]
            rpd = 1000
            [models.first]
            upstreams = [ { upstream = \"there\", model = \"x\", limits = { rpm = 500 }, shared_limits = [\"account\"] } ]
            [models.second]
            upstreams = [ { upstream = \"there\", model = \"x\" } ]
            [models.third]
            upstreams = [ { upstream = \"there\", model = \"y\" } ]
        ";
        let limits = |model| {
            let args = ProviderArgs::default();
            let chosen = chosen(toml, &args, &LimitArgs::default(), model).unwrap();
            let upstream = chosen.upstreams[0].clone();
            let own: Vec<_> = upstream.limits.iter().map(ToString::to_string).collect();
            (own, upstream.shared.len())
        };
        let rpm = vec!["requests=500/1m:bucket".to_owned()];
        assert_eq!(limits("first"), (rpm.clone(), 1));
        assert_eq!(limits("second"), (rpm, 1));
        assert_eq!(limits("third"), (vec![], 1));
    }

    #[test]
    fn what_a_file_of_calls_cannot_use_is_refused() {
        let none = LimitArgs::default();
        let some = LimitArgs {
            rpm: Some(7),
            ..LimitArgs::default()
        };
        for (model, limits, part) in [
            ("three", &none, "no model \"three\", only mixed, one, two"),
            ("two", &some, "several upstreams"),
            ("mixed", &none, "different APIs"),
        ] {
            let failure = chosen(TWO, &ProviderArgs::default(), limits, model).unwrap_err();
            assert!(failure.message.contains(part), "{}", failure.message);
        }
    }

    /// Where no model was configured, everything that was said of the account was passed over in
    /// silence.
    #[test]
    fn a_configured_account_counts_without_models_too() {
        let toml = "
            [upstreams.openai]
            provider = \"openai\"
            base_url = \"https://eu.api.openai.com/v1\"
            timeouts = { total = \"5m\" }
            adaptive = { policy = \"plain\" }
            shared_limits = [\"account\"]
            [limits.account]
            rpm = 100
        ";
        let of = |args: &ProviderArgs| {
            let chosen = chosen(toml, args, &LimitArgs::default(), "m").unwrap();
            chosen.upstreams[0].clone()
        };
        let by_name = of(&ProviderArgs::default());
        assert_eq!(by_name.name, "openai/m");
        assert_eq!(by_name.settings.base_url, "https://eu.api.openai.com/v1");
        assert_eq!(by_name.settings.timeouts.total, Duration::from_secs(300));
        assert!(matches!(
            by_name.settings.adaptive,
            Some(AdaptiveConfig::Plain(_))
        ));
        assert_eq!(by_name.shared[0].0, "account");
        let over = of(&ProviderArgs {
            timeout: Some(Duration::from_secs(7)),
            api_key_env: Some("OTHER".to_owned()),
            ..ProviderArgs::default()
        });
        assert_eq!(over.settings.timeouts.total, Duration::from_secs(7));
        assert_eq!(over.key, Key::In(KeySource::Env("OTHER".to_owned())));
        let elsewhere = of(&ProviderArgs {
            base_url: Some("http://localhost:1/v1".to_owned()),
            ..ProviderArgs::default()
        });
        assert_eq!(elsewhere.settings.base_url, "http://localhost:1/v1");
        assert!(elsewhere.shared.is_empty());
    }

    #[test]
    fn a_flag_that_names_a_provider_leaves_the_configured_upstreams_aside() {
        let args = ProviderArgs {
            provider: Some(ProviderArg::Mock),
            ..ProviderArgs::default()
        };
        let mock = chosen(TWO, &args, &LimitArgs::default(), "one").unwrap();
        assert_eq!(mock.upstreams[0].settings.provider, ProviderKind::Mock);
        assert!(!mock.ask_before_betting());
    }
}
