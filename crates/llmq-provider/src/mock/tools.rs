//! Calls of tools, and answers that keep to a schema.

use serde_json::{Value, json};

use super::call::Dialect;

/// Deeper than this a schema is taken to hold itself.
const DEPTH_MAX: u32 = 16;

/// A tool that the answer calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ToolCall {
    pub(super) name: String,
    /// The arguments as JSON.
    pub(super) arguments: String,
    /// Whether the caller left no choice, neither whether nor which.
    pub(super) forced: bool,
}

/// What is called in answer to `body`: the tool that it names, else the first one offered. A call
/// with the choice (`auto`) that has just brought a tool's result is answered in words.
pub(super) fn called(dialect: Dialect, body: &Value) -> Option<ToolCall> {
    let choice = &body["tool_choice"];
    let word = choice
        .as_str()
        .or(choice["type"].as_str())
        .unwrap_or("auto");
    let named = choice["function"]["name"]
        .as_str()
        .or(choice["name"].as_str());
    if word == "none" || (word == "auto" && brings_result(body)) {
        return None;
    }
    let mut tools = body["tools"]
        .as_array()?
        .iter()
        .filter_map(|tool| match dialect {
            Dialect::OpenAi => {
                // The Responses API has the function's parts beside its type.
                let function = tool.get("function").unwrap_or(tool);
                Some((function["name"].as_str()?, &function["parameters"]))
            }
            Dialect::Anthropic => Some((tool["name"].as_str()?, &tool["input_schema"])),
        });
    let (name, schema) = tools.find(|(name, _)| named.is_none_or(|named| named == *name))?;
    Some(ToolCall {
        name: name.to_owned(),
        arguments: sample(schema, schema, 0).to_string(),
        forced: named.is_some(),
    })
}

fn brings_result(body: &Value) -> bool {
    let said = body["messages"].as_array().or(body["input"].as_array());
    let Some(last) = said.and_then(|all| all.last()) else {
        return false;
    };
    let blocks = last["content"].as_array().into_iter().flatten();
    last["role"] == "tool"
        || last["type"] == "function_call_output"
        || blocks
            .into_iter()
            .any(|block| block["type"] == "tool_result")
}

/// An answer by the schema that the call asks its answer to keep to.
pub(super) fn structured(dialect: Dialect, body: &Value) -> Option<String> {
    let format = match dialect {
        Dialect::OpenAi => match &body["response_format"] {
            // The Responses API's.
            Value::Null => &body["text"]["format"],
            format => format,
        },
        Dialect::Anthropic => &body["output_config"]["format"],
    };
    let schema = match &format["json_schema"]["schema"] {
        Value::Null => &format["schema"],
        schema => schema,
    };
    match format["type"].as_str()? {
        "json_schema" => Some(sample(schema, schema, 0).to_string()),
        "json_object" => Some("{}".to_owned()),
        _ => None,
    }
}

/// A value that keeps to `schema`, as far as its types, choices and references say.
fn sample(schema: &Value, root: &Value, depth: u32) -> Value {
    if depth > DEPTH_MAX {
        return Value::Null;
    }
    let deeper = |schema| sample(schema, root, depth + 1);
    let place = schema["$ref"].as_str().and_then(|at| at.strip_prefix('#'));
    if let Some(referred) = place.and_then(|place| root.pointer(place)) {
        return deeper(referred);
    }
    let only = schema.get("const").or_else(|| schema["enum"].get(0));
    if let Some(value) = only {
        return value.clone();
    }
    for several in ["anyOf", "oneOf", "allOf"] {
        if let Some(first) = schema[several].get(0) {
            return deeper(first);
        }
    }
    let kind = schema["type"].as_str().or(schema["type"][0].as_str());
    match kind {
        Some("string") => json!("text"),
        Some("integer") => schema.get("minimum").cloned().unwrap_or(json!(1)),
        Some("number") => schema.get("minimum").cloned().unwrap_or(json!(1.5)),
        Some("boolean") => json!(true),
        Some("null") => Value::Null,
        Some("array") => match &schema["items"] {
            Value::Null => json!([]),
            items => json!([deeper(items)]),
        },
        _ => Value::Object(
            required(schema)
                .map(|(name, part)| (name, deeper(part)))
                .collect(),
        ),
    }
}

/// The members that an object must have, with their schemas.
fn required(schema: &Value) -> impl Iterator<Item = (String, &Value)> {
    let names = schema["required"].as_array().into_iter().flatten();
    names.filter_map(|name| {
        let name = name.as_str()?;
        Some((name.to_owned(), &schema["properties"][name]))
    })
}

/// Arguments as the parts of a stream.
pub(super) fn parts(arguments: &str) -> Vec<String> {
    const PARTS: usize = 3;
    let letters: Vec<char> = arguments.chars().collect();
    let size = letters.len().div_ceil(PARTS).max(1);
    letters
        .chunks(size)
        .map(|part| part.iter().collect())
        .collect()
}

/// Text as it stands between the quotes of JSON.
pub(super) fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(schema: Value) -> Value {
        let body = json!({"tools": [{"name": "f", "input_schema": schema}]});
        let call = called(Dialect::Anthropic, &body).unwrap();
        serde_json::from_str(&call.arguments).unwrap()
    }

    #[test]
    fn arguments_are_what_the_schema_requires() {
        let schema = json!({
            "type": "object",
            "properties": {
                "city": {"type": "string"}, "days": {"type": ["integer", "null"]},
                "unit": {"enum": ["celsius", "kelvin"]}, "wind": {"anyOf": [{"type": "boolean"}]},
                "at": {"type": "array", "items": {"$ref": "#/$defs/place"}}, "more": {"type": "string"},
            },
            "required": ["city", "days", "unit", "wind", "at"],
            "$defs": {"place": {"type": "object", "properties": {"x": {"type": "number", "minimum": 3}}, "required": ["x"]}},
        });
        let expected =
            json!({"city": "text", "days": 1, "unit": "celsius", "wind": true, "at": [{"x": 3}]});
        assert_eq!(arguments(schema), expected);
        assert_eq!(
            arguments(json!({"$ref": "#"})),
            Value::Null,
            "it holds itself"
        );
        assert_eq!(arguments(Value::Null), json!({}));
    }

    #[test]
    fn who_is_called_follows_the_choice_and_a_result_is_answered_in_words() {
        let name = |choice: Value, last: Value| {
            let tool = |name| json!({"type": "function", "function": {"name": name}});
            let body =
                json!({"tools": [tool("a"), tool("b")], "tool_choice": choice, "messages": [last]});
            called(Dialect::OpenAi, &body).map(|call| call.name)
        };
        let user = json!({"role": "user", "content": "hi"});
        let result = json!({"role": "tool", "content": "42"});
        let named = json!({"type": "function", "function": {"name": "b"}});
        assert_eq!(name(Value::Null, user.clone()).as_deref(), Some("a"));
        assert_eq!(
            name(json!("required"), result.clone()).as_deref(),
            Some("a")
        );
        assert_eq!(name(named, user.clone()).as_deref(), Some("b"));
        assert_eq!(name(json!("none"), user), None);
        assert_eq!(name(json!("auto"), result), None);
    }
}
