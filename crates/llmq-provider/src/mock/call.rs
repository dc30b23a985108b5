use std::borrow::Cow;

use llmq_strict::Arrival;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::text::{Inputs, Text};
use super::tools::{self, ToolCall};

/// The most inputs or prompts that one call may hold (OpenAI's documented bound for embeddings).
const INPUTS_MAX: usize = 2_048;
/// The most answers that one call may ask for to a prompt (OpenAI's documented bound).
const CHOICES_MAX: u32 = 128;
/// The most numbers in an embedding.
const DIMENSIONS_MAX: u32 = 4_096;
/// Numbers in an embedding when the call does not say; few, since nobody reads them.
const DIMENSIONS: u32 = 16;

/// Whose shapes an answer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    OpenAi,
    Anthropic,
}

/// What can be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Endpoint {
    Chat,
    Completions,
    Responses,
    Embeddings,
    Messages,
    CountTokens,
}

impl Endpoint {
    pub(super) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/v1/chat/completions" => Self::Chat,
            "/v1/completions" => Self::Completions,
            "/v1/responses" => Self::Responses,
            "/v1/embeddings" => Self::Embeddings,
            "/v1/messages" => Self::Messages,
            "/v1/messages/count_tokens" => Self::CountTokens,
            _ => return None,
        })
    }

    pub(super) fn dialect(self) -> Dialect {
        match self {
            Self::Chat | Self::Completions | Self::Responses | Self::Embeddings => Dialect::OpenAi,
            Self::Messages | Self::CountTokens => Dialect::Anthropic,
        }
    }
}

/// A call's body, as far as the stand-in cares.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) endpoint: Endpoint,
    pub(super) model: Cow<'a, str>,
    pub(super) prompt: Text,
    /// The cap on the output of one answer.
    pub(super) cap: Option<u64>,
    /// How many answers it gets: `n` to each prompt.
    pub(super) choices: u32,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) embeddings: Vec<Text>,
    pub(super) base64: bool,
    pub(super) dimensions: u32,
    /// What the answer calls instead of saying something.
    pub(super) tool: Option<ToolCall>,
    /// What the answer says where it has to keep to a schema.
    pub(super) structured: Option<String>,
}

/// The fields of all endpoints together; each takes those it knows.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    model: Option<Cow<'a, str>>,
    messages: Option<Text>,
    system: Option<Text>,
    instructions: Option<Text>,
    prompt: Option<Inputs>,
    input: Option<Inputs>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    max_output_tokens: Option<u64>,
    n: Option<u32>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    #[serde(borrow)]
    encoding_format: Option<Cow<'a, str>>,
    dimensions: Option<u32>,
    tools: Option<IgnoredAny>,
    response_format: Option<IgnoredAny>,
    output_config: Option<IgnoredAny>,
    text: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// What is wrong with a body, in the words of a 400.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadBody {
    pub(super) message: String,
    pub(super) param: Option<&'static str>,
}

fn missing(name: &'static str) -> BadBody {
    BadBody {
        message: format!("Missing required parameter: '{name}'."),
        param: Some(name),
    }
}

fn out_of_range(name: &'static str, most: u64) -> BadBody {
    BadBody {
        message: format!("Invalid '{name}': expected between 1 and {most}."),
        param: Some(name),
    }
}

impl<'a> Call<'a> {
    pub(super) fn read(endpoint: Endpoint, bytes: &'a [u8]) -> Result<Self, BadBody> {
        let body: Body<'a> = serde_json::from_slice(bytes).map_err(|error| BadBody {
            message: format!("We could not parse the JSON body of your request: {error}."),
            param: None,
        })?;
        let prompt = prompt_of(endpoint, &body)?;
        let choices = choices_of(endpoint, &body)?;
        let dimensions = body.dimensions.unwrap_or(DIMENSIONS);
        if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
            return Err(out_of_range("dimensions", u64::from(DIMENSIONS_MAX)));
        }
        let cap = match endpoint {
            Endpoint::Chat => body.max_completion_tokens.or(body.max_tokens),
            Endpoint::Completions => body.max_tokens,
            Endpoint::Responses => body.max_output_tokens,
            // An embedding is no output, and none is reserved for it.
            Endpoint::Embeddings | Endpoint::CountTokens => Some(0),
            Endpoint::Messages => Some(body.max_tokens.ok_or_else(|| missing("max_tokens"))?),
        };
        let (tool, structured) = shaped(endpoint, &body, bytes);
        let embeddings = match (endpoint, body.input) {
            (Endpoint::Embeddings, Some(inputs)) => inputs.0,
            _ => Vec::new(),
        };
        if embeddings.len() > INPUTS_MAX {
            return Err(out_of_range("input", INPUTS_MAX as u64));
        }
        Ok(Self {
            endpoint,
            model: body.model.ok_or_else(|| missing("model"))?,
            prompt,
            cap,
            choices,
            stream: body.stream.unwrap_or(false),
            include_usage: body
                .stream_options
                .is_some_and(|options| options.include_usage),
            embeddings,
            base64: body.encoding_format.as_deref() == Some("base64"),
            dimensions,
            tool,
            structured,
        })
    }

    /// The call as the limits see it.
    pub(super) fn arrival(&self) -> Arrival {
        Arrival {
            input_tokens: self.prompt.tokens(),
            max_output_tokens: self.cap,
            choices: self.choices,
        }
    }

    /// Output tokens of each answer when the provider would like to say `wanted`.
    pub(super) fn output_tokens(&self, wanted: u32) -> u64 {
        u64::from(wanted).min(self.cap.unwrap_or(u64::MAX))
    }

    /// Whether the call's own cap cuts such an answer off.
    pub(super) fn is_cut(&self, wanted: u32) -> bool {
        self.cap.is_some_and(|cap| cap < u64::from(wanted))
    }
}

/// What is called, and what is said by a schema. Few calls ask for either, so only they are read
/// a second time.
fn shaped(endpoint: Endpoint, body: &Body<'_>, bytes: &[u8]) -> (Option<ToolCall>, Option<String>) {
    let shapes = [
        body.tools.is_some(),
        body.response_format.is_some(),
        body.output_config.is_some(),
        body.text.is_some(),
    ];
    let can_be_shaped = matches!(
        endpoint,
        Endpoint::Chat | Endpoint::Messages | Endpoint::Responses
    );
    if !can_be_shaped || !shapes.contains(&true) {
        return (None, None);
    }
    let whole: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let dialect = endpoint.dialect();
    (
        tools::called(dialect, &whole),
        tools::structured(dialect, &whole),
    )
}

/// Each prompt of a completion has `n` answers of its own.
fn choices_of(endpoint: Endpoint, body: &Body<'_>) -> Result<u32, BadBody> {
    let choices = body.n.unwrap_or(1);
    if !(1..=CHOICES_MAX).contains(&choices) {
        return Err(out_of_range("n", u64::from(CHOICES_MAX)));
    }
    let prompts = body.prompt.as_ref().map_or(0, |prompts| prompts.0.len());
    match endpoint {
        Endpoint::Completions if prompts > INPUTS_MAX => {
            Err(out_of_range("prompt", INPUTS_MAX as u64))
        }
        Endpoint::Completions => {
            let prompts = u32::try_from(prompts.max(1)).unwrap_or(u32::MAX);
            Ok(choices.saturating_mul(prompts))
        }
        Endpoint::Chat => Ok(choices),
        _ => Ok(1),
    }
}

fn prompt_of(endpoint: Endpoint, body: &Body<'_>) -> Result<Text, BadBody> {
    let (text, name) = match endpoint {
        Endpoint::Chat | Endpoint::Messages | Endpoint::CountTokens => (body.messages, "messages"),
        Endpoint::Completions => (body.prompt.as_ref().map(Inputs::joined), "prompt"),
        Endpoint::Responses | Endpoint::Embeddings => {
            (body.input.as_ref().map(Inputs::joined), "input")
        }
    };
    let before = match endpoint {
        Endpoint::Messages | Endpoint::CountTokens => body.system,
        Endpoint::Responses => body.instructions,
        Endpoint::Chat | Endpoint::Completions | Endpoint::Embeddings => None,
    };
    let text = text.ok_or_else(|| missing(name))?;
    Ok(match before {
        Some(before) => before.and(text),
        None => text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_is_the_field_of_the_endpoint() {
        let cap = |endpoint, body: &str| Call::read(endpoint, body.as_bytes()).map(|call| call.cap);
        let chat = r#"{"model":"m","messages":[],"max_tokens":3,"max_completion_tokens":7}"#;
        assert_eq!(cap(Endpoint::Chat, chat), Ok(Some(7)));
        assert_eq!(
            cap(Endpoint::Chat, r#"{"model":"m","messages":[]}"#),
            Ok(None)
        );
        let responses = r#"{"model":"m","input":"x","max_tokens":3,"max_output_tokens":20}"#;
        assert_eq!(cap(Endpoint::Responses, responses), Ok(Some(20)));
        let embeddings = r#"{"model":"m","input":["x"]}"#;
        assert_eq!(cap(Endpoint::Embeddings, embeddings), Ok(Some(0)));
    }

    /// Several prompts were answered, and charged, as one.
    #[test]
    fn the_answers_are_as_many_as_are_reserved() {
        for (prompt, choices) in [
            (r#""a""#, 2),
            (r#"["a","b","c"]"#, 6),
            (r#"["a"]"#, 2),
            ("[1,2,3]", 2),
            ("[[1,2],[3]]", 4),
            ("[]", 2),
        ] {
            let body = format!(r#"{{"model":"m","prompt":{prompt},"max_tokens":5,"n":2}}"#);
            let call = Call::read(Endpoint::Completions, body.as_bytes()).unwrap();
            let counter = crate::TokenCounter::Chars;
            let reserved = crate::scan_request(body.as_bytes(), counter).unwrap().size;
            let arrival = call.arrival();
            assert_eq!(arrival.choices, choices, "{prompt}");
            assert_eq!(reserved.choices, choices, "{prompt}");
            assert_eq!(
                arrival.input_tokens,
                u64::from(reserved.input_tokens),
                "{prompt}"
            );
        }
        let template = r#"{"model":"m","input":"x","prompt":{"id":"pmpt_1"},"n":2}"#;
        let call = Call::read(Endpoint::Responses, template.as_bytes()).unwrap();
        assert_eq!(call.choices, 1);
    }

    #[test]
    fn a_body_that_lacks_something_is_told_what() {
        let refused = |endpoint, body: &str| Call::read(endpoint, body.as_bytes()).unwrap_err();
        assert_eq!(
            refused(Endpoint::Chat, r#"{"model":"m"}"#).param,
            Some("messages")
        );
        assert_eq!(
            refused(Endpoint::Chat, r#"{"messages":[]}"#).param,
            Some("model")
        );
        let messages = r#"{"model":"m","messages":[]}"#;
        assert_eq!(
            refused(Endpoint::Messages, messages).param,
            Some("max_tokens")
        );
        assert_eq!(refused(Endpoint::Chat, "{").param, None);
        let many = r#"{"model":"m","messages":[],"n":129}"#;
        assert_eq!(refused(Endpoint::Chat, many).param, Some("n"));
    }
}
