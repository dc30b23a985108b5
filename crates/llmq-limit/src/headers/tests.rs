use proptest::prelude::*;

use super::*;

/// 2025-01-12 23:11:00 UTC.
fn now() -> Now {
    Now {
        wall: WallTime::from_micros(1_736_723_460_000_000),
        ..Now::default()
    }
}

fn read(host: Host, headers: &[(&str, &str)]) -> RateLimitHeaders {
    parse_rate_limit_headers(host, headers.iter().copied(), now())
}

/// Kind, limit, remaining, reset in milliseconds, window in seconds.
type Row = (
    LimitKind,
    Option<u64>,
    Option<u64>,
    Option<u128>,
    Option<u64>,
);

fn rows(host: Host, headers: &[(&str, &str)]) -> Vec<Row> {
    read(host, headers)
        .observations
        .iter()
        .map(|seen| {
            (
                seen.kind,
                seen.limit,
                seen.remaining,
                seen.reset.map(|reset| reset.as_millis()),
                seen.window.map(|window| window.as_secs()),
            )
        })
        .collect()
}

#[test]
fn openai_names_no_window_and_it_is_inferred() {
    let headers = [
        ("X-RateLimit-Limit-Requests", "10000"),
        ("x-ratelimit-remaining-requests", "9999"),
        ("x-ratelimit-reset-requests", "8.64s"),
        ("x-ratelimit-limit-tokens", "200000"),
        ("x-ratelimit-remaining-tokens", "199978"),
        ("x-ratelimit-reset-tokens", "6ms"),
        ("x-ratelimit-limit-project-tokens", "10000"),
        ("x-ratelimit-remaining-project-tokens", "9481"),
        ("x-ratelimit-reset-project-tokens", "3.114s"),
        ("x-ratelimit-limit-tokens_usage_based", "7"),
        ("openai-processing-ms", "412"),
        ("x-request-id", "req_1"),
    ];
    let requests = (
        LimitKind::Requests,
        Some(10_000),
        Some(9_999),
        Some(8_640),
        Some(86_400),
    );
    let tokens = (
        LimitKind::Tokens,
        Some(200_000),
        Some(199_978),
        Some(6),
        None,
    );
    let project = (
        LimitKind::Tokens,
        Some(10_000),
        Some(9_481),
        Some(3_114),
        Some(60),
    );
    assert_eq!(rows(Host::OpenAi, &headers), [requests, tokens, project]);
    let seen = read(Host::OpenAi, &headers);
    assert_eq!(seen.processing, Some(Duration::from_millis(412)));
    assert_eq!(seen.observations[2].source, HeaderSource::Project);
    assert_eq!(seen.garbled, None);
}

#[test]
fn groqs_requests_are_a_days_and_its_tokens_a_minutes() {
    let headers = [
        ("x-ratelimit-limit-requests", "14400"),
        ("x-ratelimit-remaining-requests", "14400"),
        ("x-ratelimit-reset-requests", "0s"),
        ("x-ratelimit-limit-tokens", "18000"),
        ("x-ratelimit-remaining-tokens", "17997"),
        ("x-ratelimit-reset-tokens", "7.66s"),
    ];
    let windows: Vec<_> = rows(Host::Groq, &headers).iter().map(|row| row.4).collect();
    assert_eq!(windows, [Some(86_400), Some(60)]);
}

#[test]
fn azures_resets_are_whole_seconds_and_minus_one_is_unknown() {
    let headers = [
        ("x-ratelimit-limit-requests", "600"),
        ("x-ratelimit-remaining-requests", "599"),
        ("x-ratelimit-reset-requests", "6"),
        ("x-ratelimit-limit-tokens", "-1"),
        ("x-ratelimit-remaining-tokens", "-1"),
        ("x-ratelimit-reset-tokens", "-1"),
    ];
    let requests = (
        LimitKind::Requests,
        Some(600),
        Some(599),
        Some(6_000),
        Some(60),
    );
    assert_eq!(rows(Host::Azure, &headers), [requests]);
    assert_eq!(
        rows(Host::Unknown, &headers),
        [(LimitKind::Requests, Some(600), Some(599), Some(6_000), None)],
        "six seconds, give or take one, are too coarse to infer a window from"
    );
}

#[test]
fn anthropics_resets_are_instants_on_its_own_clock() {
    let headers = [
        ("date", "Sun, 12 Jan 2025 23:21:30 GMT"),
        ("anthropic-ratelimit-requests-limit", "50"),
        ("anthropic-ratelimit-requests-remaining", "49"),
        ("anthropic-ratelimit-requests-reset", "2025-01-12T23:21:31Z"),
        ("anthropic-ratelimit-input-tokens-limit", "2000000"),
        ("anthropic-ratelimit-input-tokens-remaining", "1999000"),
        (
            "anthropic-ratelimit-input-tokens-reset",
            "2025-01-12T23:21:30Z",
        ),
        ("anthropic-ratelimit-output-tokens-limit", "400000"),
        ("anthropic-ratelimit-output-tokens-remaining", "400000"),
        (
            "anthropic-ratelimit-output-tokens-reset",
            "2025-01-12T23:20:00Z",
        ),
        ("anthropic-ratelimit-tokens-limit", "2400000"),
        ("anthropic-ratelimit-tokens-remaining", "2399000"),
        ("anthropic-ratelimit-unified-status", "allowed"),
        ("anthropic-ratelimit-unified-reset", "1741305600"),
        ("anthropic-ratelimit-unified-5h-utilization", "0.4"),
        ("anthropic-fast-input-tokens-remaining", "3"),
    ];
    assert_eq!(
        rows(Host::Anthropic, &headers),
        [
            (
                LimitKind::Requests,
                Some(50),
                Some(49),
                Some(1_000),
                Some(60)
            ),
            (
                LimitKind::InputTokens,
                Some(2_000_000),
                Some(1_999_000),
                Some(0),
                Some(60)
            ),
            (
                LimitKind::OutputTokens,
                Some(400_000),
                Some(400_000),
                Some(0),
                Some(60)
            ),
            (
                LimitKind::Tokens,
                Some(2_400_000),
                Some(2_399_000),
                None,
                Some(60)
            ),
        ]
    );
    let seen = read(Host::Anthropic, &headers);
    let roundings: Vec<u64> = seen.observations.iter().map(|seen| seen.rounding).collect();
    assert_eq!(roundings, [1, 1_000, 1_000, 1_000]);
    assert_eq!(seen.observations[3].source, HeaderSource::Informational);
}

#[test]
fn mistral_names_its_windows_and_tells_what_the_call_cost() {
    let headers = [
        ("x-ratelimit-limit-req-minute", "60"),
        ("x-ratelimit-remaining-req-minute", "59"),
        ("x-ratelimit-limit-tokens-minute", "500000"),
        ("x-ratelimit-remaining-tokens-minute", "499988"),
        ("x-ratelimit-tokens-query-cost", "12"),
    ];
    assert_eq!(
        rows(Host::Mistral, &headers),
        [
            (LimitKind::Requests, Some(60), Some(59), None, Some(60)),
            (
                LimitKind::Tokens,
                Some(500_000),
                Some(499_988),
                None,
                Some(60)
            ),
        ]
    );
    let seen = read(Host::Mistral, &headers);
    assert_eq!(seen.observations[1].query_cost, Some(12));
}

#[test]
fn a_limit_of_zero_is_no_access_at_two_hosts_and_unknown_elsewhere() {
    let headers = [("x-ratelimit-limit-req-minute", "0")];
    for (host, expected) in [
        (Host::Mistral, true),
        (Host::Gemini, true),
        (Host::OpenAi, false),
        (Host::Unknown, false),
    ] {
        let seen = read(host, &headers);
        assert_eq!(seen.no_access, expected, "{host:?}");
        assert_eq!(seen.observations, [], "{host:?}");
    }
}

#[test]
fn openrouters_reset_is_the_end_of_a_window_in_unix_milliseconds() {
    let headers = [
        ("X-RateLimit-Limit", "50"),
        ("X-RateLimit-Remaining", "0"),
        ("X-RateLimit-Reset", "1736726400000"),
    ];
    assert_eq!(
        rows(Host::OpenRouter, &headers),
        [(
            LimitKind::Requests,
            Some(50),
            Some(0),
            Some(2_940_000),
            None
        )]
    );
}

#[test]
fn each_draft_of_the_ietf_fields_is_read() {
    let expected = [(
        LimitKind::Requests,
        Some(100),
        Some(50),
        Some(5_000),
        Some(60),
    )];
    for headers in [
        &[
            ("RateLimit-Policy", "\"m\";q=100;w=60"),
            ("RateLimit", "\"m\";r=50;t=5"),
        ][..],
        &[
            ("RateLimit-Policy", "100;w=60"),
            ("RateLimit", "limit=100, remaining=50, reset=5"),
        ],
        &[
            ("RateLimit-Limit", "100, 10;w=1, 100;w=60"),
            ("RateLimit-Remaining", "50"),
            ("RateLimit-Reset", "5"),
        ],
    ] {
        assert_eq!(rows(Host::Unknown, headers), expected, "{headers:?}");
    }
    let seen = read(Host::Unknown, &[("RateLimit", "\"m\";r=50;;")]);
    assert_eq!(seen.observations, []);
    assert!(seen.garbled.is_some());
}

#[test]
fn missing_or_garbled_is_unknown_and_never_exhausted() {
    assert_eq!(read(Host::OpenAi, &[]), RateLimitHeaders::default());
    let seen = read(
        Host::OpenAi,
        &[
            ("x-ratelimit-limit-requests", "not_a_number"),
            ("x-ratelimit-remaining-requests", "-50"),
            ("x-ratelimit-reset-requests", "garbage"),
        ],
    );
    assert_eq!(seen.observations, []);
    assert_eq!(
        seen.quota_status(WallTime::default()).requests_remaining,
        None
    );
    assert_eq!(
        seen.garbled.as_deref(),
        Some("x-ratelimit-limit-requests: not_a_number")
    );
    let partial = rows(Host::OpenAi, &[("x-ratelimit-remaining-tokens", "4500.0")]);
    assert_eq!(
        partial,
        [(LimitKind::Tokens, None, Some(4_500), None, None)]
    );
}

#[test]
fn the_providers_wait_comes_along() {
    let seen = read(
        Host::OpenAi,
        &[("retry-after", "1"), ("retry-after-ms", "350")],
    );
    assert_eq!(seen.retry_after, Some(Duration::from_millis(350)));
}

const NAMES: [&str; 9] = [
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-tokens-query-cost",
    "anthropic-ratelimit-input-tokens-reset",
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-limit",
    "openai-processing-ms",
];

proptest! {
    #[test]
    fn no_header_panics(
        pairs in proptest::collection::vec((any::<String>(), any::<String>()), 0..8),
        known in proptest::collection::vec((0usize..9, "[-0-9a-z\";=,. é]{0,20}"), 0..20),
    ) {
        let known = known.iter().map(|(at, value)| (NAMES[*at], value.as_str()));
        let pairs = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let seen = parse_rate_limit_headers(Host::Unknown, pairs.chain(known), now());
        prop_assert!(seen.observations.len() <= OBSERVATIONS_MAX);
        prop_assert!(seen.garbled.is_none_or(|text| text.len() <= GARBLED_LEN_MAX));
        for limit in seen.observations.iter().filter_map(|seen| seen.limit) {
            prop_assert!(limit > 0);
        }
    }
}
