//! The stream of a response that was made without one.
//!
//! Its events are those that its maker would have sent, with each text in one piece, and always
//! the same ones under the same numbers: who asks again with `starting_after` goes on behind the
//! last one that it has seen.

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};

/// Writes the events of one response.
#[derive(Debug)]
pub(super) struct Events {
    next: u64,
    /// Those up to this number are not wanted.
    after: Option<u64>,
    written: BytesMut,
}

impl Events {
    pub(super) fn new(after: Option<u64>) -> Self {
        Self {
            next: 0,
            after,
            written: BytesMut::new(),
        }
    }

    /// What was written since this was last asked.
    pub(super) fn take(&mut self) -> Bytes {
        self.written.split().freeze()
    }

    /// The response was accepted.
    pub(super) fn opens(&mut self, response: &Value) {
        let response = with_status(response, "queued");
        self.event("response.created", json!({"response": &response}));
        self.event("response.queued", json!({"response": response}));
    }

    /// The response has ended: all that it holds, and how it ended.
    pub(super) fn ends(&mut self, response: &Value) {
        let began = with_status(response, "in_progress");
        self.event("response.in_progress", json!({"response": began}));
        let items = response["output"].as_array().into_iter().flatten();
        for (at, item) in items.enumerate() {
            self.item(at, item);
        }
        let how = match response["status"].as_str() {
            Some("completed") => "response.completed",
            Some("failed") => "response.failed",
            // There is no word for a cancelled one; its response says what it is.
            _ => "response.incomplete",
        };
        self.event(how, json!({"response": response}));
    }

    fn item(&mut self, at: usize, item: &Value) {
        let id = item["id"].clone();
        let mut empty = match item.is_object() {
            true => item.clone(),
            // What a provider of its own kind put there is shown as it is.
            false => json!({}),
        };
        empty["status"] = "in_progress".into();
        for member in ["content", "summary"] {
            if empty[member].is_array() {
                empty[member] = json!([]);
            }
        }
        let is_call = item["type"] == "function_call";
        if is_call {
            empty["arguments"] = "".into();
        }
        let place = json!({"output_index": at});
        let added = json!({"item": empty});
        self.event("response.output_item.added", joined(&place, added));
        let place = json!({"output_index": at, "item_id": id});
        if is_call {
            let arguments = &item["arguments"];
            let kind = "response.function_call_arguments";
            let delta = joined(&place, json!({"delta": arguments}));
            self.event(&format!("{kind}.delta"), delta);
            let done = json!({"arguments": arguments, "name": item["name"]});
            self.event(&format!("{kind}.done"), joined(&place, done));
        }
        let parts = item["content"].as_array().into_iter().flatten();
        for (content, part) in parts.enumerate() {
            let place = joined(&place, json!({"content_index": content}));
            self.part(&place, part);
        }
        let done = json!({"output_index": at, "item": item});
        self.event("response.output_item.done", done);
    }

    fn part(&mut self, place: &Value, part: &Value) {
        let (kind, member) = match part["type"].as_str() {
            Some("output_text") => ("response.output_text", "text"),
            Some("refusal") => ("response.refusal", "refusal"),
            _ => ("", ""),
        };
        let mut empty = part.clone();
        if !member.is_empty() {
            empty[member] = "".into();
        }
        if empty["annotations"].is_array() {
            empty["annotations"] = json!([]);
        }
        let added = json!({"part": empty});
        self.event("response.content_part.added", joined(place, added));
        if !member.is_empty() {
            let said = |name: &str| {
                let mut said = json!({name: part[member]});
                if member == "text" {
                    said["logprobs"] = json!([]);
                }
                joined(place, said)
            };
            self.event(&format!("{kind}.delta"), said("delta"));
            self.event(&format!("{kind}.done"), said(member));
        }
        let done = json!({"part": part});
        self.event("response.content_part.done", joined(place, done));
    }

    fn event(&mut self, kind: &str, mut data: Value) {
        let number = self.next;
        self.next += 1;
        if self.after.is_some_and(|after| number <= after) {
            return;
        }
        data["type"] = kind.into();
        data["sequence_number"] = number.into();
        let text = format!("event: {kind}\ndata: {data}\n\n");
        self.written.extend_from_slice(text.as_bytes());
    }
}

/// The response as it was before it had an end.
fn with_status(response: &Value, status: &str) -> Value {
    let mut before = response.clone();
    before["status"] = status.into();
    before["output"] = json!([]);
    for member in ["error", "incomplete_details", "usage", "completed_at"] {
        if before.get(member).is_some() {
            before[member] = Value::Null;
        }
    }
    before
}

fn joined(one: &Value, mut other: Value) -> Value {
    let members = one.as_object().into_iter().flatten();
    for (name, value) in members {
        other[name] = value.clone();
    }
    other
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response() -> Value {
        json!({"id": "resp_1", "status": "completed", "usage": {"total_tokens": 3}, "output": [
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
             "content": [{"type": "output_text", "text": "Hello", "annotations": []}]},
            {"type": "function_call", "id": "fc_1", "name": "f", "arguments": "{}"},
        ]})
    }

    fn read(after: Option<u64>, response: &Value) -> Vec<Value> {
        let mut events = Events::new(after);
        events.opens(response);
        events.ends(response);
        let text = String::from_utf8(events.take().to_vec()).unwrap();
        let frames = text.split_terminator("\n\n");
        frames
            .map(|frame| {
                let (kind, data) = frame.split_once('\n').unwrap();
                let data: Value = serde_json::from_str(&data["data: ".len()..]).unwrap();
                assert_eq!(data["type"], kind["event: ".len()..]);
                data
            })
            .collect()
    }

    /// It ended the connection, and every other call that it carried.
    #[test]
    fn what_is_no_item_is_shown_as_it_is() {
        let response = json!({"status": "completed", "output": ["hello", 1, null, ["x"]]});
        let events = read(None, &response);
        let done: Vec<&Value> = events
            .iter()
            .filter_map(|event| event.get("item"))
            .collect();
        for (item, shown) in ["hello".into(), 1.into(), Value::Null, json!(["x"])]
            .into_iter()
            .zip(done.iter().skip(1).step_by(2))
        {
            assert_eq!(**shown, item);
        }
        assert_eq!(done.len(), 8);
    }

    #[test]
    fn all_that_a_response_holds_is_told_in_order() {
        let events = read(None, &response());
        let kinds: Vec<&str> = events
            .iter()
            .map(|event| event["type"].as_str().unwrap())
            .collect();
        assert_eq!(
            kinds,
            [
                "response.created",
                "response.queued",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.output_item.added",
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
                "response.output_item.done",
                "response.completed",
            ]
        );
        for (number, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], number);
        }
        assert_eq!(events[5]["delta"], "Hello");
        assert_eq!(events[6]["text"], "Hello");
        assert_eq!(
            (&events[5]["item_id"], &events[5]["content_index"]),
            (&"msg_1".into(), &0.into())
        );
        assert_eq!(events[0]["response"]["usage"], Value::Null);
        assert_eq!(events[13]["response"], response());
    }

    #[test]
    fn who_asks_again_goes_on_behind_what_it_has_seen() {
        let all = read(None, &response());
        assert_eq!(read(Some(4), &response()), all[5..]);
        assert_eq!(read(Some(99), &response()), all[..0]);
    }

    #[test]
    fn the_last_event_says_how_it_ended() {
        for (status, kind) in [
            ("failed", "response.failed"),
            ("incomplete", "response.incomplete"),
            ("cancelled", "response.incomplete"),
        ] {
            let ended = json!({"id": "resp_1", "status": status, "output": []});
            let events = read(None, &ended);
            assert_eq!(events.last().unwrap()["type"], kind);
        }
    }
}
