use std::time::Duration;

use llmq_core::{FailureClass, LimitKind, WallTime, parse_duration};
use serde_json::Value;

use crate::header_value::{HeaderTime, header_count};

/// How much of an answer is looked at; every known text is within the first kilobyte.
const TEXT_LEN_MAX: usize = 64 * 1024;
const DAY: Duration = Duration::from_secs(86_400);
/// A wait above it cannot be a minute's window, whatever else the text says.
const WINDOW_WAIT_MAX: Duration = Duration::from_secs(600);

/// What the text of a 429 (or Groq's 413) says about the limit that was hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitText {
    /// Which class of failure the text speaks of.
    pub class: FailureClass,
    /// What the limit counts.
    pub kind: Option<LimitKind>,
    /// The limit's window.
    pub period: Option<Duration>,
    /// The limit; never zero.
    pub limit: Option<u64>,
    /// What was used of it before this call.
    pub used: Option<u64>,
    /// What this call would have been charged.
    pub requested: Option<u64>,
    /// When to try again, from the answer on. Gemini's is left out where a day is used up, since
    /// it has been seen to name seconds then.
    pub try_again: Option<Duration>,
    /// The instant at which the limit is free again (OpenRouter).
    pub resets_at: Option<WallTime>,
}

impl LimitText {
    /// Whether the call is above the whole limit, so that waiting cannot help.
    #[must_use]
    pub fn too_large(&self) -> bool {
        self.class == FailureClass::TooLarge
    }
}

/// Reads the body of a 429, JSON or plain; `None` when it says nothing about a limit.
///
/// It knows the texts of OpenAI, Groq, Azure, Gemini, Mistral, Anthropic and OpenRouter. Codes
/// and types count before words.
///
/// ```
/// use llmq_core::{FailureClass, LimitKind};
/// use llmq_limit::parse_limit_text;
/// let text = "Rate limit reached for m on tokens per min (TPM): Limit 10000, Used 8782, \
///             Requested 8172. Please try again in 41.724s.";
/// let said = parse_limit_text(text).unwrap();
/// assert_eq!((said.class, said.kind), (FailureClass::QuotaWindow, Some(LimitKind::Tokens)));
/// assert_eq!(said.try_again.unwrap().as_millis(), 41_724);
/// ```
#[must_use]
pub fn parse_limit_text(body: &str) -> Option<LimitText> {
    let mut end = body.len().min(TEXT_LEN_MAX);
    while !body.is_char_boundary(end) {
        end -= 1;
    }
    let said = match serde_json::from_str::<Value>(&body[..end]) {
        Ok(json) => Said::of_json(&json),
        Err(_) => Said::of_message(&body[..end]),
    };
    said.judge()
}

/// What was found, before it is weighed.
#[derive(Debug, Default)]
struct Said {
    /// `code`, `type`, `status`, `error_code` and the like, in lower case.
    codes: Vec<String>,
    /// The message in lower case.
    message: String,
    kind: Option<LimitKind>,
    period: Option<Duration>,
    limit: Option<u64>,
    used: Option<u64>,
    requested: Option<u64>,
    try_again: Option<Duration>,
    resets_at: Option<WallTime>,
}

impl Said {
    fn of_message(message: &str) -> Self {
        let mut said = Self {
            message: message.to_lowercase(),
            ..Self::default()
        };
        said.scan();
        said
    }

    /// OpenAI's shape, Anthropic's, Google's (in compatible mode possibly inside an array), and
    /// Mistral's with the message at the top.
    fn of_json(json: &Value) -> Self {
        let top = json.get(0).unwrap_or(json);
        let error = top.get("error").unwrap_or(top);
        let message = ["message", "detail"]
            .into_iter()
            .flat_map(|key| [error.get(key), top.get(key)])
            .chain([Some(error)])
            .flatten()
            .find_map(Value::as_str);
        let mut said = Self::of_message(message.unwrap_or_default());
        for key in ["code", "type", "status"] {
            said.add_code(error.get(key));
        }
        said.add_code(error.pointer("/details/error_code"));
        said.add_code(error.pointer("/metadata/error_type"));
        for detail in error
            .get("details")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            said.read_google(detail);
        }
        if let Some(headers) = error
            .pointer("/metadata/headers")
            .and_then(Value::as_object)
        {
            for (name, value) in headers {
                said.read_openrouter(name, value.as_str().unwrap_or_default());
            }
        }
        said
    }

    fn add_code(&mut self, code: Option<&Value>) {
        self.codes
            .extend(code.and_then(Value::as_str).map(str::to_lowercase));
    }

    /// `google.rpc.RetryInfo` and `google.rpc.QuotaFailure`.
    fn read_google(&mut self, detail: &Value) {
        if let Some(delay) = detail.get("retryDelay").and_then(Value::as_str) {
            self.try_again = parse_duration(delay).or(self.try_again);
        }
        let violations = detail.get("violations").and_then(Value::as_array);
        for violation in violations.into_iter().flatten() {
            let Some(id) = violation.get("quotaId").and_then(Value::as_str) else {
                continue;
            };
            let period = match () {
                () if id.contains("PerDay") => Some(DAY),
                () if id.contains("PerHour") => Some(DAY / 24),
                () if id.contains("PerMinute") => Some(Duration::from_secs(60)),
                () => None,
            };
            // Of several violations the longest is the one that has to be waited for.
            if period < self.period {
                continue;
            }
            self.period = period;
            self.kind = google_kind(id).or(self.kind);
            let quota = violation.get("quotaValue").and_then(Value::as_str);
            // The number in the message may be another violation's.
            let none = self.limit.filter(|limit| *limit == 0);
            self.limit = quota.and_then(header_count).or(none);
        }
    }

    fn read_openrouter(&mut self, name: &str, value: &str) {
        match name.to_ascii_lowercase().as_str() {
            "x-ratelimit-limit" => self.limit = header_count(value),
            "x-ratelimit-reset" => {
                if let Some(HeaderTime::At(instant)) = HeaderTime::parse(value) {
                    self.resets_at = Some(instant);
                }
            }
            _ => {}
        }
    }

    /// The words of the message.
    fn scan(&mut self) {
        let text = self.message.as_str();
        let (kind, period) = subject(text);
        self.kind = kind;
        self.period = period;
        self.limit = number_after(text, "limit");
        self.used = number_after(text, "used");
        self.requested = number_after(text, "requested");
        self.try_again = [
            "try again in ",
            "try again after ",
            "retry after ",
            "retry in ",
        ]
        .into_iter()
        .find_map(|phrase| time_after(text, phrase));
    }

    fn has_code(&self, is: impl Fn(&str) -> bool) -> bool {
        self.codes.iter().any(|code| is(code))
    }

    fn says(&self, phrase: &str) -> bool {
        self.message.contains(phrase)
    }

    fn is_google(&self) -> bool {
        self.has_code(|code| code == "resource_exhausted") || self.says("quota exceeded for metric")
    }

    fn class(&self) -> Option<FailureClass> {
        if self.is_money() {
            return Some(FailureClass::Money);
        }
        let is_ramp = |code: &str| matches!(code, "slow_down" | "ramp_limit_exceeded");
        if self.has_code(is_ramp) || self.says("during peak load") {
            return Some(FailureClass::Ramp);
        }
        if self.has_code(is_overload) {
            return Some(FailureClass::Overload);
        }
        if self.is_google() && self.limit == Some(0) {
            return Some(FailureClass::NoAccess);
        }
        let above_limit = self.limit.is_some_and(|limit| limit > 0) && self.requested > self.limit;
        if self.says("request too large") || above_limit {
            return Some(FailureClass::TooLarge);
        }
        let long_wait = self.try_again.is_some_and(|wait| wait > WINDOW_WAIT_MAX);
        if self.period.is_some_and(|period| period >= DAY) || long_wait {
            return Some(FailureClass::QuotaDay);
        }
        self.is_about_a_limit().then_some(FailureClass::QuotaWindow)
    }

    fn is_money(&self) -> bool {
        self.has_code(|code| {
            code.contains("spend_limit")
                || matches!(
                    code,
                    "insufficient_quota"
                        | "credit_balance_exhausted"
                        | "organization_usage_limit_exceeded"
                        | "billing_hard_limit_reached"
                )
        })
    }

    fn is_about_a_limit(&self) -> bool {
        self.has_code(|code| code.contains("rate_limit") || code == "rate_limited")
            || self.is_google()
            || self.says("rate limit")
            || self.limit.is_some()
            || self.try_again.is_some()
    }

    fn judge(self) -> Option<LimitText> {
        let class = self.class()?;
        let google_day = class == FailureClass::QuotaDay && self.is_google();
        Some(LimitText {
            class,
            kind: self.kind,
            period: self.period,
            limit: self.limit.filter(|limit| *limit > 0),
            used: self.used,
            requested: self.requested,
            try_again: self.try_again.filter(|_| !google_day),
            resets_at: self.resets_at,
        })
    }
}

fn is_overload(code: &str) -> bool {
    matches!(
        code,
        "server_is_overloaded" | "overloaded_error" | "capacity_exceeded" | "resource_unavailable"
    )
}

/// What an id such as `GenerateContentInputTokensPerModelPerMinute` counts.
fn google_kind(id: &str) -> Option<LimitKind> {
    match () {
        () if id.contains("InputToken") => Some(LimitKind::InputTokens),
        () if id.contains("Token") => Some(LimitKind::Tokens),
        () if id.contains("Request") => Some(LimitKind::Requests),
        () => None,
    }
}

/// What is limited, and over which period: one pass over the words.
///
/// An abbreviation (`TPM`) decides. Else the words around `per` do, and Azure's "token rate
/// limit". Other mentions of tokens or requests are advice and say nothing.
fn subject(text: &str) -> (Option<LimitKind>, Option<Duration>) {
    let mut kind = None;
    let mut period = None;
    let mut before = ["", ""];
    for word in text
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
    {
        if let Some((short_kind, short_period)) = abbreviation(word) {
            return (Some(short_kind), Some(short_period));
        }
        match before {
            [adjective, noun] if word == "per" || (noun == "rate" && word == "limit") => {
                kind = kind.or_else(|| counted(adjective, noun));
            }
            [_, "per"] => period = period.or_else(|| period_named(word)),
            _ => {}
        }
        before = [before[1], word];
    }
    (kind, period)
}

/// `rpm`, `tpd`, `itpm`, `otpm` and their like.
fn abbreviation(word: &str) -> Option<(LimitKind, Duration)> {
    let (kind, unit) = match word.strip_suffix(['s', 'm', 'h', 'd'])? {
        head @ "rp" => (LimitKind::Requests, &word[head.len()..]),
        head @ "tp" => (LimitKind::Tokens, &word[head.len()..]),
        head @ "itp" => (LimitKind::InputTokens, &word[head.len()..]),
        head @ "otp" => (LimitKind::OutputTokens, &word[head.len()..]),
        _ => return None,
    };
    Some((kind, period_named(unit)?))
}

/// The kind in "input tokens per", "requests per", "token rate limit", "call rate limit".
fn counted(adjective: &str, noun: &str) -> Option<LimitKind> {
    let noun = if noun == "rate" { adjective } else { noun };
    match (adjective, noun) {
        ("input", "tokens") => Some(LimitKind::InputTokens),
        ("output", "tokens") => Some(LimitKind::OutputTokens),
        (_, "token" | "tokens") => Some(LimitKind::Tokens),
        // OpenRouter's "free-models-per-day" counts calls.
        (_, "request" | "requests" | "call" | "calls" | "models") => Some(LimitKind::Requests),
        _ => None,
    }
}

fn period_named(word: &str) -> Option<Duration> {
    let seconds = match word {
        "s" | "sec" | "second" => 1,
        "m" | "min" | "minute" => 60,
        "h" | "hour" => 3_600,
        "d" | "day" => 86_400,
        "month" => 30 * 86_400,
        _ => return None,
    };
    Some(Duration::from_secs(seconds))
}

/// The number that stands right behind the word: `limit 10000`, `limit: 3`, `limit of 40,000`.
fn number_after(text: &str, word: &str) -> Option<u64> {
    text.match_indices(word).find_map(|(at, _)| {
        let starts_word = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = &text[at + word.len()..];
        let number = rest.trim_start_matches([':', '=', ' ']);
        let separated = number.len() < rest.len();
        let number = number.strip_prefix("of ").unwrap_or(number);
        let end = number
            .find(|c: char| !c.is_ascii_digit() && c != ',')
            .unwrap_or(number.len());
        (starts_word && separated)
            .then(|| header_count(&number[..end].replace(',', "")))
            .flatten()
    })
}

/// The time that stands behind the phrase: `41.724s.`, `7m12s`, `6 seconds`.
fn time_after(text: &str, phrase: &str) -> Option<Duration> {
    text.match_indices(phrase).find_map(|(at, _)| {
        let mut words = text[at + phrase.len()..].split_whitespace();
        let word = words
            .next()?
            .trim_end_matches(|c: char| !c.is_alphanumeric());
        if let Some(span) = parse_duration(word) {
            return Some(span);
        }
        let unit = words.next().unwrap_or_default();
        let unit = unit.trim_end_matches(|c: char| !c.is_alphanumeric());
        let unit = match unit {
            "ms" | "millisecond" | "milliseconds" => "ms",
            "s" | "sec" | "second" | "seconds" => "s",
            "m" | "min" | "minute" | "minutes" => "m",
            "h" | "hour" | "hours" => "h",
            "d" | "day" | "days" => "d",
            _ => return None,
        };
        parse_duration(&format!("{word}{unit}"))
    })
}

#[cfg(test)]
mod tests;
