use llmq_core::Usage;
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, SeqAccess};

use crate::Dialect;
use crate::codes::is_failure;
use crate::lenient::{First, FromAny, Lenient, Object, Present};
use crate::plain::{Once, Plain};
use crate::usage::RawUsage;

pub(crate) type Text = Lenient<Option<String>>;

/// What a whole answer says about itself, read in one pass without its text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnswerFacts {
    /// The tokens it used; `None` when it does not say.
    pub usage: Option<Usage>,
    /// Why it ended: `stop`, `length`, `end_turn`, `max_output_tokens`, …
    pub finish_reason: Option<String>,
    /// The model that answered, as the provider names it.
    pub model: Option<String>,
    /// The answer's own id.
    pub id: Option<String>,
}

/// A body that has status 200 and yet is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// It is not JSON, or it is cut off, or it is not an object.
    NotJson,
    /// It carries an error where the answer should be.
    Failed,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Body {
    pub(crate) id: Text,
    pub(crate) model: Text,
    usage: Lenient<Object<RawUsage>>,
    choices: Lenient<First<Choice>>,
    pub(crate) stop_reason: Text,
    pub(crate) status: Text,
    #[serde(rename = "type")]
    kind: Text,
    pub(crate) incomplete_details: Lenient<Object<Incomplete>>,
    error: Lenient<Present>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Choice {
    pub(crate) finish_reason: Text,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Incomplete {
    pub(crate) reason: Text,
}

impl AnswerFacts {
    /// Reads a whole body. The Responses API can carry a failure in a 200 body
    /// (`status: "failed"`), OpenRouter an `error`.
    pub(crate) fn read(dialect: Dialect, body: &[u8]) -> Result<Self, NoAnswer> {
        // A lenient object would take any JSON for an empty answer.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(NoAnswer::NotJson);
        }
        match Body::read_plain(body) {
            Some(body) => body.facts(dialect),
            None => serde_json::from_slice::<Body>(body)
                .map_err(|_| NoAnswer::NotJson)?
                .facts(dialect),
        }
    }
}

impl Body {
    /// A body that is plain.
    fn read_plain(body: &[u8]) -> Option<Self> {
        let mut json = Plain::new(body);
        let mut read = Self::default();
        let mut once = Once::default();
        json.object(|json, name| {
            let (place, text) = match name {
                b"id" => (0, &mut read.id),
                b"model" => (1, &mut read.model),
                b"stop_reason" => (2, &mut read.stop_reason),
                b"status" => (3, &mut read.status),
                b"type" => (4, &mut read.kind),
                b"usage" => {
                    once.note(5)?;
                    let usage = json.unless_null(RawUsage::read_plain)?;
                    read.usage = Lenient(Object(usage.unwrap_or_default()));
                    return Some(());
                }
                b"choices" => {
                    once.note(6)?;
                    return json.array(|json| match read.choices.0.0 {
                        None => {
                            read.choices = Lenient(First(Some(Choice::read_plain(json)?)));
                            Some(())
                        }
                        Some(_) => json.skip(),
                    });
                }
                // They matter where they say something, and then they are read with care.
                b"error" | b"incomplete_details" => {
                    once.note(7 + u32::from(name[0] == b'e'))?;
                    return json.unless_null(|_| None::<()>).map(drop);
                }
                _ => return json.skip(),
            };
            once.note(place)?;
            *text = plain_text(json)?;
            Some(())
        })?;
        json.end()?;
        Some(read)
    }

    fn facts(self, dialect: Dialect) -> Result<AnswerFacts, NoAnswer> {
        let body = self;
        let finish_reason = body
            .choices
            .0
            .0
            .and_then(|choice| choice.finish_reason.0)
            .filter(|reason| !reason.is_empty())
            .or(body.stop_reason.0)
            .or(body.incomplete_details.0.0.reason.0)
            .or_else(|| body.status.0.clone());
        let failed = body.error.0.0
            || body.kind.0.as_deref() == Some("error")
            || body.status.0.as_deref() == Some("failed")
            || finish_reason.as_deref().is_some_and(is_failure);
        if failed {
            return Err(NoAnswer::Failed);
        }
        Ok(AnswerFacts {
            usage: body.usage.0.0.usage(dialect),
            finish_reason,
            model: body.model.0,
            id: body.id.0,
        })
    }
}

impl Choice {
    /// One that is plain.
    fn read_plain(json: &mut Plain<'_>) -> Option<Self> {
        let mut choice = Self::default();
        let mut once = Once::default();
        json.object(|json, name| {
            if name != b"finish_reason" {
                return json.skip();
            }
            once.note(0)?;
            choice.finish_reason = plain_text(json)?;
            Some(())
        })?;
        Some(choice)
    }
}

fn plain_text(json: &mut Plain<'_>) -> Option<Text> {
    let text = json.unless_null(|json| json.text()?.said())?;
    Some(Lenient(text.map(str::to_owned)))
}

/// The text of an answer, for people and tables: the first choice's message, or all text
/// blocks one after the other. `None` when it holds no text, as embeddings or tool calls.
///
/// ```
/// use llmq_provider::answer_text;
/// let body = br#"{"choices":[{"index":0,"message":{"role":"assistant","content":"Hello."}}]}"#;
/// assert_eq!(answer_text(body).as_deref(), Some("Hello."));
/// ```
#[must_use]
pub fn answer_text(body: &[u8]) -> Option<String> {
    let body: TextBody = serde_json::from_slice(body).ok()?;
    let from_choice = body.choices.0.0.and_then(|choice| {
        let message = choice.message.0.0;
        (message.content.0.0)
            .or(choice.text.0)
            .or(message.refusal.0)
    });
    from_choice.or(body.content.0.0).or(body.output.0.0)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TextBody {
    choices: Lenient<First<TextChoice>>,
    /// Anthropic's blocks.
    content: Lenient<Content>,
    /// The items of the Responses API.
    output: Lenient<Content>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TextChoice {
    message: Lenient<Object<Message>>,
    text: Text,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Message {
    content: Lenient<Content>,
    refusal: Text,
}

/// A text, or an array of parts of which some hold text, possibly one level deeper.
#[derive(Debug, Default)]
struct Content(Option<String>);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Part {
    #[serde(rename = "type")]
    kind: Text,
    text: Text,
    refusal: Text,
    content: Lenient<Content>,
}

impl<'de> FromAny<'de> for Content {
    fn of_text(text: &str) -> Self {
        Self(Some(text.to_owned()))
    }

    fn of_object<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Self::default())
    }

    fn of_array<A: SeqAccess<'de>>(mut items: A) -> Result<Self, A::Error> {
        let mut all: Option<String> = None;
        while let Some(Lenient(Object(part))) = items.next_element::<Lenient<Object<Part>>>()? {
            // What the model thought is not what it answered.
            if part.kind.0.as_deref() == Some("reasoning") {
                continue;
            }
            let text = part.text.0.or(part.refusal.0).or(part.content.0.0);
            if let Some(text) = text {
                all.get_or_insert_default().push_str(&text);
            }
        }
        Ok(Self(all))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plain::tests::nearly_json;

    const NAMES: [&str; 16] = [
        "id",
        "model",
        "stop_reason",
        "status",
        "type",
        "usage",
        "choices",
        "error",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "input_tokens",
        "prompt_tokens_details",
        "cached_tokens",
        "message",
        "content",
    ];

    proptest! {
        #[test]
        fn a_plain_answer_is_read_as_any_other(body in nearly_json(&NAMES)) {
            if let Some(read) = Body::read_plain(&body) {
                let any: Body = serde_json::from_slice(&body).unwrap();
                prop_assert_eq!(read, any);
            }
        }
    }

    #[test]
    fn the_usual_answer_is_plain() {
        let chat = r#"{"id":"c-1","object":"chat.completion","created":1767225600,"model":"m-1","choices":[{"index":0,"message":{"role":"assistant","content":"It \"stands\".","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":210,"completion_tokens":29,"total_tokens":239,"prompt_tokens_details":{"cached_tokens":0}}}"#;
        let read = Body::read_plain(chat.as_bytes());
        assert_eq!(read, serde_json::from_str(chat).ok());
        assert!(read.is_some());
        for odd in [r#"{"error":{}}"#, r#"{"id":1}"#, r#"{"id":"a","id":"a"}"#] {
            assert_eq!(Body::read_plain(odd.as_bytes()), None, "{odd}");
        }
    }

    #[test]
    fn the_text_is_found_in_every_shape() {
        let table = [
            (
                r#"{"choices":[{"message":{"content":"a"}},{"message":{"content":"b"}}]}"#,
                Some("a"),
            ),
            (
                r#"{"choices":[{"message":{"content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}}]}"#,
                Some("ab"),
            ),
            (
                r#"{"choices":[{"message":{"content":null,"refusal":"no"}}]}"#,
                Some("no"),
            ),
            (
                r#"{"choices":[{"message":{"content":null,"tool_calls":[]}}]}"#,
                None,
            ),
            (r#"{"choices":[{"text":"old","index":0}]}"#, Some("old")),
            (
                r#"{"output":[{"type":"reasoning","summary":[],"content":[{"type":"reasoning_text","text":"hm"}]},
                   {"type":"message","content":[{"type":"output_text","text":"x"},{"type":"output_text","text":"y"}]}]}"#,
                Some("xy"),
            ),
            (
                r#"{"type":"message","content":[{"type":"thinking","thinking":"hm"},{"type":"text","text":"z"}]}"#,
                Some("z"),
            ),
            (r#"{"object":"list","data":[{"embedding":[0.1]}]}"#, None),
            ("<html>", None),
        ];
        for (body, text) in table {
            assert_eq!(answer_text(body.as_bytes()).as_deref(), text, "{body}");
        }
    }

    #[test]
    fn an_answer_tells_its_usage_and_end() {
        let chat = r#"{"id":"c-1","model":"m-1","choices":[{"finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":4}}"#;
        let facts = AnswerFacts::read(Dialect::OpenAi, chat.as_bytes()).unwrap();
        assert_eq!(facts.usage.unwrap().total(), 7);
        assert_eq!(facts.finish_reason.as_deref(), Some("length"));
        assert_eq!(
            (facts.id.as_deref(), facts.model.as_deref()),
            (Some("c-1"), Some("m-1"))
        );
        let reply =
            r#"{"status":"incomplete","incomplete_details":{"reason":"max_output_tokens"}}"#;
        let facts = AnswerFacts::read(Dialect::OpenAi, reply.as_bytes()).unwrap();
        assert_eq!(facts.finish_reason.as_deref(), Some("max_output_tokens"));
        let message = r#"{"type":"message","stop_reason":"end_turn","usage":{"input_tokens":1,"cache_read_input_tokens":9,"output_tokens":2}}"#;
        let facts = AnswerFacts::read(Dialect::Anthropic, message.as_bytes()).unwrap();
        assert_eq!(facts.usage.unwrap().input_tokens, 10);
    }

    #[test]
    fn what_is_no_answer_is_not_taken_for_one() {
        let read = |body: &str| AnswerFacts::read(Dialect::OpenAi, body.as_bytes());
        for body in [
            "",
            "<html></html>",
            r#"{"choices":[{"mess"#,
            "null",
            "[]",
            "\"ok\"",
        ] {
            assert_eq!(read(body), Err(NoAnswer::NotJson), "{body}");
        }
        for body in [
            r#"{"error":{"message":"x","code":502}}"#,
            r#"{"status":"failed","error":{"code":"rate_limit_exceeded"}}"#,
            r#"{"choices":[{"finish_reason":"error"}]}"#,
            // A part of an answer was kept as the result.
            r#"{"choices":[{"finish_reason":"insufficient_system_resource"}]}"#,
            r#"{"choices":[{"finish_reason":"abort"}]}"#,
        ] {
            assert_eq!(read(body), Err(NoAnswer::Failed), "{body}");
        }
        assert!(read(r#"{"error":null,"status":"completed"}"#).is_ok());
    }
}
