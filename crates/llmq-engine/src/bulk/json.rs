//! Two helpers for JSON that is kept as text.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// A JSON object whose values are still text, so that numbers keep their digits.
pub(crate) type Object<'a> = BTreeMap<String, &'a RawValue>;

/// Reads `json` as an object; `None` when it is anything else.
pub(crate) fn object(json: &str) -> Option<Object<'_>> {
    serde_json::from_str(json).ok()
}

/// The value for a prompt or an id: a string's content, and any other value as compact JSON.
pub(crate) fn plain_text(value: &RawValue) -> String {
    match serde_json::from_str::<String>(value.get()) {
        Ok(text) => text,
        Err(_) => compact(value.get()).into_owned(),
    }
}

/// `json` without the white space between its tokens, if it holds line breaks; else unchanged.
///
/// A raw line break cannot stand inside a JSON string (RFC 8259 §7), so the result is one line.
/// `json` must be valid.
pub(crate) fn one_line(json: &str) -> Cow<'_, str> {
    if memchr::memchr2(b'\n', b'\r', json.as_bytes()).is_none() {
        return Cow::Borrowed(json);
    }
    compact(json)
}

fn compact(json: &str) -> Cow<'_, str> {
    let mut out = String::with_capacity(json.len());
    let mut in_string = false;
    let mut escaped = false;
    for c in json.chars() {
        if in_string {
            in_string = c != '"' || escaped;
            escaped = c == '\\' && !escaped;
        } else {
            if matches!(c, ' ' | '\t' | '\n' | '\r') {
                continue;
            }
            in_string = c == '"';
        }
        out.push(c);
    }
    if out.len() == json.len() {
        return Cow::Borrowed(json);
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn white_space_inside_strings_stays() {
        assert_eq!(
            one_line("{\n  \"a b\" : \"c \\\" \\\\\" ,\r\n \"n\": [1, 2]\n}"),
            r#"{"a b":"c \" \\","n":[1,2]}"#
        );
        assert_eq!(one_line(r#"{"a" : 1}"#), r#"{"a" : 1}"#);
    }

    proptest! {
        #[test]
        fn compact_json_means_the_same_on_one_line(text in ".*", n in any::<i64>()) {
            let value = serde_json::json!({ "t": text, "list": [n, {"deep": text}] });
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let line = one_line(&pretty);
            prop_assert_eq!(&*line, serde_json::to_string(&value).unwrap());
        }
    }
}
