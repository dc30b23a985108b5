use bytes::Bytes;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::{Map, Value};

use crate::Operation;

/// Anthropic requires a cap on output; this one is sent when nobody set one.
pub const ANTHROPIC_MAX_TOKENS: u32 = 1_024;

/// A call made from a prompt.
#[derive(Debug, Clone, Copy)]
pub struct Prompt<'a> {
    /// The model's name at the provider.
    pub model: &'a str,
    /// What the model is told first.
    pub system: Option<&'a str>,
    /// What it is asked.
    pub text: &'a str,
    /// Further members of the body, such as `temperature` or `max_tokens`. Checked once with
    /// [`check_params`].
    pub params: &'a Map<String, Value>,
}

/// A prompt cannot be sent as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// The operation takes no prompt.
    #[error("{operation} takes no prompt")]
    NoPrompt {
        /// The operation.
        operation: Operation,
    },
    /// The operation knows no system text.
    #[error("{operation} takes no system text")]
    NoSystem {
        /// The operation.
        operation: Operation,
    },
    /// The parameter is set by other means.
    #[error("the parameter `{name}` cannot be set: {why}")]
    Param {
        /// The parameter's name.
        name: String,
        /// Who sets it, or why nobody may.
        why: &'static str,
    },
}

/// Whether `params` can stand in a prompt's body, and `operation` takes a prompt with or
/// without a system text.
///
/// # Errors
///
/// [`PromptError`], which names the operation or the parameter.
pub fn check_params(
    operation: Operation,
    has_system: bool,
    params: &Map<String, Value>,
) -> Result<(), PromptError> {
    match operation {
        Operation::Models | Operation::CountTokens => {
            return Err(PromptError::NoPrompt { operation });
        }
        Operation::Completions | Operation::Embeddings if has_system => {
            return Err(PromptError::NoSystem { operation });
        }
        _ => {}
    }
    for name in params.keys() {
        let why = match name.as_str() {
            "model" => "the model is given separately",
            "messages" | "input" | "prompt" | "system" | "instructions" => {
                "it is made from the prompt"
            }
            "stream" | "stream_options" => "whole answers are recorded",
            _ => continue,
        };
        return Err(PromptError::Param {
            name: name.clone(),
            why,
        });
    }
    Ok(())
}

/// The JSON body of `operation` for `prompt`.
///
/// ```
/// use llmq_provider::{Operation, Prompt, prompt_body};
/// let params = serde_json::Map::new();
/// let prompt = Prompt { model: "m", system: None, text: "Say \"hi\".", params: &params };
/// let body = prompt_body(Operation::Messages, prompt);
/// assert_eq!(
///     &body[..],
///     br#"{"model":"m","messages":[{"role":"user","content":"Say \"hi\"."}],"max_tokens":1024}"#
/// );
/// ```
#[must_use]
pub fn prompt_body(operation: Operation, prompt: Prompt<'_>) -> Bytes {
    let body = Body { operation, prompt };
    // Texts and JSON values always serialize, and a vector always takes them.
    Bytes::from(serde_json::to_vec(&body).unwrap_or_default())
}

struct Body<'a> {
    operation: Operation,
    prompt: Prompt<'a>,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
}

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let prompt = &self.prompt;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("model", prompt.model)?;
        match self.operation {
            Operation::ChatCompletions => {
                map.serialize_entry("messages", &messages(prompt.system, prompt.text))?;
            }
            Operation::Messages | Operation::CountTokens => {
                if let Some(system) = prompt.system {
                    map.serialize_entry("system", system)?;
                }
                map.serialize_entry("messages", &messages(None, prompt.text))?;
            }
            Operation::Responses => {
                if let Some(system) = prompt.system {
                    map.serialize_entry("instructions", system)?;
                }
                map.serialize_entry("input", prompt.text)?;
            }
            Operation::Embeddings => map.serialize_entry("input", prompt.text)?,
            Operation::Completions | Operation::Models => {
                map.serialize_entry("prompt", prompt.text)?;
            }
        }
        if self.operation == Operation::Messages && !prompt.params.contains_key("max_tokens") {
            map.serialize_entry("max_tokens", &ANTHROPIC_MAX_TOKENS)?;
        }
        for (name, value) in prompt.params {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

fn messages<'a>(system: Option<&'a str>, text: &'a str) -> Vec<Message<'a>> {
    let system = system.map(|content| Message {
        role: "system",
        content,
    });
    let user = Message {
        role: "user",
        content: text,
    };
    system.into_iter().chain([user]).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{TokenCounter, scan_request};

    fn params(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn body(operation: Operation, system: Option<&str>, params: &Map<String, Value>) -> Value {
        let prompt = Prompt {
            model: "m",
            system,
            text: "q",
            params,
        };
        serde_json::from_slice(&prompt_body(operation, prompt)).unwrap()
    }

    #[test]
    fn each_operation_gets_the_prompt_where_it_reads_it() {
        let none = Map::new();
        let user = json!({"role": "user", "content": "q"});
        assert_eq!(
            body(Operation::ChatCompletions, Some("s"), &none),
            json!({"model": "m", "messages": [{"role": "system", "content": "s"}, user]})
        );
        assert_eq!(
            body(
                Operation::Responses,
                Some("s"),
                &params(json!({"temperature": 0}))
            ),
            json!({"model": "m", "instructions": "s", "input": "q", "temperature": 0})
        );
        assert_eq!(
            body(Operation::Messages, Some("s"), &none),
            json!({"model": "m", "system": "s", "messages": [user], "max_tokens": 1024})
        );
        assert_eq!(
            body(Operation::Messages, None, &params(json!({"max_tokens": 5}))),
            json!({"model": "m", "messages": [user], "max_tokens": 5})
        );
        assert_eq!(
            body(Operation::Embeddings, None, &none),
            json!({"model": "m", "input": "q"})
        );
        assert_eq!(
            body(Operation::Completions, None, &none),
            json!({"model": "m", "prompt": "q"})
        );
    }

    #[test]
    fn what_cannot_be_sent_is_refused_by_name() {
        let none = Map::new();
        let chat = Operation::ChatCompletions;
        assert_eq!(
            check_params(chat, true, &params(json!({"top_p": 1}))),
            Ok(())
        );
        let stream = check_params(chat, false, &params(json!({"stream": true}))).unwrap_err();
        assert!(stream.to_string().contains("`stream`"), "{stream}");
        assert!(check_params(chat, false, &params(json!({"model": "x"}))).is_err());
        assert!(check_params(Operation::Embeddings, true, &none).is_err());
        assert!(check_params(Operation::Models, false, &none).is_err());
    }

    proptest! {
        #[test]
        fn any_prompt_survives_the_way_through_json(text in any::<String>(), system in any::<String>()) {
            let none = Map::new();
            let prompt = Prompt { model: "m", system: Some(&system), text: &text, params: &none };
            let bytes = prompt_body(Operation::ChatCompletions, prompt);
            let read: Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(read["messages"][1]["content"].as_str(), Some(text.as_str()));
            let scan = scan_request(&bytes, TokenCounter::Chars).unwrap();
            let chars = text.chars().count() + system.chars().count();
            prop_assert_eq!(scan.size.input_tokens as usize, chars.div_ceil(4));
        }
    }
}
