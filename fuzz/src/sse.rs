//! The reader of server-sent events, against a plain reading of the standard.

use llmq_provider::{Dialect, Operation, SseEvent, SseSplitter, StreamReader};

use crate::pieces::cuts;

/// Small enough that inputs reach it.
const SMALL: usize = 64;

type Events = Vec<(Vec<u8>, Vec<u8>)>;

/// Any bytes give the events that the standard says, however they are cut; a bound is kept; and
/// what a stream's reader says of it and of its end does not depend on the cuts either.
pub fn check(stream: &[u8]) {
    let whole = split(&[stream], usize::MAX).expect("there is no bound");
    assert_eq!(whole, plain(stream));
    let small = split(&[stream], SMALL);
    for (name, data) in small.iter().flatten() {
        assert!(name.len() <= SMALL && data.len() <= SMALL);
    }
    for pieces in cuts(stream) {
        assert_eq!(split(&pieces, usize::MAX).as_ref(), Some(&whole));
        assert_eq!(split(&pieces, SMALL), small);
    }
    for (dialect, operation) in [
        (Dialect::OpenAi, Operation::ChatCompletions),
        (Dialect::OpenAi, Operation::Responses),
        (Dialect::Anthropic, Operation::Messages),
    ] {
        let read = |pieces: &[&[u8]]| {
            let mut reader = StreamReader::new(dialect, operation).telling();
            for piece in pieces {
                reader.push(piece).expect("inputs are small");
            }
            (reader.finish(), reader.events(), reader.facts())
        };
        let whole = read(&[stream]);
        assert!(cuts(stream).all(|pieces| read(&pieces) == whole));
    }
}

/// `None` when an event is above the bound.
fn split(pieces: &[&[u8]], max_bytes: usize) -> Option<Events> {
    let mut splitter = SseSplitter::with_max(max_bytes);
    let mut seen = Vec::new();
    let mut note = |event: SseEvent<'_>| seen.push((event.name.to_vec(), event.data.to_vec()));
    for piece in pieces {
        splitter.push(piece, &mut note).ok()?;
    }
    splitter.finish(&mut note);
    Some(seen)
}

/// WHATWG HTML 9.2.6, line by line; the end of the stream ends the last event, as ours does.
fn plain(stream: &[u8]) -> Events {
    let (mut events, mut name, mut data) = (Vec::new(), Vec::new(), None::<Vec<u8>>);
    for line in lines(stream) {
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            _ if line.is_empty() => {
                let name = std::mem::take(&mut name);
                events.extend(data.take().map(|data| (name, data)));
                continue;
            }
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &[][..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match (field, &mut data) {
            (b"event", _) => name = value.to_vec(),
            (b"data", None) => data = Some(value.to_vec()),
            (b"data", Some(data)) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            _ => {}
        }
    }
    events.extend(data.map(|data| (name, data)));
    events
}

fn lines(stream: &[u8]) -> Vec<&[u8]> {
    let mut rest = stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream);
    let mut lines = Vec::new();
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        lines.push(&rest[..at]);
        let is_both = rest[at..].starts_with(b"\r\n");
        rest = &rest[at + 1 + usize::from(is_both)..];
    }
    lines.push(rest);
    // What follows the last line end is a line only if there is something of it; an empty one
    // would end an event, which the end of the stream does in any case.
    lines
}
