use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Clock, FailureClass, Host, LimitSpec};
use llmq_engine::bulk::RouteOptions;
use llmq_engine::config::ProviderKind;
use llmq_engine::outcome;
use llmq_limit::{HeaderSource, RateLimitHeaders, default_algorithm};
use llmq_provider::{
    Dialect, Operation, Prompt, Request, Source, Verdict, check_answer, prompt_body,
};
use serde_json::{Map, Value, json};

use crate::upstream::ChosenUpstream;

/// What a model's provider told.
#[derive(Debug)]
pub(super) struct Told {
    /// As callers name it.
    pub(super) model: String,
    /// The account, such as `openai`.
    pub(super) account: String,
    /// The provider's own name for the model, where it is another.
    pub(super) provider_model: Option<String>,
    pub(super) provider: ProviderKind,
    /// None: the provider's own.
    pub(super) base_url: Option<String>,
    /// The variable that holds the key.
    pub(super) key_variable: Option<String>,
    pub(super) limits: Vec<LimitSpec>,
    /// Limits of which the window is not known: what is counted, and how much.
    pub(super) unclear: Vec<String>,
    pub(super) took: Duration,
    /// Why there was no answer.
    pub(super) failure: Option<(FailureClass, String)>,
}

/// Asks one model for one word.
pub(super) async fn ask(
    model: &str,
    route: &RouteOptions,
    upstream: &ChosenUpstream,
    clock: &Arc<dyn Clock>,
) -> Told {
    let settings = &upstream.settings;
    let known = settings.provider.default_url() == Some(settings.base_url.as_str());
    let account = route.name.split('/').next().unwrap_or(&route.name);
    let mut told = Told {
        model: model.to_owned(),
        account: account.to_owned(),
        provider_model: upstream.model.clone(),
        provider: settings.provider,
        base_url: (!known && !settings.base_url.is_empty()).then(|| settings.base_url.clone()),
        key_variable: upstream.key_variable().map(str::to_owned),
        limits: Vec::new(),
        unclear: Vec::new(),
        took: Duration::ZERO,
        failure: None,
    };
    let provider = &route.provider;
    let named = upstream.model.as_deref().unwrap_or(model);
    let operation = match provider.dialect() {
        Dialect::OpenAi => Operation::ChatCompletions,
        Dialect::Anthropic => Operation::Messages,
    };
    let params = one_word(provider.host());
    let body = prompt_body(
        operation,
        Prompt {
            model: named,
            system: None,
            text: "Say yes.",
            params: &params,
        },
    );
    let began = clock.now().mono;
    let answer = async {
        provider
            .call(Request::new(operation, body))
            .await?
            .collect()
            .await
    };
    let answer = answer.await;
    let now = clock.now();
    told.took = now.mono - began;
    let whole = match answer {
        Ok(whole) => whole,
        Err(error) => {
            let verdict = Verdict::from(&error);
            told.failure = Some((verdict.class, verdict.message));
            return told;
        }
    };
    let source = Source {
        host: provider.host(),
        dialect: provider.dialect(),
    };
    if let Err(verdict) = check_answer(source, &whole, now) {
        told.failure = Some((verdict.class, verdict.to_string()));
    }
    // A refusal shows limits too.
    let ended = outcome::completed(provider, &whole.headers, None, told.took, now);
    if let Some(headers) = ended.headers {
        told.learn(&headers, provider.host());
    }
    told
}

/// The least output that every model can be asked for: OpenAI's reasoning models refuse
/// `max_tokens` (platform docs, "Chat completions", 2026).
fn one_word(host: Host) -> Map<String, Value> {
    let cap = match host {
        Host::OpenAi | Host::Azure => json!({"max_completion_tokens": 16}),
        _ => json!({"max_tokens": 1}),
    };
    cap.as_object().cloned().unwrap_or_default()
}

impl Told {
    fn learn(&mut self, headers: &RateLimitHeaders, host: Host) {
        for seen in &headers.observations {
            let (Some(count), false) = (seen.limit, seen.source == HeaderSource::Informational)
            else {
                continue;
            };
            let Some(window) = seen.window else {
                self.unclear.push(format!("{count} {}", seen.kind));
                continue;
            };
            let algorithm = default_algorithm(host, window);
            let limit = LimitSpec::per(seen.kind, count, window, algorithm);
            if !self.limits.contains(&limit) {
                self.limits.push(limit);
            }
        }
    }
}
