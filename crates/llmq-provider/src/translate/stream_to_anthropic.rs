//! OpenAI's chunks as Anthropic's events.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use serde_json::value::RawValue;

use super::answer::{array_of, call_id, text_of, text_or_empty, texts_of};
use super::anthropic::{Answer, Block, Delta, Ending, Event, Role};
use super::json::{Json, Members, Text, empty_object, members_of, quoted};
use super::stop;
use super::stream::{StreamBroken, fail, write_json};
use super::usage::{MessageUsage, Tally};
use crate::codes::is_failure;
use crate::{Dialect, SseEvent};

/// How far a chat completion has been told.
#[derive(Debug, Default)]
pub(super) struct ToAnthropic {
    /// The answer's id, once it has started.
    id: Option<Json<'static>>,
    /// Blocks that were begun.
    blocks: u32,
    open: Option<OpenBlock>,
    /// Calls that were begun.
    calls: usize,
    finish_reason: Option<String>,
    /// It went on after its reason to end, as some gateways have it that give one in every chunk.
    went_on: bool,
    tally: Tally,
    is_whole: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum OpenBlock {
    Text,
    Call {
        /// The place in the chunks' `tool_calls`.
        index: u64,
        id: String,
    },
}

impl ToAnthropic {
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    pub(super) fn is_answered(&self) -> bool {
        self.is_whole || self.has_ended()
    }

    pub(super) fn take(
        &mut self,
        event: SseEvent<'_>,
        out: &mut BytesMut,
    ) -> Result<(), StreamBroken> {
        if self.is_whole || event.data.trim_ascii().is_empty() {
            return Ok(());
        }
        // The official SDK tests only the prefix.
        if event.data.starts_with(b"[DONE]") {
            return self.end(out);
        }
        let mut chunk =
            Members::read(event.data).ok_or(StreamBroken::Malformed("an event is not JSON"))?;
        if chunk.take("error").is_some() || event.name == b"error" {
            return Err(fail(Dialect::Anthropic, event.data, out));
        }
        if let Some(usage) = chunk.take("usage") {
            self.tally.add(usage);
        }
        let choices = array_of(&mut chunk, "choices");
        let Some(choice) = choices.first() else {
            return Ok(());
        };
        let mut choice =
            members_of(choice).map_err(|_| StreamBroken::Malformed("a choice is not an object"))?;
        self.start(&mut chunk, out);
        let written = out.len();
        if let Some(delta) = choice.object("delta").ok().flatten() {
            self.add(delta, out)?;
        }
        let said_something = out.len() > written;
        self.went_on |= self.finish_reason.is_some() && said_something;
        let reason = text_of(&mut choice, "finish_reason").filter(|reason| !reason.is_empty());
        if let Some(reason) = &reason {
            if is_failure(&reason.to_str()) {
                return Err(fail(Dialect::Anthropic, event.data, out));
            }
            self.finish_reason = Some(reason.to_str().into_owned());
        }
        match (reason, said_something) {
            (Some(_), false) => self.close_block(out),
            // It said nothing that has a place, such as a thought; the caller sees that the
            // stream lives.
            (None, false) => write(&Event::Ping, out),
            // Some give a reason beside every piece: the block stays open to the end.
            (_, true) => {}
        }
        Ok(())
    }

    /// The end of the bytes without `[DONE]`: fine if the answer has said why it ended.
    pub(super) fn end_without_mark(&mut self, out: &mut BytesMut) -> Result<(), StreamBroken> {
        if !self.has_ended() {
            return Err(StreamBroken::CutOff);
        }
        self.end(out)
    }

    fn has_ended(&self) -> bool {
        self.finish_reason.is_some() && !self.went_on
    }

    fn start(&mut self, chunk: &mut Members<'_>, out: &mut BytesMut) {
        if self.id.is_some() {
            return;
        }
        let id: Json<'static> = Cow::Owned(text_or_empty(chunk, "id").into_owned());
        let message = Answer {
            id: id.clone(),
            kind: "message",
            role: Role::Assistant,
            model: text_or_empty(chunk, "model"),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            // OpenAI tells it at the end.
            usage: MessageUsage::default(),
        };
        self.id = Some(id);
        write(&Event::MessageStart { message }, out);
    }

    fn add(&mut self, mut delta: Members<'_>, out: &mut BytesMut) -> Result<(), StreamBroken> {
        let said = texts_of(&mut delta).into_iter();
        let said = said.chain(text_of(&mut delta, "refusal"));
        for text in said.filter(|text| !text.is_empty()) {
            self.add_text(text, out);
        }
        for call in array_of(&mut delta, "tool_calls") {
            self.add_call(call, out)?;
        }
        Ok(())
    }

    fn add_text(&mut self, text: Text<'_>, out: &mut BytesMut) {
        if self.open != Some(OpenBlock::Text) {
            let text = quoted("");
            self.open_block(OpenBlock::Text, Block::Text { text }, out);
        }
        self.write_delta(Delta::TextDelta { text: text.json() }, out);
    }

    /// A piece of a call. A new index or a new id begins the next call: some servers give
    /// every call the index 0.
    fn add_call(&mut self, call: &RawValue, out: &mut BytesMut) -> Result<(), StreamBroken> {
        let mut call =
            members_of(call).map_err(|_| StreamBroken::Malformed("a call is not an object"))?;
        let index = call.take("index").and_then(|raw| raw.get().parse().ok());
        let id = text_of(&mut call, "id").filter(|id| !id.is_empty());
        let mut function = call.object("function").ok().flatten().unwrap_or_default();
        let said = id.map(Text::to_str);
        let goes_on = match &self.open {
            Some(OpenBlock::Call {
                index: open,
                id: open_id,
            }) => {
                index.is_none_or(|index| index == *open)
                    && said.as_ref().is_none_or(|said| said == open_id)
            }
            _ => false,
        };
        if !goes_on {
            let name = text_of(&mut function, "name").filter(|name| !name.is_empty());
            // A piece of a call that was closed already: what it adds cannot be told any more.
            let name = name.ok_or(StreamBroken::Malformed("a call goes on that is not open"))?;
            let at = index.unwrap_or(0);
            let open = OpenBlock::Call {
                index: at,
                id: said.unwrap_or_default().into_owned(),
            };
            let block = Block::ToolUse {
                id: id.map_or_else(|| self.made_id(), Text::json),
                name: name.json(),
                input: empty_object(),
            };
            self.open_block(open, block, out);
            self.calls += 1;
        }
        let Some(part) = function.take("arguments") else {
            return Ok(());
        };
        let partial_json = match Text::of(part) {
            Some(part) if part.is_empty() => return Ok(()),
            Some(part) => part.json(),
            // A few servers tell them as they are, and not inside a text.
            None if part.get().starts_with('{') => quoted(part.get()),
            None => return Err(StreamBroken::Malformed("a call's arguments are no object")),
        };
        self.write_delta(Delta::InputJsonDelta { partial_json }, out);
        Ok(())
    }

    fn made_id(&self) -> Json<'static> {
        let id = self.id.clone().unwrap_or_else(|| quoted(""));
        call_id(&id, self.calls)
    }

    fn open_block(&mut self, open: OpenBlock, content_block: Block<'_>, out: &mut BytesMut) {
        self.close_block(out);
        let index = self.blocks;
        write(
            &Event::ContentBlockStart {
                index,
                content_block,
            },
            out,
        );
        self.blocks = self.blocks.saturating_add(1);
        self.open = Some(open);
    }

    fn close_block(&mut self, out: &mut BytesMut) {
        if self.open.take().is_some() {
            let index = self.blocks.saturating_sub(1);
            write(&Event::ContentBlockStop { index }, out);
        }
    }

    fn write_delta(&self, delta: Delta<'_>, out: &mut BytesMut) {
        let index = self.blocks.saturating_sub(1);
        write(&Event::ContentBlockDelta { index, delta }, out);
    }

    fn end(&mut self, out: &mut BytesMut) -> Result<(), StreamBroken> {
        if self.id.is_none() {
            return Err(StreamBroken::Malformed("it ended before it began"));
        }
        self.close_block(out);
        let reason = self.finish_reason.as_deref().unwrap_or_default();
        let delta = Ending {
            stop_reason: stop::for_anthropic(reason, self.calls > 0),
            stop_sequence: None,
        };
        let usage = self.tally.for_anthropic();
        write(&Event::MessageDelta { delta, usage }, out);
        write(&Event::MessageStop, out);
        self.is_whole = true;
        Ok(())
    }
}

fn write(event: &Event<'_>, out: &mut BytesMut) {
    out.put_slice(b"event: ");
    out.put_slice(event.name().as_bytes());
    out.put_slice(b"\ndata: ");
    write_json(event, out);
    out.put_slice(b"\n\n");
}
