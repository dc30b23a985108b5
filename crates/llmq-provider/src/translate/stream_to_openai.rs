//! Anthropic's events as OpenAI's chunks.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};
use serde_json::value::RawValue;

use super::answer::{refusal, text_of, text_or_empty};
use super::json::{Json, Members, Text, quoted};
use super::openai::{CalledDelta, Chunk, ChunkChoice, Delta, ToolCallDelta};
use super::stop;
use super::stream::{StreamBroken, StreamOptions, fail, write_json};
use super::usage::{ChatUsage, Tally};
use crate::{Dialect, SseEvent};

/// How far a message of Anthropic's has been told.
#[derive(Debug)]
pub(super) struct ToOpenAi {
    options: StreamOptions,
    id: Json<'static>,
    model: Json<'static>,
    phase: Phase,
    open: Option<OpenBlock>,
    /// Calls that were begun.
    calls: u32,
    stop_reason: Option<&'static str>,
    refusal: Option<Json<'static>>,
    tally: Tally,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Before,
    Within,
    Whole,
}

#[derive(Debug)]
struct OpenBlock {
    index: Option<u64>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    Call {
        has_arguments: bool,
    },
    /// A block that has no place in a chat completion.
    Other,
}

impl ToOpenAi {
    pub(super) fn new(options: StreamOptions) -> Self {
        Self {
            options,
            id: quoted(""),
            model: quoted(""),
            phase: Phase::Before,
            open: None,
            calls: 0,
            stop_reason: None,
            refusal: None,
            tally: Tally::default(),
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        self.phase == Phase::Whole
    }

    pub(super) fn is_answered(&self) -> bool {
        self.is_whole() || self.stop_reason.is_some()
    }

    pub(super) fn take(
        &mut self,
        event: SseEvent<'_>,
        out: &mut BytesMut,
    ) -> Result<(), StreamBroken> {
        if self.is_whole() || event.data.trim_ascii().is_empty() {
            return Ok(());
        }
        let mut members =
            Members::read(event.data).ok_or(StreamBroken::Malformed("an event is not JSON"))?;
        if event.name == b"error" || members.take("error").is_some() {
            return Err(fail(Dialect::OpenAi, event.data, out));
        }
        let kind = text_of(&mut members, "type").map(Text::to_str);
        let name = || String::from_utf8_lossy(event.name);
        match (kind.unwrap_or_else(name).as_ref(), self.phase) {
            ("error", _) => Err(fail(Dialect::OpenAi, event.data, out)),
            ("ping", _) => {
                out.put_slice(b": ping\n\n");
                Ok(())
            }
            ("message_start", Phase::Before) => {
                self.start(members, out);
                Ok(())
            }
            (
                "content_block_start"
                | "content_block_delta"
                | "content_block_stop"
                | "message_delta"
                | "message_stop",
                Phase::Before,
            ) => Err(StreamBroken::Malformed("the message has not started")),
            ("content_block_start", _) => self.open_block(members, out),
            ("content_block_delta", _) => self.add_delta(members, out),
            ("content_block_stop", _) => self.close_block(members, out),
            ("message_delta", _) => {
                self.take_ending(members);
                Ok(())
            }
            ("message_stop", _) => {
                self.end(out);
                Ok(())
            }
            // Anthropic may add events, and says that clients must pass over them.
            _ => Ok(()),
        }
    }

    fn start(&mut self, mut members: Members<'_>, out: &mut BytesMut) {
        let mut message = members.object("message").ok().flatten().unwrap_or_default();
        self.id = Cow::Owned(text_or_empty(&mut message, "id").into_owned());
        self.model = Cow::Owned(text_or_empty(&mut message, "model").into_owned());
        if let Some(usage) = message.take("usage") {
            self.tally.add(usage);
        }
        self.phase = Phase::Within;
        let role = Delta {
            role: Some("assistant"),
            content: Some(quoted("")),
            ..Delta::default()
        };
        self.write_delta(role, out);
    }

    fn open_block(
        &mut self,
        mut members: Members<'_>,
        out: &mut BytesMut,
    ) -> Result<(), StreamBroken> {
        if self.open.is_some() {
            return Err(StreamBroken::Malformed("a block starts inside another"));
        }
        let index = number_of(&mut members, "index");
        let block = members.object("content_block").ok().flatten();
        let mut block = block.ok_or(StreamBroken::Malformed("a block is not an object"))?;
        let kind = match text_of(&mut block, "type").map(Text::to_str).as_deref() {
            Some("text") => {
                self.write_text(text_of(&mut block, "text"), out);
                Kind::Text
            }
            Some("thinking") => {
                self.write_thought(text_of(&mut block, "thinking"), out);
                Kind::Thinking
            }
            Some("tool_use") => self.open_call(block, out),
            _ => Kind::Other,
        };
        self.open = Some(OpenBlock { index, kind });
        Ok(())
    }

    fn open_call(&mut self, mut block: Members<'_>, out: &mut BytesMut) -> Kind {
        // Empty here at Anthropic, whose deltas bring it; whole where a server does not stream it.
        let input = block.raw_object("input").ok().flatten();
        let input = input.filter(|input| !is_empty_object(input));
        let arguments = input.as_deref().map_or("", RawValue::get);
        let call = ToolCallDelta {
            index: self.calls,
            id: Some(text_or_empty(&mut block, "id")),
            kind: Some("function"),
            function: CalledDelta {
                name: Some(text_or_empty(&mut block, "name")),
                arguments: quoted(arguments),
            },
        };
        self.write_call(call, out);
        self.calls = self.calls.saturating_add(1);
        Kind::Call {
            has_arguments: !arguments.is_empty(),
        }
    }

    fn add_delta(
        &mut self,
        mut members: Members<'_>,
        out: &mut BytesMut,
    ) -> Result<(), StreamBroken> {
        let kind = self.open_kind(&mut members)?;
        let delta = members.object("delta").ok().flatten();
        let mut delta = delta.ok_or(StreamBroken::Malformed("a delta is not an object"))?;
        match kind {
            Kind::Text => self.write_text(text_of(&mut delta, "text"), out),
            Kind::Thinking => self.write_thought(text_of(&mut delta, "thinking"), out),
            Kind::Call { .. } => self.add_arguments(text_of(&mut delta, "partial_json"), out),
            Kind::Other => {}
        }
        Ok(())
    }

    fn add_arguments(&mut self, part: Option<Text<'_>>, out: &mut BytesMut) {
        let Some(part) = part.filter(|part| !part.is_empty()) else {
            return;
        };
        self.write_arguments(part.json(), out);
        if let Some(open) = &mut self.open {
            open.kind = Kind::Call {
                has_arguments: true,
            };
        }
    }

    fn close_block(
        &mut self,
        mut members: Members<'_>,
        out: &mut BytesMut,
    ) -> Result<(), StreamBroken> {
        let kind = self.open_kind(&mut members)?;
        // Clients parse the arguments, and nothing is not JSON.
        if kind
            == (Kind::Call {
                has_arguments: false,
            })
        {
            self.write_arguments(quoted("{}"), out);
        }
        self.open = None;
        Ok(())
    }

    /// The block that an event means: the open one.
    fn open_kind(&self, members: &mut Members<'_>) -> Result<Kind, StreamBroken> {
        let index = number_of(members, "index");
        match &self.open {
            Some(open) if open.index == index => Ok(open.kind),
            _ => Err(StreamBroken::Malformed(
                "an event names a block that is not open",
            )),
        }
    }

    fn take_ending(&mut self, mut members: Members<'_>) {
        if let Some(usage) = members.take("usage") {
            self.tally.add(usage);
        }
        let Some(mut delta) = members.object("delta").ok().flatten() else {
            return;
        };
        if let Some(reason) = text_of(&mut delta, "stop_reason") {
            self.stop_reason = Some(stop::for_openai(&reason.to_str()));
        }
        if let Some(why) = refusal(&mut delta) {
            self.refusal = Some(Cow::Owned(why.into_owned()));
        }
    }

    fn end(&mut self, out: &mut BytesMut) {
        let refusal = self.refusal.take();
        if refusal.is_some() {
            let delta = Delta {
                refusal,
                ..Delta::default()
            };
            self.write_delta(delta, out);
        }
        let last = [ChunkChoice {
            index: 0,
            delta: Delta::default(),
            logprobs: None,
            finish_reason: Some(self.stop_reason.unwrap_or("stop")),
        }];
        self.write_chunk(&last, None, out);
        if self.options.include_usage {
            self.write_chunk(&[], self.tally.for_openai(), out);
        }
        out.put_slice(b"data: [DONE]\n\n");
        self.phase = Phase::Whole;
    }

    fn write_text(&self, text: Option<Text<'_>>, out: &mut BytesMut) {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            let delta = Delta {
                content: Some(text.json()),
                ..Delta::default()
            };
            self.write_delta(delta, out);
        }
    }

    fn write_thought(&self, text: Option<Text<'_>>, out: &mut BytesMut) {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            let delta = Delta {
                reasoning_content: Some(text.json()),
                ..Delta::default()
            };
            self.write_delta(delta, out);
        }
    }

    fn write_arguments(&self, arguments: Json<'_>, out: &mut BytesMut) {
        let call = ToolCallDelta {
            index: self.calls.saturating_sub(1),
            id: None,
            kind: None,
            function: CalledDelta {
                name: None,
                arguments,
            },
        };
        self.write_call(call, out);
    }

    fn write_call(&self, call: ToolCallDelta<'_>, out: &mut BytesMut) {
        let delta = Delta {
            tool_calls: Some([call]),
            ..Delta::default()
        };
        self.write_delta(delta, out);
    }

    fn write_delta(&self, delta: Delta<'_>, out: &mut BytesMut) {
        let choices = [ChunkChoice {
            index: 0,
            delta,
            logprobs: None,
            finish_reason: None,
        }];
        self.write_chunk(&choices, None, out);
    }

    fn write_chunk(
        &self,
        choices: &[ChunkChoice<'_>],
        usage: Option<ChatUsage>,
        out: &mut BytesMut,
    ) {
        let chunk = Chunk {
            id: Cow::Borrowed(&self.id),
            object: "chat.completion.chunk",
            created: self.options.created_s,
            model: Cow::Borrowed(&self.model),
            choices,
            usage: self.options.include_usage.then_some(usage),
        };
        out.put_slice(b"data: ");
        write_json(&chunk, out);
        out.put_slice(b"\n\n");
    }
}

fn number_of(members: &mut Members<'_>, name: &str) -> Option<u64> {
    members.take(name)?.get().parse().ok()
}

fn is_empty_object(json: &RawValue) -> bool {
    let inner = json.get().trim_start_matches('{').trim_end_matches('}');
    inner.trim().is_empty()
}
