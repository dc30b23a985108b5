use std::io;
use std::path::Path;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::answer::{Answer, Content};
use super::text::Fnv;
use crate::blot::without_key;

/// One call as it stands in a file. Request headers are left out, and so is the key.
#[derive(Debug, Serialize, Deserialize)]
struct Recording {
    method: String,
    path: String,
    /// The body as JSON, or as text when it is not JSON.
    request: Value,
    status: u16,
    headers: Map<String, Value>,
    /// As `request`; an event stream is text.
    response: Value,
}

/// The file of a call: its path in words, then a digest of method, path and body.
pub(super) fn file_name(method: &str, path: &str, body: &[u8]) -> String {
    let words: String = path
        .trim_start_matches('/')
        .chars()
        .map(|letter| {
            if letter.is_ascii_alphanumeric() {
                letter
            } else {
                '-'
            }
        })
        .take(60)
        .collect();
    let digest = Fnv::new()
        .with(method.as_bytes())
        .with(b" ")
        .with(path.as_bytes())
        .with(b"\n")
        .with(body)
        .value();
    format!("{words}-{digest:016x}.json")
}

/// Writes a call and its answer to `directory`, in place of an earlier one of the same name.
/// Readers see the old file or the new one, never a part.
pub(super) async fn write(
    directory: &Path,
    (method, path, body): (&str, &str, &[u8]),
    key: Option<&str>,
    number: u64,
    answer: &Answer,
) -> io::Result<()> {
    let recording = Recording {
        method: method.to_owned(),
        path: path.to_owned(),
        request: json_or_text(body),
        status: answer.status.as_u16(),
        headers: headers_of(&answer.headers),
        response: json_or_text(&bytes_of(&answer.content)),
    };
    let mut text = serde_json::to_string_pretty(&recording)?;
    if let Some(key) = key {
        text = without_key(&text, key);
    }
    let name = file_name(method, path, body);
    let part = directory.join(format!("{name}.{number}.part"));
    tokio::fs::write(&part, text).await?;
    tokio::fs::rename(&part, directory.join(name)).await
}

/// Reads the answer recorded in `file`; `None` when there is none.
pub(super) async fn read(file: &Path) -> io::Result<Option<Answer>> {
    let text = match tokio::fs::read(file).await {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let recording: Recording = serde_json::from_slice(&text)?;
    let body = match recording.response {
        Value::String(text) => text,
        json => json.to_string(),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in &recording.headers {
        let name = HeaderName::try_from(name);
        let value = HeaderValue::from_str(value.as_str().unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.insert(name, value);
        }
    }
    Ok(Some(Answer {
        status: StatusCode::from_u16(recording.status).unwrap_or(StatusCode::OK),
        headers,
        content: Content::Whole(Bytes::from(body)),
    }))
}

fn json_or_text(bytes: &[u8]) -> Value {
    match serde_json::from_slice::<Value>(bytes) {
        // A JSON string would read back as plain text; only objects and lists stand as JSON.
        Ok(json @ (Value::Object(_) | Value::Array(_))) => json,
        _ => Value::String(String::from_utf8_lossy(bytes).into_owned()),
    }
}

fn headers_of(headers: &HeaderMap) -> Map<String, Value> {
    headers
        .iter()
        .filter_map(|(name, value)| Some((name.to_string(), Value::from(value.to_str().ok()?))))
        .collect()
}

fn bytes_of(content: &Content) -> Vec<u8> {
    match content {
        Content::Whole(bytes) => bytes.to_vec(),
        Content::Events(events) => {
            let parts: Vec<&[u8]> = events.iter().map(|event| &*event.bytes).collect();
            parts.concat()
        }
    }
}
