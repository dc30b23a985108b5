//! What an attempt's end is for the dispatcher.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use llmq_core::{FailureClass, Now, Usage};
use llmq_dispatch::{Ended, Outcome};
use llmq_limit::{RateLimitHeaders, parse_rate_limit_headers};
use llmq_provider::{Provider, Verdict};

/// An attempt that has its answer.
#[must_use]
pub fn completed(
    provider: &Provider,
    headers: &HeaderMap,
    usage: Option<Usage>,
    latency: Duration,
    now: Now,
) -> Ended {
    Ended {
        outcome: Outcome::Completed,
        usage,
        headers: Some(limits_told(provider, headers, now)),
        latency: Some(latency),
        pause: None,
        may_be_the_calls: false,
        was_silent: false,
        is_awaited: false,
    }
}

/// An attempt that failed; `answer` is what was heard of the provider and how long that took.
#[must_use]
pub fn failed(
    provider: &Provider,
    verdict: &Verdict,
    answer: Option<(&HeaderMap, Duration)>,
    now: Now,
) -> Ended {
    Ended {
        outcome: Outcome::Failed {
            class: verdict.class,
            told: verdict.wait,
            text: verdict.limit.clone(),
        },
        usage: None,
        headers: answer.map(|(headers, _)| limits_told(provider, headers, now)),
        latency: answer.map(|(_, latency)| latency),
        pause: Some(verdict.pause),
        may_be_the_calls: verdict.may_be_the_calls(),
        was_silent: verdict.was_silent,
        is_awaited: false,
    }
}

/// Whether an attempt whose whole answer is a failure may be billed all the same: not where the
/// provider refused it, but where what came is no answer.
#[must_use]
pub fn may_be_billed(verdict: &Verdict, status: StatusCode) -> bool {
    let passes = matches!(
        verdict.class,
        FailureClass::Transient | FailureClass::Ambiguous
    );
    status.is_success() && passes
}

/// Whether a failure at `upstream` is often only a consequence of being asked there at all, after
/// a failure `first` elsewhere: such as its 400 for a prompt it cannot take. The first is told then.
#[must_use]
pub fn is_consequence(first: &str, upstream: &str, class: FailureClass) -> bool {
    first != upstream && class == FailureClass::RowFault
}

fn limits_told(provider: &Provider, headers: &HeaderMap, now: Now) -> RateLimitHeaders {
    let pairs = headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
    parse_rate_limit_headers(provider.host(), pairs, now)
}
