use std::time::Duration;

use llmq_core::{LimitKind, WallTime};

/// The family of headers a limit was read from, as far as it changes what the numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeaderSource {
    /// `x-ratelimit-*-requests` and the like: the limit of the key or the organization.
    Standard,
    /// `x-ratelimit-*-project-tokens`: a limit of the project, beside the organization's.
    Project,
    /// Only for information: Anthropic's plain `tokens`, which repeats whichever limit binds,
    /// and the limits of its priority tier. No limit is to be learned from it.
    Informational,
    /// `X-RateLimit-Limit/-Remaining/-Reset` and `RateLimit-Limit/…`: the reset is the end of a
    /// window, not the time until a bucket is full.
    Split,
    /// `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10): the reset
    /// is the time until there is more, which may still be little.
    Ietf,
}

/// What one answer says about one limit. Anything missing or unreadable is `None`: unknown,
/// which is neither zero nor exhausted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// What is counted.
    pub kind: LimitKind,
    /// Where it was read.
    pub source: HeaderSource,
    /// The limit, at least 1.
    pub limit: Option<u64>,
    /// What is left, as of the answer; the call it answers is already counted.
    pub remaining: Option<u64>,
    /// From the answer until the limit is full again; see [`HeaderSource`] for the exceptions.
    pub reset: Option<Duration>,
    /// The limit's window: named by the header, documented for the host, or inferred.
    pub window: Option<Duration>,
    /// The granularity of `remaining`: 1 when it is exact, 1000 when it is rounded to thousands.
    pub rounding: u64,
    /// What this call was charged, where the provider tells (Mistral).
    pub query_cost: Option<u64>,
}

impl Observation {
    /// The used share of the limit in per cent; above 100 never, unknown when either is.
    #[must_use]
    pub fn used_percent(&self) -> Option<f64> {
        used_percent(self.limit, self.remaining)
    }
}

fn used_percent(limit: Option<u64>, remaining: Option<u64>) -> Option<f64> {
    let (limit, remaining) = (limit.filter(|limit| *limit > 0)?, remaining?);
    Some(limit.saturating_sub(remaining) as f64 * 100.0 / limit as f64)
}

/// Everything an answer's headers say about limits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RateLimitHeaders {
    /// One per limit that was mentioned, in the order of mention.
    pub observations: Vec<Observation>,
    /// How long the provider asks to wait.
    pub retry_after: Option<Duration>,
    /// How long the provider worked on the call (`openai-processing-ms`).
    pub processing: Option<Duration>,
    /// A limit of 0 where that means that the plan does not have the model (Mistral, Gemini).
    pub no_access: bool,
    /// The first header that should have been readable and was not, cut to 100 bytes, for a
    /// warning behind a [`MinuteGate`](crate::MinuteGate).
    pub garbled: Option<String>,
}

/// The account's state as one answer tells it, in the words of the public interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QuotaStatus {
    /// Requests left.
    pub requests_remaining: Option<u64>,
    /// The limit of requests.
    pub requests_limit: Option<u64>,
    /// Tokens left.
    pub tokens_remaining: Option<u64>,
    /// The limit of tokens.
    pub tokens_limit: Option<u64>,
    /// Until the requests are full again, from `timestamp`.
    pub reset_requests: Option<Duration>,
    /// Until the tokens are full again, from `timestamp`.
    pub reset_tokens: Option<Duration>,
    /// When the answer came.
    pub timestamp: WallTime,
}

impl QuotaStatus {
    /// This status with what it does not know taken from an older one.
    pub(crate) fn completed_from(self, older: &Self) -> Self {
        Self {
            requests_remaining: self.requests_remaining.or(older.requests_remaining),
            requests_limit: self.requests_limit.or(older.requests_limit),
            tokens_remaining: self.tokens_remaining.or(older.tokens_remaining),
            tokens_limit: self.tokens_limit.or(older.tokens_limit),
            reset_requests: self.reset_requests.or(older.reset_requests),
            reset_tokens: self.reset_tokens.or(older.reset_tokens),
            timestamp: self.timestamp,
        }
    }

    /// Used requests in per cent of their limit.
    #[must_use]
    pub fn requests_used_percent(&self) -> Option<f64> {
        used_percent(self.requests_limit, self.requests_remaining)
    }

    /// Used tokens in per cent of their limit.
    #[must_use]
    pub fn tokens_used_percent(&self) -> Option<f64> {
        used_percent(self.tokens_limit, self.tokens_remaining)
    }
}

impl RateLimitHeaders {
    /// The same in the words of the public interface; of several limits of one kind, the one
    /// nearest to its end.
    #[must_use]
    pub fn quota_status(&self, at: WallTime) -> QuotaStatus {
        let requests = self.tightest(|kind| kind == LimitKind::Requests);
        let tokens = self
            .tightest(|kind| kind == LimitKind::Tokens)
            .or_else(|| self.tightest(|kind| kind == LimitKind::InputTokens));
        QuotaStatus {
            requests_remaining: requests.and_then(|seen| seen.remaining),
            requests_limit: requests.and_then(|seen| seen.limit),
            tokens_remaining: tokens.and_then(|seen| seen.remaining),
            tokens_limit: tokens.and_then(|seen| seen.limit),
            reset_requests: requests.and_then(|seen| seen.reset),
            reset_tokens: tokens.and_then(|seen| seen.reset),
            timestamp: at,
        }
    }

    fn tightest(&self, wanted: impl Fn(LimitKind) -> bool) -> Option<&Observation> {
        // What is unknown comes last, yet before nothing at all; of equals the first is kept.
        let share = |seen: &Observation| seen.used_percent().unwrap_or(-1.0);
        self.observations
            .iter()
            .filter(|seen| wanted(seen.kind))
            .reduce(|best, next| {
                if share(next) > share(best) {
                    next
                } else {
                    best
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(kind: LimitKind, limit: u64, remaining: u64) -> Observation {
        Observation {
            kind,
            source: HeaderSource::Standard,
            limit: Some(limit),
            remaining: Some(remaining),
            reset: None,
            window: None,
            rounding: 1,
            query_cost: None,
        }
    }

    #[test]
    fn the_used_share_is_what_the_header_says_and_nothing_on_top() {
        let headers = RateLimitHeaders {
            observations: vec![
                seen(LimitKind::Requests, 5_000, 4_500),
                seen(LimitKind::Tokens, 4_000_000, 3_500_000),
            ],
            ..RateLimitHeaders::default()
        };
        let status = headers.quota_status(WallTime::from_micros(7));
        assert_eq!(status.requests_used_percent(), Some(10.0));
        assert_eq!(status.tokens_used_percent(), Some(12.5));
        assert_eq!(status.tokens_remaining, Some(3_500_000));
        assert_eq!(status.timestamp, WallTime::from_micros(7));
    }

    #[test]
    fn of_two_limits_the_one_nearer_its_end_is_shown() {
        let headers = RateLimitHeaders {
            observations: vec![
                seen(LimitKind::Tokens, 100, 90),
                seen(LimitKind::Tokens, 1_000, 10),
                seen(LimitKind::InputTokens, 10, 0),
            ],
            ..RateLimitHeaders::default()
        };
        assert_eq!(
            headers.quota_status(WallTime::default()).tokens_limit,
            Some(1_000)
        );
    }

    #[test]
    fn nothing_known_is_nothing_used() {
        let status = RateLimitHeaders::default().quota_status(WallTime::default());
        assert_eq!(status, QuotaStatus::default());
        assert_eq!(status.requests_used_percent(), None);
    }
}
