use bytes::{Bytes, BytesMut};
use memchr::memmem;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::event_ends::{EventEnds, pass_some};
use crate::{EVENT_BYTES_MAX, SseSplitter};

/// Takes out of a stream the chunk that `include_usage` adds, for a caller who did not ask.
///
/// All other bytes pass unchanged and in order, an event as soon as it is whole. Its size is not
/// bounded here: a [`crate::StreamReader`] that reads the same bytes refuses what is too large.
///
/// ```
/// use bytes::Bytes;
/// use llmq_provider::UsageChunkFilter;
/// let mut filter = UsageChunkFilter::default();
/// let mut passed = Vec::new();
/// let usage = "data: {\"choices\":[],\"usage\":{\"total_tokens\":5}}\n\ndata: [DONE]\n\n";
/// filter.push(Bytes::from(usage), |bytes| passed.extend_from_slice(&bytes));
/// assert_eq!(passed, b"data: [DONE]\n\n");
/// ```
#[derive(Debug, Default)]
pub struct UsageChunkFilter {
    /// An event that is not whole yet.
    held: BytesMut,
    ends: EventEnds,
}

impl UsageChunkFilter {
    /// Takes the next bytes, cut anywhere, and passes on what is whole.
    pub fn push(&mut self, piece: Bytes, mut pass: impl FnMut(Bytes)) {
        let mut rest = piece;
        // Whole events of the piece that stay are passed on as one.
        let mut kept = 0;
        let mut from = 0;
        while let Some(end) = self.ends.next(&rest, from) {
            if self.held.is_empty() {
                if is_usage_chunk(&rest[from..end]) {
                    pass_some(rest.slice(kept..from), &mut pass);
                    kept = end;
                }
                from = end;
            } else {
                self.held.extend_from_slice(&rest.split_to(end));
                let event = self.held.split().freeze();
                if !is_usage_chunk(&event) {
                    pass(event);
                }
                (kept, from) = (0, 0);
            }
        }
        pass_some(rest.slice(kept..from), &mut pass);
        self.held.extend_from_slice(&rest[from..]);
        if self.held.len() > EVENT_BYTES_MAX {
            // It is no usage.
            pass(self.held.split().freeze());
        }
    }

    /// Takes the end of the stream: an event that lacks its blank line passes as it is.
    pub fn finish(&mut self, mut pass: impl FnMut(Bytes)) {
        let last = self.held.split().freeze();
        if !is_usage_chunk(&last) {
            pass_some(last, &mut pass);
        }
    }
}

/// Whether an event is the chunk of a stream that holds its usage and no part of an answer
/// (openai-openapi, August 2026: `choices` is empty there).
fn is_usage_chunk(event: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Chunk {
        choices: Vec<IgnoredAny>,
        usage: Option<IgnoredAny>,
    }
    // Nearly all events have choices, and are not read.
    if !has_no_choices(event) {
        return false;
    }
    let mut is_one = false;
    let mut splitter = SseSplitter::new();
    let mut look = |data: &[u8]| {
        let chunk = serde_json::from_slice::<Chunk>(data);
        is_one = chunk.is_ok_and(|chunk| chunk.choices.is_empty() && chunk.usage.is_some());
    };
    if splitter.push(event, |event| look(event.data)).is_ok() {
        splitter.finish(|event| look(event.data));
    }
    is_one
}

fn has_no_choices(event: &[u8]) -> bool {
    memmem::find(event, b"\"choices\"").is_some_and(|at| {
        let rest = event[at + 9..].trim_ascii_start();
        let rest = rest.strip_prefix(b":").unwrap_or(rest).trim_ascii_start();
        rest.strip_prefix(b"[")
            .is_some_and(|rest| rest.trim_ascii_start().starts_with(b"]"))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str =
        r#"data: {"choices":[{"delta":{"content":"a \"choices\":[] b"}}],"usage":null}"#;
    const FILTERS: &str = r#"data: {"choices":[],"prompt_filter_results":[]}"#;
    const NULL: &str = r#"data: {"choices":[],"usage":null}"#;
    const USAGE: &str = r#"data: {"id":"1","choices": [ ],"usage":{"total_tokens":5}}"#;
    const DONE: &str = "data: [DONE]";
    const PING: &str = ": ping";

    fn filtered(pieces: &[&[u8]]) -> String {
        let mut filter = UsageChunkFilter::default();
        let mut passed = Vec::new();
        for piece in pieces {
            let piece = Bytes::copy_from_slice(piece);
            filter.push(piece, |bytes| passed.extend_from_slice(&bytes));
        }
        filter.finish(|bytes| passed.extend_from_slice(&bytes));
        String::from_utf8(passed).unwrap()
    }

    fn stream(events: &[&str], end: &str) -> String {
        events
            .iter()
            .map(|event| format!("{event}{end}{end}"))
            .collect()
    }

    #[test]
    fn an_event_passes_as_soon_as_it_is_whole() {
        let mut filter = UsageChunkFilter::default();
        let mut passed = Vec::new();
        filter.push(Bytes::from("data: {}\n\ndata: {"), |bytes| {
            passed.push(bytes);
        });
        assert_eq!(passed, ["data: {}\n\n"]);
        filter.push(Bytes::from("}\n"), |bytes| passed.push(bytes));
        assert_eq!(passed.len(), 1);
        filter.push(Bytes::from("\n"), |bytes| passed.push(bytes));
        assert_eq!(passed[1], "data: {}\n\n");
    }

    #[test]
    fn a_usage_chunk_without_its_blank_line_is_one() {
        assert_eq!(filtered(&[USAGE.as_bytes()]), "");
        assert_eq!(filtered(&[NULL.as_bytes()]), NULL);
    }

    proptest! {
        #[test]
        fn only_the_usage_chunk_is_taken_out_however_the_bytes_are_cut(
            events in proptest::collection::vec(
                prop_oneof![Just(TEXT), Just(FILTERS), Just(NULL), Just(USAGE), Just(DONE), Just(PING)],
                0..8,
            ),
            end in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
            mut cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let whole = stream(&events, end);
            let others: Vec<&str> = events.into_iter().filter(|event| *event != USAGE).collect();
            let mut at: Vec<usize> = cuts.drain(..).map(|cut| cut.index(whole.len() + 1)).collect();
            at.sort_unstable();
            at.push(whole.len());
            let mut from = 0;
            let pieces: Vec<&[u8]> = at
                .into_iter()
                .map(|to| &whole.as_bytes()[std::mem::replace(&mut from, to)..to])
                .collect();
            prop_assert_eq!(filtered(&pieces), stream(&others, end));
        }
    }
}
