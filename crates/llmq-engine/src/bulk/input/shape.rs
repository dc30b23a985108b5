use std::borrow::Cow;
use std::collections::VecDeque;

use serde_json::value::RawValue;

use super::csv::Fields;
use super::error::{BadRowCode, InputError};
use super::records::{Content, Record};
use super::rows::{BATCH_URLS, RowCall};
use super::source::InputSource;
use crate::bulk::json::{Object, object, one_line};
use crate::bulk::template::{Name, Template};

/// The one name that a template for `.txt` may use.
const TXT_COLUMN: &str = "line";

/// How a record becomes a row.
pub(super) enum Shape {
    Batch,
    Txt(Option<Template>),
    Objects {
        template: Template,
        id: Option<Name>,
    },
    Table {
        template: Template,
        /// The column of each of the template's names.
        columns: Vec<usize>,
        id: Option<(usize, Name)>,
    },
}

/// Why a record is a bad row; without its line.
pub(super) struct Fault {
    pub(super) code: BadRowCode,
    pub(super) message: String,
    pub(super) custom_id: Option<String>,
}

pub(super) fn fault(code: BadRowCode, message: impl Into<String>) -> Fault {
    Fault {
        code,
        message: message.into(),
        custom_id: None,
    }
}

/// Chooses the shape of the rows and checks the names.
pub(super) struct Chooser<'a> {
    pub(super) input: &'a InputSource,
    pub(super) template: Option<Template>,
    pub(super) id: Option<String>,
}

impl Chooser<'_> {
    pub(super) fn txt(self) -> Result<Shape, InputError> {
        if self.id.is_some() {
            return Err(self.not_usable("--id", "a text file has no columns"));
        }
        let known = [TXT_COLUMN.to_owned()];
        if let Some(template) = &self.template {
            for name in template.names() {
                self.column(name.as_str(), "--template", &known)?;
            }
        }
        Ok(Shape::Txt(self.template))
    }

    pub(super) fn batch(self) -> Result<Shape, InputError> {
        if self.template.is_some() {
            return Err(self.not_usable("--template", "its rows bring their own bodies"));
        }
        if self.id.is_some() {
            return Err(self.not_usable("--id", "its rows bring their own custom_id"));
        }
        Ok(Shape::Batch)
    }

    pub(super) fn table(self, known: &[String]) -> Result<Shape, InputError> {
        let Some(template) = self.template.clone() else {
            return Err(self.template_needed(known));
        };
        let columns: Result<Vec<usize>, InputError> = template
            .names()
            .map(|name| self.column(name.as_str(), "--template", known))
            .collect();
        let id = match &self.id {
            None => None,
            Some(name) => Some((self.column(name, "--id", known)?, Name::new(name))),
        };
        Ok(Shape::Table {
            template,
            columns: columns?,
            id,
        })
    }

    pub(super) fn jsonl(self, ahead: &VecDeque<Record>) -> Result<Shape, InputError> {
        let mut objects = ahead.iter().filter_map(|record| match &record.content {
            Content::Line(text) => object(text),
            Content::Fields(_) | Content::Broken(..) => None,
        });
        let mut known: Vec<String> = Vec::new();
        let first = objects.next();
        let is_batch = match &first {
            Some(first) => first.contains_key("custom_id") && first.contains_key("body"),
            None => true,
        };
        for object in first.into_iter().chain(objects) {
            for key in object.into_keys() {
                if !known.contains(&key) {
                    known.push(key);
                }
            }
        }
        let Some(template) = self.template.clone() else {
            if is_batch {
                return self.batch();
            }
            return Err(self.template_needed(&known));
        };
        // Without one readable row nothing is known, and each row tells its own mistake.
        if !known.is_empty() {
            for name in template.names() {
                self.key(name, "--template", &known)?;
            }
        }
        let id = self.id.as_deref().map(Name::new);
        if let (Some(id), false) = (&id, known.is_empty()) {
            self.key(id, "--id", &known)?;
        }
        Ok(Shape::Objects { template, id })
    }

    fn key(&self, name: &Name, flag: &'static str, known: &[String]) -> Result<(), InputError> {
        if name.begins_in(known) {
            return Ok(());
        }
        Err(self.no_such_column(name.as_str(), flag, known))
    }

    fn column(
        &self,
        name: &str,
        flag: &'static str,
        known: &[String],
    ) -> Result<usize, InputError> {
        let place = known.iter().position(|column| column == name);
        place.ok_or_else(|| self.no_such_column(name, flag, known))
    }

    fn no_such_column(&self, name: &str, flag: &'static str, known: &[String]) -> InputError {
        InputError::NoSuchColumn {
            input: self.input.clone(),
            flag,
            name: name.to_owned(),
            known: known.to_vec(),
        }
    }

    fn template_needed(&self, known: &[String]) -> InputError {
        InputError::TemplateNeeded {
            input: self.input.clone(),
            example: known.first().cloned().unwrap_or_else(|| "name".to_owned()),
            known: known.to_vec(),
        }
    }

    fn not_usable(&self, flag: &'static str, reason: &'static str) -> InputError {
        InputError::FlagNotUsable {
            input: self.input.clone(),
            flag,
            reason,
        }
    }
}

/// A row's own id, if it has one, and its call.
pub(super) type Made = Result<(Option<String>, RowCall), Fault>;

impl Shape {
    pub(super) fn row_of_text(&self, text: &str) -> Made {
        match self {
            Self::Batch => batch_row(text),
            Self::Txt(template) => {
                let prompt = match template {
                    None => text.to_owned(),
                    Some(template) => render(template, |_| Some(Cow::Borrowed(text)))?,
                };
                Ok((None, RowCall::Prompt(prompt)))
            }
            Self::Objects { template, id } => {
                let object = json_object(text)?;
                let id = id.as_ref().map(|id| own_id(id, id.id_in(&object)));
                let id = id.transpose()?;
                let names: Vec<&Name> = template.names().collect();
                let value = |index: usize| names[index].value_in(&object).map(Cow::Owned);
                let prompt = render(template, value).map_err(|fault| Fault {
                    custom_id: id.clone(),
                    ..fault
                })?;
                Ok((id, RowCall::Prompt(prompt)))
            }
            // Tables give fields; kept total so that a mistake is a bad row and not a panic.
            Self::Table { .. } => Err(fault(BadRowCode::UnevenRow, "not a record")),
        }
    }

    pub(super) fn row_of_fields(&self, fields: &Fields) -> Made {
        let Self::Table {
            template,
            columns,
            id,
        } = self
        else {
            return Err(fault(BadRowCode::InvalidJson, "not a line"));
        };
        let text = |column: usize| std::str::from_utf8(fields.get(column)?).ok();
        let id = id
            .as_ref()
            .map(|(column, name)| own_id(name, text(*column).map(str::to_owned)));
        let prompt = render(template, |index| text(columns[index]).map(Cow::Borrowed))?;
        Ok((id.transpose()?, RowCall::Prompt(prompt)))
    }
}

fn own_id(name: &Name, value: Option<String>) -> Result<String, Fault> {
    match value {
        Some(id) if !id.is_empty() => Ok(id),
        Some(_) => Err(fault(
            BadRowCode::MissingColumn,
            format!("the id column {name:?} is empty", name = name.as_str()),
        )),
        None => Err(missing(name)),
    }
}

fn render<'v>(
    template: &Template,
    value: impl FnMut(usize) -> Option<Cow<'v, str>>,
) -> Result<String, Fault> {
    template.render(value).map_err(missing)
}

fn missing(name: &Name) -> Fault {
    let message = format!("no value for {:?}", name.as_str());
    fault(BadRowCode::MissingColumn, message)
}

fn json_object(text: &str) -> Result<Object<'_>, Fault> {
    serde_json::from_str(text).map_err(|error| {
        let words = error.to_string();
        // The parser counts lines of the row, which are not lines of the file.
        let words = words.split(" at line ").next().unwrap_or_default();
        let message = format!("not a JSON object: {words} at column {}", error.column());
        fault(BadRowCode::InvalidJson, message)
    })
}

fn batch_row(text: &str) -> Made {
    let object = json_object(text)?;
    let custom_id = text_field(&object, "custom_id")?;
    if custom_id.is_empty() {
        return Err(fault(BadRowCode::InvalidField, "custom_id is empty"));
    }
    let call = batch_call(&object).map_err(|fault| Fault {
        custom_id: Some(custom_id.clone()),
        ..fault
    })?;
    Ok((Some(custom_id), call))
}

fn batch_call(object: &Object<'_>) -> Result<RowCall, Fault> {
    let method = text_field(object, "method")?;
    if method != "POST" {
        let message = format!("method is {method:?}; only \"POST\" can be sent");
        return Err(fault(BadRowCode::InvalidField, message));
    }
    let url = text_field(object, "url")?;
    if !BATCH_URLS.contains(&url.as_str()) {
        let message = format!("url {url:?} is not one of {}", BATCH_URLS.join(", "));
        return Err(fault(BadRowCode::InvalidField, message));
    }
    let body = field(object, "body")?;
    if !body.get().starts_with('{') {
        return Err(fault(BadRowCode::InvalidField, "body is not a JSON object"));
    }
    // A lone `\r` between tokens is the only line break that can be left inside a line.
    let body = match one_line(body.get()) {
        Cow::Borrowed(_) => body.to_owned(),
        Cow::Owned(line) => RawValue::from_string(line)
            .map_err(|_| fault(BadRowCode::InvalidField, "body is not JSON"))?,
    };
    Ok(RowCall::Batch { url, body })
}

fn field<'o>(object: &'o Object<'_>, name: &str) -> Result<&'o RawValue, Fault> {
    let value = object.get(name).copied();
    value.ok_or_else(|| fault(BadRowCode::MissingField, format!("no {name}")))
}

fn text_field(object: &Object<'_>, name: &str) -> Result<String, Fault> {
    let value = field(object, name)?;
    serde_json::from_str(value.get())
        .map_err(|_| fault(BadRowCode::InvalidField, format!("{name} is not a string")))
}
