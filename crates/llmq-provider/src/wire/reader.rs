use std::fmt;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};

use super::chunks::Chunks;
use super::head::{Framing, Head};

/// Reads one HTTP/1.1 answer from the bytes of its connection, in whatever pieces they come.
///
/// It holds no bytes but those of a head that is not all there. Answers that say of themselves
/// that they are not the last word (`100 Continue`, `103 Early Hints`) are passed over.
///
/// ```
/// use http::Method;
/// use llmq_provider::AnswerReader;
///
/// let mut reader = AnswerReader::new(&Method::POST);
/// let mut bytes = *b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!";
/// let came = reader.push(&mut bytes)?;
/// assert_eq!(came.head.unwrap().status, 200);
/// assert_eq!(came.body, "hi!");
/// // To end here would be to end in the middle.
/// assert!(!reader.is_ended());
/// reader.push(&mut *b"\r\n0\r\n\r\n".to_vec())?;
/// assert!(reader.is_ended() && reader.leaves_connection());
/// # Ok::<(), llmq_provider::WireFault>(())
/// ```
#[derive(Debug)]
pub struct AnswerReader {
    state: State,
    asked: Method,
    keep_alive: bool,
}

#[derive(Debug)]
enum State {
    /// What there is of the head.
    Head(BytesMut),
    Length(u64),
    Chunked(Chunks),
    UntilClose,
    Ended,
}

/// Status and headers of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerHead {
    /// The status, which is 200 or above.
    pub status: StatusCode,
    /// The headers as they came, those of the connection included.
    pub headers: HeaderMap,
}

/// What some bytes added to an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Came {
    /// The head, if they held its end.
    pub head: Option<AnswerHead>,
    /// What they held of the body; chunks that came together are one piece.
    pub body: Bytes,
}

/// Why bytes are no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireFault {
    /// The connection ended before the answer did.
    #[error("the connection ended before the answer")]
    CutOff,
    /// It is not HTTP, or HTTP that could be read in two ways.
    #[error("{0}")]
    NotHttp(String),
}

impl WireFault {
    pub(super) fn not_http(why: impl fmt::Display) -> Self {
        Self::NotHttp(why.to_string())
    }
}

impl AnswerReader {
    /// A reader for the answer to a request with this method.
    #[must_use]
    pub fn new(asked: &Method) -> Self {
        Self {
            state: State::Head(BytesMut::new()),
            asked: asked.clone(),
            keep_alive: false,
        }
    }

    /// Reads on. What `bytes` hold afterwards means nothing.
    ///
    /// # Errors
    ///
    /// [`WireFault::NotHttp`]; the connection is of no use then, nor is the reader.
    pub fn push(&mut self, bytes: &mut [u8]) -> Result<Came, WireFault> {
        if bytes.is_empty() {
            return Ok(Came::default());
        }
        if let State::Head(held) = &mut self.state {
            let is_first = held.is_empty();
            held.extend_from_slice(bytes);
            // One that comes byte by byte is read once a line, of which there are few.
            if !is_first && memchr::memchr(b'\n', bytes).is_none() {
                return check_length(held).map(|()| Came::default());
            }
            let held = std::mem::take(held).freeze();
            return self.begin(held);
        }
        let size = self.body(bytes)?;
        Ok(Came {
            head: None,
            body: Bytes::copy_from_slice(&bytes[..size]),
        })
    }

    /// The connection has ended, and in order.
    ///
    /// # Errors
    ///
    /// [`WireFault::CutOff`] if the answer has not, [`WireFault::NotHttp`] if what there was of
    /// it was none.
    pub fn close(&mut self) -> Result<(), WireFault> {
        match &mut self.state {
            State::Head(held) => {
                let held = std::mem::take(held).freeze();
                Head::read(&held, &self.asked)?;
                Err(WireFault::CutOff)
            }
            State::Length(_) | State::Chunked(_) => Err(WireFault::CutOff),
            State::UntilClose | State::Ended => {
                self.state = State::Ended;
                self.keep_alive = false;
                Ok(())
            }
        }
    }

    /// Whether the whole answer was there.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Whether the answer has ended and the connection can carry another one. It cannot when
    /// anything came after the end, which nobody asked for.
    #[must_use]
    pub fn leaves_connection(&self) -> bool {
        self.is_ended() && self.keep_alive
    }

    /// How much of the body is still to come at least.
    #[must_use]
    pub fn bytes_left(&self) -> u64 {
        match self.state {
            State::Length(left) => left,
            _ => 0,
        }
    }

    /// Reads the head that `bytes` begin with, and on into the body.
    fn begin(&mut self, mut bytes: Bytes) -> Result<Came, WireFault> {
        let head = loop {
            let Some(head) = Head::read(&bytes, &self.asked)? else {
                let held = bytes.try_into_mut();
                self.state = State::Head(held.unwrap_or_else(|bytes| BytesMut::from(&bytes[..])));
                return Ok(Came::default());
            };
            bytes = bytes.split_off(head.length);
            if !head.is_interim() {
                break head;
            }
            if bytes.is_empty() {
                self.state = State::Head(BytesMut::new());
                return Ok(Came::default());
            }
        };
        self.keep_alive = head.keep_alive;
        self.state = match head.framing {
            Framing::Length(0) => State::Ended,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked(Chunks::new()),
            Framing::UntilClose => State::UntilClose,
        };
        Ok(Came {
            head: Some(head.answer),
            body: self.first(bytes)?,
        })
    }

    /// What came of the body with the head; only chunks have to be copied out of it.
    fn first(&mut self, mut bytes: Bytes) -> Result<Bytes, WireFault> {
        if bytes.is_empty() {
            return Ok(bytes);
        }
        if matches!(self.state, State::Chunked(_)) {
            let mut copy = BytesMut::from(&bytes[..]);
            let size = self.body(&mut copy)?;
            copy.truncate(size);
            return Ok(copy.freeze());
        }
        let size = self.plain(bytes.len());
        bytes.truncate(size);
        Ok(bytes)
    }

    /// How much of the body stands at the front of `bytes` afterwards.
    fn body(&mut self, bytes: &mut [u8]) -> Result<usize, WireFault> {
        let State::Chunked(chunks) = &mut self.state else {
            return Ok(self.plain(bytes.len()));
        };
        let part = chunks.read(bytes)?;
        if chunks.is_ended() {
            self.state = State::Ended;
            self.keep_alive &= part.used == bytes.len();
        }
        Ok(part.data)
    }

    /// How much of so many bytes is the body's, where it comes as it is.
    fn plain(&mut self, came: usize) -> usize {
        match &mut self.state {
            State::Length(left) if came as u64 >= *left => {
                let size = usize::try_from(*left).unwrap_or(came);
                self.keep_alive &= size == came;
                self.state = State::Ended;
                size
            }
            State::Length(left) => {
                *left -= came as u64;
                came
            }
            State::UntilClose => came,
            State::Head(_) | State::Chunked(_) | State::Ended => {
                self.keep_alive = false;
                0
            }
        }
    }
}

fn check_length(held: &[u8]) -> Result<(), WireFault> {
    if held.len() > super::head::HEAD_BYTES_MAX {
        return Err(WireFault::not_http("its head is too long"));
    }
    Ok(())
}
