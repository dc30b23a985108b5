use std::time::{Duration, UNIX_EPOCH};

use llmq_core::{LimitSpec, Now, WallTime, parse_duration};

/// The longest wait taken over from an answer. The longest that providers really name is a
/// month's spending cap; anything above is a mistake, and must not park an upstream for good.
pub const WAIT_MAX: Duration = Duration::from_secs(31 * 86_400);
/// No documented value is longer, so what is longer need not be looked at.
const VALUE_LEN_MAX: usize = 64;
/// A bare number from here on is a Unix time, not a length: 10^9 s would be 31 years.
const UNIX_SECONDS_MIN: u64 = 1_000_000_000;
/// A bare number from here on is a Unix time in milliseconds.
const UNIX_MILLIS_MIN: u64 = 1_000_000_000_000;

/// A time as a header states it: a length, or an instant on the sender's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderTime {
    /// So long after the answer was made.
    After(Duration),
    /// At this instant of the sender's wall clock.
    At(WallTime),
}

impl HeaderTime {
    /// Reads every form that providers send; `None` means unknown.
    ///
    /// These are bare seconds (`60`, `60.5`), Go durations (`6m0s`, `1m30.951s`, `20ms`, `250µs`),
    /// an RFC 3339 instant, an HTTP date in any of the three forms of RFC 9110 §5.6.7, and Unix
    /// times in seconds or milliseconds, told from lengths by their size.
    ///
    /// ```
    /// use llmq_limit::HeaderTime;
    /// use std::time::Duration;
    /// let after = |text| HeaderTime::parse(text);
    /// assert_eq!(after("6m0s"), Some(HeaderTime::After(Duration::from_secs(360))));
    /// assert_eq!(after("60.5"), Some(HeaderTime::After(Duration::from_millis(60_500))));
    /// assert_eq!(after("soon"), None);
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text.is_empty() || text.len() > VALUE_LEN_MAX {
            return None;
        }
        if is_number(text) {
            return bare_number(text);
        }
        parse_duration(text)
            .map(Self::After)
            .or_else(|| instant(text).map(Self::At))
    }

    /// How long after an answer made at `sent_at`, on the sender's clock, this is; zero for an
    /// instant that has passed.
    #[must_use]
    pub fn wait_from(self, sent_at: WallTime) -> Duration {
        match self {
            Self::After(span) => span,
            Self::At(instant) => instant.since(sent_at),
        }
    }
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

fn bare_number(text: &str) -> Option<HeaderTime> {
    let whole: u64 = text.split('.').next()?.parse().ok()?;
    let unix = |unit_micros: u64| {
        let micros = i64::try_from(whole.saturating_mul(unit_micros)).unwrap_or(i64::MAX);
        Some(HeaderTime::At(WallTime::from_micros(micros)))
    };
    match whole {
        UNIX_MILLIS_MIN.. => unix(1_000),
        UNIX_SECONDS_MIN.. => unix(1_000_000),
        _ => parse_duration(&format!("{text}s")).map(HeaderTime::After),
    }
}

fn instant(text: &str) -> Option<WallTime> {
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return Some(WallTime::from_micros(instant.as_microsecond()));
    }
    http_date(text)
}

/// An HTTP date: IMF-fixdate, RFC 850 or asctime.
pub(crate) fn http_date(text: &str) -> Option<WallTime> {
    let date = httpdate::parse_http_date(text.trim()).ok()?;
    let micros = date.duration_since(UNIX_EPOCH).ok()?.as_micros();
    Some(WallTime::from_micros(i64::try_from(micros).ok()?))
}

/// A limit or a remainder; `None` means unknown. Fractions are dropped (`4500.0` is 4500, and
/// less left is the careful reading); negative numbers, words and numbers above 10^15 are unknown.
///
/// ```
/// assert_eq!(llmq_limit::header_count("4500.0"), Some(4500));
/// assert_eq!(llmq_limit::header_count("-50"), None);
/// ```
#[must_use]
pub fn header_count(text: &str) -> Option<u64> {
    let text = text.trim();
    if text.len() > VALUE_LEN_MAX {
        return None;
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    // The same bound as for limits that people write.
    let count = whole.parse().ok();
    count.filter(|count| *count <= LimitSpec::COUNT_MAX)
}

/// How long the provider asks to wait: `retry-after-ms` first, since it is the finer of the
/// two, else `Retry-After` (RFC 9110 §10.2.3); `None` when it does not say.
///
/// A time in the past or a negative number is zero, and nothing is longer than 31 days. An
/// instant is measured against the answer's own `Date`, so that a wrong clock on either side
/// does not matter.
///
/// ```
/// use llmq_core::Now;
/// use std::time::Duration;
/// let headers = [("Retry-After", "1"), ("retry-after-ms", "350")];
/// assert_eq!(llmq_limit::retry_after(headers, Now::default()), Some(Duration::from_millis(350)));
/// ```
#[must_use]
pub fn retry_after<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    now: Now,
) -> Option<Duration> {
    let mut wait = RetryAfter::default();
    for (name, value) in headers {
        wait.read(name, value);
    }
    wait.resolve(now)
}

/// The sender's clock when it answered, by the answer's `Date`; our own when it did not tell. What
/// its body names as an instant is measured from it.
///
/// ```
/// use llmq_core::{Now, WallTime};
/// let headers = [("Date", "Thu, 01 Jan 1970 00:00:07 GMT")];
/// let at = llmq_limit::answered_at(headers, Now::default());
/// assert_eq!(at, WallTime::from_micros(7_000_000));
/// ```
#[must_use]
pub fn answered_at<'a>(
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    now: Now,
) -> WallTime {
    let mut wait = RetryAfter::default();
    for (name, value) in headers {
        wait.read(name, value);
    }
    wait.sent_at(now)
}

/// The headers that say how long to wait, collected in any order.
#[derive(Debug, Default)]
pub(crate) struct RetryAfter {
    millis: Option<Duration>,
    after: Option<HeaderTime>,
    date: Option<WallTime>,
}

impl RetryAfter {
    /// Takes the header if it is one of its own: whether it could be read, `None` when it is
    /// some other header.
    pub(crate) fn read(&mut self, name: &str, value: &str) -> Option<bool> {
        if name.eq_ignore_ascii_case("retry-after-ms") {
            self.millis = match wait_number(value) {
                Some(HeaderTime::After(millis)) => Some(millis / 1_000),
                // 10^9 ms is a mere 11 days, and no Unix time.
                Some(HeaderTime::At(_)) => Some(WAIT_MAX),
                None => None,
            };
            Some(self.millis.is_some())
        } else if name.eq_ignore_ascii_case("retry-after") {
            self.after = wait_number(value).or_else(|| HeaderTime::parse(value));
            Some(self.after.is_some())
        } else if name.eq_ignore_ascii_case("date") {
            self.date = http_date(value);
            Some(self.date.is_some())
        } else {
            None
        }
    }

    /// The sender's clock when it answered; our own when it did not tell.
    pub(crate) fn sent_at(&self, now: Now) -> WallTime {
        self.date.unwrap_or(now.wall)
    }

    pub(crate) fn resolve(&self, now: Now) -> Option<Duration> {
        let after = || self.after.map(|after| after.wait_from(self.sent_at(now)));
        Some(self.millis.or_else(after)?.min(WAIT_MAX))
    }
}

/// A number of any sign; a negative one is zero, for it names a moment that has passed.
fn wait_number(text: &str) -> Option<HeaderTime> {
    let text = text.trim();
    match text.strip_prefix('-') {
        Some(rest) if !rest.is_empty() && is_number(rest) => {
            Some(HeaderTime::After(Duration::ZERO))
        }
        Some(_) => None,
        None if is_number(text) => HeaderTime::parse(text),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(text: &str) -> Option<f64> {
        match HeaderTime::parse(text)? {
            HeaderTime::After(span) => Some(span.as_secs_f64()),
            HeaderTime::At(instant) => panic!("{text} is an instant: {instant:?}"),
        }
    }

    fn at(text: &str) -> i64 {
        match HeaderTime::parse(text) {
            Some(HeaderTime::At(instant)) => instant.as_micros() / 1_000_000,
            other => panic!("{text} is no instant: {other:?}"),
        }
    }

    /// The clock of these tests: 1994-11-06 08:49:37 UTC.
    fn now() -> Now {
        Now {
            wall: WallTime::from_micros(784_111_777_000_000),
            ..Now::default()
        }
    }

    fn waits(headers: &[(&str, &str)]) -> Option<f64> {
        retry_after(headers.iter().copied(), now()).map(|wait| wait.as_secs_f64())
    }

    #[test]
    fn every_documented_duration_is_read_and_garbage_is_unknown() {
        for (text, expected) in [
            ("60", 60.0),
            ("60.5", 60.5),
            ("30s", 30.0),
            ("5m", 300.0),
            ("500ms", 0.5),
            ("20ms", 0.02),
            ("0s", 0.0),
            ("6m0s", 360.0),
            ("1m30.951s", 90.951),
            ("8.64s", 8.64),
            ("1h2m3s", 3723.0),
            ("23h18m29.144s", 83_909.144),
            ("4m12.172s", 252.172),
            ("250us", 0.000_25),
            ("250µs", 0.000_25),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        let digits = "9".repeat(200);
        for text in [
            "garbage",
            "invalid",
            "",
            "-5",
            "-1",
            "NaN",
            "1e400",
            digits.as_str(),
        ] {
            assert_eq!(HeaderTime::parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_form_of_an_instant_is_the_same_instant() {
        for text in [
            "1994-11-06T08:49:37Z",
            "1994-11-06T09:49:37+01:00",
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(at(text), 784_111_777, "{text}");
        }
        assert_eq!(at("1741305600"), 1_741_305_600);
        assert_eq!(at("1741305600000"), 1_741_305_600);
    }

    #[test]
    fn counts_are_read_and_garbage_is_unknown() {
        for (text, expected) in [
            ("123", Some(123)),
            ("-50", None),
            ("not_a_number", None),
            ("4500.0", Some(4500)),
            ("0", Some(0)),
            ("", None),
            (".", None),
            ("99999999999999999999999", None),
        ] {
            assert_eq!(header_count(text), expected, "{text}");
        }
    }

    #[test]
    fn the_wait_is_the_finer_header_never_negative_and_bounded() {
        assert_eq!(waits(&[("retry-after", "42")]), Some(42.0));
        assert_eq!(
            waits(&[("Retry-After", "1"), ("Retry-After-Ms", "350")]),
            Some(0.35)
        );
        assert_eq!(
            waits(&[("retry-after-ms", "soon"), ("retry-after", "2.5")]),
            Some(2.5)
        );
        assert_eq!(waits(&[("retry-after", "-3")]), Some(0.0));
        assert_eq!(waits(&[("retry-after", "0")]), Some(0.0));
        assert_eq!(
            waits(&[("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT")]),
            Some(0.0)
        );
        assert_eq!(
            waits(&[("retry-after", "Sun, 06 Nov 1994 08:50:00 GMT")]),
            Some(23.0)
        );
        assert_eq!(
            waits(&[("retry-after", "999999999")]),
            Some(WAIT_MAX.as_secs_f64())
        );
        assert_eq!(
            waits(&[("retry-after", "99999999999999999")]),
            Some(WAIT_MAX.as_secs_f64())
        );
        assert_eq!(
            waits(&[("retry-after-ms", "99999999999999999")]),
            Some(WAIT_MAX.as_secs_f64())
        );
        assert_eq!(waits(&[("retry-after", "tomorrow")]), None);
        assert_eq!(waits(&[]), None);
    }

    #[test]
    fn an_instant_is_measured_on_the_senders_own_clock() {
        let headers = [
            ("retry-after", "Sun, 06 Nov 1994 10:00:30 GMT"),
            ("date", "Sun, 06 Nov 1994 10:00:00 GMT"),
        ];
        assert_eq!(waits(&headers), Some(30.0));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), tail in "[0-9hmsu.µ: +TZ-]{0,40}") {
            for text in [text.as_str(), tail.as_str()] {
                let _ = HeaderTime::parse(text);
                let _ = header_count(text);
                let wait = retry_after([("retry-after", text), ("retry-after-ms", text)], now());
                prop_assert!(wait.is_none_or(|wait| wait <= WAIT_MAX));
            }
        }

        #[test]
        fn what_go_prints_is_read_back(millis in 0u64..400_000_000) {
            let (h, m, s) = (millis / 3_600_000, millis / 60_000 % 60, millis % 60_000);
            let text = format!("{h}h{m}m{}.{:03}s", s / 1000, s % 1000);
            prop_assert_eq!(
                HeaderTime::parse(&text),
                Some(HeaderTime::After(Duration::from_millis(millis)))
            );
        }
    }
}
