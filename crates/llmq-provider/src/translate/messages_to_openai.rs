//! Anthropic's messages as OpenAI's.

use std::collections::BTreeSet;

use serde_json::value::RawValue;

use super::Untranslatable;
use super::images::data_url;
use super::json::{Json, Members, Text, members_of, quoted};
use super::openai::{Called, Content, File, ImageUrl, Message, Part, ToolCall};
use super::refusal::At;
use super::rules::{Rule, leave_out, refuse};

/// What a tool's message begins with when the tool failed, since OpenAI has no mark for it.
const FAILED: &str = "The tool failed:";

/// The name of a file that has none; OpenAI wants one.
const UNNAMED: &str = "document.pdf";

pub(super) const TEXT_RULES: [Rule; 1] = [Rule(
    "citations",
    &["[]"],
    "citations cannot be given to another provider",
)];

pub(super) const DOCUMENT_RULES: [Rule; 2] = [
    Rule(
        "citations",
        &["{}", "{\"enabled\":false}"],
        "there are no citations there",
    ),
    Rule(
        "context",
        &[],
        "a file has no context there; say it in a text",
    ),
];

pub(super) const IMAGE_RULES: [Rule; 1] = [Rule(
    "transformations",
    &["{}"],
    "images are not transformed there",
)];

pub(super) const TOOL_USE_RULES: [Rule; 2] = [
    Rule(
        "caller",
        &["{\"type\":\"direct\"}"],
        "only the model itself calls tools there",
    ),
    Rule("toolset_name", &[], "there are no such toolsets there"),
];

/// Reads `system`, which may be absent, and `messages`.
///
/// # Errors
///
/// Also when the last message is the model's: Anthropic goes on writing there, OpenAI would
/// answer it.
pub(super) fn conversation<'a>(
    top: &mut Members<'a>,
    left_out: &mut BTreeSet<&'static str>,
) -> Result<Vec<Message<'a>>, Untranslatable> {
    let items = top
        .array("messages")?
        .ok_or_else(|| Untranslatable::invalid("messages", "an array"))?;
    let mut writer = Writer {
        messages: Vec::with_capacity(items.len() + 1),
        left_out,
    };
    if let Some(blocks) = writer.blocks(top, "system")? {
        writer.add_system(blocks, "system")?;
    }
    for (index, item) in items.iter().enumerate() {
        writer.add(item).at_item(index).at("messages")?;
    }
    if let Some(Message::Assistant { .. }) = writer.messages.last() {
        let last = items.len().saturating_sub(1);
        return Err(Untranslatable::no_counterpart(
            "",
            "an answer that was begun (a prefill) is not continued there",
        ))
        .at_item(last)
        .at("messages");
    }
    Ok(writer.messages)
}

/// A content as it may stand: a text, or blocks.
enum Given<'a> {
    Text(Text<'a>),
    Blocks(Vec<&'a RawValue>),
}

struct Writer<'a, 'n> {
    messages: Vec<Message<'a>>,
    left_out: &'n mut BTreeSet<&'static str>,
}

impl<'a> Writer<'a, '_> {
    fn add(&mut self, item: &'a RawValue) -> Result<(), Untranslatable> {
        let mut members = members_of(item)?;
        let role = members.word("role")?;
        let content = self
            .blocks(&mut members, "content")?
            .ok_or_else(|| Untranslatable::invalid("content", "a text or an array of blocks"))?;
        members.finish()?;
        match role.as_ref() {
            "user" => self.add_user(content).at("content"),
            "assistant" => self.add_assistant(content).at("content"),
            "system" => self.add_system(content, "content"),
            _ => Err(Untranslatable::invalid("role", "user, assistant or system")),
        }
    }

    fn blocks(
        &mut self,
        members: &mut Members<'a>,
        name: &str,
    ) -> Result<Option<Given<'a>>, Untranslatable> {
        let Some(value) = members.take(name) else {
            return Ok(None);
        };
        if let Some(text) = Text::of(value) {
            return Ok(Some(Given::Text(text)));
        }
        let blocks = serde_json::from_str(value.get())
            .map_err(|_| Untranslatable::invalid(name, "a text or an array of blocks"))?;
        Ok(Some(Given::Blocks(blocks)))
    }

    fn add_system(&mut self, given: Given<'a>, name: &str) -> Result<(), Untranslatable> {
        let parts = match given {
            Given::Text(text) => vec![Part::Text { text: text.json() }],
            Given::Blocks(blocks) => self.parts(&blocks, &["text"]).at(name)?,
        };
        if !parts.is_empty() {
            let content = content(parts);
            self.messages.push(Message::System { content });
        }
        Ok(())
    }

    /// Results of tools are messages of their own; what stands between them, the user's.
    fn add_user(&mut self, given: Given<'a>) -> Result<(), Untranslatable> {
        let blocks = match given {
            Given::Text(text) => {
                let content = Content::Text(text.json());
                self.messages.push(Message::User { content });
                return Ok(());
            }
            Given::Blocks(blocks) => blocks,
        };
        if blocks.is_empty() {
            let content = content(Vec::new());
            self.messages.push(Message::User { content });
        }
        let mut parts = Vec::new();
        for (index, block) in blocks.into_iter().enumerate() {
            let (kind, members) = self.open(block).at_item(index)?;
            if kind == "tool_result" {
                self.flush_user(&mut parts);
                let result = self.tool_result(members).at_item(index)?;
                self.messages.push(result);
            } else {
                let allowed = &["text", "image", "document"];
                parts.push(part(&kind, members, allowed).at_item(index)?);
            }
        }
        self.flush_user(&mut parts);
        Ok(())
    }

    fn flush_user(&mut self, parts: &mut Vec<Part<'a>>) {
        if !parts.is_empty() {
            let content = content(std::mem::take(parts));
            self.messages.push(Message::User { content });
        }
    }

    /// What the model thought is left out: only its provider can read the signature.
    fn add_assistant(&mut self, given: Given<'a>) -> Result<(), Untranslatable> {
        let blocks = match given {
            Given::Text(text) => {
                self.messages.push(Message::Assistant {
                    content: Some(Content::Text(text.json())),
                    tool_calls: Vec::new(),
                });
                return Ok(());
            }
            Given::Blocks(blocks) => blocks,
        };
        let (mut parts, mut tool_calls) = (Vec::new(), Vec::new());
        for (index, block) in blocks.into_iter().enumerate() {
            let (kind, members) = self.open(block).at_item(index)?;
            match kind.as_ref() {
                "thinking" => drop(self.left_out.insert("thinking")),
                "redacted_thinking" => drop(self.left_out.insert("redacted_thinking")),
                "tool_use" => tool_calls.push(tool_call(members).at_item(index)?),
                _ => parts.push(part(&kind, members, &["text"]).at_item(index)?),
            }
        }
        let content = (!parts.is_empty()).then(|| content(parts));
        // An answer of thoughts alone has said nothing, and OpenAI wants a content or calls.
        if content.is_some() || !tool_calls.is_empty() {
            self.messages.push(Message::Assistant {
                content,
                tool_calls,
            });
        }
        Ok(())
    }

    fn tool_result(&mut self, mut members: Members<'a>) -> Result<Message<'a>, Untranslatable> {
        let tool_call_id = members.required_text("tool_use_id")?.json();
        let failed = members.flag("is_error")? == Some(true);
        let toolset = Rule("toolset_name", &[], "there are no such toolsets there");
        refuse(&mut members, &[toolset])?;
        let mut parts = match self.blocks(&mut members, "content")? {
            None => Vec::new(),
            Some(Given::Text(text)) => vec![Part::Text { text: text.json() }],
            Some(Given::Blocks(blocks)) => self.parts(&blocks, &["text"]).at("content")?,
        };
        members.finish()?;
        if failed {
            let text = quoted(FAILED);
            parts.insert(0, Part::Text { text });
        }
        Ok(Message::Tool {
            tool_call_id,
            content: content(parts),
        })
    }

    fn parts(
        &mut self,
        blocks: &[&'a RawValue],
        allowed: &[&str],
    ) -> Result<Vec<Part<'a>>, Untranslatable> {
        let mut parts = Vec::with_capacity(blocks.len());
        for (index, block) in blocks.iter().enumerate() {
            let (kind, members) = self.open(block).at_item(index)?;
            parts.push(part(&kind, members, allowed).at_item(index)?);
        }
        Ok(parts)
    }

    fn open(
        &mut self,
        block: &'a RawValue,
    ) -> Result<(std::borrow::Cow<'a, str>, Members<'a>), Untranslatable> {
        let mut members = members_of(block)?;
        leave_out(&mut members, &["cache_control"], self.left_out);
        Ok((members.word("type")?, members))
    }
}

fn part<'a>(
    kind: &str,
    mut members: Members<'a>,
    allowed: &[&str],
) -> Result<Part<'a>, Untranslatable> {
    if !allowed.contains(&kind) {
        let reason = format!("a block of the type `{kind}` has no counterpart here");
        return Err(Untranslatable::no_counterpart("type", reason));
    }
    let part = match kind {
        "image" => {
            refuse(&mut members, &IMAGE_RULES)?;
            Part::ImageUrl {
                image_url: ImageUrl {
                    url: image_url(&mut members)?,
                },
            }
        }
        "document" => document(&mut members)?,
        _ => {
            refuse(&mut members, &TEXT_RULES)?;
            let text = members.required_text("text")?.json();
            Part::Text { text }
        }
    };
    members.finish()?;
    Ok(part)
}

fn image_url<'a>(members: &mut Members<'a>) -> Result<Json<'a>, Untranslatable> {
    let mut source = source(members)?;
    let mut read = || match source.word("type")?.as_ref() {
        "url" => Ok(source.required_text("url")?.json()),
        "base64" => Ok(data_url(
            source.required_text("media_type")?,
            source.required_text("data")?,
        )),
        _ => Err(Untranslatable::no_counterpart(
            "type",
            "the image must be a URL or in base64; a file is not known there",
        )),
    };
    let url = read().at("source")?;
    source.finish().at("source")?;
    Ok(url)
}

/// A PDF is a file, a plain text without a title is a text.
fn document<'a>(members: &mut Members<'a>) -> Result<Part<'a>, Untranslatable> {
    refuse(members, &DOCUMENT_RULES)?;
    let title = members.text("title")?;
    let mut source = source(members)?;
    let mut read = || match source.word("type")?.as_ref() {
        "base64" => {
            let file_data = data_url(
                source.required_text("media_type")?,
                source.required_text("data")?,
            );
            let filename = title.map_or_else(|| quoted(UNNAMED), Text::json);
            Ok(Part::File {
                file: File {
                    filename,
                    file_data,
                },
            })
        }
        "text" if title.is_none() => {
            source.text("media_type")?;
            let text = source.required_text("data")?.json();
            Ok(Part::Text { text })
        }
        _ => Err(Untranslatable::no_counterpart(
            "type",
            "the document must be in base64, or a plain text without a title",
        )),
    };
    let part = read().at("source")?;
    source.finish().at("source")?;
    Ok(part)
}

fn source<'a>(members: &mut Members<'a>) -> Result<Members<'a>, Untranslatable> {
    members
        .object("source")?
        .ok_or_else(|| Untranslatable::invalid("source", "an object"))
}

fn tool_call<'a>(mut members: Members<'a>) -> Result<ToolCall<'a>, Untranslatable> {
    refuse(&mut members, &TOOL_USE_RULES)?;
    let id = members.required_text("id")?.json();
    let name = members.required_text("name")?.json();
    let input = members
        .raw_object("input")?
        .ok_or_else(|| Untranslatable::invalid("input", "an object"))?;
    members.finish()?;
    Ok(ToolCall {
        id,
        kind: "function",
        function: Called {
            name,
            arguments: quoted(input.get()),
        },
    })
}

/// One text alone is written as a text: every server takes that, and some nothing else.
fn content(mut parts: Vec<Part<'_>>) -> Content<'_> {
    match parts.pop() {
        None => Content::Text(quoted("")),
        Some(Part::Text { text }) if parts.is_empty() => Content::Text(text),
        Some(last) => {
            parts.push(last);
            Content::Parts(parts)
        }
    }
}
