use std::borrow::Cow;

use serde_json::value::RawValue;

use super::json::{Object, plain_text};

/// A prompt with places for a row's values, such as `Introduce {{name}}, {{country}}.`.
///
/// - `{{name}}` and `{{ name }}` stand for the column or key `name`. Names may hold spaces and
///   any other character but braces and line breaks.
/// - `{{a.b}}` is the key `a.b` if there is one, else the key `b` inside `a`; numbers index lists.
/// - A string goes in as it is, every other JSON value as compact JSON with its own digits.
/// - `{{{{` writes two braces. A single brace, and `}}` outside a name, stand for themselves.
///
/// ```
/// use llmq_engine::bulk::Template;
/// let template = Template::parse("Say {{{{hello}} to {{ name }}.")?;
/// assert_eq!(template.names().map(|name| name.as_str()).collect::<Vec<_>>(), ["name"]);
/// let prompt = template.render(|_| Some("Ada".into())).unwrap();
/// assert_eq!(prompt, "Say {{hello}} to Ada.");
/// # Ok::<(), llmq_engine::bulk::TemplateError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
    names: Vec<Name>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// An index into the names.
    Name(usize),
}

/// A name used in a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

/// What is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// Two opening braces without their closing ones.
    #[error(
        "the template opens {{{{ at character {at} and never closes it with }}}}; \
         write {{{{{{{{ for two literal braces"
    )]
    Unclosed {
        /// The position of the braces in characters, from 1.
        at: usize,
    },
    /// Nothing stands between the braces.
    #[error("the template has no name between the braces at character {at}")]
    EmptyName {
        /// The position of the braces in characters, from 1.
        at: usize,
    },
    /// A brace or a line break stands inside a name.
    #[error("the template's name at character {at} holds a brace or a line break: {name:?}")]
    BadName {
        /// The position of the braces in characters, from 1.
        at: usize,
        /// What stands between them.
        name: String,
    },
}

impl std::fmt::Display for Template {
    /// The template as it would be written.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => f.write_str(&text.replace("{{", "{{{{"))?,
                Piece::Name(index) => write!(f, "{{{{{}}}}}", self.names[*index].0)?,
            }
        }
        Ok(())
    }
}

impl Template {
    /// Reads a template once; [`Template::render`] is then cheap.
    ///
    /// # Errors
    ///
    /// [`TemplateError`] says what is wrong and at which character.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut template = Self {
            pieces: Vec::new(),
            names: Vec::new(),
        };
        let mut rest = text;
        while let Some(brace) = rest.find('{') {
            template.literal(&rest[..brace]);
            let run = rest[brace..].bytes().take_while(|&b| b == b'{').count();
            for _ in 0..run / 4 {
                template.literal("{{");
            }
            let (plain, opens) = ((run % 4) & 1, run % 4 >= 2);
            if plain == 1 {
                template.literal("{");
            }
            rest = &rest[brace + run..];
            if opens {
                let at = text[..text.len() - rest.len()].chars().count() - 1;
                rest = template.name(rest, at)?;
            }
        }
        template.literal(rest);
        Ok(template)
    }

    /// The names that occur, each once, in order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &Name> {
        self.names.iter()
    }

    /// Puts the values in. `value_of` is given the position of a name in [`Template::names`].
    ///
    /// # Errors
    ///
    /// The first name for which `value_of` knows nothing.
    pub fn render<'v>(
        &self,
        mut value_of: impl FnMut(usize) -> Option<Cow<'v, str>>,
    ) -> Result<String, &Name> {
        let mut out = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => out.push_str(text),
                Piece::Name(index) => match value_of(*index) {
                    Some(value) => out.push_str(&value),
                    None => return Err(&self.names[*index]),
                },
            }
        }
        Ok(out)
    }

    fn literal(&mut self, text: &str) {
        match self.pieces.last_mut() {
            Some(Piece::Literal(last)) => last.push_str(text),
            _ if text.is_empty() => {}
            _ => self.pieces.push(Piece::Literal(text.to_owned())),
        }
    }

    /// Takes a name off the front of `rest`, which follows its opening braces.
    fn name<'t>(&mut self, rest: &'t str, at: usize) -> Result<&'t str, TemplateError> {
        let (name, rest) = rest
            .split_once("}}")
            .ok_or(TemplateError::Unclosed { at })?;
        if name.contains(['{', '}', '\n', '\r']) {
            let name = name.to_owned();
            return Err(TemplateError::BadName { at, name });
        }
        let name = Name(name.trim().to_owned());
        if name.0.is_empty() {
            return Err(TemplateError::EmptyName { at });
        }
        let known = self.names.iter().position(|known| *known == name);
        let index = known.unwrap_or_else(|| {
            self.names.push(name);
            self.names.len() - 1
        });
        self.pieces.push(Piece::Name(index));
        Ok(rest)
    }
}

impl Name {
    /// A name that is not from a template, such as the one given with `--id`.
    pub(crate) fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The name as it was written, without the spaces around it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value that this name has in `object`, ready for a prompt.
    pub(crate) fn value_in(&self, object: &Object<'_>) -> Option<String> {
        self.find_in(object).map(|value| plain_text(&value))
    }

    /// The value that this name has in `object`, as an id: `null` is none.
    pub(crate) fn id_in(&self, object: &Object<'_>) -> Option<String> {
        let value = self.find_in(object)?;
        (value.get() != "null").then(|| plain_text(&value))
    }

    fn find_in(&self, object: &Object<'_>) -> Option<Box<RawValue>> {
        if let Some(&value) = object.get(self.0.as_str()) {
            return Some(value.to_owned());
        }
        let (first, path) = self.0.split_once('.')?;
        descend(object.get(first)?, path)
    }

    /// Whether `object` has the key, or for a path the first key of it.
    pub(crate) fn begins_in(&self, keys: &[String]) -> bool {
        let first = self.0.split('.').next().unwrap_or_default();
        keys.iter().any(|key| *key == self.0 || key == first)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn descend(value: &RawValue, path: &str) -> Option<Box<RawValue>> {
    let mut value: Box<RawValue> = value.to_owned();
    for step in path.split('.') {
        let inner = match serde_json::from_str::<Object<'_>>(value.get()) {
            Ok(object) => (*object.get(step)?).to_owned(),
            Err(_) => {
                let list: Vec<&RawValue> = serde_json::from_str(value.get()).ok()?;
                (*list.get(step.parse::<usize>().ok()?)?).to_owned()
            }
        };
        value = inner;
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::json::object;
    use super::*;

    fn render(template: &str, json: &str) -> Result<String, String> {
        let template = Template::parse(template).map_err(|error| error.to_string())?;
        let object = object(json).unwrap();
        let names: Vec<&Name> = template.names().collect();
        template
            .render(|index| names[index].value_in(&object).map(Cow::Owned))
            .map_err(|name| format!("no {name}"))
    }

    fn check(template: &str, json: &str, expected: &str) {
        assert_eq!(
            render(template, json).as_deref(),
            Ok(expected),
            "{template}"
        );
    }

    #[test]
    fn values_go_in() {
        check("{{a}}", r#"{"a":"x \"y\" é"}"#, "x \"y\" é");
        check("<{{ a }}{{a}}>", r#"{"a":"1"}"#, "<11>");
        check("{{first name}}", r#"{"first name":"Ada"}"#, "Ada");
        check("{{a}}", r#"{"a": 1.50}"#, "1.50");
        check(
            "{{a}}",
            r#"{"a": 123456789012345678901234567890}"#,
            "123456789012345678901234567890",
        );
        check("{{a}}", r#"{"a": [1, {"b": null}]}"#, r#"[1,{"b":null}]"#);
        check("{{a.b}} {{a.c.1}}", r#"{"a":{"b":"in","c":[7,8]}}"#, "in 8");
        check(
            "{{a.b}}",
            r#"{"a.b":"whole key","a":{"b":"path"}}"#,
            "whole key",
        );
        check("no names", "{}", "no names");
    }

    #[test]
    fn braces_can_be_written() {
        check("{{{{a}}", "{}", "{{a}}");
        check("{{{a}}}", r#"{"a":1}"#, "{1}");
        check("{ } }} {x}", "{}", "{ } }} {x}");
        check("{{{{{{a}}", r#"{"a":1}"#, "{{1");
        check(r#"{"k":{"v":"{{a}}"}}"#, r#"{"a":1}"#, r#"{"k":{"v":"1"}}"#);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        use TemplateError as E;
        let error = |text| Template::parse(text).unwrap_err();
        assert_eq!(error("é {{name"), E::Unclosed { at: 3 });
        assert_eq!(error("{{ }}"), E::EmptyName { at: 1 });
        assert!(matches!(error("{{a {{b}}"), E::BadName { at: 1, .. }));
        assert_eq!(
            error("é {{name").to_string(),
            "the template opens {{ at character 3 and never closes it with }}; \
             write {{{{ for two literal braces"
        );
        assert_eq!(render("{{b}}", r#"{"a":1}"#), Err("no b".to_owned()));
        assert_eq!(render("{{a.x}}", r#"{"a":1}"#), Err("no a.x".to_owned()));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[{}ab \n]{0,24}") {
            let _ = Template::parse(&text);
        }

        #[test]
        fn text_with_its_double_braces_written_twice_is_itself(text in "([^{]|\\{\\{){0,20}") {
            let template = Template::parse(&text.replace("{{", "{{{{")).unwrap();
            prop_assert_eq!(template.render(|_| None).unwrap(), text);
        }
    }
}
