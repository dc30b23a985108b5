//! The readers of rate-limit headers, of `Retry-After`, and of the texts of a 429.
//!
//! An input is the provider's URL on a line, headers as on the wire, a blank line, a body.

use std::time::Duration;

use llmq_core::{Now, WallTime};
use llmq_limit::{
    HeaderTime, Observation, header_count, parse_limit_text, parse_rate_limit_headers, retry_after,
};
use llmq_provider::host_of;

use crate::first_line;

const OBSERVATIONS_MAX: usize = 16;
const GARBLED_BYTES_MAX: usize = 100;
const WAIT_MAX: Duration = Duration::from_secs(31 * 86_400);

/// Any headers are read within their bounds, and the case of their names changes nothing of what
/// they say; any body is read, and a limit it names is a limit.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (url, rest) = first_line(text.as_bytes());
    let host = host_of(url);
    let rest = std::str::from_utf8(rest).expect("the rest of a text is one");
    let (head, body) = rest.split_once("\n\n").unwrap_or((rest, ""));
    let headers: Vec<(&str, &str)> = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();

    let read =
        |headers: &[(&str, &str)]| parse_rate_limit_headers(host, headers.iter().copied(), now());
    let told = read(&headers);
    assert!(told.observations.len() <= OBSERVATIONS_MAX);
    assert!(told.observations.iter().all(is_sound));
    assert!(
        told.garbled
            .as_ref()
            .is_none_or(|text| text.len() <= GARBLED_BYTES_MAX)
    );
    assert!(told.retry_after.is_none_or(|wait| wait <= WAIT_MAX));
    assert_eq!(
        told.retry_after,
        retry_after(headers.iter().copied(), now())
    );
    let status = told.quota_status(now().wall);
    let shares = [status.requests_used_percent(), status.tokens_used_percent()];
    assert!(
        shares
            .iter()
            .flatten()
            .all(|share| (0.0..=100.0).contains(share))
    );

    let names: Vec<String> = headers
        .iter()
        .map(|(name, _)| name.to_ascii_uppercase())
        .collect();
    let loud: Vec<_> = names
        .iter()
        .map(String::as_str)
        .zip(headers.iter().map(|h| h.1))
        .collect();
    assert_eq!(read(&loud).observations, told.observations);
    for (_, value) in &headers {
        let _ = (HeaderTime::parse(value), header_count(value));
    }
    if let Some(said) = parse_limit_text(body) {
        assert_ne!(said.limit, Some(0));
    }
}

/// 2026-01-01.
fn now() -> Now {
    Now {
        wall: WallTime::from_micros(1_767_225_600_000_000),
        ..Now::default()
    }
}

fn is_sound(seen: &Observation) -> bool {
    seen.limit != Some(0)
        && seen.window != Some(Duration::ZERO)
        && seen.rounding > 0
        && seen
            .used_percent()
            .is_none_or(|share| (0.0..=100.0).contains(&share))
}
