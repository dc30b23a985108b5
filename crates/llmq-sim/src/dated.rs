//! Headers as text, with dates by the provider's clock, read by the reader that runs have.

use std::time::Duration;

use jiff::Timestamp as Instant;
use jiff::fmt::rfc2822::DateTimePrinter;
use llmq_core::{Host, LimitKind, Now};
use llmq_limit::{RateLimitHeaders, parse_rate_limit_headers};
use llmq_strict::Book;

const MINUTE: Duration = Duration::from_secs(60);
/// To what Anthropic rounds.
const ROUNDED_TO: u64 = 1_000;

/// How our side reads what is dated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub(crate) now: Now,
    /// The provider's own date is passed over: only where that is broken on purpose.
    pub(crate) by_own_clock: bool,
}

/// What our side makes of an answer that was dated `wall`, since 1970, by the provider's clock,
/// and that asks to wait for `retry`.
pub(crate) fn read(
    host: Host,
    wall: Duration,
    books: &[Book],
    retry: Option<Duration>,
    reading: Reading,
) -> RateLimitHeaders {
    let mut headers: Vec<(String, String)> = Vec::new();
    if !reading.by_own_clock {
        headers.push(("date".to_owned(), http_date(wall.as_secs())));
    }
    if let Some(wait) = retry {
        // Whole seconds, and never too early.
        let until = wall + wait + Duration::from_nanos(999_999_999);
        headers.push(("retry-after".to_owned(), http_date(until.as_secs())));
    }
    for book in books {
        headers.extend(of_limit(host, wall, book));
    }
    let pairs = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    parse_rate_limit_headers(host, pairs, reading.now)
}

/// Anthropic names each kind and dates the reset (RFC 3339); others know one limit of requests,
/// and its reset in Unix seconds.
fn of_limit(host: Host, wall: Duration, book: &Book) -> Vec<(String, String)> {
    let reset = wall + book.reset;
    let kind = match book.spec.kind {
        LimitKind::Requests => "requests",
        LimitKind::InputTokens => "input-tokens",
        LimitKind::OutputTokens => "output-tokens",
        LimitKind::Tokens | LimitKind::Concurrency => return Vec::new(),
    };
    let (prefix, reset) = match host {
        Host::Anthropic if book.spec.period == MINUTE => {
            let reset = instant(reset.as_secs() + 1).to_string();
            (format!("anthropic-ratelimit-{kind}-"), reset)
        }
        Host::Anthropic => return Vec::new(),
        _ if kind == "requests" => {
            let reset = (reset.as_secs() + 1).to_string();
            ("x-ratelimit-".to_owned(), reset)
        }
        _ => return Vec::new(),
    };
    let remaining = match kind {
        "requests" => book.remaining,
        _ => (book.remaining + ROUNDED_TO / 2) / ROUNDED_TO * ROUNDED_TO,
    };
    vec![
        (format!("{prefix}limit"), book.spec.count.to_string()),
        (format!("{prefix}remaining"), remaining.to_string()),
        (format!("{prefix}reset"), reset),
    ]
}

fn instant(secs: u64) -> Instant {
    let secs = i64::try_from(secs).unwrap_or(i64::MAX);
    Instant::from_second(secs).unwrap_or(Instant::MAX)
}

fn http_date(secs: u64) -> String {
    DateTimePrinter::new()
        .timestamp_to_rfc9110_string(&instant(secs))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use llmq_core::{Timestamp, WallTime};

    #[test]
    fn what_is_dated_by_a_clock_that_is_an_hour_off_is_read_as_it_was_meant() {
        let wall = Duration::from_millis(1_790_000_000_400);
        for ours in [1_790_003_600_000_000, 1_789_996_400_000_000] {
            let now = Now {
                mono: Timestamp::ZERO,
                wall: WallTime::from_micros(ours),
            };
            let wait = Some(Duration::from_millis(1_500));
            let wait = |by_own_clock| {
                let reading = Reading { now, by_own_clock };
                let seen = read(Host::Mock, wall, &[], wait, reading);
                seen.retry_after.unwrap_or_default().as_secs()
            };
            assert_eq!(wait(false), 2);
            assert_ne!(wait(true), 2);
        }
    }
}
