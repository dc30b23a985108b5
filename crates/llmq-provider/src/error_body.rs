use std::time::Duration;

use llmq_core::parse_duration;
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, SeqAccess};

use crate::lenient::{First, FromAny, Lenient, Object};

/// How much of a provider's message is kept.
const MESSAGE_CHARS_MAX: usize = 1_000;
/// How much of a page that is not JSON is kept: enough to see whose it is.
const PAGE_CHARS_MAX: usize = 200;
/// Gemini names one violation per exhausted quota; there are not more kinds than this.
const QUOTAS_MAX: usize = 16;

type Text = Lenient<Option<String>>;

/// What an error body says, whichever of the known shapes it has.
///
/// OpenAI, Anthropic, Groq, Azure and OpenRouter wrap it in `error`; Gemini's compatible
/// interface may put that into a one-element array; Mistral and older vLLM put the members at
/// the top; FastAPI servers send `detail`; some send `error` as a bare text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ErrorBody {
    pub(crate) message: String,
    pub(crate) code: Option<String>,
    pub(crate) kind: Option<String>,
    /// Gemini's `status`, such as `RESOURCE_EXHAUSTED`.
    pub(crate) word: Option<String>,
    pub(crate) details: Details,
    pub(crate) metadata: Metadata,
}

/// `error.details`: an object at Anthropic, an array of typed objects at Gemini.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Details {
    pub(crate) error_code: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) retry_delay: Option<Duration>,
    pub(crate) quota_ids: Vec<String>,
}

/// OpenRouter's `error.metadata`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Metadata {
    error_type: Text,
    reason: Text,
    reasons: Lenient<NotEmpty>,
}

impl Metadata {
    pub(crate) fn error_type(&self) -> Option<&str> {
        self.error_type.0.as_deref()
    }

    pub(crate) fn reason(&self) -> Option<&str> {
        self.reason.0.as_deref()
    }

    /// Why moderation refused the input; then there is at least one reason.
    pub(crate) fn is_flagged(&self) -> bool {
        self.reasons.0.0
    }
}

/// The body as it may come: members at the top, in `error`, or both.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Top {
    error: Lenient<Inner>,
    message: Text,
    code: Text,
    #[serde(rename = "type")]
    kind: Text,
    detail: Lenient<Detail>,
}

#[derive(Debug, Clone, Default)]
enum Inner {
    #[default]
    Absent,
    Text(String),
    Members(Box<Members>),
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Members {
    message: Text,
    code: Text,
    #[serde(rename = "type")]
    kind: Text,
    status: Text,
    details: Lenient<Details>,
    metadata: Lenient<Object<Metadata>>,
}

impl<'de> FromAny<'de> for Inner {
    fn of_text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    fn of_object<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let Object(members) = Object::<Members>::of_object(map)?;
        Ok(Self::Members(Box::new(members)))
    }
}

/// FastAPI: a text, or an array of faults of which the first is told.
#[derive(Debug, Clone, Default)]
struct Detail(Option<String>);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Fault {
    msg: Text,
}

impl<'de> FromAny<'de> for Detail {
    fn of_text(text: &str) -> Self {
        Self(Some(text.to_owned()))
    }

    fn of_object<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let Object(fault) = Object::<Fault>::of_object(map)?;
        Ok(Self(fault.msg.0))
    }

    fn of_array<A: SeqAccess<'de>>(mut items: A) -> Result<Self, A::Error> {
        let first = items.next_element::<Lenient<Object<Fault>>>()?;
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Self(first.and_then(|Lenient(Object(fault))| fault.msg.0)))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct NotEmpty(bool);

impl<'de> FromAny<'de> for NotEmpty {
    fn of_array<A: SeqAccess<'de>>(mut items: A) -> Result<Self, A::Error> {
        let mut any = false;
        while items.next_element::<IgnoredAny>()?.is_some() {
            any = true;
        }
        Ok(Self(any))
    }
}

/// One object of Gemini's `details` (`google.rpc.RetryInfo`, `QuotaFailure`, `ErrorInfo`), or
/// Anthropic's whole `details`: their members do not clash.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct DetailItem {
    error_code: Text,
    reason: Text,
    #[serde(rename = "retryDelay")]
    retry_delay: Text,
    violations: Lenient<Violations>,
}

#[derive(Debug, Clone, Default)]
struct Violations(Vec<String>);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Violation {
    #[serde(rename = "quotaId")]
    quota_id: Text,
}

impl<'de> FromAny<'de> for Violations {
    fn of_array<A: SeqAccess<'de>>(mut items: A) -> Result<Self, A::Error> {
        let mut ids = Vec::new();
        while let Some(Lenient(Object(violation))) =
            items.next_element::<Lenient<Object<Violation>>>()?
        {
            if ids.len() < QUOTAS_MAX {
                ids.extend(violation.quota_id.0);
            }
        }
        Ok(Self(ids))
    }
}

impl Details {
    fn add(&mut self, item: DetailItem) {
        let delay = item.retry_delay.0.as_deref().and_then(parse_duration);
        self.error_code = self.error_code.take().or(item.error_code.0);
        self.reason = self.reason.take().or(item.reason.0);
        self.retry_delay = self.retry_delay.or(delay);
        self.quota_ids.extend(item.violations.0.0);
        self.quota_ids.truncate(QUOTAS_MAX);
    }
}

impl<'de> FromAny<'de> for Details {
    fn of_object<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        let Object(item) = Object::<DetailItem>::of_object(map)?;
        let mut details = Self::default();
        details.add(item);
        Ok(details)
    }

    fn of_array<A: SeqAccess<'de>>(mut items: A) -> Result<Self, A::Error> {
        let mut details = Self::default();
        while let Some(Lenient(Object(item))) =
            items.next_element::<Lenient<Object<DetailItem>>>()?
        {
            details.add(item);
        }
        Ok(details)
    }
}

impl ErrorBody {
    /// Reads a body of any shape; `None` when it is not JSON.
    pub(crate) fn read(body: &[u8]) -> Option<Self> {
        let Lenient(First(top)) = serde_json::from_slice::<Lenient<First<Top>>>(body).ok()?;
        Some(Self::of(top.unwrap_or_default()))
    }

    /// What can be said of a body that is not JSON: the beginning of its text.
    pub(crate) fn of_page(body: &[u8]) -> Self {
        let start = &body[..body.len().min(4 * PAGE_CHARS_MAX)];
        Self {
            message: bounded(&String::from_utf8_lossy(start), PAGE_CHARS_MAX),
            ..Self::default()
        }
    }

    fn of(top: Top) -> Self {
        let members = match top.error.0 {
            Inner::Members(members) => *members,
            Inner::Text(text) => Members {
                message: Lenient(Some(text)),
                ..Members::default()
            },
            Inner::Absent => Members::default(),
        };
        let message = members.message.0.or(top.message.0).or(top.detail.0.0);
        Self {
            message: bounded(&message.unwrap_or_default(), MESSAGE_CHARS_MAX),
            code: members.code.0.or(top.code.0),
            kind: members.kind.0.or(top.kind.0),
            word: members.status.0,
            details: members.details.0,
            metadata: members.metadata.0.0,
        }
    }
}

/// The first `max` characters, without line ends: messages go into logs and error columns.
fn bounded(text: &str, max: usize) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(max).map(printable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> ErrorBody {
        ErrorBody::read(json.as_bytes()).unwrap()
    }

    #[test]
    fn the_same_facts_are_found_in_every_shape() {
        for json in [
            r#"{"error":{"message":"no","type":"t","param":null,"code":"c"}}"#,
            r#"[{"error":{"message":"no","type":"t","code":"c"}}]"#,
            r#"{"object":"error","message":"no","type":"t","code":"c","param":null}"#,
            r#"{"type":"error","error":{"type":"t","message":"no","code":"c"},"request_id":"r"}"#,
        ] {
            let body = read(json);
            assert_eq!(body.message, "no", "{json}");
            assert_eq!(body.kind.as_deref(), Some("t"), "{json}");
            assert_eq!(body.code.as_deref(), Some("c"), "{json}");
        }
        for json in [
            r#"{"error":"no"}"#,
            r#"{"detail":"no"}"#,
            r#"{"detail":[{"loc":["body"],"msg":"no"}]}"#,
            r#"{"message":"no","request_id":"r"}"#,
        ] {
            assert_eq!(read(json).message, "no", "{json}");
        }
        assert_eq!(
            read(r#"{"error":{"code":429}}"#).code.as_deref(),
            Some("429")
        );
    }

    #[test]
    fn gemini_and_anthropic_details_are_read() {
        let gemini = read(
            r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[
                {"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaId":"A-PerDay"},{"quotaId":"B"}]},
                {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"38.2s"}]}}"#,
        );
        assert_eq!(gemini.details.quota_ids, ["A-PerDay", "B"]);
        assert_eq!(
            gemini.details.retry_delay,
            Some(Duration::from_millis(38_200))
        );
        assert_eq!(gemini.word.as_deref(), Some("RESOURCE_EXHAUSTED"));
        let anthropic = read(
            r#"{"type":"error","error":{"type":"rate_limit_error","message":"","details":{"error_code":"ramp_limit_exceeded"}}}"#,
        );
        assert_eq!(
            anthropic.details.error_code.as_deref(),
            Some("ramp_limit_exceeded")
        );
    }

    #[test]
    fn odd_json_says_nothing_and_a_page_is_cut() {
        for json in [
            "null",
            "[]",
            "17",
            "\"x\"",
            r#"{"error":null}"#,
            r#"{"error":[1]}"#,
        ] {
            assert_eq!(read(json), ErrorBody::default(), "{json}");
        }
        assert_eq!(ErrorBody::read(b"<html>"), None);
        let page = format!("<html>\n{}", "é".repeat(5_000));
        assert_eq!(
            ErrorBody::of_page(page.as_bytes()).message.chars().count(),
            200
        );
    }
}
