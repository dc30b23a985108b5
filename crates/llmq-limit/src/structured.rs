//! The part of RFC 9651 (Structured Field Values for HTTP) that the `RateLimit` fields need.

use std::borrow::Cow;

/// The members read of one list; real fields have one or two.
const MEMBERS_MAX: usize = 16;

/// One member of a list: `"name";q=10`, `10;w=60`, or a dictionary's `limit=10`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Member<'a> {
    /// The string, token or number itself; a dictionary's key.
    pub(crate) name: Cow<'a, str>,
    /// A dictionary's value.
    pub(crate) value: Option<Cow<'a, str>>,
    /// Its parameters, in order.
    pub(crate) params: Vec<(&'a str, Cow<'a, str>)>,
}

impl Member<'_> {
    /// The parameter called `key`.
    pub(crate) fn param(&self, key: &str) -> Option<&str> {
        self.params
            .iter()
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value.as_ref())
    }
}

/// Reads a list; `None` when it is malformed anywhere, for then the whole field is void.
pub(crate) fn list(text: &str) -> Option<Vec<Member<'_>>> {
    let mut rest = Rest(text.trim());
    let mut members = Vec::new();
    while members.len() < MEMBERS_MAX {
        members.push(rest.member()?);
        rest.skip_blanks();
        if rest.0.is_empty() {
            return Some(members);
        }
        rest.expect(',')?;
        rest.skip_blanks();
    }
    None
}

/// What is still unread.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    fn member(&mut self) -> Option<Member<'a>> {
        let name = self.bare_item()?;
        let value = match self.take('=') {
            true => Some(self.bare_item()?),
            false => None,
        };
        let mut params = Vec::new();
        while self.take(';') {
            self.skip_blanks();
            let key = self.word()?;
            let value = match self.take('=') {
                true => self.bare_item()?,
                false => Cow::Borrowed("?1"),
            };
            params.push((key, value));
        }
        Some(Member {
            name,
            value,
            params,
        })
    }

    /// A string, a byte sequence, or a word: a token, number or boolean.
    fn bare_item(&mut self) -> Option<Cow<'a, str>> {
        if self.take('"') {
            return self.string();
        }
        if self.take(':') {
            let end = self.0.find(':')?;
            let (bytes, rest) = self.0.split_at(end);
            self.0 = rest.get(1..)?;
            return Some(Cow::Borrowed(bytes));
        }
        self.word().map(Cow::Borrowed)
    }

    /// The rest of a string whose opening quote is read.
    fn string(&mut self) -> Option<Cow<'a, str>> {
        let plain = self.0.find(['"', '\\'])?;
        let (head, rest) = self.0.split_at(plain);
        self.0 = rest;
        if self.take('"') {
            return Some(Cow::Borrowed(head));
        }
        let mut text = head.to_owned();
        let mut chars = self.0.char_indices();
        while let Some((_, c)) = chars.next() {
            match c {
                '\\' => text.push(
                    chars
                        .next()
                        .map(|(_, c)| c)
                        .filter(|c| "\"\\".contains(*c))?,
                ),
                '"' => {
                    self.0 = chars.as_str();
                    return Some(Cow::Owned(text));
                }
                c => text.push(c),
            }
        }
        None
    }

    fn word(&mut self) -> Option<&'a str> {
        let is_end = |c: char| !c.is_ascii_graphic() || ",;=\"".contains(c);
        let end = self.0.find(is_end).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        (!word.is_empty()).then_some(word)
    }

    fn take(&mut self, c: char) -> bool {
        let rest = self.0.strip_prefix(c);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, c: char) -> Option<()> {
        self.take(c).then_some(())
    }

    fn skip_blanks(&mut self) {
        self.0 = self.0.trim_start_matches([' ', '\t']);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_of_policies_is_read() {
        let members = list(r#""permin";q=50;w=60, "per\"hr";q=1000;w=3600;pk=:cHNp:"#).unwrap();
        assert_eq!(members[0].name, "permin");
        assert_eq!(members[0].param("w"), Some("60"));
        assert_eq!(members[1].name, "per\"hr");
        assert_eq!(members[1].param("pk"), Some("cHNp"));
        let older = list("limit=100, remaining=50,reset=5").unwrap();
        assert_eq!(older[1].value.as_deref(), Some("50"));
        assert_eq!(list("10;w=1").unwrap()[0].param("w"), Some("1"));
    }

    #[test]
    fn a_malformed_list_is_void_as_a_whole() {
        for text in [
            "",
            "\"a",
            "\"a\";q=1,",
            "\"a\";=1",
            "a b",
            "\"a\\n\"",
            ":abc",
            ",",
            "a,,b",
        ] {
            assert_eq!(list(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), near in "[\"\\\\a0;:=, é]{0,30}") {
            let _ = (list(&text), list(&near));
        }
    }
}
