//! OpenAI's messages as Anthropic's.

use std::collections::BTreeSet;

use serde_json::value::RawValue;

use super::Untranslatable;
use super::anthropic::{Block, Content, Message, Role};
use super::images::source_of;
use super::json::{Json, Members, Text, empty_object, members_of, object_in, quoted};
use super::refusal::At;
use super::rules::{Rule, leave_out, refuse};

/// A conversation as Anthropic wants it.
#[derive(Debug)]
pub(super) struct Conversation<'a> {
    /// What stands before the first message of the user or the model.
    pub(super) system: Option<Content<'a>>,
    pub(super) messages: Vec<Message<'a>>,
}

pub(super) const MESSAGE_RULES: [Rule; 3] = [
    Rule("name", &[], "messages have no participants' names there"),
    Rule("audio", &[], "there is no audio there"),
    Rule(
        "function_call",
        &[],
        "it is deprecated; use `tool_calls` and messages of the role `tool`",
    ),
];

/// Members of an answer that clients send back, and that say nothing to another model.
pub(super) const MESSAGE_HINTS: [&str; 4] = [
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "annotations",
];

/// Reads the messages in their order.
///
/// System texts at the start become the one system text; later ones stay where they are.
/// Results of tools and what the user says next become one turn, as Anthropic wants it.
pub(super) fn conversation<'a>(
    messages: &[&'a RawValue],
    left_out: &mut BTreeSet<&'static str>,
) -> Result<Conversation<'a>, Untranslatable> {
    let mut writer = Writer {
        system: Vec::new(),
        messages: Vec::new(),
        after_results: false,
        left_out,
    };
    for (index, message) in messages.iter().enumerate() {
        writer.add(message).at_item(index)?;
    }
    // OpenAI answers the model's own last words, and Anthropic would go on writing them.
    if let Some(Message {
        role: Role::Assistant,
        ..
    }) = writer.messages.last()
    {
        return Err(Untranslatable::no_counterpart(
            "",
            "a conversation that ends with the model's words is continued there, not answered",
        ))
        .at_item(messages.len().saturating_sub(1));
    }
    let system = (!writer.system.is_empty()).then(|| content(writer.system));
    Ok(Conversation {
        system,
        messages: writer.messages,
    })
}

struct Writer<'a, 'n> {
    system: Vec<Block<'a>>,
    messages: Vec<Message<'a>>,
    /// The last message holds results of tools, to which more may be added.
    after_results: bool,
    left_out: &'n mut BTreeSet<&'static str>,
}

impl<'a> Writer<'a, '_> {
    fn add(&mut self, message: &'a RawValue) -> Result<(), Untranslatable> {
        let mut members = members_of(message)?;
        let role = members.word("role")?;
        leave_out(&mut members, &MESSAGE_HINTS, self.left_out);
        match role.as_ref() {
            "system" | "developer" => self.add_system(members),
            "user" => self.add_user(members),
            "assistant" => self.add_assistant(members),
            "tool" => self.add_result(members),
            "function" => Err(Untranslatable::no_counterpart(
                "role",
                "the role `function` is deprecated; use `tool`",
            )),
            _ => Err(Untranslatable::invalid(
                "role",
                "system, developer, user, assistant or tool",
            )),
        }
    }

    fn add_system(&mut self, mut members: Members<'a>) -> Result<(), Untranslatable> {
        let blocks = self.take_content(&mut members, &["text"])?;
        close(members)?;
        if self.messages.is_empty() {
            self.system.extend(blocks);
        } else if !blocks.is_empty() {
            self.push(Role::System, blocks);
        }
        Ok(())
    }

    fn add_user(&mut self, mut members: Members<'a>) -> Result<(), Untranslatable> {
        let blocks = self.take_content(&mut members, &["text", "image_url", "file"])?;
        close(members)?;
        self.push_user(blocks);
        Ok(())
    }

    fn add_assistant(&mut self, mut members: Members<'a>) -> Result<(), Untranslatable> {
        let mut blocks = self.take_content(&mut members, &["text", "refusal"])?;
        if let Some(refusal) = members.text("refusal")? {
            blocks.extend(text_block(refusal));
        }
        for (index, call) in members
            .array("tool_calls")?
            .unwrap_or_default()
            .iter()
            .enumerate()
        {
            blocks.push(tool_use(call).at_item(index).at("tool_calls")?);
        }
        close(members)?;
        // An answer that says nothing is refused at Anthropic, and nothing is lost with it.
        if !blocks.is_empty() {
            self.push(Role::Assistant, blocks);
        }
        Ok(())
    }

    fn add_result(&mut self, mut members: Members<'a>) -> Result<(), Untranslatable> {
        let tool_use_id = members.required_text("tool_call_id")?.json();
        // The function's name, which the id tells as well.
        members.text("name")?;
        let blocks = self.take_content(&mut members, &["text", "image_url"])?;
        close(members)?;
        let content = (!blocks.is_empty()).then(|| content(blocks));
        self.push_user(vec![Block::ToolResult {
            tool_use_id,
            content,
        }]);
        self.after_results = true;
        Ok(())
    }

    fn push_user(&mut self, blocks: Vec<Block<'a>>) {
        if !std::mem::replace(&mut self.after_results, false) {
            return self.push(Role::User, blocks);
        }
        if let Some(Message {
            content: Content::Blocks(results),
            ..
        }) = self.messages.last_mut()
        {
            results.extend(blocks);
        }
    }

    fn push(&mut self, role: Role, blocks: Vec<Block<'a>>) {
        self.after_results = false;
        let is_result = matches!(blocks[..], [Block::ToolResult { .. }]);
        let content = if is_result {
            Content::Blocks(blocks)
        } else {
            content(blocks)
        };
        self.messages.push(Message { role, content });
    }

    /// A message's content as blocks. Blank texts are left out, since Anthropic refuses them.
    fn take_content(
        &mut self,
        members: &mut Members<'a>,
        allowed: &[&str],
    ) -> Result<Vec<Block<'a>>, Untranslatable> {
        let Some(value) = members.take("content") else {
            return Ok(Vec::new());
        };
        if let Some(text) = Text::of(value) {
            return Ok(text_block(text).into_iter().collect());
        }
        let parts: Vec<&'a RawValue> = serde_json::from_str(value.get())
            .map_err(|_| Untranslatable::invalid("content", "a text or an array of parts"))?;
        let mut blocks = Vec::with_capacity(parts.len());
        for (index, part) in parts.into_iter().enumerate() {
            let block = self.part(part, allowed).at_item(index).at("content")?;
            blocks.extend(block);
        }
        Ok(blocks)
    }

    fn part(
        &mut self,
        part: &'a RawValue,
        allowed: &[&str],
    ) -> Result<Option<Block<'a>>, Untranslatable> {
        let mut members = members_of(part)?;
        leave_out(&mut members, &["prompt_cache_breakpoint"], self.left_out);
        let kind = members.word("type")?;
        if !allowed.contains(&kind.as_ref()) {
            let reason = format!("a part of the type `{kind}` has no counterpart here");
            return Err(Untranslatable::no_counterpart("type", reason));
        }
        let block = match kind.as_ref() {
            "refusal" => text_block(members.required_text("refusal")?),
            "image_url" => Some(self.image(&mut members)?),
            "file" => Some(file(&mut members)?),
            _ => text_block(members.required_text("text")?),
        };
        members.finish()?;
        Ok(block)
    }

    fn image(&mut self, members: &mut Members<'a>) -> Result<Block<'a>, Untranslatable> {
        let expected = || Untranslatable::invalid("image_url", "an object");
        let mut image = members.object("image_url")?.ok_or_else(expected)?;
        // Anthropic reads every image as well as it can.
        leave_out(&mut image, &["detail"], self.left_out);
        let read = |mut image: Members<'a>| {
            let source = source_of("url", image.required_text("url")?)?;
            image.finish()?;
            Ok(Block::Image { source })
        };
        read(image).at("image_url")
    }
}

fn close(mut members: Members<'_>) -> Result<(), Untranslatable> {
    refuse(&mut members, &MESSAGE_RULES)?;
    members.finish()
}

fn file<'a>(members: &mut Members<'a>) -> Result<Block<'a>, Untranslatable> {
    let expected = || Untranslatable::invalid("file", "an object");
    let file = members.object("file")?.ok_or_else(expected)?;
    document(file).at("file")
}

fn document<'a>(mut file: Members<'a>) -> Result<Block<'a>, Untranslatable> {
    let id = Rule("file_id", &[], "the file is not known there; send its data");
    refuse(&mut file, &[id])?;
    let data = file.required_text("file_data")?;
    if !data.to_str().starts_with("data:application/pdf;base64,") {
        return Err(Untranslatable::no_counterpart(
            "file_data",
            "only PDF files as data URLs in base64 are taken there",
        ));
    }
    let title = file.text("filename")?.map(Text::json);
    let source = source_of("file_data", data)?;
    file.finish()?;
    Ok(Block::Document { source, title })
}

fn tool_use(call: &RawValue) -> Result<Block<'_>, Untranslatable> {
    let mut members = members_of(call)?;
    let kind = members.word("type")?;
    if !matches!(kind.as_ref(), "" | "function") {
        return Err(Untranslatable::no_counterpart(
            "type",
            "only calls of functions have a counterpart",
        ));
    }
    // Where a call stood in a stream; some clients send it back.
    members.take("index");
    let id = members.required_text("id")?.json();
    let expected = || Untranslatable::invalid("function", "an object");
    let function = members.object("function")?.ok_or_else(expected)?;
    let (name, input) = called(function).at("function")?;
    members.finish()?;
    Ok(Block::ToolUse { id, name, input })
}

fn called<'a>(mut function: Members<'a>) -> Result<(Json<'a>, Json<'a>), Untranslatable> {
    let name = function.required_text("name")?.json();
    let input = match function.text("arguments")? {
        None => Some(empty_object()),
        Some(text) => object_in(text),
    };
    let input = input.ok_or_else(|| {
        Untranslatable::no_counterpart("arguments", "they are not one whole JSON object")
    })?;
    function.finish()?;
    Ok((name, input))
}

fn text_block(text: Text<'_>) -> Option<Block<'_>> {
    (!text.is_blank()).then(|| Block::Text { text: text.json() })
}

/// One text alone is written as a text, and nothing as an empty one, for the upstream to refuse.
fn content(mut blocks: Vec<Block<'_>>) -> Content<'_> {
    match blocks.pop() {
        None => Content::Text(quoted("")),
        Some(Block::Text { text }) if blocks.is_empty() => Content::Text(text),
        Some(last) => {
            blocks.push(last);
            Content::Blocks(blocks)
        }
    }
}
