use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A request body cannot be changed, since it is not a JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request body is not a JSON object")]
pub struct NotAnObject;

/// The same body for another model. Every byte outside the model's name stays as it is.
///
/// # Errors
///
/// [`NotAnObject`].
///
/// ```
/// use llmq_provider::with_model;
/// let body = with_model(br#"{ "model": "a",  "input": "\u0041" }"#, "b")?;
/// assert_eq!(&body[..], br#"{ "model": "b",  "input": "\u0041" }"#);
/// # Ok::<(), llmq_provider::NotAnObject>(())
/// ```
pub fn with_model(body: &[u8], model: &str) -> Result<Bytes, NotAnObject> {
    with_member(body, "model", &serde_json::Value::from(model).to_string())
}

/// The same body, asking a stream to tell its usage at the end (`stream_options`).
///
/// Other stream options are kept.
///
/// # Errors
///
/// [`NotAnObject`].
pub fn with_stream_usage(body: &[u8]) -> Result<Bytes, NotAnObject> {
    let spans = member_spans(body, "stream_options")?;
    let options = spans.last().and_then(|span| body.get(span.clone()));
    let options = match options {
        Some(options) if options.starts_with(b"{") => {
            let options = with_member(options, "include_usage", "true")?;
            String::from_utf8(options.to_vec()).map_err(|_| NotAnObject)?
        }
        _ => r#"{"include_usage":true}"#.to_owned(),
    };
    with_member(body, "stream_options", &options)
}

/// The same body without its top-level members called `names`. The values of the others stay as
/// they are.
///
/// # Errors
///
/// [`NotAnObject`].
///
/// ```
/// use llmq_provider::without_members;
/// let body = without_members(br#"{"model":"a","store":true,"top_p":1.0}"#, &["store"])?;
/// assert_eq!(&body[..], br#"{"model":"a","top_p":1.0}"#);
/// # Ok::<(), llmq_provider::NotAnObject>(())
/// ```
pub fn without_members(body: &[u8], names: &[&str]) -> Result<Bytes, NotAnObject> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let members = deserializer
        .deserialize_map(Members)
        .map_err(|_| NotAnObject)?;
    deserializer.end().map_err(|_| NotAnObject)?;
    let mut kept = Vec::with_capacity(body.len());
    for (name, value) in members {
        if names.contains(&name.as_ref()) {
            continue;
        }
        kept.push(if kept.is_empty() { b'{' } else { b',' });
        kept.extend_from_slice(serde_json::Value::from(name).to_string().as_bytes());
        kept.push(b':');
        kept.extend_from_slice(value.get().as_bytes());
    }
    if kept.is_empty() {
        kept.push(b'{');
    }
    kept.push(b'}');
    Ok(Bytes::from(kept))
}

/// The body with its top-level member `name` set to `json`, which must be JSON.
///
/// # Errors
///
/// [`NotAnObject`].
pub fn with_member(body: &[u8], name: &str, json: &str) -> Result<Bytes, NotAnObject> {
    let spans = member_spans(body, name)?;
    let mut edited = Vec::with_capacity(body.len() + name.len() + json.len() + 4);
    let mut copied_to = 0;
    // A repeated name is legal JSON, and readers differ in which one they take.
    for span in &spans {
        edited.extend_from_slice(&body[copied_to..span.start]);
        edited.extend_from_slice(json.as_bytes());
        copied_to = span.end;
    }
    if spans.is_empty() {
        let open = body
            .iter()
            .position(|byte| *byte == b'{')
            .ok_or(NotAnObject)?
            + 1;
        let is_empty = body[open..].trim_ascii_start().first() == Some(&b'}');
        edited.extend_from_slice(&body[..open]);
        edited.extend_from_slice(format!("\"{name}\":{json}").as_bytes());
        if !is_empty {
            edited.push(b',');
        }
        copied_to = open;
    }
    edited.extend_from_slice(&body[copied_to..]);
    Ok(Bytes::from(edited))
}

/// Where the values of the top-level member `name` stand.
fn member_spans(body: &[u8], name: &str) -> Result<Vec<Range<usize>>, NotAnObject> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let values = deserializer
        .deserialize_map(Find(name))
        .map_err(|_| NotAnObject)?;
    deserializer.end().map_err(|_| NotAnObject)?;
    let start_of_body = body.as_ptr().addr();
    Ok(values
        .into_iter()
        .map(|value| {
            let start = value.get().as_ptr().addr() - start_of_body;
            start..start + value.get().len()
        })
        .collect())
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(member) = map.next_entry()? {
            all.push(member);
        }
        Ok(all)
    }
}

struct Find<'a>(&'a str);

impl<'de> Visitor<'de> for Find<'_> {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = Vec::new();
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            let value: &RawValue = map.next_value()?;
            if name == self.0 {
                found.push(value);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn edited(body: &str) -> String {
        String::from_utf8(with_model(body.as_bytes(), "n\"1").unwrap().to_vec()).unwrap()
    }

    #[test]
    fn members_are_left_out_however_often_they_stand_there() {
        let table = [
            (r#"{"a":1,"b":{"a":2},"a":3}"#, r#"{"b":{"a":2}}"#),
            (r#"{"\u0061":1}"#, "{}"),
            (r#" { "x\"" : 1e400 } "#, r#"{"x\"":1e400}"#),
            ("{}", "{}"),
        ];
        for (body, without) in table {
            assert_eq!(without_members(body.as_bytes(), &["a"]).unwrap(), without);
        }
        assert_eq!(without_members(b"[1]", &["a"]), Err(NotAnObject));
    }

    #[test]
    fn only_the_value_changes() {
        let table = [
            (r#"{"model":"a","x":1.0}"#, r#"{"model":"n\"1","x":1.0}"#),
            (
                r#" { "x" : {"model":"in"} , "model" : null } "#,
                r#" { "x" : {"model":"in"} , "model" : "n\"1" } "#,
            ),
            (
                r#"{"model":"a","model":"b"}"#,
                r#"{"model":"n\"1","model":"n\"1"}"#,
            ),
            (r#"{"mod\u0065l":"a"}"#, r#"{"mod\u0065l":"n\"1"}"#),
            ("{}", r#"{"model":"n\"1"}"#),
            (r#"{ "x": 1e400 }"#, r#"{"model":"n\"1", "x": 1e400 }"#),
        ];
        for (before, after) in table {
            assert_eq!(edited(before), after);
        }
        for body in ["", "[]", "null", "{", "{} x"] {
            assert_eq!(with_model(body.as_bytes(), "m"), Err(NotAnObject), "{body}");
        }
    }

    #[test]
    fn usage_is_asked_for_and_other_options_stay() {
        let ask = |body: &str| with_stream_usage(body.as_bytes()).unwrap();
        assert_eq!(ask("{}"), r#"{"stream_options":{"include_usage":true}}"#);
        assert_eq!(
            ask(r#"{"stream_options":{"include_usage":false,"x":1}}"#),
            r#"{"stream_options":{"include_usage":true,"x":1}}"#
        );
        assert_eq!(
            ask(r#"{"stream_options":null}"#),
            r#"{"stream_options":{"include_usage":true}}"#
        );
    }

    proptest! {
        #[test]
        fn the_model_is_set_and_the_rest_is_kept(
            others in proptest::collection::btree_map("[a-z]{1,5}", any::<String>(), 0..5),
            model in any::<String>(),
        ) {
            let mut expected = serde_json::json!(others);
            let body = expected.to_string();
            expected["model"] = model.clone().into();
            let edited = with_model(body.as_bytes(), &model).unwrap();
            prop_assert_eq!(serde_json::from_slice::<serde_json::Value>(&edited).unwrap(), expected);
        }
    }
}
