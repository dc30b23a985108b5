use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Algorithm, Host, LimitKind, LimitSpec};
use llmq_limit::{BreakerConfig, QuotaConfig, default_algorithm};

use crate::error::QueueError;

/// How one model is to be called: its limits, and what holds for its queue.
///
/// Any number of limits hold at once; without one, nothing is held back.
///
/// ```
/// use llmq::ModelConfig;
/// use std::time::Duration;
/// let config = ModelConfig::new("gpt-4o-mini")
///     .requests_per_minute(500)
///     .tokens_per_minute(200_000)
///     .requests_per(20, Duration::from_secs(1))
///     .concurrent(8)
///     .timeout(Duration::from_secs(60));
/// assert_eq!(config.limits.len(), 4);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ModelConfig {
    /// The name by which requests find it.
    pub model_id: Arc<str>,
    /// Its limits. Over one period a kind can have one limit.
    pub limits: Vec<LimitSpec>,
    /// Names of limits that it shares with other models; see
    /// [`QueueManager::share_limit`](crate::QueueManager::share_limit).
    pub shared_limits: Vec<String>,
    /// Who runs the server, where that is known: then its limits charge and age as that
    /// provider's do. Otherwise windows slide, and tokens are settled to what was used.
    pub host: Host,
    /// Requests that may be accepted and not finished, at least 1; more are refused.
    pub capacity: u64,
    /// Attempts before a request fails, at least 1. Refusals for the rate are counted apart.
    pub max_attempts: u32,
    /// For requests that name no timeout of their own.
    pub timeout: Option<Duration>,
    /// How many finished requests are remembered.
    pub history: usize,
    /// When the model counts as down because transient failures pile up; none: never.
    pub breaker: Option<BreakerConfig>,
    /// A daily quota that pauses the queue at its threshold; none: not watched.
    pub quota: Option<QuotaConfig>,
    /// Where the quota's count is kept; none: it begins at nothing with the process.
    pub quota_file: Option<PathBuf>,
}

/// More waiting requests than that are better kept in a file.
const CAPACITY: u64 = 100_000;
/// Finished requests that are remembered.
const HISTORY: usize = 10_000;
const PERIOD_MIN: Duration = Duration::from_millis(1);
const PERIOD_MAX: Duration = Duration::from_secs(366 * 86_400);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

impl ModelConfig {
    /// A model without limits.
    #[must_use]
    pub fn new(model_id: impl Into<Arc<str>>) -> Self {
        Self {
            model_id: model_id.into(),
            limits: Vec::new(),
            shared_limits: Vec::new(),
            host: Host::Unknown,
            capacity: CAPACITY,
            max_attempts: 5,
            timeout: None,
            history: HISTORY,
            breaker: Some(BreakerConfig::default()),
            quota: None,
            quota_file: None,
        }
    }

    /// Says who runs the server. Call it before naming limits: it decides how they age.
    #[must_use]
    pub fn host(self, host: Host) -> Self {
        Self { host, ..self }
    }

    /// At most `count` calls in any minute.
    #[must_use]
    pub fn requests_per_minute(self, count: u64) -> Self {
        self.requests_per(count, MINUTE)
    }

    /// At most `count` calls in any day.
    #[must_use]
    pub fn requests_per_day(self, count: u64) -> Self {
        self.requests_per(count, DAY)
    }

    /// At most `count` calls in any such period.
    #[must_use]
    pub fn requests_per(self, count: u64, period: Duration) -> Self {
        self.per(LimitKind::Requests, count, period)
    }

    /// At most `count` tokens, input and output together, in any minute.
    #[must_use]
    pub fn tokens_per_minute(self, count: u64) -> Self {
        self.per(LimitKind::Tokens, count, MINUTE)
    }

    /// At most `count` tokens, input and output together, in any day.
    #[must_use]
    pub fn tokens_per_day(self, count: u64) -> Self {
        self.per(LimitKind::Tokens, count, DAY)
    }

    /// At most `count` input tokens in any minute.
    #[must_use]
    pub fn input_tokens_per_minute(self, count: u64) -> Self {
        self.per(LimitKind::InputTokens, count, MINUTE)
    }

    /// At most `count` output tokens in any minute.
    #[must_use]
    pub fn output_tokens_per_minute(self, count: u64) -> Self {
        self.per(LimitKind::OutputTokens, count, MINUTE)
    }

    /// At most `count` calls at once.
    #[must_use]
    pub fn concurrent(self, count: u64) -> Self {
        self.limit(LimitSpec::concurrency(count))
    }

    /// One more limit, such as `"requests=200/2s".parse()?`.
    #[must_use]
    pub fn limit(mut self, limit: LimitSpec) -> Self {
        self.limits.push(limit);
        self
    }

    /// A limit that it shares with other models, by name.
    #[must_use]
    pub fn shared_limit(mut self, name: impl Into<String>) -> Self {
        self.shared_limits.push(name.into());
        self
    }

    /// At most `requests` accepted and not finished.
    #[must_use]
    pub fn capacity(self, requests: u64) -> Self {
        Self {
            capacity: requests,
            ..self
        }
    }

    /// At most so many attempts; 1 tries nothing twice.
    #[must_use]
    pub fn max_attempts(self, attempts: u32) -> Self {
        Self {
            max_attempts: attempts,
            ..self
        }
    }

    /// At most this long from submission to result, unless the request says otherwise.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self {
            timeout: Some(timeout),
            ..self
        }
    }

    /// Remembers so many finished requests.
    #[must_use]
    pub fn history(self, requests: usize) -> Self {
        Self {
            history: requests,
            ..self
        }
    }

    /// Never takes the model as down, however many transient failures pile up.
    #[must_use]
    pub fn without_breaker(self) -> Self {
        Self {
            breaker: None,
            ..self
        }
    }

    /// Watches a daily quota, and pauses the queue at its threshold until the day turns. The count
    /// begins at nothing with the process unless it has a [file](ModelConfig::quota_file).
    #[must_use]
    pub fn daily_quota(self, quota: QuotaConfig) -> Self {
        Self {
            quota: Some(quota),
            ..self
        }
    }

    /// Keeps the count of [`ModelConfig::daily_quota`] in a file, so that no restart is a way past
    /// the day. The file says ahead of use what may be used, a hundredth of the limit at a time:
    /// a crash costs at most so much of the day. A file that is broken begins anew and says so in
    /// the log.
    ///
    /// It is for this model in this process alone, and is read and written at once when the model
    /// is registered, which blocks for a moment. When it cannot be written later, no further
    /// request is started until it can.
    ///
    /// ```
    /// use llmq::{ModelConfig, QuotaConfig};
    /// let quota = QuotaConfig { daily_request_limit: Some(10_000), ..QuotaConfig::default() };
    /// let model = ModelConfig::new("gpt-4o-mini")
    ///     .daily_quota(quota)
    ///     .quota_file("gpt-4o-mini.quota.json");
    /// assert!(model.check().is_ok());
    /// ```
    #[must_use]
    pub fn quota_file(self, path: impl Into<PathBuf>) -> Self {
        Self {
            quota_file: Some(path.into()),
            ..self
        }
    }

    fn per(self, kind: LimitKind, count: u64, period: Duration) -> Self {
        let algorithm = default_algorithm(self.host, period);
        self.limit(LimitSpec::per(kind, count, period, algorithm))
    }

    /// Finds every setting that cannot be meant.
    ///
    /// # Errors
    ///
    /// [`QueueError::InvalidConfiguration`] with all of them.
    pub fn check(&self) -> Result<(), QueueError> {
        let mut mistakes = Vec::new();
        let mut must = |holds: bool, words: &str| {
            if !holds {
                mistakes.push(words.to_owned());
            }
        };
        must(!self.model_id.trim().is_empty(), "model_id: it is empty");
        must(self.capacity > 0, "capacity: use at least 1");
        must(self.max_attempts > 0, "max_attempts: use at least 1");
        must(
            self.timeout != Some(Duration::ZERO),
            "timeout: use more than 0, or leave it out",
        );
        for (index, limit) in self.limits.iter().enumerate() {
            if let Err(words) = check_limit(limit) {
                mistakes.push(format!("{limit}: {words}"));
            }
            let twin = |other: &LimitSpec| same_slot(other, limit);
            if self.limits[..index].iter().any(twin) {
                mistakes.push(format!("{limit}: there is another limit {}", limit.name()));
            }
        }
        if let Some(breaker) = &self.breaker {
            mistakes.extend(check_breaker(breaker).map(str::to_owned));
        }
        if let Some(Err(errors)) = self.quota.as_ref().map(QuotaConfig::check) {
            mistakes.push(errors.to_string());
        }
        if self.quota_file.is_some() && self.quota.is_none() {
            mistakes
                .push("a quota_file keeps the count of a daily_quota, and there is none".into());
        }
        if mistakes.is_empty() {
            return Ok(());
        }
        Err(QueueError::invalid(
            Arc::clone(&self.model_id),
            mistakes.join("; "),
        ))
    }
}

/// Whether two limits count the same over the same period.
pub(crate) fn same_slot(one: &LimitSpec, other: &LimitSpec) -> bool {
    one.kind == other.kind && one.period == other.period
}

/// What is wrong with a limit that was not read from text.
pub(crate) fn check_limit(limit: &LimitSpec) -> Result<(), &'static str> {
    if limit.count == 0 {
        return Err("a limit of 0 lets nothing pass, use at least 1");
    }
    if limit.count > LimitSpec::COUNT_MAX {
        return Err("use at most 10^15, or leave it out");
    }
    if limit.kind == LimitKind::Concurrency {
        return Ok(());
    }
    if !(PERIOD_MIN..=PERIOD_MAX).contains(&limit.period) {
        return Err("use a period of 1ms to 366d");
    }
    match limit.algorithm {
        Algorithm::Bucket { depth } if depth.is_zero() => Err("a bucket needs a depth"),
        Algorithm::Bucket { .. } | Algorithm::Sliding | Algorithm::Fixed => Ok(()),
    }
}

/// What is wrong with a breaker. One that is wanted never to open is left out.
fn check_breaker(breaker: &BreakerConfig) -> impl Iterator<Item = &'static str> {
    let in_a_row = (breaker.failures_in_row == 0)
        .then_some("breaker.failures_in_row: use at least 1, or without_breaker");
    // No share at all would open it with the first outcomes, whatever they are.
    let share = (breaker.failure_share.is_nan() || breaker.failure_share <= 0.0)
        .then_some("breaker.failure_share: use more than 0");
    in_a_row.into_iter().chain(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(config: ModelConfig) -> String {
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn a_limit_of_nothing_and_two_of_one_kind_are_refused() {
        let text = mistakes(ModelConfig::new("m").requests_per_minute(0));
        assert!(text.contains("a limit of 0"), "{text}");
        let text = mistakes(
            ModelConfig::new("m")
                .requests_per_minute(5)
                .requests_per_minute(6),
        );
        assert!(text.contains("another limit rpm"), "{text}");
        let other_period = ModelConfig::new("m")
            .requests_per_minute(5)
            .requests_per_day(6);
        assert!(other_period.check().is_ok());
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let config = ModelConfig::new(" ")
            .capacity(0)
            .max_attempts(0)
            .timeout(Duration::ZERO)
            .requests_per(5, Duration::ZERO);
        let config = ModelConfig {
            breaker: Some(BreakerConfig {
                failures_in_row: 0,
                failure_share: f64::NAN,
                ..BreakerConfig::default()
            }),
            ..config
        };
        let text = mistakes(config);
        for word in [
            "model_id",
            "capacity",
            "max_attempts",
            "timeout",
            "period",
            "failures_in_row",
            "failure_share",
        ] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }

    /// Sums of charges ran over: an unused limit had nothing left.
    #[test]
    fn a_limit_that_is_meant_as_none_is_refused() {
        let at_most = |count| ModelConfig::new("m").requests_per_minute(count);
        assert!(mistakes(at_most(u64::MAX)).contains("10^15"));
        assert!(at_most(LimitSpec::COUNT_MAX).check().is_ok());
        let places = ModelConfig::new("m").concurrent(u64::MAX);
        assert!(mistakes(places).contains("10^15"));
    }

    #[test]
    fn a_known_host_decides_how_limits_age() {
        let config = ModelConfig::new("m")
            .host(Host::OpenAi)
            .requests_per_minute(5);
        assert!(matches!(
            config.limits[0].algorithm,
            Algorithm::Bucket { .. }
        ));
    }
}
