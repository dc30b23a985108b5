use FailureClass as C;
use LimitKind as K;
use llmq_core::{Backoffs, Now};
use proptest::prelude::*;

use super::*;
use crate::retry_after;

/// Class, kind, period in seconds, limit, used, requested, try again in milliseconds.
type Row = (
    FailureClass,
    Option<LimitKind>,
    Option<u64>,
    Option<u64>,
    Option<u64>,
    Option<u64>,
    Option<u128>,
);

fn row(body: &str) -> Option<Row> {
    let said = parse_limit_text(body)?;
    Some((
        said.class,
        said.kind,
        said.period.map(|period| period.as_secs()),
        said.limit,
        said.used,
        said.requested,
        said.try_again.map(|wait| wait.as_millis()),
    ))
}

fn check(body: &str, expected: Row) {
    assert_eq!(row(body), Some(expected), "{body}");
}

fn openai(message: &str) -> String {
    format!(
        r#"{{"error":{{"message":"{message}","type":"tokens","param":null,"code":"rate_limit_exceeded"}}}}"#
    )
}

#[test]
fn openais_texts_name_limit_use_and_wait() {
    check(
        &openai(
            "Rate limit reached for gpt-4 in organization org-a1 on tokens per min (TPM): Limit 10000, Used 8782, Requested 8172. Please try again in 41.724s. Visit https://x.y/account/rate-limits to learn more.",
        ),
        (
            C::QuotaWindow,
            Some(K::Tokens),
            Some(60),
            Some(10_000),
            Some(8_782),
            Some(8_172),
            Some(41_724),
        ),
    );
    check(
        &openai(
            "Rate limit reached for m on requests per day (RPD): Limit 200, Used 200, Requested 1. Please try again in 7m12s.",
        ),
        (
            C::QuotaDay,
            Some(K::Requests),
            Some(86_400),
            Some(200),
            Some(200),
            Some(1),
            Some(432_000),
        ),
    );
    check(
        &openai(
            "Rate limit reached for m in organization org-b on requests per min. Limit: 3 / min. Please try again in 20s. Contact us.",
        ),
        (
            C::QuotaWindow,
            Some(K::Requests),
            Some(60),
            Some(3),
            None,
            None,
            Some(20_000),
        ),
    );
}

#[test]
fn a_call_above_the_whole_limit_is_too_large_whatever_it_advises() {
    let body = openai(
        "Request too large for gpt-4 in organization org-c on tokens per min (TPM): Limit 10000, Requested 250011. The input or output tokens must be reduced in order to run successfully.",
    );
    check(
        &body,
        (
            C::TooLarge,
            Some(K::Tokens),
            Some(60),
            Some(10_000),
            None,
            Some(250_011),
            None,
        ),
    );
    assert!(parse_limit_text(&body).unwrap().too_large());
    check(
        "Request too large for model `l` in organization `o` service tier `on_demand` on tokens per minute (TPM): Limit 6000, Requested 8000, please reduce your message size and try again.",
        (
            C::TooLarge,
            Some(K::Tokens),
            Some(60),
            Some(6_000),
            None,
            Some(8_000),
            None,
        ),
    );
}

#[test]
fn a_request_above_the_limit_is_too_large_without_the_words() {
    let said = parse_limit_text("Limit 10, Used 0, Requested 11. Please try again in 6s.").unwrap();
    assert!(said.too_large());
}

#[test]
fn a_wait_of_more_than_ten_minutes_is_no_minutes_limit() {
    let class = |text| parse_limit_text(text).unwrap().class;
    assert_eq!(
        class("Rate limit reached. Please try again in 10m0s."),
        C::QuotaWindow
    );
    assert_eq!(
        class("Rate limit reached. Please try again in 10m1s."),
        C::QuotaDay
    );
}

#[test]
fn groqs_texts_are_like_openais() {
    check(
        &openai(
            "Rate limit reached for model `llama-3.3-70b` in organization `org_01` service tier `on_demand` on tokens per minute (TPM): Limit 15000, Used 11972, Requested 4351. Please try again in 5.289s. Need more tokens? Upgrade.",
        ),
        (
            C::QuotaWindow,
            Some(K::Tokens),
            Some(60),
            Some(15_000),
            Some(11_972),
            Some(4_351),
            Some(5_289),
        ),
    );
}

#[test]
fn azures_code_is_a_string_and_peak_load_is_not_a_quota() {
    check(
        r#"{"error":{"code":"429","message":"Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-02-01 have exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 6 seconds. Please go here: https://aka.ms/x if you would like to further increase the default rate limit."}}"#,
        (
            C::QuotaWindow,
            Some(K::Tokens),
            None,
            None,
            None,
            None,
            Some(6_000),
        ),
    );
    check(
        "Requests to the Embeddings_Create Operation have exceeded call rate limit of your current tier. Please retry after 1 second.",
        (
            C::QuotaWindow,
            Some(K::Requests),
            None,
            None,
            None,
            None,
            Some(1_000),
        ),
    );
    check(
        r#"{"error":{"code":"429","message":"The system is currently experiencing high demand and cannot process your request. Your request exceeds the maximum usage size allowed during peak load. Please retry after 6 seconds."}}"#,
        (C::Ramp, None, None, None, None, None, Some(6_000)),
    );
}

fn gemini(message: &str, quota: &str) -> String {
    format!(
        r#"[{{"error":{{"code":429,"status":"RESOURCE_EXHAUSTED","message":"{message}","details":[
          {{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{quota}]}},
          {{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"38.2s"}}]}}}}]"#
    )
}

#[test]
fn at_gemini_a_day_wins_over_the_delay_it_names() {
    let minute = r#"{"quotaId":"GenerateContentInputTokensPerModelPerMinute-FreeTier","quotaValue":"250000"}"#;
    let day =
        r#"{"quotaId":"GenerateRequestsPerDayPerProjectPerModel-FreeTier","quotaValue":"50"}"#;
    check(
        &gemini("You exceeded your current quota.", minute),
        (
            C::QuotaWindow,
            Some(K::InputTokens),
            Some(60),
            Some(250_000),
            None,
            None,
            Some(38_200),
        ),
    );
    for both in [format!("{minute},{day}"), format!("{day},{minute}")] {
        check(
            &gemini("You exceeded your current quota.", &both),
            (
                C::QuotaDay,
                Some(K::Requests),
                Some(86_400),
                Some(50),
                None,
                None,
                None,
            ),
        );
    }
}

#[test]
fn at_gemini_a_number_in_the_message_is_not_taken_for_another_limits() {
    let message = "* Quota exceeded for metric: m/free_tier_requests, limit: 15, model: m";
    let tokens = r#"{"quotaId":"GenerateContentInputTokensPerModelPerMinute-FreeTier"}"#;
    let said = parse_limit_text(&gemini(message, tokens)).unwrap();
    assert_eq!((said.kind, said.limit), (Some(K::InputTokens), None));
}

#[test]
fn at_gemini_a_limit_of_zero_is_a_model_outside_the_plan() {
    let message = "* Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_free_tier_requests, limit: 0, model: m";
    let said = parse_limit_text(&gemini(message, "")).unwrap();
    assert_eq!((said.class, said.limit), (C::NoAccess, None));
    let elsewhere = parse_limit_text(&openai("Limit 0, Requested 5")).unwrap();
    assert_eq!((elsewhere.class, elsewhere.limit), (C::QuotaWindow, None));
}

#[test]
fn mistrals_message_stands_at_the_top() {
    check(
        r#"{"object":"error","message":"Requests rate limit exceeded","type":"rate_limited","param":null,"code":"1300"}"#,
        (
            C::QuotaWindow,
            Some(K::Requests),
            None,
            None,
            None,
            None,
            None,
        ),
    );
}

#[test]
fn openrouter_tells_limit_and_end_in_its_metadata() {
    let body = r#"{"error":{"code":429,"message":"Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model requests per day","metadata":{"headers":{"X-RateLimit-Limit":"50","X-RateLimit-Remaining":"0","X-RateLimit-Reset":"1741305600000"}}}}"#;
    check(
        body,
        (
            C::QuotaDay,
            Some(K::Requests),
            Some(86_400),
            Some(50),
            None,
            None,
            None,
        ),
    );
    let said = parse_limit_text(body).unwrap();
    assert_eq!(
        said.resets_at,
        Some(WallTime::from_micros(1_741_305_600_000_000))
    );
    assert_eq!(
        parse_limit_text("Rate limit exceeded: free-models-per-min.")
            .unwrap()
            .class,
        C::QuotaWindow
    );
}

#[test]
fn codes_decide_before_words() {
    for (code, class) in [
        ("insufficient_quota", C::Money),
        ("project_spend_limit_exceeded", C::Money),
        ("slow_down", C::Ramp),
        ("server_is_overloaded", C::Overload),
    ] {
        let body = format!(r#"{{"error":{{"code":"{code}","message":"Rate limit reached"}}}}"#);
        assert_eq!(parse_limit_text(&body).unwrap().class, class, "{code}");
    }
    for (code, class) in [
        ("ramp_limit_exceeded", C::Ramp),
        ("enforced_spend_limit_reached", C::Money),
    ] {
        let body = format!(
            r#"{{"type":"error","error":{{"type":"rate_limit_error","message":"x","details":{{"error_code":"{code}"}}}}}}"#
        );
        assert_eq!(parse_limit_text(&body).unwrap().class, class, "{code}");
    }
    check(
        r#"{"type":"error","error":{"type":"rate_limit_error","message":"This request would exceed your organization's rate limit of 40,000 input tokens per minute."}}"#,
        (
            C::QuotaWindow,
            Some(K::InputTokens),
            Some(60),
            Some(40_000),
            None,
            None,
            None,
        ),
    );
}

#[test]
fn what_says_nothing_of_a_limit_is_none() {
    for body in [
        "",
        "{}",
        "[]",
        "null",
        "<html>Bad gateway</html>",
        r#"{"error":"boom"}"#,
    ] {
        assert_eq!(row(body), None, "{body}");
    }
}

/// Headers, body, class, waits in seconds.
type Answer<'a> = (&'a [(&'a str, &'a str)], &'a str, FailureClass, Vec<f64>);

/// The seconds a call waits after each of six failures with this answer.
fn waits(headers: &[(&str, &str)], body: &str) -> (FailureClass, Vec<f64>) {
    let said = parse_limit_text(body);
    let class = said.as_ref().map_or(C::QuotaWindow, |said| said.class);
    let told = retry_after(headers.iter().copied(), Now::default())
        .or_else(|| said.and_then(|said| said.try_again));
    let waits = (1..=6).filter_map(|failures| {
        let wait = Backoffs::default().wait(class, told, failures, 0.0)?;
        Some(wait.as_secs_f64())
    });
    (class, waits.collect())
}

#[test]
fn every_published_429_waits_as_its_row_says() {
    let limited = openai("Rate limit reached");
    let daily = openai("Limit 200 on requests per day (RPD). Please try again in 7m12s.");
    let large = openai("Request too large for m: Limit 10000, Requested 250011");
    let money = r#"{"error":{"code":"insufficient_quota","message":"m"}}"#;
    let ramp = r#"{"error":{"code":"slow_down","message":"m"}}"#;
    let both = [("retry-after-ms", "350"), ("retry-after", "1")];
    let table: [Answer<'_>; 7] = [
        (
            &[("retry-after", "42")],
            &limited,
            C::QuotaWindow,
            vec![42.0; 6],
        ),
        (&both, &limited, C::QuotaWindow, vec![0.35; 6]),
        (&[], &daily, C::QuotaDay, vec![432.0; 6]),
        (
            &[],
            money,
            C::Money,
            vec![300.0, 600.0, 1200.0, 2400.0, 3600.0, 3600.0],
        ),
        (&[], &large, C::TooLarge, vec![]),
        (&[("retry-after", "9")], ramp, C::Ramp, vec![9.0; 6]),
        (
            &[],
            "",
            C::QuotaWindow,
            vec![60.0, 120.0, 240.0, 300.0, 300.0, 300.0],
        ),
    ];
    for (headers, body, class, expected) in table {
        assert_eq!(waits(headers, body), (class, expected), "{body}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(
        text in any::<String>(),
        words in "(limit|used|requested|try again in|retry after|per|tpm|:| |[0-9.,]{1,9}|İ|µs|s|m){0,20}",
    ) {
        let _ = parse_limit_text(&text);
        let _ = parse_limit_text(&words);
        let json = serde_json::json!([{"error": {"message": words, "code": text}}]);
        let _ = parse_limit_text(&json.to_string());
    }

    #[test]
    fn a_buckets_wait_is_read_back(
        limit in 1u64..10_000_000,
        used in 0u64..10_000_000,
        millis in 1u64..600_000,
    ) {
        let text = format!(
            "Rate limit reached on tokens per min (TPM): Limit {limit}, Used {used}, Requested 1. \
             Please try again in {}.{:03}s.", millis / 1000, millis % 1000);
        let said = parse_limit_text(&text).unwrap();
        prop_assert_eq!(said.class, C::QuotaWindow);
        prop_assert_eq!((said.limit, said.used), (Some(limit), Some(used)));
        prop_assert_eq!(said.try_again, Some(Duration::from_millis(millis)));
    }
}
