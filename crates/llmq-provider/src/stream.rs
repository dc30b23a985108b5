use llmq_core::Usage;
use memchr::memmem;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::ended::Ended;
use crate::event_shape::is_object;
use crate::lenient::{Lenient, Object, Present};
use crate::opening::{Choice, Look};
use crate::stream_facts::StreamFacts;
use crate::usage::RawUsage;
use crate::{AnswerFacts, Dialect, EventTooLarge, Operation, SseEvent, SseSplitter};

/// The types that end a stream, as they stand in the data.
const TERMINAL_TYPES: [&str; 4] = [
    "\"message_stop\"",
    "\"response.completed\"",
    "\"response.failed\"",
    "\"response.incomplete\"",
];
/// How much of an error event is kept.
const ERROR_BYTES_MAX: usize = 64 << 10;

/// Reads a stream as its bytes pass: usage, and whether it came to its proper end.
///
/// The bytes themselves are the caller's to forward; nothing is held back or changed.
///
/// ```
/// use llmq_provider::{Dialect, Operation, StreamEnd, StreamReader};
/// let mut reader = StreamReader::new(Dialect::OpenAi, Operation::ChatCompletions);
/// reader.push(b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":2,\"completion_tok")?;
/// assert_eq!(reader.end(), StreamEnd::CutOff);
/// reader.push(b"ens\":3}}\n\ndata: [DONE]\n\n")?;
/// assert_eq!(reader.usage().unwrap().total(), 5);
/// assert_eq!(reader.finish(), StreamEnd::Whole);
/// # Ok::<(), llmq_provider::EventTooLarge>(())
/// ```
#[derive(Debug)]
pub struct StreamReader {
    splitter: SseSplitter,
    state: State,
    /// So many of the last bytes were read.
    taken: usize,
}

/// How a stream stands when no more bytes come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEnd {
    /// Its proper end was there.
    Whole,
    /// It ended before its proper end.
    CutOff,
    /// It told of a failure: the JSON for [`crate::classify`], with status 200.
    Failed(Vec<u8>),
    /// An event of it is no JSON object.
    Malformed,
}

#[derive(Debug)]
struct State {
    dialect: Dialect,
    is_responses: bool,
    usage: Option<RawUsage>,
    end: StreamEnd,
    events: u64,
    has_begun: bool,
    /// So many pieces of the answer came; none where they are not counted.
    pieces: Option<u64>,
    /// The answers that were asked for.
    answers: u32,
    ended: Ended,
    /// None where nobody asks.
    facts: Option<Box<StreamFacts>>,
}

impl StreamReader {
    /// A reader for the answer to `operation`.
    #[must_use]
    pub fn new(dialect: Dialect, operation: Operation) -> Self {
        Self {
            splitter: SseSplitter::new(),
            state: State {
                dialect,
                is_responses: operation == Operation::Responses,
                usage: None,
                end: StreamEnd::CutOff,
                events: 0,
                has_begun: false,
                pieces: None,
                answers: 1,
                ended: Ended::default(),
                facts: None,
            },
            taken: 0,
        }
    }

    /// The same for a call that asks for several answers (`n`, or several prompts).
    #[must_use]
    pub fn of(mut self, answers: u32) -> Self {
        self.state.answers = answers.max(1);
        self
    }

    /// The same for a stream whose output is counted as it comes
    /// ([`StreamReader::output_at_least`]), which takes a look into each event.
    #[must_use]
    pub fn counting(mut self) -> Self {
        self.state.pieces = Some(0);
        self
    }

    /// The same for a stream that somebody asks what it [says of itself](StreamReader::facts).
    #[must_use]
    pub fn telling(mut self) -> Self {
        self.state.facts = Some(Box::default());
        self
    }

    /// Takes the next bytes, cut anywhere.
    ///
    /// # Errors
    ///
    /// [`EventTooLarge`] when an event is above the bound; nothing more can be read then.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), EventTooLarge> {
        let Self {
            splitter,
            state,
            taken,
        } = self;
        *taken = splitter.push_until(bytes, |event| {
            state.take(event);
            state.is_broken()
        })?;
        Ok(())
    }

    /// How many of the bytes that were pushed last it has read: all of them, but where it
    /// [broke](StreamReader::is_broken) those up to the end of that event. What stands behind it,
    /// such as `[DONE]`, is not to be passed on.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// How it would stand if no more bytes came, a last line without its end left aside.
    #[must_use]
    pub fn end(&self) -> StreamEnd {
        self.state.end.clone()
    }

    /// Takes the end of a body that ended in order, as the end of the last line too, and tells how
    /// the stream stands.
    pub fn finish(&mut self) -> StreamEnd {
        self.end_of_bytes();
        let state = &mut self.state;
        // Some servers close without the last event, which is no answer's.
        if state.end == StreamEnd::CutOff && state.have_all_ended(state.ended.count()) {
            state.end = StreamEnd::Whole;
        }
        self.end()
    }

    /// The same for a body that broke, was not waited for any longer, or has no end of its own: all
    /// of it is there where that is [beyond doubt](StreamReader::is_all_there).
    pub fn broke(&mut self) -> StreamEnd {
        self.end_of_bytes();
        if self.state.end == StreamEnd::CutOff && self.is_all_there() {
            self.state.end = StreamEnd::Whole;
        }
        self.end()
    }

    fn end_of_bytes(&mut self) {
        let Self {
            splitter, state, ..
        } = self;
        let was_malformed = state.end == StreamEnd::Malformed;
        splitter.finish(|event| state.take(event));
        // The last event may have been cut in two.
        if state.end == StreamEnd::Malformed && !was_malformed {
            state.end = StreamEnd::CutOff;
        }
    }

    /// Whether every answer has said why it ended, and after something else: a reason that comes
    /// with the first word may come with every word. What may follow is the usage and the last
    /// event, and some servers send neither. It goes on being asked: an answer that goes on after
    /// its reason has not ended.
    #[must_use]
    pub fn is_all_there(&self) -> bool {
        self.state.is_all_there()
    }

    /// How many whole events there were so far.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.state.events
    }

    /// Whether the answer itself has begun: what names it, a role without a word and pings come
    /// before.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.state.has_begun
    }

    /// Whether what came so far cannot become an answer any more.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.state.is_broken()
    }

    /// The output tokens that have come so far, at least: no event brings less than one, and no
    /// provider says before the end how many there were. None unless it is
    /// [counting](StreamReader::counting).
    #[must_use]
    pub fn output_at_least(&self) -> Option<u64> {
        self.state.pieces
    }

    /// The tokens told so far; totals, not steps.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        self.state.usage?.usage(self.state.dialect)
    }

    /// What it has said of itself so far. None unless it is [telling](StreamReader::telling).
    #[must_use]
    pub fn facts(&self) -> Option<AnswerFacts> {
        let facts = self.state.facts.as_ref()?.facts().clone();
        Some(AnswerFacts {
            usage: self.usage(),
            ..facts
        })
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Chunk {
    usage: Lenient<Object<RawUsage>>,
    error: Lenient<Present>,
    #[serde(rename = "type")]
    kind: Lenient<Option<String>>,
    /// Anthropic's `message_start`.
    message: Lenient<Object<Inner>>,
    /// The terminal events of the Responses API.
    response: Lenient<Object<Inner>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Inner {
    usage: Lenient<Object<RawUsage>>,
}

impl State {
    fn take(&mut self, event: SseEvent<'_>) {
        // What comes after a failure cannot cure it.
        if self.is_broken() {
            return;
        }
        self.events += 1;
        // The official SDK tests only the prefix.
        if event.data.starts_with(b"[DONE]") {
            if self.ends_with_done() {
                self.end = StreamEnd::Whole;
            }
            return;
        }
        if !is_object(event.data) {
            self.end = StreamEnd::Malformed;
            return;
        }
        let look = Look::at(event);
        let ends_one = self.ends_with_done() && self.ended.take(&look, self.answers);
        if let Some(facts) = &mut self.facts {
            facts.take(event, !self.has_begun, ends_one);
        }
        if ends_one && look.choices().iter().any(Choice::has_failed) {
            self.fail(event.data);
        }
        // Most events are pieces of text; only the few that can matter are parsed.
        if self.may_matter(event) {
            self.weigh(event);
        }
        if !self.has_begun && !matches!(self.end, StreamEnd::Failed(_)) {
            self.has_begun = !look.is_opening() || self.is_all_there();
        }
        if let Some(pieces) = &mut self.pieces {
            *pieces += u64::from(look.is_piece());
        }
    }

    fn weigh(&mut self, event: SseEvent<'_>) {
        let Ok(chunk) = serde_json::from_slice::<Chunk>(event.data) else {
            return;
        };
        let kind = chunk.kind.0.as_deref().unwrap_or_default();
        match (self.dialect, kind) {
            (_, "error" | "response.failed") => self.fail(event.data),
            _ if chunk.error.0.0 => self.fail(event.data),
            (Dialect::OpenAi, "response.completed" | "response.incomplete")
            | (Dialect::Anthropic, "message_stop") => self.end = StreamEnd::Whole,
            _ => {}
        }
        for usage in [
            chunk.message.0.0.usage,
            chunk.response.0.0.usage,
            chunk.usage,
        ] {
            self.add_usage(usage.0.0);
        }
    }

    fn may_matter(&self, event: SseEvent<'_>) -> bool {
        let has = |word: &str| memmem::find(event.data, word.as_bytes()).is_some();
        match event.name {
            b"message_stop"
            | b"error"
            | b"response.completed"
            | b"response.failed"
            | b"response.incomplete" => true,
            // Servers that leave the event's name out still write its type.
            b"" if !self.ends_with_done() && TERMINAL_TYPES.into_iter().any(has) => true,
            _ => has("\"usage\"") || has("\"error\""),
        }
    }

    /// The Responses API and Anthropic end by an event of their own.
    fn ends_with_done(&self) -> bool {
        self.dialect == Dialect::OpenAi && !self.is_responses
    }

    fn is_broken(&self) -> bool {
        matches!(self.end, StreamEnd::Failed(_) | StreamEnd::Malformed)
    }

    fn is_all_there(&self) -> bool {
        self.have_all_ended(self.ended.proven())
    }

    fn have_all_ended(&self, ended: u32) -> bool {
        self.ends_with_done() && ended >= self.answers
    }

    fn add_usage(&mut self, usage: RawUsage) {
        if usage != RawUsage::default() {
            self.usage = Some(self.usage.unwrap_or_default().overlaid(usage));
        }
    }

    fn fail(&mut self, data: &[u8]) {
        let event = serde_json::from_slice::<FailedEvent<'_>>(data);
        let event = event.unwrap_or_default();
        let told = |error: &[u8]| [b"{\"error\":", error, b"}"].concat();
        let failure = match event.response.and_then(|response| response.error) {
            // The Responses API tells of it inside the response, beside all that was asked, …
            Some(error) => told(error.get().as_bytes()),
            // … or by an event that is the error.
            None if event.error.is_none() && self.is_responses => told(data),
            None => data.to_vec(),
        };
        self.end = StreamEnd::Failed(bounded(failure, event.error));
    }
}

/// A failure that is too long without what is not classified: half a JSON would say nothing.
fn bounded(failure: Vec<u8>, error: Option<&RawValue>) -> Vec<u8> {
    if failure.len() <= ERROR_BYTES_MAX {
        return failure;
    }
    let error = error.filter(|error| error.get().len() < ERROR_BYTES_MAX);
    match error {
        Some(error) => format!("{{\"error\":{error}}}").into_bytes(),
        None => failure[..ERROR_BYTES_MAX].to_vec(),
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FailedEvent<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Option<FailedResponse<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FailedResponse<'a> {
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

#[cfg(test)]
mod tests;
