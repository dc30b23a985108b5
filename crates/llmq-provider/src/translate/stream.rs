//! A stream as it passes.

use bytes::{BufMut, Bytes, BytesMut};

use super::error::failed_event;
use super::stream_to_anthropic::ToAnthropic;
use super::stream_to_openai::ToOpenAi;
use crate::{Dialect, EventTooLarge, SseEvent, SseSplitter};

/// What a stream is translated with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Whether the caller of an OpenAI stream asked for its usage
    /// ([`Translated::include_usage`](super::Translated)). Anthropic's always tell it.
    pub include_usage: bool,
    /// When the answer began, in seconds of Unix time; OpenAI's chunks say so.
    pub created_s: u64,
}

/// Why a stream cannot go on. What was written before stands; the caller must see the stream
/// end as a broken one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamBroken {
    /// The bytes ended before the answer did.
    #[error("the upstream's stream ended before its proper end")]
    CutOff,
    /// An event is not what it must be at its place.
    #[error("the upstream's stream cannot be read: {0}")]
    Malformed(&'static str),
    /// An event is above the bound.
    #[error(transparent)]
    TooLarge(#[from] EventTooLarge),
    /// The upstream told of a failure in its stream. The error event of the other dialect is
    /// already written.
    #[error("the upstream failed in its stream: {message}")]
    Failed {
        /// The status that the failure stands for.
        status: u16,
        /// What the upstream said.
        message: String,
    },
}

/// Translates a stream as its bytes pass.
///
/// Events are written as soon as what they say is certain; the last ones (the reason of the
/// end, the usage, the end itself) only when the upstream's own end has come, so that a broken
/// stream cannot be taken for a whole one. Memory is bounded by the largest event.
///
/// ```
/// use bytes::BytesMut;
/// use llmq_provider::Dialect;
/// use llmq_provider::translate::{StreamBroken, StreamOptions, StreamTranslator};
/// let mut translator = StreamTranslator::new(Dialect::Anthropic, StreamOptions::default());
/// let mut out = BytesMut::new();
/// let chunk = br#"data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"Hi"}}]}"#;
/// translator.push(chunk, &mut out)?;
/// translator.push(b"\n\n", &mut out)?;
/// assert!(out.starts_with(b"event: message_start\n"));
/// assert_eq!(translator.finish(&mut out), Err(StreamBroken::CutOff));
/// # Ok::<(), StreamBroken>(())
/// ```
#[derive(Debug)]
pub struct StreamTranslator {
    splitter: SseSplitter,
    state: State,
    broken: Option<StreamBroken>,
}

#[derive(Debug)]
enum State {
    ToOpenAi(ToOpenAi),
    ToAnthropic(ToAnthropic),
}

impl StreamTranslator {
    /// A translator into the dialect `to`; the upstream's bytes are in the other one.
    #[must_use]
    pub fn new(to: Dialect, options: StreamOptions) -> Self {
        let state = match to {
            Dialect::OpenAi => State::ToOpenAi(ToOpenAi::new(options)),
            Dialect::Anthropic => State::ToAnthropic(ToAnthropic::default()),
        };
        Self {
            splitter: SseSplitter::new(),
            state,
            broken: None,
        }
    }

    /// Takes the next bytes, cut anywhere, and appends to `out` what they mean.
    ///
    /// # Errors
    ///
    /// [`StreamBroken`]; every later call gives the same error and writes nothing.
    pub fn push(&mut self, bytes: &[u8], out: &mut BytesMut) -> Result<(), StreamBroken> {
        self.check()?;
        if self.is_whole() {
            return Ok(());
        }
        let Self {
            splitter,
            state,
            broken,
        } = self;
        let split = splitter.push(bytes, |event| take(state, broken, event, out));
        if let (Err(error), None) = (split, &broken) {
            *broken = Some(error.into());
        }
        self.check()
    }

    /// Takes the end of the bytes, and writes the end of the answer if it was not yet there.
    ///
    /// Call it only when the body ended as HTTP says it must; a connection that broke is a
    /// broken stream whatever came before. OpenAI's streams are complete with their
    /// `finish_reason`, since some servers leave `[DONE]` out.
    ///
    /// # Errors
    ///
    /// [`StreamBroken`].
    pub fn finish(&mut self, out: &mut BytesMut) -> Result<(), StreamBroken> {
        self.check()?;
        let Self {
            splitter,
            state,
            broken,
        } = self;
        splitter.finish(|event| take(state, broken, event, out));
        self.check()?;
        if !self.is_whole() {
            let ended = match &mut self.state {
                State::ToOpenAi(_) => Err(StreamBroken::CutOff),
                State::ToAnthropic(state) => state.end_without_mark(out),
            };
            self.broken = ended.err();
        }
        self.check()
    }

    /// Whether the end of the answer is written. Bytes that come later say nothing.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        match &self.state {
            State::ToOpenAi(state) => state.is_whole(),
            State::ToAnthropic(state) => state.is_whole(),
        }
    }

    /// Whether all of the answer's content has come, and only its usage and the mark of the end
    /// may be missing. An upstream that leaves them out need not be waited for.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        match &self.state {
            State::ToOpenAi(state) => state.is_answered(),
            State::ToAnthropic(state) => state.is_answered(),
        }
    }

    fn check(&self) -> Result<(), StreamBroken> {
        self.broken.clone().map_or(Ok(()), Err)
    }
}

fn take(
    state: &mut State,
    broken: &mut Option<StreamBroken>,
    event: SseEvent<'_>,
    out: &mut BytesMut,
) {
    if broken.is_some() {
        return;
    }
    let taken = match state {
        State::ToOpenAi(state) => state.take(event, out),
        State::ToAnthropic(state) => state.take(event, out),
    };
    *broken = taken.err();
}

/// The upstream told of a failure: its event in the other dialect, and the error.
pub(super) fn fail(to: Dialect, data: &[u8], out: &mut BytesMut) -> StreamBroken {
    let (status, message, event): (u16, String, Bytes) = failed_event(to, data);
    out.put(event);
    StreamBroken::Failed { status, message }
}

/// Writes the JSON of an event.
pub(super) fn write_json(value: &impl serde::Serialize, out: &mut BytesMut) {
    // Texts, numbers and JSON that was read before always serialize, and the buffer grows.
    let _ = serde_json::to_writer(out.writer(), value);
}
