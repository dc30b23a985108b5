use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};

use super::call::{Call, Dialect};
use super::prose::Prose;
use super::text::Fnv;
use super::tools::{self, ToolCall, escaped};
use super::{anthropic, openai};

/// The most pieces that a streamed text is cut into, so that a long answer stays cheap.
const PIECES_MAX: u64 = 64;

/// An answer before it is sent.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Whole(Bytes),
    Events(Vec<Event>),
}

/// A part of a streamed answer, sent at one time.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) bytes: Bytes,
    /// Output tokens that are produced with it.
    pub(super) tokens: u64,
}

impl Answer {
    pub(super) fn json(status: StatusCode, body: String) -> Self {
        Self::whole(status, HeaderValue::from_static("application/json"), body)
    }

    pub(super) fn html(status: StatusCode, body: String) -> Self {
        Self::whole(status, HeaderValue::from_static("text/html"), body)
    }

    pub(super) fn events(events: Vec<Event>) -> Self {
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
        headers.insert(CONTENT_TYPE, kind);
        Self {
            status: StatusCode::OK,
            headers,
            content: Content::Events(events),
        }
    }

    fn whole(status: StatusCode, kind: HeaderValue, body: String) -> Self {
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(CONTENT_TYPE, kind);
        Self {
            status,
            headers,
            content: Content::Whole(Bytes::from(body)),
        }
    }
}

/// All that goes into the answer to one call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draft<'a> {
    pub(super) call: &'a Call<'a>,
    /// The call's number, for ids.
    pub(super) number: u64,
    /// Seconds since 1970.
    pub(super) created: u64,
    /// Output tokens of an answer that nothing cuts off.
    pub(super) wanted: u32,
    pub(super) seed: u64,
}

impl Draft<'_> {
    pub(super) fn write(&self) -> Answer {
        match self.call.endpoint.dialect() {
            Dialect::OpenAi => openai::write(self),
            Dialect::Anthropic => anthropic::write(self),
        }
    }

    pub(super) fn input_tokens(&self) -> u64 {
        self.call.prompt.tokens()
    }

    /// Output tokens of one answer.
    pub(super) fn output_tokens(&self) -> u64 {
        self.call.output_tokens(self.wanted)
    }

    pub(super) fn is_cut(&self) -> bool {
        self.call.is_cut(self.wanted)
    }

    /// The model's name as a JSON string.
    pub(super) fn model_json(&self) -> String {
        // A string always has a JSON form.
        serde_json::to_string(&self.call.model).unwrap_or_default()
    }

    /// The text of answer number `choice`.
    pub(super) fn text(&self, choice: u32) -> String {
        if let Some(said) = &self.call.structured {
            return escaped(said);
        }
        let words = self.output_tokens();
        let mut text = String::with_capacity(usize::try_from(words).unwrap_or(0).min(1 << 20) * 8);
        self.prose(choice).push(words, &mut text);
        text
    }

    /// What the answer calls; nothing where its cap would have cut the call off.
    pub(super) fn tool(&self) -> Option<&ToolCall> {
        self.call.tool.as_ref().filter(|_| !self.is_cut())
    }

    /// The same text in pieces, each with its number of tokens.
    pub(super) fn pieces(&self, choice: u32) -> Vec<(String, u64)> {
        if let Some(said) = &self.call.structured {
            let mut tokens = self.output_tokens();
            let parts = tools::parts(said).into_iter();
            return parts
                .map(|part| (escaped(&part), std::mem::take(&mut tokens)))
                .collect();
        }
        self.prose_pieces(choice).collect()
    }

    fn prose_pieces(&self, choice: u32) -> impl Iterator<Item = (String, u64)> + use<> {
        let mut left = self.output_tokens();
        let size = left.div_ceil(PIECES_MAX).max(1);
        let mut prose = self.prose(choice);
        std::iter::from_fn(move || {
            let words = left.min(size);
            left -= words;
            let mut piece = String::new();
            prose.push(words, &mut piece);
            (words > 0).then_some((piece, words))
        })
    }

    fn prose(&self, choice: u32) -> Prose {
        let digest = Fnv::new()
            .with(&self.seed.to_le_bytes())
            .with(&self.call.prompt.digest.to_le_bytes())
            .with(&choice.to_le_bytes());
        Prose::new(digest.value())
    }
}
