use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use llmq_core::{LimitKind, LimitSpec};
use llmq_strict::Book;

use super::call::Dialect;
use super::time_text::{go_duration, rfc3339};

/// The three header names of one dimension.
type Triple = [HeaderName; 3];

fn triple(limit: &'static str, remaining: &'static str, reset: &'static str) -> Triple {
    [limit, remaining, reset].map(HeaderName::from_static)
}

/// Adds the rate-limit headers of `dialect`. `wall` is the present time since 1970.
pub(super) fn add(headers: &mut HeaderMap, dialect: Dialect, books: &[Book], wall: Duration) {
    match dialect {
        Dialect::OpenAi => add_openai(headers, books),
        Dialect::Anthropic => add_anthropic(headers, books, wall),
    }
}

/// Of several windows of one kind, OpenAI shows the one that takes longest to be full again.
fn shown(books: &[Book], kind: LimitKind) -> Option<&Book> {
    let of_kind = books.iter().filter(|book| book.spec.kind == kind);
    of_kind.max_by_key(|book| book.reset)
}

fn add_openai(headers: &mut HeaderMap, books: &[Book]) {
    let rows = [
        (
            LimitKind::Requests,
            triple(
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
            ),
        ),
        (
            LimitKind::Tokens,
            triple(
                "x-ratelimit-limit-tokens",
                "x-ratelimit-remaining-tokens",
                "x-ratelimit-reset-tokens",
            ),
        ),
    ];
    for (kind, names) in rows {
        if let Some(book) = shown(books, kind) {
            let reset = go_duration(book.reset);
            insert(headers, names, book.spec.count, book.remaining, &reset);
        }
    }
}

/// Token counts left are rounded to the nearest thousand, and resets are instants at which the
/// limit is full again (platform.claude.com, rate limits, read in autumn 2026).
fn add_anthropic(headers: &mut HeaderMap, books: &[Book], wall: Duration) {
    let rows = [
        (
            shown(books, LimitKind::Requests).copied(),
            triple(
                "anthropic-ratelimit-requests-limit",
                "anthropic-ratelimit-requests-remaining",
                "anthropic-ratelimit-requests-reset",
            ),
        ),
        (
            shown(books, LimitKind::InputTokens).copied(),
            triple(
                "anthropic-ratelimit-input-tokens-limit",
                "anthropic-ratelimit-input-tokens-remaining",
                "anthropic-ratelimit-input-tokens-reset",
            ),
        ),
        (
            shown(books, LimitKind::OutputTokens).copied(),
            triple(
                "anthropic-ratelimit-output-tokens-limit",
                "anthropic-ratelimit-output-tokens-remaining",
                "anthropic-ratelimit-output-tokens-reset",
            ),
        ),
        (
            both_tokens(books),
            triple(
                "anthropic-ratelimit-tokens-limit",
                "anthropic-ratelimit-tokens-remaining",
                "anthropic-ratelimit-tokens-reset",
            ),
        ),
    ];
    for (book, names) in rows {
        let Some(book) = book else { continue };
        let remaining = match book.spec.kind {
            LimitKind::Requests | LimitKind::Concurrency => book.remaining,
            LimitKind::Tokens | LimitKind::InputTokens | LimitKind::OutputTokens => {
                nearest_thousand(book.remaining)
            }
        };
        let reset = rfc3339(wall + book.reset);
        insert(headers, names, book.spec.count, remaining, &reset);
    }
}

/// The plain `tokens` triple: a limit on both together, else input and output summed.
fn both_tokens(books: &[Book]) -> Option<Book> {
    if let Some(tokens) = shown(books, LimitKind::Tokens) {
        return Some(*tokens);
    }
    let input = shown(books, LimitKind::InputTokens)?;
    let output = shown(books, LimitKind::OutputTokens)?;
    Some(Book {
        spec: LimitSpec {
            count: input.spec.count + output.spec.count,
            ..input.spec
        },
        remaining: input.remaining + output.remaining,
        reset: input.reset.max(output.reset),
        ..*input
    })
}

fn nearest_thousand(tokens: u64) -> u64 {
    (tokens + 500) / 1_000 * 1_000
}

fn insert(headers: &mut HeaderMap, names: Triple, limit: u64, remaining: u64, reset: &str) {
    let [limit_name, remaining_name, reset_name] = names;
    headers.insert(limit_name, HeaderValue::from(limit));
    headers.insert(remaining_name, HeaderValue::from(remaining));
    if let Ok(reset) = HeaderValue::from_str(reset) {
        headers.insert(reset_name, reset);
    }
}
