use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use llmq_core::{LimitKind, LimitSpec, ParseLimitError, parse_duration};
use llmq_strict::Charge;

use crate::Secret;

/// Everything that can be set about a stand-in provider.
///
/// ```
/// use llmq_provider::mock::{DefaultAlgorithm, MockConfig};
/// let config = MockConfig {
///     limits: vec![DefaultAlgorithm::Bucket.read_limit("requests=2000/10s").unwrap()],
///     outages: vec!["10s-20s".parse().unwrap()],
///     foreign: vec!["requests=10/s".parse().unwrap()],
///     ..MockConfig::default()
/// };
/// assert_eq!(config.limits[0].to_string(), "requests=2k/10s:bucket");
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct MockConfig {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The account's limits, enforced exactly.
    pub limits: Vec<LimitSpec>,
    /// When tokens are counted.
    pub charge: Charge,
    /// The mean time that an answer takes; zero answers at once.
    pub latency: Duration,
    /// By what share of itself the latency varies either way, from 0 to 1.
    pub jitter: f64,
    /// Output tokens of each answer, before the call's own cap.
    pub output_tokens: u32,
    /// The share of admitted calls that fail with status 500, from 0 to 1.
    pub fail: f64,
    /// The share of admitted calls whose connection is closed without an answer, from 0 to 1.
    pub drop: f64,
    /// When nothing is served, measured from the start.
    pub outages: Vec<Outage>,
    /// What an outage looks like.
    pub outage_style: OutageStyle,
    /// Admitted calls after which the money is gone and every call gets `insufficient_quota`.
    pub quota: Option<u64>,
    /// Whether rate-limit headers are sent.
    pub rate_headers: Hints,
    /// Whether refusals carry `Retry-After`.
    pub retry_after: Hints,
    /// Use of the same account by others.
    pub foreign: Vec<Foreign>,
    /// A directory to which every answered call is written, without keys and request headers.
    pub record: Option<PathBuf>,
    /// A directory of recorded calls to answer from, and from nothing else.
    pub replay: Option<PathBuf>,
    /// The keys that are let in; none set lets every key in but `bad`.
    pub api_keys: Vec<Secret>,
    /// What `GET /v1/models` lists. A call may name any model.
    pub models: Vec<String>,
    /// Fixes the texts, the latencies and which calls meet a fault.
    pub seed: u64,
}

impl Default for MockConfig {
    /// 20 ms ± 50 % for 40 tokens on 127.0.0.1:8099, charged on arrival, without limits or
    /// faults.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8099)),
            limits: Vec::new(),
            charge: Charge::Arrival,
            latency: Duration::from_millis(20),
            jitter: 0.5,
            output_tokens: 40,
            fail: 0.0,
            drop: 0.0,
            outages: Vec::new(),
            outage_style: OutageStyle::Unavailable,
            quota: None,
            rate_headers: Hints::Sent,
            retry_after: Hints::Sent,
            foreign: Vec::new(),
            record: None,
            replay: None,
            api_keys: Vec::new(),
            models: vec!["mock".to_owned()],
            seed: 0,
        }
    }
}

/// Whether the provider tells what it could tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Hints {
    /// It does.
    #[default]
    Sent,
    /// It keeps silent.
    Withheld,
}

/// What an outage looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OutageStyle {
    /// Every call gets status 503 (529 in Anthropic's dialect).
    #[default]
    Unavailable,
    /// Connections are closed at once, calls on open ones without an answer.
    Refused,
}

/// The algorithm of limits that name none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DefaultAlgorithm {
    /// Never more than the count in any window of the period's length.
    #[default]
    Sliding,
    /// A bucket, full at the start.
    Bucket,
    /// Windows at multiples of the period on the wall clock.
    Fixed,
}

impl DefaultAlgorithm {
    /// The word that names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sliding => "sliding",
            Self::Bucket => "bucket",
            Self::Fixed => "fixed",
        }
    }

    /// Reads a limit such as `tokens=400k/10s`, which ages by this algorithm unless it names
    /// another (`tokens=400k/10s:fixed`).
    ///
    /// # Errors
    ///
    /// [`ParseLimitError`] when it is not a limit.
    pub fn read_limit(self, text: &str) -> Result<LimitSpec, ParseLimitError> {
        if text.contains('/') && !text.contains(':') {
            format!("{text}:{}", self.as_str()).parse()
        } else {
            text.parse()
        }
    }
}

/// A setting of the stand-in that cannot be read; the message says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseMockError {
    /// Not an algorithm.
    #[error("`{0}` is not an algorithm: use sliding, bucket or fixed")]
    Algorithm(String),
    /// Not a stretch of time.
    #[error(
        "`{0}` is not an outage: write when it begins and ends after the start, such as 10s-20s"
    )]
    Outage(String),
    /// Not a rate.
    #[error(
        "`{0}` is not the use of others: write kind=count/period, such as requests=10/s or tokens=5k/1m"
    )]
    Foreign(String),
}

impl FromStr for DefaultAlgorithm {
    type Err = ParseMockError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "sliding" => Ok(Self::Sliding),
            "bucket" => Ok(Self::Bucket),
            "fixed" => Ok(Self::Fixed),
            other => Err(ParseMockError::Algorithm(other.to_owned())),
        }
    }
}

/// A stretch of time in which nothing is served, written `10s-20s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outage {
    /// When it begins, measured from the start.
    pub from: Duration,
    /// When it is over, measured from the start.
    pub until: Duration,
}

impl FromStr for Outage {
    type Err = ParseMockError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once('-')
            .and_then(|(from, until)| {
                let outage = Self {
                    from: parse_duration(from)?,
                    until: parse_duration(until)?,
                };
                (outage.from < outage.until).then_some(outage)
            })
            .ok_or_else(|| ParseMockError::Outage(text.to_owned()))
    }
}

/// A steady use of the account by others, written `requests=10/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Foreign {
    /// What they use; not [`LimitKind::Concurrency`].
    pub kind: LimitKind,
    /// How much of it in a period.
    pub count: u64,
    /// The period.
    pub period: Duration,
}

impl FromStr for Foreign {
    type Err = ParseMockError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // `10/s` is short for `10/1s`, which a limit does not know.
        let full = match text.split_once('/') {
            Some((front, unit)) if unit.starts_with(|first: char| first.is_alphabetic()) => {
                format!("{front}/1{unit}")
            }
            _ => text.to_owned(),
        };
        full.parse::<LimitSpec>()
            .ok()
            .filter(|rate| rate.kind != LimitKind::Concurrency && !full.contains(':'))
            .map(|rate| Self {
                kind: rate.kind,
                count: rate.count,
                period: rate.period,
            })
            .ok_or_else(|| ParseMockError::Foreign(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_forms_are_read() {
        let outage: Outage = "500ms-1m30s".parse().unwrap();
        assert_eq!(
            (outage.from, outage.until),
            (Duration::from_millis(500), Duration::from_secs(90))
        );
        let foreign: Foreign = "tokens=5k/m".parse().unwrap();
        assert_eq!(
            (foreign.kind, foreign.count, foreign.period),
            (LimitKind::Tokens, 5_000, Duration::from_secs(60))
        );
        let fixed = |text: &str| {
            DefaultAlgorithm::Fixed
                .read_limit(text)
                .unwrap()
                .to_string()
        };
        assert_eq!(fixed("requests=5/2s"), "requests=5/2s:fixed");
        assert_eq!(fixed("requests=5/2s:bucket"), "requests=5/2s:bucket");
        assert_eq!(fixed("concurrency=5"), "concurrency=5");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_shown() {
        for text in ["10s", "20s-10s", "a-b", "10-20"] {
            let message = text.parse::<Outage>().unwrap_err().to_string();
            assert!(
                message.contains(text) && message.contains("10s-20s"),
                "{message}"
            );
        }
        for text in [
            "10/s",
            "concurrency=3",
            "requests=0/s",
            "requests=1/s:fixed",
        ] {
            let message = text.parse::<Foreign>().unwrap_err().to_string();
            assert!(message.contains(text), "{message}");
        }
        assert!("leaky".parse::<DefaultAlgorithm>().is_err());
    }
}
