use http::HeaderMap;
use llmq_core::LimitSpec;
use llmq_dispatch::Rules;
use llmq_limit::{AdaptiveConfig, QuotaConfig};
use llmq_provider::Provider;

use super::call::CallMaker;
use crate::bulk::{InputKind, InputSource, OutputPaths, ReadOptions};

/// Everything a run of a file needs to know.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The rows.
    pub source: InputSource,
    /// Their form.
    pub kind: InputKind,
    /// How they are read.
    pub read: ReadOptions,
    /// Where results go.
    pub paths: OutputPaths,
    /// How rows become calls.
    pub calls: CallMaker,
    /// The upstreams that may serve them; at least one.
    pub routes: Vec<RouteOptions>,
    /// The daily quota of each upstream.
    pub quota: QuotaConfig,
    /// Backoffs and throttles.
    pub rules: Rules,
    /// Attempts before a row fails, at least 1.
    pub max_attempts: u32,
    /// Whether a row whose attempt may have been billed is sent again.
    pub retry_ambiguous: bool,
    /// Whether to stop instead of pausing for more than ten minutes.
    pub no_wait: bool,
    /// Whether to refuse a file with bad rows before anything is sent.
    pub strict: bool,
    /// Whether to take failed rows out of the output first and send them again.
    pub retry_failed: bool,
    /// Whether to begin again; the old output is kept beside the new one.
    pub restart: bool,
    /// Whether to go on although the input or the settings changed, or a server has forgotten rows
    /// that were handed in.
    pub resume_anyway: bool,
    /// What tokens cost, if that is known.
    pub price: Option<Price>,
    /// Whether to hold back until the provider's way of counting is known.
    pub ask_before_betting: bool,
    /// Calls in flight that the process has room for, whatever the limits allow: each takes a
    /// connection, and so an open file.
    pub in_flight_max: usize,
}

/// US dollars for a million tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    /// Of input.
    pub input: f64,
    /// Of output.
    pub output: f64,
}

impl Price {
    /// What these tokens cost, in US dollars.
    ///
    /// ```
    /// let price = llmq_engine::bulk::Price { input: 0.15, output: 0.60 };
    /// assert_eq!(price.of(2_000_000, 500_000), 0.6);
    /// ```
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a sum of money for people")]
    pub fn of(&self, input_tokens: u64, output_tokens: u64) -> f64 {
        (self.input * input_tokens as f64 + self.output * output_tokens as f64) / 1e6
    }
}

/// One upstream.
#[derive(Debug, Clone)]
pub struct RouteOptions {
    /// How it is named to people, such as `openai/gpt-4o-mini`.
    pub name: String,
    /// Where calls go.
    pub provider: Provider,
    /// The model's name there, if it differs.
    pub model: Option<String>,
    /// Its share beside others, above 0.
    pub weight: f64,
    /// Its own limits.
    pub limits: Vec<LimitSpec>,
    /// Limits that it shares with others of the same name.
    pub shared: Vec<(String, Vec<LimitSpec>)>,
    /// How its concurrency adapts where no limit states it.
    pub adaptive: Option<AdaptiveConfig>,
    /// Whether limits that its headers tell of are kept too.
    pub learn: bool,
    /// Sent with each call.
    pub headers: HeaderMap,
    /// Routes with the same number use the same key: when money or access is refused to one, it
    /// is to all.
    pub credential: Option<u32>,
}
