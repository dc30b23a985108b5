//! What OpenAI's lists have in common: how much of one is asked for, and the envelope.

use serde_json::{Value, json};

use super::guard::Refused;
use crate::dialect::Refusal;

/// How many a list shows: what is asked for, from 1 to `max`; `unless_said` where nothing is.
pub(super) fn limit(
    asked: Option<usize>,
    unless_said: usize,
    max: usize,
) -> Result<usize, Refused> {
    let limit = asked.unwrap_or(unless_said);
    if limit == 0 || limit > max {
        let message = format!("`limit` must be 1 to {max}");
        return Err(Refusal::invalid(message).about("limit").into());
    }
    Ok(limit)
}

/// Behind what a list begins, which `read` knows by its name.
pub(super) fn after<T>(
    asked: Option<&str>,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>, Refused> {
    let Some(name) = asked else { return Ok(None) };
    let found = read(name);
    found.map(Some).ok_or_else(|| {
        let shown: String = name.chars().take(100).collect();
        let message = format!("`after` must be an id of this list, which `{shown}` is not");
        Refusal::invalid(message).about("after").into()
    })
}

/// OpenAI's envelope of a list.
pub(super) fn listed(data: Vec<Value>, has_more: bool) -> Value {
    let id = |object: Option<&Value>| object.map(|object| object["id"].clone());
    json!({
        "object": "list", "first_id": id(data.first()), "last_id": id(data.last()),
        "has_more": has_more, "data": data,
    })
}
