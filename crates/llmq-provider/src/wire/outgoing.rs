use bytes::Bytes;
use http::{HeaderMap, Method};

/// A body up to this size is copied behind its head, so that both go out in one write. Larger
/// ones begin with as much.
const JOINED_BYTES: usize = 16 << 10;
/// What follows goes out in pieces of this size, so that the last one is asked for only when
/// those before it are written.
const PIECE_BYTES: usize = 64 << 10;

/// What stands before a call's body.
pub(crate) struct RequestHead<'a> {
    pub(crate) method: &'a Method,
    /// Path and query.
    pub(crate) target: &'a str,
    /// Headers as they stand on the wire, line by line.
    pub(crate) lines: &'a [u8],
}

/// What is still to be written of a call.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// The head and the beginning of the body.
    front: Vec<u8>,
    /// So much of it is written.
    written: usize,
    rest: Bytes,
}

impl Outgoing {
    pub(crate) fn new(head: &RequestHead<'_>, mut body: Bytes) -> Self {
        /// The words between the parts, and a length.
        const AROUND: usize = 64;
        let joined = body.len().min(JOINED_BYTES);
        let room = head.target.len() + head.lines.len() + AROUND + joined;
        let mut front = Vec::with_capacity(room);
        let mut say = |bytes: &[u8]| front.extend_from_slice(bytes);
        say(head.method.as_str().as_bytes());
        say(b" ");
        say(head.target.as_bytes());
        say(b" HTTP/1.1\r\n");
        say(head.lines);
        // A server need not believe that a POST has no body (RFC 9110 §8.6).
        if !body.is_empty() || *head.method == Method::POST {
            say(b"content-length: ");
            say(itoa::Buffer::new().format(body.len()).as_bytes());
            say(b"\r\n");
        }
        say(b"\r\n");
        say(&body.split_to(joined));
        Self {
            front,
            written: 0,
            rest: body,
        }
    }

    /// What is to be written next; nothing once all is.
    pub(crate) fn next(&self) -> &[u8] {
        match &self.front[self.written..] {
            [] => &self.rest[..self.rest.len().min(PIECE_BYTES)],
            front => front,
        }
    }

    /// So much of [`Outgoing::next`] is written.
    pub(crate) fn wrote(&mut self, size: usize) {
        if self.written < self.front.len() {
            self.written += size;
        } else {
            self.rest = self.rest.slice(size..);
        }
    }
}

/// A line for each header.
pub(crate) fn lines(headers: &HeaderMap) -> Vec<u8> {
    let mut lines = Vec::new();
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that is written, `step` bytes at a time.
    fn written(body: usize, step: usize) -> Vec<u8> {
        let head = RequestHead {
            method: &Method::POST,
            target: "/v1/x?a=b",
            lines: b"host: h\r\n",
        };
        let mut outgoing = Outgoing::new(&head, Bytes::from(vec![b'x'; body]));
        let mut all = Vec::new();
        loop {
            let next = outgoing.next();
            let size = next.len().min(step);
            if size == 0 {
                return all;
            }
            all.extend_from_slice(&next[..size]);
            outgoing.wrote(size);
        }
    }

    #[test]
    fn a_call_is_written_whole_in_whatever_steps() {
        for body in [0, 1, JOINED_BYTES, JOINED_BYTES + 1, 3 * PIECE_BYTES] {
            let head =
                format!("POST /v1/x?a=b HTTP/1.1\r\nhost: h\r\ncontent-length: {body}\r\n\r\n");
            let whole = [head.into_bytes(), vec![b'x'; body]].concat();
            for step in [7, 1_000, PIECE_BYTES, usize::MAX] {
                let all = written(body, step);
                assert!(all == whole, "{body} bytes in steps of {step}");
            }
        }
    }

    #[test]
    fn a_get_states_no_length() {
        let head = RequestHead {
            method: &Method::GET,
            target: "/v1/models",
            lines: b"",
        };
        let outgoing = Outgoing::new(&head, Bytes::new());
        assert_eq!(outgoing.next(), b"GET /v1/models HTTP/1.1\r\n\r\n");
    }
}
