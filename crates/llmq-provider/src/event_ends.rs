use bytes::Bytes;
use memchr::memchr2;

/// Finds where the events of a stream end, in bytes that come cut anywhere (WHATWG HTML,
/// "Server-sent events", 9.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct EventEnds {
    line: Line,
}

/// Where in a line the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Line {
    /// At its start: a line end here ends the event.
    #[default]
    Start,
    Inside,
    /// Behind a CR, whose LF may follow; `true` when that line was empty.
    AfterCr(bool),
}

impl EventEnds {
    /// Where the event ends that goes on at `from`, its blank line included. None: behind these
    /// bytes, or with a CR as the last of them.
    pub(crate) fn next(&mut self, bytes: &[u8], from: usize) -> Option<usize> {
        let mut at = from;
        while at < bytes.len() {
            if let Line::AfterCr(was_empty) = self.line {
                self.line = Line::Start;
                let has_lf = bytes[at] == b'\n';
                at += usize::from(has_lf);
                if was_empty {
                    return Some(at);
                }
                continue;
            }
            let Some(found) = memchr2(b'\n', b'\r', &bytes[at..]) else {
                self.line = Line::Inside;
                return None;
            };
            let is_empty = found == 0 && self.line == Line::Start;
            at += found + 1;
            if bytes[at - 1] == b'\r' {
                self.line = Line::AfterCr(is_empty);
            } else {
                self.line = Line::Start;
                if is_empty {
                    return Some(at);
                }
            }
        }
        None
    }
}

/// Passes on what is not empty.
pub(crate) fn pass_some(bytes: Bytes, pass: &mut impl FnMut(Bytes)) {
    if !bytes.is_empty() {
        pass(bytes);
    }
}
