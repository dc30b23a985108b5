use super::WireFault;

/// All that may come around the data of one body: extensions of its chunks and trailers. No
/// provider is known to send any.
const EXTRAS_MAX: usize = 16 << 10;
/// The digits of the largest size that can be counted.
const DIGITS_MAX: u8 = 16;

const TRAILERS_MAX: usize = 32;

/// Takes a body out of its chunks (RFC 9112 §7.1). Extensions and trailers are passed over.
#[derive(Debug)]
pub(super) struct Chunks {
    at: At,
    /// Of the chunk that is being read.
    left: u64,
    digits: u8,
    extras: usize,
    trailers: Vec<u8>,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Size,
    /// Another digit, or the end of the size.
    MoreSize,
    /// Blanks after the size.
    Blank,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// A trailer, or the empty line that ends the body.
    Line,
    Trailer,
    TrailerLf,
    LastLf,
    Ended,
}

/// What some bytes held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// So many bytes of data stand at the front now.
    pub(super) data: usize,
    /// So many bytes were the body's; what follows came after its end.
    pub(super) used: usize,
}

impl Chunks {
    pub(super) fn new() -> Self {
        Self {
            at: At::Size,
            left: 0,
            digits: 0,
            extras: 0,
            trailers: Vec::new(),
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.at == At::Ended
    }

    /// Reads on, and moves the data that `bytes` hold to their front: what came together stays
    /// together, in however many chunks it was.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> Result<Part, WireFault> {
        let mut part = Part { data: 0, used: 0 };
        while part.used < bytes.len() && self.at != At::Ended {
            if self.at != At::Data {
                self.at = self.after(bytes[part.used])?;
                part.used += 1;
                continue;
            }
            let here = bytes.len() - part.used;
            let size = usize::try_from(self.left).map_or(here, |left| left.min(here));
            bytes.copy_within(part.used..part.used + size, part.data);
            part.used += size;
            part.data += size;
            self.left -= size as u64;
            if self.left == 0 {
                self.at = At::DataCr;
            }
        }
        Ok(part)
    }

    /// What comes after a byte that is not data.
    fn after(&mut self, byte: u8) -> Result<At, WireFault> {
        let next = match (self.at, byte) {
            (At::Size | At::MoreSize, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                return self.digit(byte);
            }
            (At::MoreSize | At::Blank, b' ' | b'\t') => At::Blank,
            (At::MoreSize | At::Blank, b';') => At::Extension,
            (At::MoreSize | At::Blank | At::Extension, b'\r') => At::SizeLf,
            (At::Extension, byte) if byte != b'\n' => At::Extension,
            (At::SizeLf, b'\n') => {
                self.digits = 0;
                return Ok(if self.left == 0 { At::Line } else { At::Data });
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size,
            (At::Line, b'\r') => At::LastLf,
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::Line | At::Trailer, byte) if byte != b'\n' => At::Trailer,
            (At::TrailerLf, b'\n') => At::Line,
            (At::LastLf, b'\n') => return self.end(),
            _ => return Err(WireFault::not_http("a chunk of the body is malformed")),
        };
        if matches!(next, At::Blank | At::Extension | At::Trailer) {
            self.extras += 1;
            if self.extras > EXTRAS_MAX {
                return Err(WireFault::not_http("there is too much between the chunks"));
            }
        }
        if matches!(next, At::Trailer | At::TrailerLf) || self.at == At::TrailerLf {
            self.trailers.push(byte);
        }
        Ok(next)
    }

    /// Trailers say nothing of use, but what is none would be a sign of something else.
    fn end(&mut self) -> Result<At, WireFault> {
        if !self.trailers.is_empty() {
            self.trailers.extend_from_slice(b"\r\n");
            let mut room = [httparse::EMPTY_HEADER; TRAILERS_MAX];
            httparse::parse_headers(&self.trailers, &mut room).map_err(WireFault::not_http)?;
        }
        Ok(At::Ended)
    }

    fn digit(&mut self, digit: u8) -> Result<At, WireFault> {
        if self.digits == DIGITS_MAX {
            return Err(WireFault::not_http("a chunk's size has too many digits"));
        }
        self.digits += 1;
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            _ => (digit | 0x20) - b'a' + 10,
        };
        // Sixteen digits of four bits each fit.
        self.left = (self.left << 4) | u64::from(value);
        Ok(At::MoreSize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body, and whether it has ended; `None` for what is refused.
    fn read(text: &str) -> Option<(String, bool)> {
        let (mut chunks, mut bytes) = (Chunks::new(), text.as_bytes().to_vec());
        let part = chunks.read(&mut bytes).ok()?;
        let data = String::from_utf8(bytes[..part.data].to_vec()).unwrap();
        Some((data, chunks.is_ended()))
    }

    #[test]
    fn the_data_of_all_chunks_comes_as_one_piece() {
        let table = [
            ("0\r\n\r\n", "", true),
            ("3\r\nabc\r\n0\r\n\r\n", "abc", true),
            (
                "3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n",
                "abc0123456789",
                true,
            ),
            (
                "03;n=v;w=\"x\"\r\nabc\r\n0 \t\r\nt: 1\r\nu: 2\r\n\r\n",
                "abc",
                true,
            ),
            ("3\r\nab", "ab", false),
            ("3\r\nabc\r\n0\r\n", "abc", false),
            ("1\r\n\n\r\n0\r\n\r\n", "\n", true),
        ];
        for (text, data, ended) in table {
            assert_eq!(read(text), Some((data.to_owned(), ended)), "{text:?}");
        }
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways_is_refused() {
        for text in [
            "\r\n",
            "g\r\n",
            "-1\r\n",
            "+1\r\n",
            "0x1\r\n",
            " 1\r\na",
            "1\na",
            "1;x\na",
            "1 2\r\na",
            "1\r\nab\r\n",
            "1\r\na\n0\r\n\r\n",
            "1\r\na\r0\r\n\r\n",
            "0\r\n\n",
            "0\r\nt: 1\n\r\n",
            "0\r\nt: 1\rx",
            "0\r\n t: 1\r\n\r\n",
            "0\r\nnone\r\n\r\n",
            "00000000000000001\r\n",
        ] {
            assert_eq!(read(text), None, "{text:?}");
        }
    }

    #[test]
    fn what_stands_around_the_data_is_bounded() {
        let long = "x".repeat(EXTRAS_MAX + 1);
        assert_eq!(read(&format!("1;{long}\r\n")), None);
        assert_eq!(read(&format!("0\r\n{long}")), None);
        // Small extensions of many chunks count together.
        assert_eq!(read(&"1;xxxx\r\na\r\n".repeat(EXTRAS_MAX / 4)), None);
        let size = format!("{}\r\n", u64::MAX >> 4);
        assert_eq!(read(&size), None, "twenty digits");
        assert_eq!(read("ffffffffffffffff\r\na"), Some(("a".to_owned(), false)));
    }

    #[test]
    fn what_follows_the_end_is_not_the_bodys() {
        let (mut chunks, mut bytes) = (Chunks::new(), b"1\r\na\r\n0\r\n\r\nHTTP/1.1".to_vec());
        let part = chunks.read(&mut bytes).unwrap();
        assert_eq!((part.data, part.used), (1, 11));
        assert_eq!(chunks.read(&mut bytes).unwrap(), Part { data: 0, used: 0 });
    }
}
