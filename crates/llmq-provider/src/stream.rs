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
        let Self { splitter, state } = self;
        splitter.push(bytes, |event| state.take(event))
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
        let Self { splitter, state } = self;
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
        matches!(self.state.end, StreamEnd::Failed(_) | StreamEnd::Malformed)
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
        if matches!(self.end, StreamEnd::Failed(_) | StreamEnd::Malformed) {
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHAT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"the \\\"usage\\\" of it\"}}],\"usage\":null}\n\n: keep-alive\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":163}}\n\ndata: [DONE]\n\n";
    const RESPONSES: &str = "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"usage\":null}}\n\nevent: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\",\"error\":null,\"usage\":{\"input_tokens\":36,\"output_tokens\":87}}}\n\n";
    const ANTHROPIC: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":25,\"cache_read_input_tokens\":5,\"output_tokens\":1}}}\n\nevent: ping\ndata: {\"type\":\"ping\"}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

    const STREAMS: [(Dialect, Operation, &str, u64); 3] = [
        (Dialect::OpenAi, Operation::ChatCompletions, CHAT, 175),
        (Dialect::OpenAi, Operation::Responses, RESPONSES, 123),
        (Dialect::Anthropic, Operation::Messages, ANTHROPIC, 45),
    ];

    fn read(dialect: Dialect, operation: Operation, text: &str) -> (StreamEnd, Option<u64>) {
        let mut reader = StreamReader::new(dialect, operation);
        reader.push(text.as_bytes()).unwrap();
        (reader.finish(), reader.usage().map(|usage| usage.total()))
    }

    #[test]
    fn each_dialect_ends_in_its_own_way_and_tells_its_usage() {
        for (dialect, operation, text, tokens) in STREAMS {
            assert_eq!(
                read(dialect, operation, text),
                (StreamEnd::Whole, Some(tokens))
            );
        }
    }

    #[test]
    fn the_output_so_far_is_never_more_than_the_whole() {
        for (dialect, operation, text, least) in [
            (Dialect::OpenAi, Operation::ChatCompletions, CHAT, 1),
            (
                Dialect::OpenAi,
                Operation::ChatCompletions,
                "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
                 data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
                 data: {\"choices\":[{\"text\":\"b\"}]}\n\n\
                 data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
                 data: [DONE]\n\n",
                2,
            ),
            (
                Dialect::OpenAi,
                Operation::Responses,
                "event: response.output_text.delta\ndata: {\"delta\":\"a\"}\n\n\
                 event: response.output_text.done\ndata: {\"text\":\"a\"}\n\n",
                1,
            ),
            (
                Dialect::Anthropic,
                Operation::Messages,
                "event: message_start\ndata: {\"type\":\"message_start\"}\n\n\
                 event: content_block_delta\ndata: {\"delta\":{\"type\":\"text_delta\",\"text\":\"a\"}}\n\n\
                 data: {\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"\"}}\n\n\
                 data: {\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{\"}}\n\n\
                 data: {\"delta\":{\"type\":\"signature_delta\",\"signature\":\"x\"}}\n\n\
                 event: message_delta\ndata: {\"delta\":{\"stop_reason\":\"end_turn\"}}\n\n\
                 event: content_block_stop\ndata: {\"type\":\"content_block_stop\"}\n\n",
                2,
            ),
        ] {
            let mut reader = StreamReader::new(dialect, operation).counting();
            reader.push(text.as_bytes()).unwrap();
            assert_eq!(reader.output_at_least(), Some(least), "{text}");
        }
        let reader = StreamReader::new(Dialect::OpenAi, Operation::ChatCompletions);
        assert_eq!(reader.output_at_least(), None);
    }

    #[test]
    fn a_stream_cut_anywhere_before_its_end_is_never_whole() {
        for (dialect, operation, text, _) in STREAMS {
            // The last bytes are line ends, and the brace that closes the last object.
            let last = text.trim_end().len() - 1;
            for cut in 0..last {
                let (end, _) = read(dialect, operation, &text[..cut]);
                assert_eq!(end, StreamEnd::CutOff, "{}", &text[..cut]);
            }
        }
    }

    #[test]
    fn a_stream_that_has_finished_is_whole_without_its_last_event() {
        let text = "data: {\"choices\":[{\"delta\":{},\"finish_reason\": \"stop\"}]}\n\n";
        let chat = Operation::ChatCompletions;
        assert_eq!(read(Dialect::OpenAi, chat, text).0, StreamEnd::Whole);
        for open in ["null", "\"\""] {
            let open = text.replace("\"stop\"", open);
            assert_eq!(read(Dialect::OpenAi, chat, &open).0, StreamEnd::CutOff);
        }
    }

    /// Each prefix of such a stream looked whole, and a cut one was ended cleanly.
    #[test]
    fn a_stream_whose_every_chunk_gives_a_reason_is_whole_with_its_last_event_alone() {
        let chunk = |word: &str| {
            format!(
                "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{word}\"}},\
                 \"finish_reason\":\"stop\"}}]}}\n\n"
            )
        };
        let chat = Operation::ChatCompletions;
        let begun = format!("{}{}", chunk("a"), chunk("b"));
        assert_eq!(read(Dialect::OpenAi, chat, &begun).0, StreamEnd::CutOff);
        let whole = format!("{begun}data: [DONE]\n\n");
        assert_eq!(read(Dialect::OpenAi, chat, &whole).0, StreamEnd::Whole);
    }

    /// The first chunk of such a stream looked like a whole answer, and its connection was not
    /// waited for.
    #[test]
    fn a_reason_in_the_first_chunk_makes_no_whole_of_a_body_that_broke() {
        let chunk = |delta: &str, reason: &str| {
            format!("data: {{\"choices\":[{{\"delta\":{delta},\"finish_reason\":{reason}}}]}}\n\n")
        };
        let role = r#"{"role":"assistant","content":""}"#;
        let word = r#"{"content":"a"}"#;
        let (stop, none) = ("\"stop\"", "null");
        for (text, is_whole) in [
            (chunk(role, stop), false),
            (chunk(word, stop), false),
            (format!("{}{}", chunk(role, none), chunk(word, stop)), false),
            (format!("{}{}", chunk(word, none), chunk("{}", stop)), true),
            (format!("{}{}", chunk(role, none), chunk("{}", stop)), true),
            (format!("{}data: [DONE]", chunk(word, stop)), true),
        ] {
            let mut reader = StreamReader::new(Dialect::OpenAi, Operation::ChatCompletions);
            reader.push(text.as_bytes()).unwrap();
            let is_done = text.ends_with("[DONE]");
            assert_eq!(reader.is_all_there(), is_whole && !is_done, "{text}");
            assert_eq!(reader.broke() == StreamEnd::Whole, is_whole, "{text}");
            // A body that ended in order says that there is no more.
            let (end, _) = read(Dialect::OpenAi, Operation::ChatCompletions, &text);
            assert_eq!(end, StreamEnd::Whole, "{text}");
        }
    }

    /// A thought, or the next word, may take longer than a last event.
    #[test]
    fn what_goes_on_after_its_reason_is_not_all_there() {
        let mut reader = StreamReader::new(Dialect::OpenAi, Operation::ChatCompletions);
        let mut push = |delta: &str, reason: &str| {
            let text = format!(
                "data: {{\"choices\":[{{\"delta\":{delta},\"finish_reason\":{reason}}}]}}\n\n"
            );
            reader.push(text.as_bytes()).unwrap();
            reader.is_all_there()
        };
        let word = r#"{"content":"a"}"#;
        assert!(!push(word, "null"));
        assert!(push(word, "\"stop\""));
        assert!(!push(word, "\"stop\""));
        assert!(!push("{}", "\"stop\""));
    }

    /// The first of several answers to end made a stream whole that was cut in the middle of the
    /// others.
    #[test]
    fn a_stream_of_several_answers_is_whole_when_all_of_them_have_finished() {
        let choice = |index: u32, reason: &str| {
            format!("{{\"index\":{index},\"delta\":{{}},\"finish_reason\":{reason}}}")
        };
        let event =
            |choices: &[String]| format!("data: {{\"choices\":[{}]}}\n\n", choices.join(","));
        let end = |text: &str| {
            let mut reader = StreamReader::new(Dialect::OpenAi, Operation::ChatCompletions).of(2);
            reader.push(text.as_bytes()).unwrap();
            reader.finish()
        };
        let one = event(&[choice(0, "null"), choice(1, "\"stop\"")]);
        assert_eq!(end(&one), StreamEnd::CutOff);
        let other = event(&[choice(0, "\"length\"")]);
        assert_eq!(end(&format!("{one}{other}")), StreamEnd::Whole);
    }

    /// A failed response repeats what was asked. Long instructions pushed the error out of what
    /// was kept, and a used-up limit became a hiccup.
    #[test]
    fn a_failure_is_kept_however_long_what_stands_beside_it_is() {
        let long = "x".repeat(ERROR_BYTES_MAX);
        let error = "{\"code\":\"rate_limit_exceeded\"}";
        let kept = StreamEnd::Failed(format!("{{\"error\":{error}}}").into_bytes());
        let response = format!(
            "event: response.failed\ndata: {{\"type\":\"response.failed\",\"response\":{{\"instructions\":\"{long}\",\"error\":{error}}}}}\n\n"
        );
        assert_eq!(
            read(Dialect::OpenAi, Operation::Responses, &response).0,
            kept
        );
        let chunk = format!("data: {{\"debug\":\"{long}\",\"error\":{error}}}\n\n");
        let chat = read(Dialect::OpenAi, Operation::ChatCompletions, &chunk);
        assert_eq!(chat.0, kept);
    }

    #[test]
    fn an_event_that_is_no_object_breaks_the_stream() {
        let text = "data: {\"choices\":[{\"de\n\ndata: {\"choices\":[]}\n\ndata: [DONE]\n\n";
        let chat = Operation::ChatCompletions;
        assert_eq!(read(Dialect::OpenAi, chat, text).0, StreamEnd::Malformed);
    }

    #[test]
    fn names_of_events_may_be_missing_and_foreign_ends_do_not_count() {
        let nameless = ANTHROPIC.replace("event: message_stop\n", "");
        let anthropic = read(Dialect::Anthropic, Operation::Messages, &nameless);
        assert_eq!(anthropic.0, StreamEnd::Whole);
        let done = "data: [DONE]\n\n";
        let responses = read(Dialect::OpenAi, Operation::Responses, done);
        assert_eq!(responses.0, StreamEnd::CutOff);
    }

    #[test]
    fn failures_in_the_middle_are_kept_for_the_classifier() {
        let table = [
            (
                Dialect::Anthropic,
                Operation::Messages,
                "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
                "{\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}",
            ),
            (
                Dialect::OpenAi,
                Operation::Responses,
                "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"server_error\"}}}\n\n",
                "{\"error\":{\"code\":\"server_error\"}}",
            ),
            (
                Dialect::OpenAi,
                Operation::Responses,
                "event: error\ndata: {\"type\":\"error\",\"code\":\"context_length_exceeded\"}\n\n",
                "{\"error\":{\"type\":\"error\",\"code\":\"context_length_exceeded\"}}",
            ),
            (
                Dialect::OpenAi,
                Operation::ChatCompletions,
                "data: {\"error\":{\"code\":502}}\n\ndata: [DONE]\n\n",
                "{\"error\":{\"code\":502}}",
            ),
            // It was a success, as a whole answer with this reason is none.
            (
                Dialect::OpenAi,
                Operation::ChatCompletions,
                "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"error\"}]}\n\ndata: [DONE]\n\n",
                "{\"choices\":[{\"delta\":{},\"finish_reason\":\"error\"}]}",
            ),
        ];
        for (dialect, operation, text, kept) in table {
            let failed = StreamEnd::Failed(kept.as_bytes().to_vec());
            assert_eq!(read(dialect, operation, text).0, failed);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_look_whole(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for (dialect, operation, _, _) in STREAMS {
                let mut reader = StreamReader::new(dialect, operation);
                prop_assert_eq!(reader.push(&bytes), Ok(()));
                prop_assert_ne!(reader.finish(), StreamEnd::Whole);
            }
        }
    }
}
