use std::time::Duration;

use http::header::LOCATION;
use http::{HeaderMap, StatusCode};
use llmq_core::{FailureClass, Host, Now, Pause, Wait};
use llmq_limit::{
    DayZone, LimitText, WAIT_MAX, answered_at, parse_limit_text, parse_rate_limit_headers,
    retry_after,
};

use crate::answer::NoAnswer;
use crate::codes::{CodeMeaning, implied_status, meaning, refused};
use crate::error_body::ErrorBody;
use crate::{AnswerFacts, CallError, Cause, Dialect, StreamEnd, WholeAnswer};

/// A wait above it cannot be that of a minute's window.
const WINDOW_WAIT_MAX: Duration = Duration::from_secs(600);

/// Who answered: it decides how the answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Who runs the server.
    pub host: Host,
    /// Whose JSON it speaks.
    pub dialect: Dialect,
}

/// How servers say that a prompt is longer than the model's context, in small letters.
const TOO_LONG: [&str; 8] = [
    // Anthropic ("Errors", docs.anthropic.com, 2026).
    "prompt is too long",
    // vLLM until 2025, OpenRouter (Aider-AI/aider#3721), DeepSeek, Mistral ("… tokens, too large
    // for model with 32768 maximum context length").
    "maximum context length",
    // vLLM of 2026 (vllm/renderers/params.py, `_token_len_check`).
    "model's context length is only",
    // Gemini (google-gemini/gemini-cli#4231).
    "exceeds the maximum number of tokens allowed",
    // llama.cpp (tools/server/tests/unit/test_ctx_shift.py).
    "exceeds the available context size",
    // Groq (letta-ai/letta#1963) and Cerebras (cline/cline#5140).
    "reduce the length of the messages",
    // xAI (chenyme/grok2api#693).
    "maximum prompt length is",
    // OpenAI's Responses API.
    "exceeds the context window",
];

/// What a failed call means, and what the provider said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", status.map(|status| format!("{status}: ")).unwrap_or_default())]
pub struct Verdict {
    /// The class, with its row in the retry table.
    pub class: FailureClass,
    /// How long the provider asks to wait; never to be shortened.
    pub wait: Option<Duration>,
    /// What stands still meanwhile: the class's own rule, narrowed to the upstream where only
    /// one model is refused.
    pub pause: Pause,
    /// What is refused, where it is that ([`FailureClass::NoAccess`]).
    pub refused: Option<Refused>,
    /// The HTTP status; `None` when there was no answer.
    pub status: Option<u16>,
    /// The provider's code, or its type where there is no code.
    pub code: Option<String>,
    /// The provider's message, at most 1,000 characters, on one line.
    pub message: String,
    /// What a 429 says about the limit that was hit.
    pub limit: Option<LimitText>,
    /// Whether it took the call and said nothing in time: neither a head nor a first token.
    pub was_silent: bool,
}

/// What a provider does not let a call have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Its key: every call with it is refused.
    Key,
    /// Its model.
    Model,
    /// What it asked for, or at all: the answer is a page, such as a firewall's or that of a
    /// server without this path. It may be this call alone.
    Unclear,
}

impl Verdict {
    /// Whether the refusal may concern this call alone, so that a place that has answered others
    /// is not to be closed by it.
    #[must_use]
    pub fn may_be_the_calls(&self) -> bool {
        matches!(self.refused, Some(Refused::Model | Refused::Unclear))
    }

    /// Whether the prompt is longer than the model's context: one with a larger context may
    /// take the call.
    ///
    /// OpenAI and Groq say it by a code, others by a text alone.
    #[must_use]
    pub fn exceeds_context(&self) -> bool {
        let is_the_calls = matches!(self.class, FailureClass::RowFault | FailureClass::TooLarge);
        let is_said = || TOO_LONG.iter().any(|text| mentions(&self.message, text));
        self.code.as_deref() == Some("context_length_exceeded") || (is_the_calls && is_said())
    }
}

impl From<&CallError> for Verdict {
    fn from(error: &CallError) -> Self {
        let class = error.class();
        Self {
            class,
            wait: None,
            pause: class.rule().pause,
            refused: None,
            status: None,
            code: error.code().map(str::to_owned),
            message: match error.cause() {
                // Time does not heal it, so whoever reads it should know what does.
                Some(cause) if cause.is_lasting() => with_remedy(error, cause),
                _ => error.to_string(),
            },
            limit: None,
            was_silent: error.is_silence(),
        }
    }
}

fn with_remedy(error: &CallError, cause: &Cause) -> String {
    match cause.remedy() {
        Some(remedy) => format!("{error}; {remedy}"),
        None => error.to_string(),
    }
}

/// Tells an answer from a failure.
///
/// Status 200 is not enough: the body must be a whole JSON object, and not one that carries
/// an error. Event streams are read by [`crate::StreamReader`] and [`check_stream`] instead.
///
/// # Errors
///
/// The [`Verdict`] on everything else. Codes decide before types, types before the status
/// (`x-should-retry` has a say where only the status spoke).
///
/// ```
/// use llmq_core::{FailureClass, Host, Now};
/// use llmq_provider::{Dialect, Source, classify};
/// let source = Source { host: Host::OpenAi, dialect: Dialect::OpenAi };
/// let body = br#"{"error":{"message":"m","type":"insufficient_quota","code":"insufficient_quota"}}"#;
/// let status = http::StatusCode::TOO_MANY_REQUESTS;
/// let verdict = classify(source, status, &http::HeaderMap::new(), body, Now::default());
/// assert_eq!(verdict.class, FailureClass::Money);
/// ```
pub fn check_answer(
    source: Source,
    answer: &WholeAnswer,
    now: Now,
) -> Result<AnswerFacts, Box<Verdict>> {
    let (status, headers, body) = (answer.status, &answer.headers, &answer.body);
    if !status.is_success() {
        return Err(Box::new(classify(source, status, headers, body, now)));
    }
    AnswerFacts::read(source.dialect, body).map_err(|no_answer| {
        Box::new(match no_answer {
            NoAnswer::Failed => classify(source, status, headers, body, now),
            NoAnswer::NotJson => not_json(status, body),
        })
    })
}

/// Tells a stream that came to its proper end from one that failed or was cut off on the way.
///
/// # Errors
///
/// The [`Verdict`]: by what the stream said of its failure, or [`FailureClass::Transient`] for
/// a stream without an end.
pub fn check_stream(
    source: Source,
    status: StatusCode,
    headers: &HeaderMap,
    end: &StreamEnd,
    now: Now,
) -> Result<(), Box<Verdict>> {
    Err(Box::new(match end {
        StreamEnd::Whole => return Ok(()),
        StreamEnd::CutOff => broken(status, "the stream ended before its end".to_owned()),
        StreamEnd::Malformed => broken(status, "an event of the stream is not JSON".to_owned()),
        StreamEnd::Failed(error) => classify(source, status, headers, error, now),
    }))
}

fn not_json(status: StatusCode, body: &[u8]) -> Verdict {
    let start = ErrorBody::of_page(body).message;
    broken(
        status,
        format!("the answer is not JSON, or cut off: {start}"),
    )
}

fn broken(status: StatusCode, message: String) -> Verdict {
    let class = FailureClass::Transient;
    Verdict {
        class,
        wait: None,
        pause: class.rule().pause,
        refused: None,
        status: Some(status.as_u16()),
        code: None,
        message,
        limit: None,
        was_silent: false,
    }
}

/// The verdict on an answer that is known to be a failure: by its status, or by its content
/// as an error in a 200 body or in the middle of a stream.
#[must_use]
pub fn classify(
    source: Source,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    now: Now,
) -> Verdict {
    let error = ErrorBody::read(body);
    let is_json = error.is_some();
    let error = error.unwrap_or_else(|| ErrorBody::of_page(body));
    let failure = Failure {
        source,
        status: if status.is_success() {
            implied_status(&error)
        } else {
            status.as_u16()
        },
        headers,
        body,
        now,
        is_json,
        error: &error,
    };
    let (class, limit) = failure.class();
    let class = asked_to_retry(headers, class);
    let wait = failure.wait(class, limit.as_ref(), now);
    let class = by_length(class, wait);
    let refused = failure.refused(class);
    Verdict {
        class,
        wait,
        pause: match refused {
            // A refused model leaves the credential's other models alone.
            Some(Refused::Model | Refused::Unclear) => Pause::Upstream,
            Some(Refused::Key) | None => class.rule().pause,
        },
        refused,
        status: Some(status.as_u16()),
        code: error.code.clone().or_else(|| error.kind.clone()),
        message: error.message,
        limit,
        was_silent: false,
    }
}

/// `x-should-retry` overrules what the status alone says, as it does in the official SDKs; it
/// knows nothing of quotas and money, whose codes say more. Beside a `Retry-After` it is not the
/// last word: that time is only longer than an SDK should sleep.
fn asked_to_retry(headers: &HeaderMap, class: FailureClass) -> FailureClass {
    use FailureClass as C;
    let said = headers
        .get("x-should-retry")
        .and_then(|value| value.to_str().ok());
    let says_when = headers.contains_key(http::header::RETRY_AFTER);
    match (said, class) {
        (Some("false"), C::Transient | C::Overload) if !says_when => C::RowFault,
        (Some("true"), C::RowFault) => C::Transient,
        _ => class,
    }
}

/// A window that opens only after ten minutes is treated as a day's.
fn by_length(class: FailureClass, wait: Option<Duration>) -> FailureClass {
    match (class, wait) {
        (FailureClass::QuotaWindow, Some(wait)) if wait > WINDOW_WAIT_MAX => FailureClass::QuotaDay,
        _ => class,
    }
}

/// The status with which a failure is told: its own, but where that is no failure's (a 200 with an
/// error in its body or its stream, a redirect, which is meant for whoever set the base URL), the
/// one that the error stands for, or 502 where it names none.
#[must_use]
pub fn failed_status(status: StatusCode, body: &[u8]) -> StatusCode {
    if !status.is_success() && !status.is_redirection() {
        return status;
    }
    let implied = match ErrorBody::read(body) {
        Some(error) if meaning(&error) == Some(CodeMeaning::RateLimit) => 429,
        Some(error) => implied_status(&error),
        None => 500,
    };
    let implied = StatusCode::from_u16(implied).ok();
    // What went wrong there went wrong behind a gateway.
    let implied = implied.filter(|implied| *implied != StatusCode::INTERNAL_SERVER_ERROR);
    implied.unwrap_or(StatusCode::BAD_GATEWAY)
}

/// What is told of a redirect; none: it is none. It is meant for whoever set the base URL: an SDK
/// that followed it would send the prompt, and perhaps its key, round whoever stands between.
#[must_use]
pub fn redirected(status: StatusCode, headers: &HeaderMap) -> Option<String> {
    if !status.is_redirection() {
        return None;
    }
    let to = headers.get(LOCATION).and_then(|to| to.to_str().ok());
    // What follows the path may be anybody's secret.
    let to = to.and_then(|to| to.split(['?', '#']).next());
    let to: String = to.unwrap_or("elsewhere").chars().take(200).collect();
    Some(format!(
        "the upstream answered {} and leads to {to}: its base_url is to be the address that \
         answers by itself",
        status.as_u16()
    ))
}

/// A failure under examination.
struct Failure<'a> {
    source: Source,
    /// The HTTP status, or the one that the content stands for.
    status: u16,
    headers: &'a HeaderMap,
    body: &'a [u8],
    now: Now,
    is_json: bool,
    error: &'a ErrorBody,
}

impl Failure<'_> {
    fn class(&self) -> (FailureClass, Option<LimitText>) {
        use FailureClass as C;
        match meaning(self.error) {
            // A code of money or capacity may come with a text about limits; it decides.
            Some(CodeMeaning::Class(class)) => (class, None),
            // Groq: the call is above the whole bucket.
            Some(CodeMeaning::RateLimit) if self.status == 413 => (C::TooLarge, self.limit_text()),
            Some(CodeMeaning::RateLimit) => self.rate_limited(),
            None if self.status == 429 => self.rate_limited(),
            None => (self.by_status(), None),
        }
    }

    fn limit_text(&self) -> Option<LimitText> {
        parse_limit_text(std::str::from_utf8(self.body).ok()?)
    }

    fn rate_limited(&self) -> (FailureClass, Option<LimitText>) {
        use FailureClass as C;
        if self.is_outside_plan() {
            return (C::NoAccess, None);
        }
        // OpenAI's flex tier without capacity: nothing of the account's was used up.
        if mentions(&self.error.message, "resource unavailable") {
            return (C::Overload, None);
        }
        let limit = self.limit_text();
        (
            limit.as_ref().map_or(C::QuotaWindow, |said| said.class),
            limit,
        )
    }

    /// Mistral answers 429 with a limit of zero for a model that the plan does not hold.
    fn is_outside_plan(&self) -> bool {
        parse_rate_limit_headers(self.source.host, self.texts(), self.now).no_access
    }

    fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        let headers = self.headers.iter();
        headers.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
    }

    fn by_status(&self) -> FailureClass {
        use FailureClass as C;
        match self.status {
            // The address is wrong: every call would go there, so a person must act.
            300..=399 | 401 => C::NoAccess,
            402 => self.payment_required(),
            // OpenRouter's moderation refuses one input, not the key.
            403 if self.error.metadata.is_flagged() => C::RowFault,
            403 => C::NoAccess,
            404 => self.not_found(),
            408 | 409 | 425 => C::Transient,
            498 | 503 | 529 => C::Overload,
            400 if self.is_out_of_money() => C::Money,
            400 if self.is_wrong_scheme() || self.is_refused_key() => C::NoAccess,
            400..=499 => C::RowFault,
            _ => C::Transient,
        }
    }

    /// What nginx, Apache and Go's servers answer to `http://` at a port that is for `https://`:
    /// every call would get that.
    fn is_wrong_scheme(&self) -> bool {
        let texts = [
            "http request to an https server",
            "sent to https port",
            "speaking plain http",
        ];
        !self.is_json
            && texts
                .into_iter()
                .any(|text| mentions(&self.error.message, text))
    }

    /// xAI refuses a key with a 400 (openai/codex#1352), and Gemini the place where its account
    /// calls from; neither has a code for it. The text begins so: further on it may be the
    /// caller's own.
    fn is_refused_key(&self) -> bool {
        let message = self.error.message.to_ascii_lowercase();
        let texts = [
            "incorrect api key provided",
            "user location is not supported",
        ];
        self.is_json && texts.into_iter().any(|text| message.starts_with(text))
    }

    /// OpenRouter refuses calls in flight beyond a small balance, and takes them a moment later.
    fn payment_required(&self) -> FailureClass {
        match self.error.metadata.reason() {
            Some("in_flight_budget_exhausted") => FailureClass::Overload,
            _ => FailureClass::Money,
        }
    }

    /// A missing model or a wrong address concerns every call; a missing file, only this one.
    fn not_found(&self) -> FailureClass {
        if !self.is_json || self.error.message.is_empty() || self.names_model() {
            FailureClass::NoAccess
        } else {
            FailureClass::RowFault
        }
    }

    fn names_model(&self) -> bool {
        ["model", "deployment"]
            .into_iter()
            .any(|word| mentions(&self.error.message, word))
    }

    /// Anthropic reports spent credit and self-set limits as a 400 without a code of its own.
    fn is_out_of_money(&self) -> bool {
        self.source.dialect == Dialect::Anthropic
            && [
                "you have reached your specified api usage limits",
                "credit balance is too low",
            ]
            .into_iter()
            .any(|text| mentions(&self.error.message, text))
    }

    fn wait(&self, class: FailureClass, limit: Option<&LimitText>, now: Now) -> Option<Duration> {
        if class.rule().wait == Wait::Never {
            return None;
        }
        // Gemini's own delay has been seen to name seconds when the day was used up.
        if class == FailureClass::QuotaDay && self.source.host == Host::Gemini {
            return Some(DayZone::pacific().next_turn(now.wall).since(now.wall));
        }
        // The instant is one of the sender's clock.
        let sent_at = || answered_at(self.texts(), now);
        let resets_in = |said: &LimitText| said.resets_at.map(|at| at.since(sent_at()));
        [
            retry_after(self.texts(), now),
            limit.and_then(|said| said.try_again),
            limit.and_then(resets_in),
            self.error.details.retry_delay,
        ]
        .into_iter()
        .flatten()
        .max()
        .map(|wait| wait.min(WAIT_MAX))
    }

    fn refused(&self, class: FailureClass) -> Option<Refused> {
        if class != FailureClass::NoAccess {
            return None;
        }
        let by_status = || match self.status {
            401 => Refused::Key,
            400 if self.is_refused_key() => Refused::Key,
            403 if !self.is_json => Refused::Unclear,
            403 | 404 if self.names_model() => Refused::Model,
            403 => Refused::Key,
            _ if self.is_outside_plan() => Refused::Model,
            _ => Refused::Unclear,
        };
        Some(refused(self.error).unwrap_or_else(by_status))
    }
}

fn mentions(message: &str, lowercase: &str) -> bool {
    message.to_ascii_lowercase().contains(lowercase)
}

#[cfg(test)]
mod tests;
