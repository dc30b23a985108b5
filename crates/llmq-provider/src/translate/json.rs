use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Untranslatable;
use super::refusal::At;

/// JSON as it stood in the body it came from, or JSON that was put together anew.
///
/// What is translated keeps its bytes: the order of a schema's members, the digits of a number
/// and the escapes of a text are the caller's.
pub(super) type Json<'a> = Cow<'a, RawValue>;

/// The members of an object in their order, to be taken one by one; what nobody has taken in
/// the end has no counterpart.
#[derive(Debug, Default)]
pub(super) struct Members<'a> {
    entries: Vec<(Key<'a>, &'a RawValue)>,
}

impl<'a> Members<'a> {
    /// Reads an object; `None` when the bytes are anything else.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Takes a member; null counts as absent, which is what it means in both dialects.
    pub(super) fn take(&mut self, name: &str) -> Option<&'a RawValue> {
        let at = self.entries.iter().position(|(key, _)| key.0 == name)?;
        let (_, value) = self.entries.remove(at);
        (value.get() != "null").then_some(value)
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<Text<'a>>, Untranslatable> {
        let expected = || Untranslatable::invalid(name, "a text");
        let value = self.take(name);
        value
            .map(|value| Text::of(value).ok_or_else(expected))
            .transpose()
    }

    pub(super) fn required_text(&mut self, name: &str) -> Result<Text<'a>, Untranslatable> {
        self.text(name)?
            .ok_or_else(|| Untranslatable::invalid(name, "a text"))
    }

    /// A text whose words are known to the code, such as a `type`; empty when it is absent.
    pub(super) fn word(&mut self, name: &str) -> Result<Cow<'a, str>, Untranslatable> {
        Ok(self.text(name)?.map_or(Cow::Borrowed(""), Text::to_str))
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<Option<bool>, Untranslatable> {
        match self.take(name).map(RawValue::get) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(_) => Err(Untranslatable::invalid(name, "true or false")),
        }
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<&'a RawValue>, Untranslatable> {
        let value = self.take(name);
        match value.map(RawValue::get) {
            Some(text) if !text.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => {
                Err(Untranslatable::invalid(name, "a number"))
            }
            _ => Ok(value),
        }
    }

    pub(super) fn object(&mut self, name: &str) -> Result<Option<Self>, Untranslatable> {
        self.take(name)
            .map(|value| members_of(value).at(name))
            .transpose()
    }

    pub(super) fn array(
        &mut self,
        name: &str,
    ) -> Result<Option<Vec<&'a RawValue>>, Untranslatable> {
        self.take(name)
            .map(|value| items_of(value).at(name))
            .transpose()
    }

    /// An object that is passed on as it is, such as a schema.
    pub(super) fn raw_object(&mut self, name: &str) -> Result<Option<Json<'a>>, Untranslatable> {
        match self.take(name) {
            Some(value) if !value.get().starts_with('{') => {
                Err(Untranslatable::invalid(name, "an object"))
            }
            value => Ok(value.map(Cow::Borrowed)),
        }
    }

    /// Checks that nothing is left.
    pub(super) fn finish(mut self) -> Result<(), Untranslatable> {
        self.entries.retain(|(_, value)| value.get() != "null");
        match self.entries.first() {
            None => Ok(()),
            Some((key, _)) => Err(Untranslatable::no_counterpart(
                &key.0,
                "it is unknown, or the other dialect has nothing like it",
            )),
        }
    }
}

/// The members of a value that must be an object.
pub(super) fn members_of(value: &RawValue) -> Result<Members<'_>, Untranslatable> {
    Members::read(value.get().as_bytes()).ok_or_else(|| Untranslatable::invalid("", "an object"))
}

/// The items of a value that must be an array.
pub(super) fn items_of(value: &RawValue) -> Result<Vec<&RawValue>, Untranslatable> {
    serde_json::from_str(value.get()).map_err(|_| Untranslatable::invalid("", "an array"))
}

/// A JSON text, quotes and escapes included.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<'a>(&'a RawValue);

impl<'a> Text<'a> {
    pub(super) fn of(value: &'a RawValue) -> Option<Self> {
        value.get().starts_with('"').then_some(Self(value))
    }

    /// As it stands in JSON.
    pub(super) fn json(self) -> Json<'a> {
        Cow::Borrowed(self.0)
    }

    pub(super) fn is_empty(self) -> bool {
        self.inner().is_empty()
    }

    /// Whether it holds nothing but white space.
    pub(super) fn is_blank(self) -> bool {
        self.to_str().trim().is_empty()
    }

    /// What it says. Half a surrogate pair, which no text can hold, is replaced.
    pub(super) fn to_str(self) -> Cow<'a, str> {
        let inner = self.inner();
        if !inner.contains('\\') {
            return Cow::Borrowed(inner);
        }
        let said: Option<String> = serde_json::from_str(self.0.get()).ok();
        said.map_or_else(|| Cow::Owned(inner.replace('\\', "\u{fffd}")), Cow::Owned)
    }

    /// What stands between the quotes.
    fn inner(self) -> &'a str {
        let json = self.0.get();
        json.get(1..json.len().saturating_sub(1))
            .unwrap_or_default()
    }
}

/// The texts one after the other, as one.
pub(super) fn joined<'a>(texts: &[Text<'a>]) -> Json<'a> {
    match texts {
        [text] => text.json(),
        texts => {
            let inner: String = texts.iter().map(|text| text.inner()).collect();
            let json = RawValue::from_string(format!("\"{inner}\""));
            Cow::Owned(json.expect("texts one after the other are a text"))
        }
    }
}

/// A JSON text that says `text`.
pub(super) fn quoted(text: &str) -> Json<'static> {
    let json = serde_json::value::to_raw_value(text);
    Cow::Owned(json.expect("every text can be written"))
}

/// `{}`.
pub(super) fn empty_object() -> Json<'static> {
    let json = RawValue::from_string("{}".to_owned());
    Cow::Owned(json.expect("it is an object"))
}

/// JSON written inside a text, as OpenAI does with a call's arguments; `None` when the text is
/// not one whole object. No text at all stands for no arguments.
pub(super) fn object_in(text: Text<'_>) -> Option<Json<'static>> {
    let said = text.to_str();
    let said = said.trim();
    let said = if said.is_empty() { "{}" } else { said };
    let json = RawValue::from_string(said.to_owned()).ok()?;
    json.get().starts_with('{').then_some(Cow::Owned(json))
}

/// The arguments of a function that is called: inside a text, or, at a few servers, an object as
/// it is; none at all are `{}`. `None` when they are not one whole object.
pub(super) fn arguments_of<'a>(function: &mut Members<'a>) -> Option<Json<'a>> {
    match function.take("arguments") {
        None => Some(empty_object()),
        Some(value) if value.get().starts_with('{') => Some(Cow::Borrowed(value)),
        Some(value) => object_in(Text::of(value)?),
    }
}

#[derive(Debug)]
struct Key<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Key<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

/// Borrows a name without escapes, which serde's own `Cow` does not.
struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Key<'de>, E> {
        Ok(Key(Cow::Borrowed(name)))
    }

    fn visit_str<E>(self, name: &str) -> Result<Key<'de>, E> {
        Ok(Key(Cow::Owned(name.to_owned())))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry::<Key<'de>, &'de RawValue>()? {
            entries.push(entry);
        }
        Ok(Members { entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_taken_is_named() {
        let mut members = Members::read(br#"{"a":1,"\u0062":"x","c":null,"d":[]}"#).unwrap();
        assert_eq!(members.take("a").unwrap().get(), "1");
        assert_eq!(members.word("b").unwrap(), "x");
        assert_eq!(members.finish().unwrap_err().path(), Some("d"));
        let members = Members::read(br#"{"c":null}"#).unwrap();
        assert_eq!(members.finish(), Ok(()));
    }

    #[test]
    fn a_repeated_member_is_not_lost() {
        let mut members = Members::read(br#"{"a":1,"a":2}"#).unwrap();
        members.take("a");
        assert_eq!(members.finish().unwrap_err().path(), Some("a"));
    }

    #[test]
    fn texts_keep_their_escapes() {
        let raw = RawValue::from_string(r#""é\n\"\ud83d""#.to_owned()).unwrap();
        let half = Text::of(&raw).unwrap();
        let raw = RawValue::from_string(r#""\ude00!""#.to_owned()).unwrap();
        let other = Text::of(&raw).unwrap();
        let both = joined(&[half, other]);
        let both = Text::of(&both).unwrap();
        assert_eq!(both.to_str(), "é\n\"😀!");
        assert_eq!(joined(&[]).get(), "\"\"");
        assert!(half.to_str().starts_with('é'));
    }

    #[test]
    fn arguments_are_an_object_or_nothing() {
        let read = |said: &str| {
            object_in(Text::of(&quoted(said)).unwrap()).map(|json| json.get().to_owned())
        };
        assert_eq!(
            read(r#"{"b":1,"a":1e400}"#).as_deref(),
            Some(r#"{"b":1,"a":1e400}"#)
        );
        assert_eq!(read("").as_deref(), Some("{}"));
        for said in ["{", "[]", "7", "x", "{} {}"] {
            assert_eq!(read(said), None, "{said}");
        }
    }
}
