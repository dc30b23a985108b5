use std::io::{self, BufRead};

/// The records of comma- or tab-separated values (RFC 4180), none held beyond a limit.
///
/// A field that begins with a quote runs to its closing quote, over line breaks too; two quotes
/// inside it are one. A quote elsewhere stands for itself. Lines end with `\n` or `\r\n`; blank
/// lines are not records. Unlike a general parser it tells where each record ended, whether a
/// quote was left open, and never holds a runaway record in memory.
#[derive(Debug)]
pub(crate) struct CsvReader<R> {
    reader: R,
    delimiter: u8,
    max_bytes: usize,
    /// Line breaks passed so far.
    breaks: u64,
    consumed: u64,
}

/// One record with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CsvRecord {
    pub(crate) fields: Fields,
    /// The line on which it begins, from 1.
    pub(crate) physical_line: u64,
    /// The offset just after the record and its line end.
    pub(crate) end: u64,
    /// Whether it ended with `\n`; only the last record may not.
    pub(crate) terminated: bool,
    pub(crate) fault: Option<CsvFault>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CsvFault {
    UnclosedQuote,
    TooLong,
}

/// The fields of a record: their bytes joined, and where each ends.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Fields {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Fields {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The bytes of all fields, joined.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn get(&self, index: usize) -> Option<&[u8]> {
        let start = match index {
            0 => 0,
            _ => *self.ends.get(index - 1)?,
        };
        self.bytes.get(start..*self.ends.get(index)?)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// The memory it stands for: an empty field is not free.
    fn cost(&self) -> usize {
        self.bytes.len() + self.ends.len() * size_of::<usize>()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    /// Just after a quote inside a quoted field: its end, or the first of two.
    QuoteInQuoted,
}

impl<R: BufRead> CsvReader<R> {
    pub(crate) fn new(reader: R, delimiter: u8, max_bytes: usize) -> Self {
        Self {
            reader,
            delimiter,
            max_bytes,
            breaks: 0,
            consumed: 0,
        }
    }

    /// The number of the line being read, from 1.
    pub(crate) fn current_line(&self) -> u64 {
        self.breaks + 1
    }

    /// The next record that is not a blank line.
    pub(crate) fn next(&mut self) -> io::Result<Option<CsvRecord>> {
        loop {
            match self.record()? {
                Some((_, Blank::Yes)) => {}
                Some((record, Blank::No)) => return Ok(Some(record)),
                None => return Ok(None),
            }
        }
    }

    fn record(&mut self) -> io::Result<Option<(CsvRecord, Blank)>> {
        let physical_line = self.current_line();
        let mut builder = Builder::new(self.delimiter, self.max_bytes);
        let start = self.consumed;
        let mut terminated = false;
        while !terminated {
            let available = match self.reader.fill_buf() {
                Ok(available) => available,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if available.is_empty() {
                break;
            }
            let mut used = 0;
            for &byte in available {
                used += 1;
                self.breaks += u64::from(byte == b'\n');
                if builder.take(byte) {
                    terminated = true;
                    break;
                }
            }
            self.reader.consume(used);
            self.consumed += used as u64;
        }
        if self.consumed == start {
            return Ok(None);
        }
        let (fields, fault, blank) = builder.finish();
        let record = CsvRecord {
            fields,
            physical_line,
            end: self.consumed,
            terminated,
            fault,
        };
        Ok(Some((record, blank)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blank {
    Yes,
    No,
}

struct Builder {
    delimiter: u8,
    max_bytes: usize,
    state: State,
    fields: Fields,
    too_long: bool,
    any_quote: bool,
}

impl Builder {
    fn new(delimiter: u8, max_bytes: usize) -> Self {
        Self {
            delimiter,
            max_bytes,
            state: State::FieldStart,
            fields: Fields::default(),
            too_long: false,
            any_quote: false,
        }
    }

    /// Takes one byte; `true` when it ended the record.
    fn take(&mut self, byte: u8) -> bool {
        use State as S;
        match (self.state, byte) {
            (S::Quoted, b'"') => self.state = S::QuoteInQuoted,
            (S::Quoted, _) => self.push(byte),
            (S::QuoteInQuoted, b'"') => {
                self.push(byte);
                self.state = S::Quoted;
            }
            (S::FieldStart, b'"') => {
                self.any_quote = true;
                self.state = S::Quoted;
            }
            (S::FieldStart | S::Plain | S::QuoteInQuoted, b'\n') => return true,
            (S::FieldStart | S::Plain | S::QuoteInQuoted, _) if byte == self.delimiter => {
                self.end_field();
            }
            (S::FieldStart | S::Plain | S::QuoteInQuoted, _) => {
                self.push(byte);
                self.state = S::Plain;
            }
        }
        false
    }

    fn push(&mut self, byte: u8) {
        if self.fields.cost() >= self.max_bytes {
            self.too_long = true;
        }
        if !self.too_long {
            self.fields.bytes.push(byte);
        }
    }

    fn end_field(&mut self) {
        if self.fields.cost() >= self.max_bytes {
            self.too_long = true;
        }
        if !self.too_long {
            self.fields.ends.push(self.fields.bytes.len());
        }
        self.state = State::FieldStart;
    }

    fn finish(mut self) -> (Fields, Option<CsvFault>, Blank) {
        let field_start = self.fields.ends.last().copied().unwrap_or(0);
        // The `\r` of a line end; one inside quotes is the field's own.
        if self.state == State::Plain && self.fields.bytes[field_start..].ends_with(b"\r") {
            self.fields.bytes.pop();
        }
        let unclosed = self.state == State::Quoted;
        let is_blank = self.fields.cost() == 0 && !self.any_quote;
        self.fields.ends.push(self.fields.bytes.len());
        let fault = match (unclosed, self.too_long) {
            (true, _) => Some(CsvFault::UnclosedQuote),
            (false, true) => Some(CsvFault::TooLong),
            (false, false) => None,
        };
        let blank = if is_blank { Blank::Yes } else { Blank::No };
        (self.fields, fault, blank)
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str, chunk: usize) -> Vec<(u64, Vec<String>)> {
        let mut reader = CsvReader::new(
            BufReader::with_capacity(chunk, text.as_bytes()),
            b',',
            1 << 20,
        );
        let mut out = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            assert_eq!(record.fault, None);
            let fields = record.fields.iter();
            let fields = fields.map(|field| String::from_utf8(field.to_vec()).unwrap());
            out.push((record.physical_line, fields.collect()));
        }
        out
    }

    fn check(text: &str, expected: &[(u64, &[&str])]) {
        for chunk in [1, 2, 3, 1000] {
            let got = read(text, chunk);
            let got: Vec<(u64, Vec<&str>)> = got
                .iter()
                .map(|(line, fields)| (*line, fields.iter().map(String::as_str).collect()))
                .collect();
            let expected: Vec<(u64, Vec<&str>)> = expected
                .iter()
                .map(|(line, fields)| (*line, fields.to_vec()))
                .collect();
            assert_eq!(got, expected, "{text:?}");
        }
    }

    #[test]
    fn records_are_read_as_rfc_4180_says() {
        check("a,b\n1,2\n", &[(1, &["a", "b"]), (2, &["1", "2"])]);
        check("a,b\r\n1,2", &[(1, &["a", "b"]), (2, &["1", "2"])]);
        check("\"x\ny\",z\nq", &[(1, &["x\ny", "z"]), (3, &["q"])]);
        check("\"a\"\"b\",\"\"\r\n", &[(1, &["a\"b", ""])]);
        check("5\" pipe,x\n", &[(1, &["5\" pipe", "x"])]);
        check("\n\r\n,\n\"\"\n", &[(3, &["", ""]), (4, &[""])]);
        check("\"a\"b,c", &[(1, &["ab", "c"])]);
        check("\"a\r\"\r\n", &[(1, &["a\r"])]);
    }

    #[test]
    fn an_open_quote_and_a_runaway_record_are_told_and_not_held() {
        let text = format!("a,b\n\"{}\n", "x,\n".repeat(10_000));
        let mut reader = CsvReader::new(text.as_bytes(), b',', 1_000);
        assert_eq!(reader.next().unwrap().unwrap().fault, None);
        let record = reader.next().unwrap().unwrap();
        assert_eq!(record.fault, Some(CsvFault::UnclosedQuote));
        assert_eq!(record.physical_line, 2);
        assert!(record.fields.bytes.capacity() <= 2_048);
        assert!(reader.next().unwrap().is_none());

        let text = format!("{}\nnext", ",".repeat(10_000));
        let mut reader = CsvReader::new(text.as_bytes(), b',', 1_000);
        let record = reader.next().unwrap().unwrap();
        assert_eq!(record.fault, Some(CsvFault::TooLong));
        assert!(record.fields.ends.len() < 200);
        assert_eq!(reader.next().unwrap().unwrap().fields.len(), 1);
    }

    proptest! {
        #[test]
        fn what_the_csv_crate_writes_is_read_back(
            rows in prop::collection::vec(prop::collection::vec("[a,\"\r\n é]{0,6}", 2..4), 1..8),
            chunk in 1_usize..20,
        ) {
            let mut writer = csv::WriterBuilder::new().flexible(true).from_writer(Vec::new());
            for row in &rows {
                writer.write_record(row).unwrap();
            }
            let text = String::from_utf8(writer.into_inner().unwrap()).unwrap();
            let got: Vec<Vec<String>> = read(&text, chunk).into_iter().map(|(_, row)| row).collect();
            prop_assert_eq!(got, rows);
        }

        #[test]
        fn any_text_is_read_without_a_panic_and_to_its_end(text in "[a,\"\r\n]{0,40}", chunk in 1_usize..9) {
            let mut reader = CsvReader::new(BufReader::with_capacity(chunk, text.as_bytes()), b',', 8);
            while let Some(record) = reader.next().unwrap() {
                prop_assert!(record.end <= text.len() as u64);
            }
            prop_assert_eq!(reader.consumed, text.len() as u64);
        }
    }
}
