//! What stands in a prompt: its text, and the files that it names.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::TokenTally;
use crate::lenient::{FromAny, Lenient};
use crate::plain::Plain;

/// What a body names that one account keeps, and no other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Kept {
    /// What was made earlier: the member, `previous_response_id` or `conversation`, and the name.
    pub earlier: Option<(&'static str, String)>,
    /// The files that its prompt names by `file_id` instead of sending them; the first 256.
    pub files: Vec<String>,
}

/// More files are not noted: no provider takes so many.
pub(super) const FILES_MAX: usize = 256;

impl Kept {
    /// Whether it names nothing, as nearly every body.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.earlier.is_none() && self.files.is_empty()
    }

    fn note_file(&mut self, Word(name): Word) {
        if self.files.len() < FILES_MAX {
            self.files.extend(name);
        }
    }
}

/// Of what kind a value in a prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    List {
        /// How many of its items are texts or lists.
        prompts: u32,
    },
    Other,
}

impl Kind {
    /// How many prompts it is where it is the `prompt` of a completion, each of which is answered
    /// by itself: a text, the numbers of its tokens, or a list of such.
    pub(super) fn prompts(self) -> u32 {
        match self {
            Self::List { prompts } => prompts.max(1),
            Self::Text | Self::Other => 1,
        }
    }
}

/// Adds the text found in a value to a tally, notes the files that it names, and tells its kind.
pub(super) struct PromptSeed<'a> {
    pub(super) tally: &'a mut TokenTally,
    pub(super) kept: &'a mut Kept,
}

impl PromptSeed<'_> {
    /// The same for a value inside of this one.
    fn within(&mut self) -> PromptSeed<'_> {
        PromptSeed {
            tally: self.tally,
            kept: self.kept,
        }
    }
}

/// Where text and the names of files stand inside messages, parts, items and tool calls.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum PartField {
    Content,
    Text,
    Output,
    ToolCalls,
    Function,
    Arguments,
    File,
    Source,
    FileId,
    #[serde(other)]
    Other,
}

impl<'de> DeserializeSeed<'de> for PromptSeed<'_> {
    type Value = Kind;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Kind, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PromptSeed<'_> {
    type Value = Kind;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_str<E>(self, text: &str) -> Result<Kind, E> {
        self.tally.add(text);
        Ok(Kind::Text)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Kind, E> {
        self.tally.add_tokens(1);
        Ok(Kind::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Kind, E> {
        Ok(Kind::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Kind, E> {
        Ok(Kind::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Kind, E> {
        Ok(Kind::Other)
    }

    fn visit_unit<E>(self) -> Result<Kind, E> {
        Ok(Kind::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Kind, A::Error> {
        let mut prompts = 0_u32;
        while let Some(kind) = items.next_element_seed(self.within())? {
            prompts = prompts.saturating_add(u32::from(kind != Kind::Other));
        }
        Ok(Kind::List { prompts })
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Kind, A::Error> {
        while let Some(field) = map.next_key::<PartField>()? {
            match field {
                PartField::Other => {
                    map.next_value::<IgnoredAny>()?;
                }
                PartField::Content
                | PartField::Text
                | PartField::Output
                | PartField::ToolCalls
                | PartField::Function
                | PartField::Arguments => {
                    map.next_value_seed(self.within())?;
                }
                PartField::File | PartField::Source => {
                    let Named(name) = map.next_value::<Lenient<_>>()?.0;
                    self.kept.note_file(name);
                }
                PartField::FileId => {
                    let name = map.next_value::<Lenient<_>>()?.0;
                    self.kept.note_file(name);
                }
            }
        }
        Ok(Kind::Other)
    }
}

/// A text; anything else is none.
#[derive(Default)]
struct Word(Option<String>);

impl FromAny<'_> for Word {
    fn of_text(text: &str) -> Self {
        Self(Some(text.to_owned()))
    }
}

/// The `file_id` of a part's `file` or `source`.
#[derive(Default)]
struct Named(Word);

impl<'de> FromAny<'de> for Named {
    fn of_object<A: MapAccess<'de>>(mut map: A) -> Result<Self, A::Error> {
        let mut named = Self::default();
        while let Some(field) = map.next_key::<PartField>()? {
            match field {
                PartField::FileId => named.0 = map.next_value::<Lenient<_>>()?.0,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(named)
    }
}

/// Adds the text found in a plain value to a tally, as [`PromptSeed`] does.
pub(super) fn count_plain(json: &mut Plain<'_>, tally: &mut TokenTally) -> Option<()> {
    match json.peek()? {
        b'"' => tally.add_chars(json.text()?.chars),
        b'[' => json.array(|json| count_plain(json, tally))?,
        b'{' => json.object(|json, name| match name {
            b"content" | b"text" | b"output" | b"tool_calls" | b"function" | b"arguments" => {
                count_plain(json, tally)
            }
            b"file" | b"source" => skip_sent(json),
            // Seldom there, and read with care.
            b"file_id" => None,
            _ => json.skip(),
        })?,
        b't' | b'f' | b'n' => json.skip()?,
        // A prompt may be given as the numbers of its tokens.
        _ => return None,
    }
    Some(())
}

/// Takes the file of a part, unless it is only named.
fn skip_sent(json: &mut Plain<'_>) -> Option<()> {
    match json.peek()? {
        b'{' => json.object(|json, name| match name {
            b"file_id" => None,
            _ => json.skip(),
        }),
        _ => json.skip(),
    }
}
