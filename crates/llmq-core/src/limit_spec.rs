use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What a limit counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LimitKind {
    /// Calls.
    Requests,
    /// Input and output tokens together.
    Tokens,
    /// Input tokens.
    InputTokens,
    /// Output tokens.
    OutputTokens,
    /// Calls in flight; such a limit has no period.
    Concurrency,
}

impl LimitKind {
    /// The word used in `kind=count/period`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::InputTokens => "input_tokens",
            Self::OutputTokens => "output_tokens",
            Self::Concurrency => "concurrency",
        }
    }
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the use of a limit ages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Never more than the count in any window of the period's length.
    Sliding,
    /// A bucket that refills continuously and holds `depth` worth of quota.
    Bucket {
        /// How long an empty bucket takes to fill.
        depth: Duration,
    },
    /// Windows that start at multiples of the period (UTC) and begin empty.
    Fixed,
}

/// One limit as a person or a provider states it, such as `requests=200/2s`.
///
/// ```
/// use llmq_core::{Algorithm, LimitKind, LimitSpec};
/// use std::time::Duration;
/// let spec: LimitSpec = "tokens=4M/1m:bucket".parse().unwrap();
/// assert_eq!((spec.kind, spec.count), (LimitKind::Tokens, 4_000_000));
/// assert_eq!(spec.algorithm, Algorithm::Bucket { depth: Duration::from_secs(60) });
/// assert_eq!(spec.to_string(), "tokens=4M/1m:bucket");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LimitSpec {
    /// What is counted.
    pub kind: LimitKind,
    /// How many in a period, at least 1.
    pub count: u64,
    /// The period, 1 ms to 366 days; zero for [`LimitKind::Concurrency`].
    pub period: Duration,
    /// How use ages; without meaning for [`LimitKind::Concurrency`].
    pub algorithm: Algorithm,
}

/// The longest period a limit can have.
const PERIOD_MAX: Duration = Duration::from_secs(366 * 86_400);
/// The shortest period a limit can have.
const PERIOD_MIN: Duration = Duration::from_millis(1);

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

/// A limit that cannot be read; the message says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseLimitError {
    /// Not of the form `kind=count/period`.
    #[error(
        "`{0}` is not a limit: write kind=count/period, such as requests=200/2s or tokens=1M/1m:bucket"
    )]
    Form(String),
    /// An unknown kind.
    #[error(
        "`{0}` cannot be limited: use requests, tokens, input_tokens, output_tokens or concurrency"
    )]
    Kind(String),
    /// A count that is no number from 1 to 10^15.
    #[error(
        "`{0}` is not a count: use a whole number of at least 1, with k or M for thousands and millions"
    )]
    Count(String),
    /// A period out of range.
    #[error("`{0}` is not a period: use 1ms to 366d, such as 500ms, 2s, 10m, 1h or 1d")]
    Period(String),
    /// An unknown algorithm.
    #[error("`{0}` is not an algorithm: use sliding, bucket or fixed")]
    Algorithm(String),
}

impl LimitSpec {
    /// The largest count, so that sums of charges stay far inside 64 bits.
    pub const COUNT_MAX: u64 = 1_000_000_000_000_000;

    /// A limit of `count` calls in flight.
    #[must_use]
    pub fn concurrency(count: u64) -> Self {
        Self {
            kind: LimitKind::Concurrency,
            count,
            period: Duration::ZERO,
            algorithm: Algorithm::Sliding,
        }
    }

    /// A limit over a period.
    #[must_use]
    pub fn per(kind: LimitKind, count: u64, period: Duration, algorithm: Algorithm) -> Self {
        Self {
            kind,
            count,
            period,
            algorithm,
        }
    }

    /// A sliding limit per minute.
    #[must_use]
    pub fn per_minute(kind: LimitKind, count: u64) -> Self {
        Self::per(kind, count, MINUTE, Algorithm::Sliding)
    }

    /// A sliding limit per day.
    #[must_use]
    pub fn per_day(kind: LimitKind, count: u64) -> Self {
        Self::per(kind, count, DAY, Algorithm::Sliding)
    }

    /// The limit's short name where it has one (`rpm`, `tpd`, …), else `requests/2s`.
    ///
    /// ```
    /// use llmq_core::{LimitKind, LimitSpec};
    /// assert_eq!(LimitSpec::per_minute(LimitKind::InputTokens, 5).name(), "itpm");
    /// assert_eq!("requests=200/2s".parse::<LimitSpec>().unwrap().name(), "requests/2s");
    /// ```
    #[must_use]
    pub fn name(&self) -> String {
        let prefix = match self.kind {
            LimitKind::Concurrency => return "concurrency".to_owned(),
            LimitKind::Requests => "rp",
            LimitKind::Tokens => "tp",
            LimitKind::InputTokens => "itp",
            LimitKind::OutputTokens => "otp",
        };
        match self.period {
            MINUTE => format!("{prefix}m"),
            DAY => format!("{prefix}d"),
            period => format!("{}/{}", self.kind, Span(period)),
        }
    }
}

impl FromStr for LimitSpec {
    type Err = ParseLimitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || ParseLimitError::Form(text.to_owned());
        let (kind, rest) = text.trim().split_once('=').ok_or_else(form)?;
        let kind = match kind.trim() {
            "requests" => LimitKind::Requests,
            "tokens" => LimitKind::Tokens,
            "input_tokens" => LimitKind::InputTokens,
            "output_tokens" => LimitKind::OutputTokens,
            "concurrency" => LimitKind::Concurrency,
            other => return Err(ParseLimitError::Kind(other.to_owned())),
        };
        if kind == LimitKind::Concurrency {
            return Ok(Self::concurrency(parse_count(rest)?));
        }
        let (count, rest) = rest.split_once('/').ok_or_else(form)?;
        let (period, algorithm) = match rest.split_once(':') {
            Some((period, algorithm)) => (period, Some(algorithm.trim())),
            None => (rest, None),
        };
        let period = parse_duration(period)
            .filter(|period| (PERIOD_MIN..=PERIOD_MAX).contains(period))
            .ok_or_else(|| ParseLimitError::Period(period.to_owned()))?;
        let algorithm = match algorithm {
            None | Some("sliding") => Algorithm::Sliding,
            Some("bucket") => Algorithm::Bucket { depth: period },
            Some("fixed") => Algorithm::Fixed,
            Some(other) => return Err(ParseLimitError::Algorithm(other.to_owned())),
        };
        Ok(Self {
            kind,
            count: parse_count(count)?,
            period,
            algorithm,
        })
    }
}

impl fmt::Display for LimitSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, Count(self.count))?;
        if self.kind == LimitKind::Concurrency {
            return Ok(());
        }
        write!(f, "/{}", Span(self.period))?;
        match self.algorithm {
            Algorithm::Sliding => Ok(()),
            Algorithm::Bucket { .. } => f.write_str(":bucket"),
            Algorithm::Fixed => f.write_str(":fixed"),
        }
    }
}

/// Reads a count such as `200`, `5k`, `1.5M` or `1_000`.
///
/// # Errors
///
/// [`ParseLimitError::Count`] unless it is a whole number from 1 to 10^15.
pub fn parse_count(text: &str) -> Result<u64, ParseLimitError> {
    let wrong = || ParseLimitError::Count(text.trim().to_owned());
    let digits = text.trim().replace('_', "");
    let (number, unit) = match digits.strip_suffix(['k', 'K']) {
        Some(number) => (number, 1_000u64),
        None => match digits.strip_suffix('M') {
            Some(number) => (number, 1_000_000),
            None => (digits.as_str(), 1),
        },
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || fraction.len() > 6 {
        return Err(wrong());
    }
    // `1.25k` is 1,250: the fraction is scaled in whole numbers, so nothing is rounded silently.
    let scale = 10u64.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let fraction: u64 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().map_err(|_| wrong())?
    };
    let whole: u64 = whole.parse().map_err(|_| wrong())?;
    if !(fraction * unit).is_multiple_of(scale) {
        return Err(wrong());
    }
    whole
        .checked_mul(unit)
        .and_then(|count| count.checked_add(fraction * unit / scale))
        .filter(|count| (1..=LimitSpec::COUNT_MAX).contains(count))
        .ok_or_else(wrong)
}

/// Reads a length of time such as `500ms`, `2s`, `10m`, `1h30m`, `7d` or `1w`; `None` when it is
/// not one. A bare number is refused, since nobody can tell its unit.
///
/// ```
/// use llmq_core::parse_duration;
/// use std::time::Duration;
/// assert_eq!(parse_duration("1h30m"), Some(Duration::from_secs(5400)));
/// assert_eq!(parse_duration("1.5s"), Some(Duration::from_millis(1500)));
/// assert_eq!(parse_duration("30"), None);
/// ```
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total: u64 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| !c.is_alphabetic())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let unit_nanos: u64 = match unit {
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" | "min" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            "w" => 604_800_000_000_000,
            _ => return None,
        };
        total = total.checked_add(scaled(number, unit_nanos)?)?;
        rest = tail;
    }
    Some(Duration::from_nanos(total))
}

/// `number` × `unit` in whole numbers, so that nothing is lost to floating point; digits of
/// the fraction below one part in 10^9 are dropped.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let fraction = fraction.get(..9).unwrap_or(fraction);
    let tenths = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit) / tenths;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)?
        .checked_add(u64::try_from(part).ok()?)
}

struct Count(u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            count if count >= 1_000_000 && count % 1_000_000 == 0 => {
                write!(f, "{}M", count / 1_000_000)
            }
            count if count >= 1_000 && count % 1_000 == 0 => write!(f, "{}k", count / 1_000),
            count => write!(f, "{count}"),
        }
    }
}

struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u128, &str); 5] = [
            (86_400_000_000, "d"),
            (3_600_000_000, "h"),
            (60_000_000, "m"),
            (1_000_000, "s"),
            (1_000, "ms"),
        ];
        let micros = self.0.as_micros();
        let (size, unit) = UNITS
            .into_iter()
            .find(|(size, _)| micros >= *size && micros.is_multiple_of(*size))
            .unwrap_or((1, "us"));
        write!(f, "{}{unit}", micros / size)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reads(text: &str, kind: LimitKind, count: u64, period_ms: u64, algorithm: Algorithm) {
        let period = Duration::from_millis(period_ms);
        assert_eq!(
            text.parse(),
            Ok(LimitSpec {
                kind,
                count,
                period,
                algorithm
            }),
            "{text}"
        );
    }

    #[test]
    fn every_written_form_is_read() {
        use Algorithm::{Bucket, Fixed, Sliding};
        reads("requests=200/2s", LimitKind::Requests, 200, 2_000, Sliding);
        reads(
            "tokens=1.5M/1m:sliding",
            LimitKind::Tokens,
            1_500_000,
            60_000,
            Sliding,
        );
        let minute = Bucket { depth: MINUTE };
        reads(
            "input_tokens=5k/1m:bucket",
            LimitKind::InputTokens,
            5_000,
            60_000,
            minute,
        );
        reads(
            "output_tokens=1_000/1d:fixed",
            LimitKind::OutputTokens,
            1_000,
            86_400_000,
            Fixed,
        );
        reads("concurrency=8", LimitKind::Concurrency, 8, 0, Sliding);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_and_the_remedy_named() {
        let refused = |text: &str, part: &str| {
            let message = text.parse::<LimitSpec>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        };
        refused("200/2s", "kind=count/period");
        refused("requests=200", "kind=count/period");
        refused("images=2/1m", "`images` cannot be limited");
        for count in ["0", "-5", "1.5", "x", "", "99999999999999999999", "0.0001k"] {
            refused(&format!("requests={count}/1s"), "is not a count");
        }
        for period in ["0s", "60", "367d", "1y", "", "s"] {
            refused(&format!("requests=1/{period}"), "is not a period");
        }
        refused("requests=1/1s:leaky", "`leaky` is not an algorithm");
    }

    #[test]
    fn short_names_are_those_of_the_field() {
        let name = |text: &str| text.parse::<LimitSpec>().unwrap().name();
        assert_eq!(name("requests=1/1m"), "rpm");
        assert_eq!(name("tokens=1/24h"), "tpd");
        assert_eq!(name("output_tokens=1/60s"), "otpm");
        assert_eq!(name("requests=1/1h"), "requests/1h");
        assert_eq!(name("concurrency=4"), "concurrency");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(count in 1u64..LimitSpec::COUNT_MAX, period_ms in 1u64..31_622_400_000, form in 0..3) {
            let period = Duration::from_millis(period_ms);
            let algorithm = match form {
                0 => Algorithm::Sliding,
                1 => Algorithm::Bucket { depth: period },
                _ => Algorithm::Fixed,
            };
            let spec = LimitSpec { kind: LimitKind::Tokens, count, period, algorithm };
            prop_assert_eq!(spec.to_string().parse(), Ok(spec));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,40}") {
            let _ = text.parse::<LimitSpec>();
            let _ = parse_duration(&text);
            let _ = parse_count(&text);
        }
    }
}
