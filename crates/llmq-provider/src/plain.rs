use memchr::memchr2;

/// A quick way through JSON that is plain.
///
/// Nearly every call and answer is: no escapes in names, whole numbers, little nesting. Reading it
/// here takes a sixth of what serde takes for it, and no work of ours on a call's way cost more.
/// Whatever is not plain, broken JSON included, ends in `None`, and its reader asks serde instead.
/// So what is odd must only be noticed here, never understood; tests compare the two.
#[derive(Debug)]
pub(crate) struct Plain<'a> {
    rest: &'a [u8],
    depth: u32,
}

/// A text between its quotes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlainText<'a> {
    raw: &'a [u8],
    /// Its characters, an escape counted as the one that it stands for.
    pub(crate) chars: u64,
    has_escapes: bool,
}

/// Which of an object's members were there: one that comes twice is not plain.
#[derive(Debug, Default)]
pub(crate) struct Once(u32);

impl Once {
    pub(crate) fn note(&mut self, place: u32) -> Option<()> {
        let bit = 1 << place;
        (self.0 & bit == 0).then(|| self.0 |= bit)
    }
}

/// What is nested deeper is not plain. serde's own bound is twice this.
const DEPTH_MAX: u32 = 64;

impl<'a> Plain<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            depth: 0,
        }
    }

    /// The byte that the next value begins with, or that follows the last one.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        while let [b' ' | b'\n' | b'\r' | b'\t', rest @ ..] = self.rest {
            self.rest = rest;
        }
        self.rest.first().copied()
    }

    /// Takes an object: `member` is given each name and takes its value.
    pub(crate) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, &'a [u8]) -> Option<()>,
    ) -> Option<()> {
        self.list(b'{', b'}', |json| {
            let name = json.text()?;
            json.eat(b':')?;
            // A name with escapes may be another one than it looks like.
            member(json, (!name.has_escapes).then_some(name.raw)?)
        })
    }

    /// Takes an array: `item` takes each value.
    pub(crate) fn array(&mut self, item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.list(b'[', b']', item)
    }

    /// Takes a text.
    pub(crate) fn text(&mut self) -> Option<PlainText<'a>> {
        self.eat(b'"')?;
        if let Some(text) = self.simple_text() {
            return Some(text);
        }
        let mut end = 0;
        // Bytes of escapes beyond the one character that each stands for.
        let mut surplus = 0;
        loop {
            end += memchr2(b'"', b'\\', self.rest.get(end..)?)?;
            match self.rest[end..] {
                [b'"', ..] => break,
                [
                    _,
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't',
                    ..,
                ] => {
                    end += 2;
                    surplus += 1;
                }
                [_, b'u', a, b, c, d, ..] if is_character([a, b, c, d]) => {
                    end += 6;
                    surplus += 5;
                }
                _ => return None,
            }
        }
        let raw = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Some(PlainText {
            raw,
            chars: count(raw)? - surplus,
            has_escapes: surplus > 0,
        })
    }

    /// The rest of a text that is short, in ASCII and without escapes, as nearly all are.
    fn simple_text(&mut self) -> Option<PlainText<'a>> {
        /// Longer ones are read faster otherwise.
        const SHORT: usize = 48;
        let mut end = 0;
        let odd = loop {
            match first_odd(*self.rest.get(end..)?.first_chunk()?) {
                8 if end < SHORT => end += 8,
                8 => return None,
                odd => break odd,
            }
        };
        end += odd;
        if self.rest[end] != b'"' {
            return None;
        }
        let raw = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Some(PlainText {
            raw,
            chars: end as u64,
            has_escapes: false,
        })
    }

    /// Takes a whole number that is not negative.
    pub(crate) fn whole(&mut self) -> Option<u64> {
        self.peek()?;
        let number = self.number()?;
        // Nineteen digits fit.
        if number.len() > 19 || !number.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let add = |sum: u64, digit: &u8| sum * 10 + u64::from(digit - b'0');
        Some(number.iter().fold(0, add))
    }

    /// The next value by `read`, unless it is null.
    pub(crate) fn unless_null<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<Option<T>> {
        if self.peek()? == b'n' {
            return self.word(b"null").map(|()| None);
        }
        read(self).map(Some)
    }

    /// Takes a value of any kind.
    pub(crate) fn skip(&mut self) -> Option<()> {
        match self.peek()? {
            b'"' => self.text().map(drop),
            b'{' => self.object(|json, _| json.skip()),
            b'[' => self.array(Self::skip),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number().map(drop),
        }
    }

    /// Nothing follows any more.
    pub(crate) fn end(mut self) -> Option<()> {
        self.peek().is_none().then_some(())
    }

    fn list(
        &mut self,
        open: u8,
        close: u8,
        mut entry: impl FnMut(&mut Self) -> Option<()>,
    ) -> Option<()> {
        self.eat(open)?;
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return None;
        }
        if self.peek()? == close {
            self.eat(close)?;
        } else {
            loop {
                entry(self)?;
                let next = self.peek()?;
                self.rest = &self.rest[1..];
                if next == close {
                    break;
                }
                if next != b',' {
                    return None;
                }
            }
        }
        self.depth -= 1;
        Some(())
    }

    fn eat(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.rest = &self.rest[1..])
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.rest.strip_prefix(word).map(|rest| self.rest = rest)
    }

    /// RFC 8259, section 6.
    fn number(&mut self) -> Option<&'a [u8]> {
        let all = self.rest;
        let digits = |rest: &'a [u8]| {
            let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            (count > 0).then(|| rest.split_at(count))
        };
        let (integer, mut rest) = digits(all.strip_prefix(b"-").unwrap_or(all))?;
        if integer.len() > 1 && integer[0] == b'0' {
            return None;
        }
        if let [b'.', after @ ..] = rest {
            rest = digits(after)?.1;
        }
        if let [b'e' | b'E', after @ ..] = rest {
            let unsigned = match after {
                [b'+' | b'-', unsigned @ ..] => unsigned,
                unsigned => unsigned,
            };
            rest = digits(unsigned)?.1;
        }
        self.rest = rest;
        Some(&all[..all.len() - rest.len()])
    }
}

impl<'a> PlainText<'a> {
    /// What it says, if it is written without escapes.
    pub(crate) fn said(self) -> Option<&'a str> {
        let said = std::str::from_utf8(self.raw).ok()?;
        (!self.has_escapes).then_some(said)
    }
}

/// Whether four hexadecimal digits stand for a character by themselves.
fn is_character(digits: [u8; 4]) -> bool {
    let is_half = matches!(
        digits,
        [b'd' | b'D', b'8'..=b'9' | b'a'..=b'f' | b'A'..=b'F', ..]
    );
    digits.iter().all(u8::is_ascii_hexdigit) && !is_half
}

/// The place of the first of eight bytes that is not a character by itself: an end, an escape,
/// a control, or no ASCII; 8 where there is none.
fn first_odd(bytes: [u8; 8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let word = u64::from_le_bytes(bytes);
    // Each sets the high bit of the bytes that it looks for, and perhaps of some above the first
    // of them (Bit Twiddling Hacks, "Determine if a word has a byte less than n").
    let below = |word: u64, limit: u8| word.wrapping_sub(ONES * u64::from(limit)) & !word;
    let equal = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
    let odd = (equal(b'"') | equal(b'\\') | below(word, b' ') | word) & HIGH;
    (odd.trailing_zeros() / 8) as usize
}

/// The characters of a text, unless it holds what no text in JSON may.
fn count(raw: &[u8]) -> Option<u64> {
    // Without branches, so that the processor does many bytes at once.
    let (mut all, mut control) = (0, 0);
    for byte in raw {
        all |= byte;
        control |= u8::from(*byte < b' ');
    }
    if control != 0 {
        return None;
    }
    Some(if all < 0x80 {
        raw.len() as u64
    } else {
        std::str::from_utf8(raw).ok()?.chars().count() as u64
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    proptest! {
        #[test]
        fn the_first_odd_byte_of_eight_is_found(bytes in prop::array::uniform8(
            prop_oneof![any::<u8>(), prop::sample::select(b"\"\\ !#[]\x1f\x7f\x80az".to_vec())],
        )) {
            let is_odd = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..=0x1f | 0x80..);
            let first = bytes.iter().position(is_odd);
            prop_assert_eq!(first_odd(bytes), first.unwrap_or(8));
        }
    }

    fn accepts(bytes: &[u8]) -> bool {
        let mut json = Plain::new(bytes);
        json.skip().and_then(|()| json.end()).is_some()
    }

    #[test]
    fn plain_json_is_taken_and_nothing_broken() {
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        for (text, taken) in [
            ("{}", true),
            (" [ ] ", true),
            (r#"{"a":[1,-2.5e+3,0,true,false,null,"x"],"b":{}}"#, true),
            (r#""\u00e9\n\"""#, true),
            (r#""\ud83d\ude00""#, false),
            (r#"{"\u0061":1}"#, false),
            ("{\"a\":1,}", false),
            ("[1 2]", false),
            ("[,1]", false),
            ("{\"a\" 1}", false),
            ("01", false),
            ("1.", false),
            ("-", false),
            ("tru", false),
            ("\"a\nb\"", false),
            ("\"a\\x\"", false),
            ("\"a", false),
            ("{", false),
            ("", false),
            ("1 1", false),
            (&deep, false),
        ] {
            assert_eq!(accepts(text.as_bytes()), taken, "{text}");
        }
    }

    /// JSON as programs write it, and then perhaps cut, or with a byte changed.
    pub(crate) fn nearly_json(names: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (0..9_000_u64).prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z\"\\\\\n é😀]{0,12}".prop_map(Value::from),
            prop::sample::select(vec!["error", "failed", "stop", "m"]).prop_map(Value::from),
        ];
        let name = prop::sample::select(names.to_vec()).prop_map(str::to_owned);
        let value = leaf.prop_recursive(4, 40, 5, move |inner| {
            let pairs = prop::collection::vec((name.clone(), inner.clone()), 0..6);
            prop_oneof![
                prop::collection::vec(inner, 0..4).prop_map(Value::from),
                pairs.prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        });
        let written = (value, any::<bool>()).prop_map(|(value, pretty)| {
            let write = if pretty {
                serde_json::to_vec_pretty
            } else {
                serde_json::to_vec
            };
            write(&value).unwrap()
        });
        let harm = prop::option::weighted(0.3, (any::<prop::sample::Index>(), any::<u8>()));
        (written, harm, any::<bool>()).prop_map(|(mut bytes, harm, cut)| {
            if let Some((at, byte)) = harm {
                let at = at.index(bytes.len());
                if cut {
                    bytes.truncate(at);
                } else {
                    bytes[at] = byte;
                }
            }
            bytes
        })
    }

    proptest! {
        #[test]
        fn what_is_taken_serde_takes_too(bytes in nearly_json(&["a", "b", "é", "\"", "\\"])) {
            if accepts(&bytes)
                && let Err(error) = serde_json::from_slice::<Value>(&bytes)
            {
                // JSON has no largest number; serde's value has.
                let error = error.to_string();
                prop_assert!(error.starts_with("number out of range"), "{}", error);
            }
        }

        #[test]
        fn characters_are_counted_as_serde_reads_them(text in any::<String>()) {
            let written = serde_json::to_string(&text).unwrap();
            let read = Plain::new(written.as_bytes()).text().unwrap();
            prop_assert_eq!(read.chars, text.chars().count() as u64);
            prop_assert_eq!(read.said().is_some(), !written.contains('\\'));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if accepts(&bytes) {
                prop_assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok());
            }
        }
    }
}
