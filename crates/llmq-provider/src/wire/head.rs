use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{HeaderMap, Method, StatusCode};
use httparse::{ParserConfig, Response, Status};

use super::{AnswerHead, WireFault};

/// Far above what providers send, who come to some 3 kB with what stands before them.
pub(super) const HEAD_BYTES_MAX: usize = 64 << 10;
const HEADERS_MAX: usize = 128;

/// The head of an answer, and what it says of what follows.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) answer: AnswerHead,
    pub(super) framing: Framing,
    /// The connection may carry another call after this one.
    pub(super) keep_alive: bool,
    /// So many bytes of the input were the head's.
    pub(super) length: usize,
}

/// Where the body ends (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

impl Head {
    /// Reads the head that `bytes` begin with; `None` while it is not all there.
    pub(super) fn read(bytes: &Bytes, asked: &Method) -> Result<Option<Self>, WireFault> {
        let mut room = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let mut read = Response::new(&mut []);
        let length = match ParserConfig::default()
            .parse_response_with_uninit_headers(&mut read, bytes, &mut room)
        {
            Ok(Status::Complete(length)) if length <= HEAD_BYTES_MAX => length,
            Ok(Status::Partial) if bytes.len() <= HEAD_BYTES_MAX => return Ok(None),
            Ok(_) => return Err(WireFault::not_http("its head is too long")),
            Err(error) => return Err(WireFault::not_http(error)),
        };
        let status = StatusCode::from_u16(read.code.unwrap_or(0)).map_err(WireFault::not_http)?;
        let mut headers = HeaderMap::with_capacity(read.headers.len());
        let mut stated = Stated::default();
        for field in read.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes());
            let name = name.map_err(WireFault::not_http)?;
            let value = HeaderValue::from_maybe_shared(bytes.slice_ref(field.value));
            let value = value.map_err(WireFault::not_http)?;
            stated.note(&name, &value)?;
            headers.append(name, value);
        }
        let is_new = read.version == Some(1);
        let framing = stated.framing(status, asked, is_new)?;
        Ok(Some(Self {
            answer: AnswerHead { status, headers },
            keep_alive: stated.keeps_alive(status, framing, is_new),
            framing,
            length,
        }))
    }

    /// Whether the answer proper is still to come (RFC 9110 §15.2).
    pub(super) fn is_interim(&self) -> bool {
        self.answer.status.is_informational()
    }
}

/// What the headers say of the connection and the body.
#[derive(Default)]
struct Stated {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
}

impl Stated {
    fn note(&mut self, name: &HeaderName, value: &HeaderValue) -> Result<(), WireFault> {
        if *name == CONTENT_LENGTH {
            for member in members(value) {
                let stated = length(member)?;
                // The same said twice is the same (RFC 9110 §8.6).
                if self.length.is_some_and(|before| before != stated) {
                    return Err(WireFault::not_http("it states two lengths"));
                }
                self.length = Some(stated);
            }
        } else if *name == TRANSFER_ENCODING {
            // No other coding was asked for, and none is ever applied twice.
            if self.chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err(WireFault::not_http("its transfer coding is unknown"));
            }
            self.chunked = true;
        } else if *name == CONNECTION {
            for member in members(value) {
                self.close |= member.eq_ignore_ascii_case(b"close");
                self.keep_alive |= member.eq_ignore_ascii_case(b"keep-alive");
            }
        }
        Ok(())
    }

    fn framing(
        &self,
        status: StatusCode,
        asked: &Method,
        is_new: bool,
    ) -> Result<Framing, WireFault> {
        // Whoever believes the one and whoever believes the other see different answers on a
        // connection: so others' answers are smuggled in (RFC 9112 §6.3 and §11.2).
        if self.chunked && self.length.is_some() {
            return Err(WireFault::not_http("it states a length, and chunks too"));
        }
        if self.chunked && !is_new {
            return Err(WireFault::not_http("HTTP/1.0 knows no chunks"));
        }
        Ok(match status {
            // Nobody asked for another protocol.
            StatusCode::SWITCHING_PROTOCOLS => {
                return Err(WireFault::not_http("it changes the protocol"));
            }
            _ if has_no_body(status, asked) => Framing::Length(0),
            _ if self.chunked => Framing::Chunked,
            _ => self.length.map_or(Framing::UntilClose, Framing::Length),
        })
    }

    fn keeps_alive(&self, status: StatusCode, framing: Framing, is_new: bool) -> bool {
        let stays = !self.close && (is_new || self.keep_alive);
        // One that states a body where none may be perhaps sends it.
        let odd =
            status == StatusCode::NO_CONTENT && (self.chunked || self.length.unwrap_or(0) > 0);
        stays && !odd && framing != Framing::UntilClose
    }
}

fn has_no_body(status: StatusCode, asked: &Method) -> bool {
    let never = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    never || status.is_informational() || *asked == Method::HEAD
}

/// The members of a list, without the blanks around them.
fn members(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    let members = value.as_bytes().split(|byte| *byte == b',');
    members.map(<[u8]>::trim_ascii)
}

fn length(digits: &[u8]) -> Result<u64, WireFault> {
    // `parse` would take a sign.
    let are_digits = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| are_digits);
    let length = text.and_then(|text| text.parse().ok());
    length.ok_or_else(|| WireFault::not_http("the length that it states is none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(lines: &str) -> Result<Option<Head>, WireFault> {
        let bytes = Bytes::from(lines.replace('\n', "\r\n"));
        Head::read(&bytes, &Method::POST)
    }

    fn framed(lines: &str) -> (Framing, bool) {
        let head = head(lines).unwrap().unwrap();
        (head.framing, head.keep_alive)
    }

    #[test]
    fn a_body_ends_where_its_head_says() {
        use Framing::{Chunked, Length, UntilClose};
        let table = [
            ("HTTP/1.1 200 OK\ncontent-length: 5\n\n", Length(5), true),
            ("HTTP/1.1 200\nContent-Length: 5, 5\n\n", Length(5), true),
            (
                "HTTP/1.1 200 OK\ncontent-length: 5\ncontent-length: 5\n\n",
                Length(5),
                true,
            ),
            (
                "HTTP/1.1 200 OK\ntransfer-encoding: Chunked\n\n",
                Chunked,
                true,
            ),
            ("HTTP/1.1 200 OK\n\n", UntilClose, false),
            ("HTTP/1.1 204 No\n\n", Length(0), true),
            ("HTTP/1.1 204 No\ncontent-length: 5\n\n", Length(0), false),
            ("HTTP/1.1 304 Not\ncontent-length: 5\n\n", Length(0), true),
            (
                "HTTP/1.1 200 OK\nconnection: x, Close\ncontent-length: 0\n\n",
                Length(0),
                false,
            ),
            (
                "HTTP/1.1 200 OK\nconnection: close\nconnection: keep-alive\ncontent-length: 0\n\n",
                Length(0),
                false,
            ),
            ("HTTP/1.0 200 OK\ncontent-length: 5\n\n", Length(5), false),
            (
                "HTTP/1.0 200 OK\nconnection: Keep-Alive\ncontent-length: 5\n\n",
                Length(5),
                true,
            ),
        ];
        for (lines, framing, keep_alive) in table {
            assert_eq!(framed(lines), (framing, keep_alive), "{lines}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for lines in [
            "HTTP/1.1 200 OK\ncontent-length: 5\ntransfer-encoding: chunked\n\n",
            "HTTP/1.1 200 OK\ntransfer-encoding: chunked\ncontent-length: 5\n\n",
            "HTTP/1.1 200 OK\ncontent-length: 5\ncontent-length: 6\n\n",
            "HTTP/1.1 200 OK\ncontent-length: 5, 6\n\n",
            "HTTP/1.1 200 OK\ncontent-length: +5\n\n",
            "HTTP/1.1 200 OK\ncontent-length: 0x5\n\n",
            "HTTP/1.1 200 OK\ncontent-length:\n\n",
            "HTTP/1.1 200 OK\ncontent-length: 99999999999999999999\n\n",
            "HTTP/1.1 200 OK\ntransfer-encoding: gzip, chunked\n\n",
            "HTTP/1.1 200 OK\ntransfer-encoding: chunked\ntransfer-encoding: chunked\n\n",
            "HTTP/1.1 200 OK\ntransfer-encoding: identity\n\n",
            "HTTP/1.0 200 OK\ntransfer-encoding: chunked\n\n",
            "HTTP/1.1 101 Switching Protocols\nupgrade: x\n\n",
            "HTTP/1.1 200 OK\nname : x\n\n",
            "HTTP/1.1 200 OK\nname: x\n folded\n\n",
            "HTTP/2.0 200 OK\n\n",
            "HTTP/1.1 20 OK\n\n",
            "HTTP/1.1 099 OK\n\n",
            "SSH-2.0-OpenSSH_9.6\n\n",
        ] {
            assert!(head(lines).is_err(), "{lines}");
        }
    }

    #[test]
    fn a_head_is_bounded_in_bytes_and_headers() {
        let many = |count| format!("HTTP/1.1 200 OK\n{}\n", "a: b\n".repeat(count));
        assert!(head(&many(HEADERS_MAX)).unwrap().is_some());
        assert!(head(&many(HEADERS_MAX + 1)).is_err());
        let long = |size| format!("HTTP/1.1 200 OK\na: {}", "b".repeat(size));
        assert!(head(&long(HEAD_BYTES_MAX - 100)).unwrap().is_none());
        assert!(head(&long(HEAD_BYTES_MAX)).is_err());
        assert!(head(&format!("{}\n\n", long(HEAD_BYTES_MAX))).is_err());
    }

    #[test]
    fn no_answer_to_head_has_a_body() {
        let bytes = Bytes::from("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
        let head = Head::read(&bytes, &Method::HEAD).unwrap().unwrap();
        assert_eq!(head.framing, Framing::Length(0));
    }
}
