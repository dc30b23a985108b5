mod prompt;

use std::fmt;

use llmq_core::CallSize;
use serde::Deserialize;
use serde::de::Visitor;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, IntoDeserializer, MapAccess};

pub use prompt::Kept;
use prompt::{PromptSeed, count_plain};

use crate::lenient::{FromAny, Lenient, Object};
use crate::plain::Plain;
use crate::{TokenCounter, TokenTally};

/// What has to be known of a request body before it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestScan {
    /// The model it names; `None` when it names none.
    pub model: Option<String>,
    /// Whether it asks for a stream.
    pub stream: bool,
    /// Whether the stream is to tell its usage (`stream_options.include_usage`); `None` when the
    /// caller leaves that open.
    pub include_usage: Option<bool>,
    /// What it names that one account keeps, and no other.
    pub kept: Kept,
    /// Where the prompt begins: behind the name of its first member, a system text before
    /// messages. `None` when it has none.
    pub prompt_at: Option<usize>,
    /// Estimated input, cap on output, number of answers.
    pub size: CallSize,
    /// A member that decides where the call goes or what it is charged, and that stands there
    /// more than once or with escapes in its name: readers differ in which one they take.
    pub doubtful: Option<&'static str>,
}

/// The body is not a JSON object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the request body is not a JSON object: {reason} at line {line}, column {column}")]
pub struct ScanError {
    /// What is wrong with it. Holds no part of the body.
    pub reason: String,
    /// Counted from 1; 0 when unknown.
    pub line: usize,
    /// Counted from 1; 0 when unknown.
    pub column: usize,
}

/// Reads what limits and routing need, in one pass and without building a tree.
///
/// Text is what stands in `messages`, `input`, `prompt`, `system` and `instructions`, with
/// their parts and tool calls; images, audio and documents are not counted as text, and a
/// prompt of token numbers counts one each. Each prompt of a completion has `n` answers. With [`TokenCounter::Chars`] the estimate is a
/// quarter of all characters together, rounded up.
///
/// # Errors
///
/// [`ScanError`] when the body is not a JSON object.
///
/// ```
/// use llmq_provider::{TokenCounter, scan_request};
/// let body = br#"{"model":"m","max_tokens":9,"messages":[{"role":"user","content":"Hello!"}]}"#;
/// let scan = scan_request(body, TokenCounter::Chars)?;
/// assert_eq!(scan.model.as_deref(), Some("m"));
/// assert_eq!((scan.size.input_tokens, scan.size.max_output_tokens), (2, Some(9)));
/// # Ok::<(), llmq_provider::ScanError>(())
/// ```
pub fn scan_request(body: &[u8], counter: TokenCounter) -> Result<RequestScan, ScanError> {
    if counter == TokenCounter::Chars
        && let Some(scan) = scan_plain(body)
    {
        return Ok(scan);
    }
    scan_any(body, counter)
}

fn scan_any(body: &[u8], counter: TokenCounter) -> Result<RequestScan, ScanError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let start = body.as_ptr().addr();
    TopSeed { counter, start }
        .deserialize(&mut deserializer)
        .and_then(|scan| deserializer.end().map(|()| scan))
        .map_err(|error| ScanError {
            reason: reason(&error).to_owned(),
            line: error.line(),
            column: error.column(),
        })
}

/// The same for a body that is plain; `None` for others.
fn scan_plain(body: &[u8]) -> Option<RequestScan> {
    let mut json = Plain::new(body);
    let mut scan = RequestScan::default();
    let mut tally = TokenTally::new(TokenCounter::Chars);
    let (mut newer_cap, mut older_cap) = (None, None);
    let (mut system_at, mut prompt_at) = (None, None);
    let mut seen = Seen::default();
    json.object(|json, name| {
        let at = name.as_ptr().addr() + name.len() - body.as_ptr().addr();
        let mut once = |field: Field| match seen.note(&field, true) {
            None => Some(()),
            Some(_) => None,
        };
        match name {
            b"model" => {
                once(Field::Model)?;
                scan.model = Some(json.text()?.said()?.to_owned());
            }
            b"stream" => {
                once(Field::Stream)?;
                scan.stream = json.peek()? == b't';
                json.skip()?;
            }
            b"max_completion_tokens" => {
                once(Field::MaxCompletionTokens)?;
                newer_cap = json.unless_null(Plain::whole)?;
            }
            b"max_output_tokens" => {
                once(Field::MaxOutputTokens)?;
                newer_cap = json.unless_null(Plain::whole)?;
            }
            b"max_tokens" => {
                once(Field::MaxTokens)?;
                older_cap = json.unless_null(Plain::whole)?;
            }
            // There may be several, each with an answer of its own.
            b"prompt" if json.peek()? == b'[' => return None,
            b"messages" | b"input" | b"prompt" => {
                prompt_at = prompt_at.or(Some(at));
                count_plain(json, &mut tally)?;
            }
            b"system" | b"instructions" => {
                system_at = system_at.or(Some(at));
                count_plain(json, &mut tally)?;
            }
            // Seldom there, and read with care.
            b"stream_options" | b"n" | b"best_of" | b"previous_response_id" | b"conversation" => {
                return None;
            }
            _ => json.skip()?,
        }
        Some(())
    })?;
    json.end()?;
    scan.prompt_at = system_at.or(prompt_at);
    scan.size.choices = 1;
    scan.size.max_output_tokens = newer_cap.or(older_cap).map(clamped);
    scan.size.input_tokens = tally.tokens();
    Some(scan)
}

/// The parser's own text would quote what it found, and so the prompt.
fn reason(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Data => "it is of another kind",
        serde_json::error::Category::Syntax | serde_json::error::Category::Io => {
            "it is not well-formed"
        }
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Field {
    Model,
    Stream,
    StreamOptions,
    MaxCompletionTokens,
    MaxTokens,
    MaxOutputTokens,
    N,
    BestOf,
    PreviousResponseId,
    Conversation,
    Messages,
    Input,
    Prompt,
    System,
    Instructions,
    #[serde(other)]
    Other,
}

impl Field {
    /// Its place among those that may stand there once only, and its name.
    fn single(&self) -> Option<(u32, &'static str)> {
        Some(match self {
            Self::Model => (0, "model"),
            Self::Stream => (1, "stream"),
            Self::StreamOptions => (2, "stream_options"),
            Self::MaxCompletionTokens => (3, "max_completion_tokens"),
            Self::MaxTokens => (4, "max_tokens"),
            Self::MaxOutputTokens => (5, "max_output_tokens"),
            Self::N => (6, "n"),
            Self::BestOf => (7, "best_of"),
            Self::PreviousResponseId => (8, "previous_response_id"),
            Self::Conversation => (9, "conversation"),
            Self::Messages
            | Self::Input
            | Self::Prompt
            | Self::System
            | Self::Instructions
            | Self::Other => return None,
        })
    }
}

/// A member's name.
struct Key {
    field: Field,
    /// Where it ends in memory; none when it is written with escapes.
    end: Option<usize>,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_identifier(KeyVisitor)
    }
}

struct KeyVisitor;

impl KeyVisitor {
    fn key<E: serde::de::Error>(name: &str, end: Option<usize>) -> Result<Key, E> {
        let name: serde::de::value::StrDeserializer<'_, E> = name.into_deserializer();
        let field = Field::deserialize(name)?;
        Ok(Key { field, end })
    }
}

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    // Only a name without escapes can be lent.
    fn visit_borrowed_str<E: serde::de::Error>(self, name: &'de str) -> Result<Key, E> {
        Self::key(name, Some(name.as_ptr().addr() + name.len()))
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Key, E> {
        Self::key(name, None)
    }
}

/// Which of the members that may stand there once only were there.
#[derive(Default)]
struct Seen(u32);

impl Seen {
    fn note(&mut self, field: &Field, plain: bool) -> Option<&'static str> {
        let (place, name) = field.single()?;
        let again = self.0 & (1 << place) != 0;
        self.0 |= 1 << place;
        (again || !plain).then_some(name)
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct StreamOptions {
    include_usage: Lenient<Choice>,
}

/// What a caller says of a choice; a word that is none is the provider's to refuse.
#[derive(Default)]
struct Choice(Option<bool>);

impl FromAny<'_> for Choice {
    fn of_bool(value: bool) -> Self {
        Self(Some(value))
    }

    fn of_text(_: &str) -> Self {
        Self(Some(false))
    }

    fn of_whole(_: u64) -> Self {
        Self(Some(false))
    }
}

/// `true`; anything else is not.
#[derive(Default)]
struct Truth(bool);

impl FromAny<'_> for Truth {
    fn of_bool(value: bool) -> Self {
        Self(value)
    }
}

/// A name: a text, or an object with an `id`.
#[derive(Default)]
struct Name(Option<String>);

impl<'de> FromAny<'de> for Name {
    fn of_text(text: &str) -> Self {
        Self(Some(text.to_owned()))
    }

    fn of_object<A: MapAccess<'de>>(map: A) -> Result<Self, A::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct WithId {
            id: Lenient<Option<String>>,
        }
        let with_id = WithId::deserialize(MapAccessDeserializer::new(map))?;
        Ok(Self(with_id.id.0))
    }
}

struct TopSeed {
    counter: TokenCounter,
    /// Where the body begins in memory.
    start: usize,
}

impl<'de> DeserializeSeed<'de> for TopSeed {
    type Value = RequestScan;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<RequestScan, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TopSeed {
    type Value = RequestScan;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RequestScan, A::Error> {
        let mut scan = RequestScan::default();
        let mut tally = TokenTally::new(self.counter);
        // The newer name wins whichever comes first, as it does at OpenAI.
        let (mut newer_cap, mut older_cap) = (None, None);
        let mut seen = Seen::default();
        let mut system_at = None;
        let mut prompts = 1;
        while let Some(Key { field, end }) = map.next_key::<Key>()? {
            scan.doubtful = scan.doubtful.or(seen.note(&field, end.is_some()));
            let at = end.map(|end| end - self.start);
            match field {
                Field::Model => scan.model = map.next_value::<Lenient<_>>()?.0,
                Field::Stream => scan.stream = map.next_value::<Lenient<Truth>>()?.0.0,
                Field::StreamOptions => {
                    let options = map.next_value::<Lenient<Object<StreamOptions>>>()?;
                    scan.include_usage = options.0.0.include_usage.0.0;
                }
                Field::MaxCompletionTokens | Field::MaxOutputTokens => {
                    newer_cap = map.next_value::<Lenient<Option<u64>>>()?.0;
                }
                Field::MaxTokens => older_cap = map.next_value::<Lenient<Option<u64>>>()?.0,
                Field::N | Field::BestOf => {
                    let choices = map.next_value::<Lenient<Option<u64>>>()?.0;
                    scan.size.choices = scan.size.choices.max(clamped(choices.unwrap_or(1)));
                }
                Field::PreviousResponseId | Field::Conversation => {
                    let name = map.next_value::<Lenient<Name>>()?.0.0;
                    let member = field.single().map(|(_, member)| member);
                    scan.kept.earlier = scan.kept.earlier.or(member.zip(name));
                }
                Field::Messages | Field::Input | Field::Prompt => {
                    scan.prompt_at = scan.prompt_at.or(at);
                    let kind = map.next_value_seed(PromptSeed {
                        tally: &mut tally,
                        kept: &mut scan.kept,
                    })?;
                    if matches!(field, Field::Prompt) {
                        prompts = kind.prompts().max(prompts);
                    }
                }
                Field::System | Field::Instructions => {
                    system_at = system_at.or(at);
                    map.next_value_seed(PromptSeed {
                        tally: &mut tally,
                        kept: &mut scan.kept,
                    })?;
                }
                Field::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        scan.prompt_at = system_at.or(scan.prompt_at);
        scan.size.choices = scan.size.choices.max(1).saturating_mul(prompts);
        scan.size.max_output_tokens = newer_cap.or(older_cap).map(clamped);
        scan.size.input_tokens = tally.tokens();
        Ok(scan)
    }
}

fn clamped(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
