//! What is written in OpenAI's dialect (its OpenAPI description, August 2026).

use serde::Serialize;

use super::json::Json;
use super::usage::ChatUsage;

/// The body of `POST /chat/completions`.
#[derive(Debug, Serialize)]
pub(super) struct Request<'a> {
    pub(super) model: &'a str,
    pub(super) messages: Vec<Message<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_completion_tokens: Option<Json<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) max_tokens: Option<Json<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tools: Vec<Tool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tool_choice: Option<ToolChoice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) parallel_tool_calls: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) stop: Vec<Json<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) temperature: Option<Json<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) top_p: Option<Json<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_effort: Option<Json<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response_format: Option<ResponseFormat<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<Json<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service_tier: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stream: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) stream_options: Option<StreamOptions>,
}

#[derive(Debug, Serialize)]
pub(super) struct StreamOptions {
    pub(super) include_usage: bool,
}

#[derive(Debug, Serialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub(super) enum Message<'a> {
    System {
        content: Content<'a>,
    },
    User {
        content: Content<'a>,
    },
    Assistant {
        content: Option<Content<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<ToolCall<'a>>,
    },
    Tool {
        tool_call_id: Json<'a>,
        content: Content<'a>,
    },
}

/// A text alone, or parts.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Content<'a> {
    Text(Json<'a>),
    Parts(Vec<Part<'a>>),
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Part<'a> {
    Text { text: Json<'a> },
    ImageUrl { image_url: ImageUrl<'a> },
    File { file: File<'a> },
}

#[derive(Debug, Serialize)]
pub(super) struct ImageUrl<'a> {
    pub(super) url: Json<'a>,
}

#[derive(Debug, Serialize)]
pub(super) struct File<'a> {
    pub(super) filename: Json<'a>,
    pub(super) file_data: Json<'a>,
}

/// A call of the model's to a function.
#[derive(Debug, Serialize)]
pub(super) struct ToolCall<'a> {
    pub(super) id: Json<'a>,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) function: Called<'a>,
}

#[derive(Debug, Serialize)]
pub(super) struct Called<'a> {
    pub(super) name: Json<'a>,
    /// JSON inside a text.
    pub(super) arguments: Json<'a>,
}

#[derive(Debug, Serialize)]
pub(super) struct Tool<'a> {
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) function: Function<'a>,
}

#[derive(Debug, Serialize)]
pub(super) struct Function<'a> {
    pub(super) name: Json<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<Json<'a>>,
    pub(super) parameters: Json<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) strict: Option<bool>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum ToolChoice<'a> {
    Mode(&'static str),
    Named {
        #[serde(rename = "type")]
        kind: &'static str,
        function: Name<'a>,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct Name<'a> {
    pub(super) name: Json<'a>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum ResponseFormat<'a> {
    JsonSchema { json_schema: Schema<'a> },
}

#[derive(Debug, Serialize)]
pub(super) struct Schema<'a> {
    pub(super) name: &'static str,
    pub(super) schema: Json<'a>,
    pub(super) strict: bool,
}

/// A whole answer.
#[derive(Debug, Serialize)]
pub(super) struct Answer<'a> {
    pub(super) id: Json<'a>,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: Json<'a>,
    pub(super) choices: [Choice<'a>; 1],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<ChatUsage>,
}

#[derive(Debug, Serialize)]
pub(super) struct Choice<'a> {
    pub(super) index: u32,
    pub(super) message: AnswerMessage<'a>,
    pub(super) logprobs: Option<()>,
    pub(super) finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct AnswerMessage<'a> {
    pub(super) role: &'static str,
    pub(super) content: Option<Json<'a>>,
    pub(super) refusal: Option<Json<'a>>,
    /// Not in OpenAI's own API; DeepSeek, vLLM and others write it, and clients read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_content: Option<Json<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) tool_calls: Vec<ToolCall<'a>>,
}

/// One event of a stream.
#[derive(Debug, Serialize)]
pub(super) struct Chunk<'a> {
    pub(super) id: Json<'a>,
    pub(super) object: &'static str,
    pub(super) created: u64,
    pub(super) model: Json<'a>,
    pub(super) choices: &'a [ChunkChoice<'a>],
    /// Null in every chunk but the last where usage was asked for, else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) usage: Option<Option<ChatUsage>>,
}

#[derive(Debug, Serialize)]
pub(super) struct ChunkChoice<'a> {
    pub(super) index: u32,
    pub(super) delta: Delta<'a>,
    pub(super) logprobs: Option<()>,
    pub(super) finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content: Option<Json<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refusal: Option<Json<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reasoning_content: Option<Json<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tool_calls: Option<[ToolCallDelta<'a>; 1]>,
}

#[derive(Debug, Serialize)]
pub(super) struct ToolCallDelta<'a> {
    pub(super) index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) id: Option<Json<'a>>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<&'static str>,
    pub(super) function: CalledDelta<'a>,
}

#[derive(Debug, Serialize)]
pub(super) struct CalledDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<Json<'a>>,
    pub(super) arguments: Json<'a>,
}
