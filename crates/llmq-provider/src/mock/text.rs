use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// 64-bit FNV-1a (draft-eastlake-fnv): fast on short inputs, and the same on every machine and
/// in every version, so that it may name recorded files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fnv(u64);

impl Fnv {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    #[must_use]
    pub(super) fn with(mut self, bytes: &[u8]) -> Self {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self
    }

    pub(super) fn value(self) -> u64 {
        self.0
    }
}

/// What the text parts of a prompt amount to. The text itself is not kept.
///
/// Reads any of the shapes in which prompts come: a string, token numbers, content parts,
/// messages, and lists of all these. Of an object only `content`, `text` and nested lists in
/// them count; roles, images and tool definitions do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Text {
    /// Characters, all strings together.
    pub(super) chars: u64,
    /// Numbers, each of which stands for one token.
    pub(super) numbers: u64,
    /// A digest of everything counted.
    pub(super) digest: u64,
    /// Whether it is one number that stands in no list of its own.
    bare_number: bool,
}

impl Text {
    const EMPTY: Self = Self {
        chars: 0,
        numbers: 0,
        digest: 0,
        bare_number: false,
    };

    /// A quarter of the characters, rounded up, and a token for each number.
    pub(super) fn tokens(&self) -> u64 {
        self.chars.div_ceil(4) + self.numbers
    }

    /// This text followed by `other`.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            chars: self.chars + other.chars,
            numbers: self.numbers + other.numbers,
            digest: Fnv(self.digest).with(&other.digest.to_le_bytes()).value(),
            bare_number: false,
        }
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, token numbers, content parts or messages")
    }

    fn visit_str<E>(self, text: &str) -> Result<Text, E> {
        Ok(Text {
            chars: text.chars().count() as u64,
            numbers: 0,
            digest: Fnv::new().with(text.as_bytes()).value(),
            bare_number: false,
        })
    }

    fn visit_u64<E>(self, number: u64) -> Result<Text, E> {
        Ok(Text {
            chars: 0,
            numbers: 1,
            digest: Fnv::new().with(&number.to_le_bytes()).value(),
            bare_number: true,
        })
    }

    fn visit_unit<E>(self) -> Result<Text, E> {
        Ok(Text::EMPTY)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Text, A::Error> {
        let mut all = Text::EMPTY;
        while let Some(part) = parts.next_element::<Text>()? {
            all = all.and(part);
        }
        Ok(all)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Text, A::Error> {
        let mut all = Text::EMPTY;
        while let Some(name) = fields.next_key::<FieldName>()? {
            match name {
                FieldName::Text => all = all.and(fields.next_value()?),
                FieldName::Other => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(all)
    }
}

enum FieldName {
    Text,
    Other,
}

impl<'de> Deserialize<'de> for FieldName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = FieldName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }

            fn visit_str<E>(self, name: &str) -> Result<FieldName, E> {
                Ok(match name {
                    "content" | "text" => FieldName::Text,
                    _ => FieldName::Other,
                })
            }
        }
        deserializer.deserialize_str(Name)
    }
}

/// The `input` of an embeddings or responses call, or the `prompt` of a completion: one text or a
/// list of them. A list of token numbers is one text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inputs(pub(super) Vec<Text>);

impl Inputs {
    /// All of them as one text.
    pub(super) fn joined(&self) -> Text {
        self.0
            .iter()
            .copied()
            .reduce(Text::and)
            .unwrap_or(Text::EMPTY)
    }
}

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Inputs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Inputs, E> {
                Ok(Inputs(vec![TextVisitor.visit_str(text)?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Inputs, A::Error> {
                let mut inputs: Vec<Text> = Vec::new();
                while let Some(part) = parts.next_element::<Text>()? {
                    match inputs.last_mut() {
                        Some(last) if part.bare_number => *last = last.and(part),
                        _ => inputs.push(part),
                    }
                }
                Ok(Inputs(inputs))
            }

            // The `prompt` of a response is the name of a template.
            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Inputs, A::Error> {
                Ok(Inputs(vec![TextVisitor.visit_map(fields)?]))
            }
        }
        deserializer.deserialize_any(List)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(json: &str) -> u64 {
        serde_json::from_str::<Text>(json).unwrap().tokens()
    }

    #[test]
    fn every_shape_of_a_prompt_is_counted_by_its_text() {
        assert_eq!(tokens(r#""12345""#), 2);
        assert_eq!(tokens(r#""""#), 0);
        // Characters, not bytes.
        assert_eq!(tokens(r#""äöü€""#), 1);
        assert_eq!(tokens("[1, 2, 3]"), 3);
        assert_eq!(
            tokens(r#"[{"role": "user", "content": "1234"}, {"role": "x", "content": null}]"#),
            1
        );
        let parts = r#"[{"content": [{"type": "text", "text": "12"}, {"type": "image_url", "image_url": {"url": "xxxxxxxx"}}]}, {"content": "345"}]"#;
        assert_eq!(tokens(parts), 2);
    }

    #[test]
    fn inputs_are_told_apart() {
        let inputs = |json: &str| serde_json::from_str::<Inputs>(json).unwrap().0.len();
        assert_eq!(inputs(r#""one""#), 1);
        assert_eq!(inputs(r#"["one", "two"]"#), 2);
        assert_eq!(inputs("[1, 2, 3]"), 1);
        assert_eq!(inputs("[[1, 2], [3, 4], [5]]"), 3);
        assert_eq!(inputs("[]"), 0);
    }

    #[test]
    fn the_digest_is_the_published_fnv_1a() {
        assert_eq!(Fnv::new().with(b"foobar").value(), 0x8594_4171_f739_67e8);
    }
}
