use std::time::Duration;

use llmq_core::{Host, LimitKind, Now, WallTime};

use crate::header_value::{HeaderTime, RetryAfter, header_count};
use crate::ietf::IetfFields;
use crate::observation::{HeaderSource, Observation, RateLimitHeaders};
use crate::structured;
use crate::window::infer_rounded;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
/// Providers document the month as a calendar month; thirty days is near enough for a window
/// that no header is known to count down.
const MONTH: Duration = Duration::from_secs(30 * 86_400);

/// The limits believed of one answer; the richest documented one has six.
const OBSERVATIONS_MAX: usize = 16;
/// Anthropic rounds what is left of tokens to the nearest thousand.
const ANTHROPIC_ROUNDING: u64 = 1_000;
/// How much of an unreadable header is kept for the log.
const GARBLED_LEN_MAX: usize = 100;

/// Reads every documented family of rate-limit headers.
///
/// Names are matched in any case and order. A limit's window is what the header's name says,
/// else what the host documents, else what [`infer_window`](crate::infer_window) gives; when none
/// does, it stays unknown, and a day's number is never taken for a minute's. Instants are
/// measured against the answer's `Date`, else against `now`.
///
/// ```
/// use llmq_core::{Host, Now};
/// use llmq_limit::parse_rate_limit_headers;
/// use std::time::Duration;
/// let seen = parse_rate_limit_headers(
///     Host::OpenAi,
///     [
///         ("x-ratelimit-limit-requests", "10000"),
///         ("x-ratelimit-remaining-requests", "9999"),
///         ("x-ratelimit-reset-requests", "8.64s"),
///     ],
///     Now::default(),
/// );
/// assert_eq!(seen.observations[0].window, Some(Duration::from_secs(86_400)));
/// ```
#[must_use]
pub fn parse_rate_limit_headers<'a>(
    host: Host,
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    now: Now,
) -> RateLimitHeaders {
    let mut reader = Reader::new(host);
    for (name, value) in headers {
        reader.read(name, value);
    }
    reader.finish(now)
}

/// Which of a limit's numbers a header holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Limit,
    Remaining,
    Reset,
}

impl Field {
    fn named(word: &str) -> Option<Self> {
        match word {
            "limit" => Some(Self::Limit),
            "remaining" => Some(Self::Remaining),
            "reset" => Some(Self::Reset),
            _ => None,
        }
    }
}

/// A limit under construction: headers come in any order.
#[derive(Debug)]
struct Draft {
    subject: Subject,
    /// The window of `RateLimit-Limit: 100, 100;w=60`.
    stated_window: Option<Duration>,
    limit: Option<u64>,
    remaining: Option<u64>,
    reset: Option<HeaderTime>,
    /// How exact the reset is.
    reset_step: Duration,
    rounding: u64,
    query_cost: Option<u64>,
}

/// What a header's name says it is about: limits of one kind differ in family and period.
type Subject = (LimitKind, HeaderSource, Option<Duration>);

/// The three unnamed headers, of either spelling.
const SPLIT: Subject = (LimitKind::Requests, HeaderSource::Split, None);

struct Reader {
    host: Host,
    drafts: Vec<Draft>,
    ietf: IetfFields,
    retry: RetryAfter,
    processing: Option<Duration>,
    no_access: bool,
    garbled: Option<String>,
}

impl Reader {
    fn new(host: Host) -> Self {
        Self {
            host,
            drafts: Vec::new(),
            ietf: IetfFields::default(),
            retry: RetryAfter::default(),
            processing: None,
            no_access: false,
            garbled: None,
        }
    }

    fn read(&mut self, name: &str, value: &str) {
        let readable = self.retry.read(name, value).or_else(|| {
            let name = lower_case(name)?;
            self.read_limit(&name, value)
        });
        if readable == Some(false) && self.garbled.is_none() {
            self.garbled = Some(cut(format!("{name}: {value}")));
        }
    }

    /// Whether the header could be read; `None` when it is about something else.
    fn read_limit(&mut self, name: &str, value: &str) -> Option<bool> {
        if let Some(rest) = name.strip_prefix("x-ratelimit-") {
            self.read_standard(rest, value)
        } else if let Some(rest) = name.strip_prefix("anthropic-") {
            self.read_anthropic(rest, value)
        } else if let Some(rest) = name.strip_prefix("ratelimit") {
            self.read_ietf(rest, value)
        } else if name == "openai-processing-ms" {
            self.processing = header_count(value).map(Duration::from_millis);
            Some(self.processing.is_some())
        } else {
            None
        }
    }

    /// `x-ratelimit-…`: `limit-requests`, `remaining-tokens-minute`, or a bare `reset`.
    fn read_standard(&mut self, rest: &str, value: &str) -> Option<bool> {
        if rest == "tokens-query-cost" {
            let cost = header_count(value);
            let subject = (LimitKind::Tokens, HeaderSource::Standard, Some(MINUTE));
            self.draft(subject)?.query_cost = cost;
            return Some(cost.is_some());
        }
        match rest.split_once('-') {
            Some((field, what)) => {
                let field = Field::named(field)?;
                self.set(standard_subject(what)?, field, value)
            }
            None => self.set(SPLIT, Field::named(rest)?, value),
        }
    }

    /// `anthropic-…`: `ratelimit-input-tokens-remaining`, `priority-output-tokens-limit`.
    ///
    /// The `unified` headers of subscriptions hold shares and Unix times of another kind; they
    /// fall through here, like everything else that is not known.
    fn read_anthropic(&mut self, rest: &str, value: &str) -> Option<bool> {
        let (what, field) = rest.rsplit_once('-')?;
        let field = Field::named(field)?;
        let (kind, source) = match what {
            "ratelimit-requests" => (LimitKind::Requests, HeaderSource::Standard),
            "ratelimit-input-tokens" => (LimitKind::InputTokens, HeaderSource::Standard),
            "ratelimit-output-tokens" => (LimitKind::OutputTokens, HeaderSource::Standard),
            "ratelimit-tokens" => (LimitKind::Tokens, HeaderSource::Informational),
            "priority-input-tokens" => (LimitKind::InputTokens, HeaderSource::Informational),
            "priority-output-tokens" => (LimitKind::OutputTokens, HeaderSource::Informational),
            _ => return None,
        };
        let subject = (kind, source, Some(MINUTE));
        if kind != LimitKind::Requests {
            self.draft(subject)?.rounding = ANTHROPIC_ROUNDING;
        }
        self.set(subject, field, value)
    }

    /// `RateLimit`, `RateLimit-Policy` and the three split fields of the drafts before 07.
    fn read_ietf(&mut self, rest: &str, value: &str) -> Option<bool> {
        match rest {
            "" => {
                let mut split = Vec::new();
                let read = self.ietf.read_windows(value, |name, value| {
                    split.extend(Field::named(name).map(|field| (field, value.to_owned())));
                });
                for (field, value) in split {
                    self.set(SPLIT, field, &value);
                }
                Some(read.is_some())
            }
            "-policy" => Some(self.ietf.read_policies(value).is_some()),
            "-limit" => self.read_split_limit(value),
            "-remaining" => self.set(SPLIT, Field::Remaining, value),
            "-reset" => self.set(SPLIT, Field::Reset, value),
            _ => None,
        }
    }

    /// `RateLimit-Limit: 100, 100;w=60`: the limit, then possibly the policies it comes from.
    fn read_split_limit(&mut self, value: &str) -> Option<bool> {
        let members = structured::list(value).unwrap_or_default();
        let Some((limit, policies)) = members.split_first() else {
            return Some(false);
        };
        let window = std::iter::once(limit)
            .chain(policies.iter().filter(|policy| policy.name == limit.name))
            .find_map(|policy| header_count(policy.param("w")?).filter(|seconds| *seconds > 0));
        let read = self.set(SPLIT, Field::Limit, &limit.name);
        if let Some(draft) = self.draft(SPLIT) {
            draft.stated_window = window.map(Duration::from_secs);
        }
        read
    }

    /// The limit being collected for `subject`; `None` when there are more than anyone sends.
    fn draft(&mut self, subject: Subject) -> Option<&mut Draft> {
        let known = self
            .drafts
            .iter()
            .position(|draft| draft.subject == subject);
        let at = match known {
            Some(at) => at,
            None if self.drafts.len() >= OBSERVATIONS_MAX => return None,
            None => {
                self.drafts.push(Draft::new(subject));
                self.drafts.len() - 1
            }
        };
        self.drafts.get_mut(at)
    }

    fn set(&mut self, subject: Subject, field: Field, value: &str) -> Option<bool> {
        let zero_means_no_access = matches!(self.host, Host::Mistral | Host::Gemini);
        let draft = self.draft(subject)?;
        Some(match field {
            Field::Limit => {
                let limit = header_count(value);
                draft.limit = limit.filter(|limit| *limit > 0);
                self.no_access |= limit == Some(0) && zero_means_no_access;
                limit.is_some()
            }
            Field::Remaining => {
                draft.remaining = header_count(value);
                draft.remaining.is_some()
            }
            Field::Reset => {
                draft.reset = HeaderTime::parse(value);
                draft.reset_step = reset_step(value);
                // Azure's word for "not known", so nothing to warn of.
                draft.reset.is_some() || value.trim() == "-1"
            }
        })
    }

    fn finish(self, now: Now) -> RateLimitHeaders {
        let sent_at = self.retry.sent_at(now);
        let drafts = self.drafts.iter().filter(|draft| draft.says_anything());
        let observations = drafts
            .map(|draft| draft.finish(self.host, &self.ietf, sent_at))
            .chain(self.ietf.observations())
            .take(OBSERVATIONS_MAX)
            .collect();
        RateLimitHeaders {
            observations,
            retry_after: self.retry.resolve(now),
            processing: self.processing,
            no_access: self.no_access,
            garbled: self.garbled,
        }
    }
}

/// The name in lower case; `None` when it cannot be one of ours.
fn lower_case(name: &str) -> Option<String> {
    const PREFIXES: [&str; 4] = [
        "x-ratelimit-",
        "anthropic-",
        "ratelimit",
        "openai-processing-ms",
    ];
    let ours = PREFIXES.iter().any(|prefix| {
        name.get(..prefix.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(prefix))
    });
    ours.then(|| name.to_ascii_lowercase())
}

fn cut(mut text: String) -> String {
    let end = (0..=GARBLED_LEN_MAX.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text.truncate(end.unwrap_or(0));
    text
}

/// `requests`, `input-tokens`, `project-tokens`, each with or without its period: Mistral and
/// Cerebras write `req-minute`, `tokens-minute`, `requests-day`.
fn standard_subject(what: &str) -> Option<Subject> {
    let (what, window) = match what.rsplit_once('-') {
        Some((head, "second")) => (head, Some(SECOND)),
        Some((head, "minute")) => (head, Some(MINUTE)),
        Some((head, "hour")) => (head, Some(HOUR)),
        Some((head, "day")) => (head, Some(DAY)),
        Some((head, "month")) => (head, Some(MONTH)),
        _ => (what, None),
    };
    let (kind, source) = match what {
        "requests" | "req" => (LimitKind::Requests, HeaderSource::Standard),
        "tokens" => (LimitKind::Tokens, HeaderSource::Standard),
        "input-tokens" => (LimitKind::InputTokens, HeaderSource::Standard),
        "output-tokens" => (LimitKind::OutputTokens, HeaderSource::Standard),
        "project-requests" => (LimitKind::Requests, HeaderSource::Project),
        "project-tokens" => (LimitKind::Tokens, HeaderSource::Project),
        _ => return None,
    };
    Some((kind, source, window))
}

/// What the host documents about a header that names no period and shows one window only.
fn documented_window(host: Host, kind: LimitKind) -> Option<Duration> {
    match (host, kind) {
        (Host::Groq, LimitKind::Requests) => Some(DAY),
        (Host::Groq, _) => Some(MINUTE),
        // Its resets are whole seconds of a slice, too coarse to tell anything.
        (Host::Azure, _) => Some(MINUTE),
        (Host::Anthropic, _) => Some(MINUTE),
        _ => None,
    }
}

/// How exact a reset is: whole seconds where it has no unit and no fraction.
fn reset_step(value: &str) -> Duration {
    if value.trim().bytes().all(|b| b.is_ascii_digit()) {
        SECOND
    } else {
        Duration::from_millis(1)
    }
}

impl Draft {
    fn new(subject: Subject) -> Self {
        Self {
            subject,
            stated_window: None,
            limit: None,
            remaining: None,
            reset: None,
            reset_step: SECOND,
            rounding: 1,
            query_cost: None,
        }
    }

    /// Whether there is more than an unreadable header behind it.
    fn says_anything(&self) -> bool {
        self.limit.is_some()
            || self.remaining.is_some()
            || self.reset.is_some()
            || self.query_cost.is_some()
    }

    fn finish(&self, host: Host, ietf: &IetfFields, sent_at: WallTime) -> Observation {
        let (kind, source, named_window) = self.subject;
        let reset = self.reset.map(|reset| reset.wait_from(sent_at));
        let window = match source {
            HeaderSource::Split => self
                .stated_window
                .or_else(|| ietf.window_of_limit(self.limit)),
            _ => named_window
                .or_else(|| documented_window(host, kind))
                .or_else(|| infer_rounded(self.limit?, self.remaining?, reset?, self.reset_step)),
        };
        Observation {
            kind,
            source,
            limit: self.limit,
            remaining: self.remaining,
            reset,
            window,
            rounding: self.rounding,
            query_cost: self.query_cost,
        }
    }
}

#[cfg(test)]
mod tests;
