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
mod tests {
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
}
