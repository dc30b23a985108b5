//! Published headers and 429 texts of OpenAI and Groq, as the bucket model predicts them.

use std::time::Duration;

use llmq_core::{LimitSpec, Timestamp};
use llmq_strict::{Arrival, Charge, StrictProvider};

const START: Timestamp = Timestamp::ZERO;

/// Uses `used` of `limit` in one go and returns the provider.
fn provider_with(limit: &str, used: u64) -> (StrictProvider, LimitSpec) {
    let spec: LimitSpec = limit.parse().expect("a limit");
    let mut provider = StrictProvider::new(&[spec], Charge::Arrival, START);
    assert_eq!(provider.charge_outside(spec.kind, used, START), used);
    (provider, spec)
}

/// What a provider showed is below the exact figure by at most the time that one unit takes to
/// flow in (counts are whole) and a millisecond (so are the shown ones).
fn agrees(exact: Duration, shown_ms: u64, spec: &LimitSpec, row: &str) {
    let shown = Duration::from_millis(shown_ms);
    let unit = spec.period / u32::try_from(spec.count).expect("a small count");
    assert!(shown <= exact, "{row}: {shown:?} shown, {exact:?} exact");
    assert!(
        exact - shown <= unit + Duration::from_millis(1),
        "{row}: {shown:?}, {exact:?}"
    );
}

#[test]
fn reset_headers_are_those_that_were_seen() {
    let rows = [
        ("tokens=10000/1m:bucket", 9_481, 3_114_000_000, 3_114),
        ("requests=10000/1d:bucket", 9_999, 8_640_000_000, 8_640),
        ("tokens=200000/1m:bucket", 199_978, 6_600_000, 6),
        ("requests=500/1m:bucket", 499, 120_000_000, 120),
        (
            "tokens=1500000/1d:bucket",
            43_244,
            83_909_145_600_000,
            83_909_144,
        ),
        (
            "tokens=1500000/1d:bucket",
            1_482_750,
            993_600_000_000,
            993_562,
        ),
    ];
    for (limit, remaining, exact_ns, shown_ms) in rows {
        let count = limit.parse::<LimitSpec>().unwrap().count;
        let (provider, spec) = provider_with(limit, count - remaining);
        let book = provider.books(START)[0];
        assert_eq!(
            (book.remaining, book.used),
            (remaining, count - remaining),
            "{limit}"
        );
        assert_eq!(book.reset, Duration::from_nanos(exact_ns), "{limit}");
        agrees(book.reset, shown_ms, &spec, limit);
    }
}

#[test]
fn try_again_times_are_those_that_were_seen() {
    let rows = [
        (
            "tokens=10000/1m:bucket",
            8_782,
            8_172,
            41_724_000_000,
            41_724,
        ),
        (
            "tokens=15000/1m:bucket",
            11_972,
            4_351,
            5_292_000_000,
            5_289,
        ),
        ("requests=10000/1d:bucket", 10_000, 1, 8_640_000_000, 8_640),
        ("requests=200/1d:bucket", 200, 1, 432_000_000_000, 432_000),
        ("requests=50/1d:bucket", 50, 1, 1_728_000_000_000, 1_728_000),
    ];
    for (limit, used, requested, exact_ns, shown_ms) in rows {
        let (mut provider, spec) = provider_with(limit, used);
        let call = Arrival {
            input_tokens: requested,
            max_output_tokens: Some(0),
            choices: 1,
        };
        let refusal = provider.arrive(&call, START).unwrap_err();
        assert_eq!(
            (refusal.used, refusal.requested),
            (used, requested),
            "{limit}"
        );
        let wait = refusal.retry_after.unwrap();
        assert_eq!(wait, Duration::from_nanos(exact_ns), "{limit}");
        agrees(wait, shown_ms, &spec, limit);
    }
}

#[test]
fn charges_on_arrival_are_those_that_were_seen() {
    // max_tokens 512 and a prompt of 21 characters were charged 519 or so; no max_tokens is 16.
    for (input, cap, charged) in [(6, Some(512), 518), (6, None, 22), (0, None, 16)] {
        let (mut provider, _) = provider_with("tokens=150000/1m:bucket", 0);
        let call = Arrival {
            input_tokens: input,
            max_output_tokens: cap,
            choices: 1,
        };
        provider.arrive(&call, START).unwrap();
        assert_eq!(provider.books(START)[0].remaining, 150_000 - charged);
    }
}

#[test]
fn a_request_above_the_whole_limit_never_passes() {
    let (mut provider, _) = provider_with("tokens=200000/1m:bucket", 0);
    let refusal = provider
        .arrive(&Arrival::of_input(250_000), START)
        .unwrap_err();
    assert!(refusal.is_too_large());
    assert_eq!(
        (refusal.requested, refusal.used, refusal.retry_after),
        (250_016, 0, None)
    );
}
