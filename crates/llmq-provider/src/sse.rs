use memchr::{memchr, memchr2};

/// The largest event that is accepted: 8 MiB. The Responses API repeats the whole answer in
/// its last event, so this bounds a streamed answer too.
pub const EVENT_BYTES_MAX: usize = 8 << 20;

/// One event of a stream, borrowed from the splitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// The `event` field; empty when there is none.
    pub name: &'a [u8],
    /// The `data` fields, joined by line feeds.
    pub data: &'a [u8],
}

/// An event is larger than [`EVENT_BYTES_MAX`], or than the bound that was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is larger than {max_bytes} bytes")]
pub struct EventTooLarge {
    /// The bound.
    pub max_bytes: usize,
}

/// Cuts passing bytes into events (WHATWG HTML, "Server-sent events", 9.2.6).
///
/// Lines end with LF, CR or CRLF; comments, `id` and `retry` are passed over, a byte order
/// mark at the start too. Pieces may be cut anywhere.
///
/// ```
/// use llmq_provider::SseSplitter;
/// let mut splitter = SseSplitter::new();
/// let mut seen = Vec::new();
/// for piece in [": hi\nda", "ta: {\"a\":1}\r", "\n\r\n"] {
///     splitter.push(piece.as_bytes(), |event| seen.push(event.data.to_vec())).unwrap();
/// }
/// assert_eq!(seen, [b"{\"a\":1}"]);
/// ```
#[derive(Debug)]
pub struct SseSplitter {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    name: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was a CR, so that an LF now belongs to the same line end.
    after_cr: bool,
    at_start: bool,
    max_bytes: usize,
}

impl Default for SseSplitter {
    fn default() -> Self {
        Self::new()
    }
}

impl SseSplitter {
    /// A splitter at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::with_max(EVENT_BYTES_MAX)
    }

    /// A splitter that takes events of at most `max_bytes`.
    #[must_use]
    pub fn with_max(max_bytes: usize) -> Self {
        Self {
            line: Vec::new(),
            name: Vec::new(),
            data: Vec::new(),
            has_data: false,
            after_cr: false,
            at_start: true,
            max_bytes,
        }
    }

    /// Takes the next bytes and calls `on_event` for each event they complete.
    ///
    /// # Errors
    ///
    /// [`EventTooLarge`]; the stream cannot be read further then.
    pub fn push(
        &mut self,
        bytes: &[u8],
        mut on_event: impl FnMut(SseEvent<'_>),
    ) -> Result<(), EventTooLarge> {
        let each = |event: SseEvent<'_>| {
            on_event(event);
            false
        };
        self.push_until(bytes, each)?;
        Ok(())
    }

    /// The same as far as the end of the event that `is_last`; tells how many of the bytes were
    /// taken.
    pub(crate) fn push_until(
        &mut self,
        all: &[u8],
        mut is_last: impl FnMut(SseEvent<'_>) -> bool,
    ) -> Result<usize, EventTooLarge> {
        let mut bytes = all;
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(at) = memchr2(b'\n', b'\r', bytes) {
            let is_cr = bytes[at] == b'\r';
            let (part, rest) = (&bytes[..at], &bytes[at + 1..]);
            let is_enough = self.end_line(part, &mut is_last)?;
            self.after_cr = is_cr && rest.is_empty();
            bytes = match rest {
                [b'\n', rest @ ..] if is_cr => rest,
                rest => rest,
            };
            if is_enough {
                return Ok(all.len() - bytes.len());
            }
        }
        self.check(self.line.len() + bytes.len())?;
        self.line.extend_from_slice(bytes);
        Ok(all.len())
    }

    /// Takes the end of the stream as the end of its last line and event.
    ///
    /// The standard drops an event without its blank line, but servers leave it out after
    /// their last one, and what was really cut off is found by its content.
    pub fn finish(&mut self, mut on_event: impl FnMut(SseEvent<'_>)) {
        let mut each = |event: SseEvent<'_>| {
            on_event(event);
            false
        };
        // Neither call grows the event beyond what `push` has checked.
        let _ = self.end_line(b"", &mut each);
        self.dispatch(&mut each);
    }

    /// Whether the line ends the event that is the last.
    fn end_line(
        &mut self,
        part: &[u8],
        is_last: &mut impl FnMut(SseEvent<'_>) -> bool,
    ) -> Result<bool, EventTooLarge> {
        if self.line.is_empty() {
            return self.take_line(part, is_last);
        }
        self.check(self.line.len() + part.len())?;
        let mut line = std::mem::take(&mut self.line);
        line.extend_from_slice(part);
        let taken = self.take_line(&line, is_last);
        line.clear();
        self.line = line;
        taken
    }

    fn take_line(
        &mut self,
        mut line: &[u8],
        is_last: &mut impl FnMut(SseEvent<'_>) -> bool,
    ) -> Result<bool, EventTooLarge> {
        self.check(line.len())?;
        if std::mem::replace(&mut self.at_start, false) {
            line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        }
        if line.is_empty() {
            return Ok(self.dispatch(is_last));
        }
        let (field, value) = match memchr(b':', line) {
            Some(at) => (&line[..at], &line[at + 1..]),
            None => (line, &b""[..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"data" => {
                self.check(self.data.len() + value.len() + 1)?;
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
                self.has_data = true;
            }
            b"event" => {
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            _ => {}
        }
        Ok(false)
    }

    fn dispatch(&mut self, is_last: &mut impl FnMut(SseEvent<'_>) -> bool) -> bool {
        let has_data = std::mem::replace(&mut self.has_data, false);
        let is_enough = has_data
            && is_last(SseEvent {
                name: &self.name,
                data: &self.data,
            });
        self.name.clear();
        self.data.clear();
        is_enough
    }

    fn check(&self, bytes: usize) -> Result<(), EventTooLarge> {
        if bytes <= self.max_bytes {
            return Ok(());
        }
        Err(EventTooLarge {
            max_bytes: self.max_bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Seen = Vec<(String, String)>;

    fn split(pieces: &[&[u8]]) -> Seen {
        let mut splitter = SseSplitter::new();
        let mut seen = Vec::new();
        let mut note = |event: SseEvent<'_>| {
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            seen.push((text(event.name), text(event.data)));
        };
        for piece in pieces {
            splitter.push(piece, &mut note).unwrap();
        }
        splitter.finish(&mut note);
        seen
    }

    fn events(text: &str) -> Seen {
        split(&[text.as_bytes()])
    }

    fn data(values: &[&str]) -> Seen {
        values
            .iter()
            .map(|value| (String::new(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn events_are_cut_as_the_standard_says() {
        // The examples of WHATWG HTML 9.2.6.
        assert_eq!(
            events("data: YHOO\ndata: +2\ndata: 10\n\n"),
            data(&["YHOO\n+2\n10"])
        );
        assert_eq!(
            events(
                ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n"
            ),
            data(&["first event", "second event", " third event"])
        );
        assert_eq!(
            events("data\n\ndata\ndata\n\ndata:\n\n"),
            data(&["", "\n", ""])
        );
        assert_eq!(
            events("data:test\n\ndata: test\n\n"),
            data(&["test", "test"])
        );
    }

    #[test]
    fn all_three_line_ends_and_the_byte_order_mark_are_read() {
        assert_eq!(
            events("data: a\r\rdata: b\r\n\r\ndata: c\n\n"),
            data(&["a", "b", "c"])
        );
        assert_eq!(events("\u{feff}data: a\n\n"), data(&["a"]));
        assert_eq!(
            events("event: ping\ndata: {}\n\ndata: x\n\n"),
            [("ping".into(), "{}".into()), (String::new(), "x".into())]
        );
    }

    #[test]
    fn a_name_without_data_is_no_event_and_does_not_reach_the_next() {
        assert_eq!(events("event: lost\n\ndata: x\n\n"), data(&["x"]));
    }

    #[test]
    fn an_event_above_the_bound_is_an_error_and_not_memory() {
        let mut splitter = SseSplitter::with_max(100);
        assert_eq!(splitter.push(&[b'x'; 100], |_| {}), Ok(()));
        assert!(splitter.push(&[b'x'; 1], |_| {}).is_err());
        let mut splitter = SseSplitter::with_max(100);
        let lines = b"data: 0123456789\n".repeat(20);
        assert!(splitter.push(&lines, |_| {}).is_err());
    }

    /// Found by fuzzing: a long comment, name or id that came in one piece was taken, and the same
    /// in two pieces refused.
    #[test]
    fn a_line_above_the_bound_is_refused_however_it_comes() {
        for field in [": ", "event: ", "id: "] {
            let line = format!("{field}{}\n", "x".repeat(100));
            for cut in [0, 50] {
                let (head, tail) = line.as_bytes().split_at(cut);
                let mut splitter = SseSplitter::with_max(100);
                let taken = splitter.push(head, |_| {});
                assert!(taken.and_then(|()| splitter.push(tail, |_| {})).is_err());
            }
        }
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let bit = prop_oneof![
            Just("data: {\"a\":1}"),
            Just("data"),
            Just("event: x"),
            Just(": comment"),
            Just("id: 7"),
            Just("\u{feff}"),
            Just("\n"),
            Just("\r"),
            Just("\r\n"),
            Just("\n\n"),
            Just("é:"),
        ];
        proptest::collection::vec(bit, 0..40).prop_map(|bits| bits.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn where_the_bytes_are_cut_does_not_matter(
            stream in stream(),
            mut cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut at: Vec<usize> = cuts.drain(..).map(|cut| cut.index(stream.len() + 1)).collect();
            at.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for to in at {
                pieces.push(&stream[from..to]);
                from = to;
            }
            pieces.push(&stream[from..]);
            prop_assert_eq!(split(&pieces), split(&[&stream]));
        }
    }
}
