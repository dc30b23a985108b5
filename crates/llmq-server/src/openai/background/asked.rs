use bytes::Bytes;
use llmq_provider::{Operation, without_members};
use memchr::memmem;
use serde::Deserialize;

use crate::dialect::Refusal;

/// A response that is to be made in the background.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Background {
    /// Whether its caller wants to see its events all the same.
    pub(crate) stream: bool,
    /// The call as its provider is to get it: plain, and not as a stream.
    pub(crate) body: Bytes,
}

#[derive(Deserialize)]
struct Asked {
    background: Option<bool>,
    stream: Option<bool>,
    store: Option<bool>,
}

/// What a body of the Responses API asks for; none, as nearly always: nothing.
///
/// # Errors
///
/// It asks for what cannot be.
pub(crate) fn asked(body: &Bytes) -> Result<Option<Background>, Refusal> {
    // Nearly no call names it, and the others are not read once more.
    if memmem::find(body, b"\"background\"").is_none() {
        return Ok(None);
    }
    let asked: Asked = serde_json::from_slice(body).map_err(|_| {
        let message = "`background`, `stream` and `store` must be true or false, once each";
        Refusal::invalid(message).about("background")
    })?;
    if asked.background != Some(true) {
        return Ok(None);
    }
    if asked.store == Some(false) {
        let message = "a response in the background is kept until it is asked for: leave out \
                       `store`, or set it to true";
        return Err(Refusal::invalid(message).about("store"));
    }
    // The scan before this found an object.
    let body = without_members(body, &["background", "stream", "stream_options", "store"])
        .map_err(|error| Refusal::invalid(error.to_string()))?;
    Ok(Some(Background {
        stream: asked.stream == Some(true),
        body,
    }))
}

/// Whether a call asks for a response in the background, or may: what is accepted, or a line of a
/// batch, cannot. Its provider would answer at once that it has begun, which is no result.
pub(crate) fn asks_for_background(operation: Operation, body: &Bytes) -> bool {
    operation == Operation::Responses && !matches!(asked(body), Ok(None))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Option<Background>, Refusal> {
        asked(&Bytes::copy_from_slice(body.as_bytes()))
    }

    #[test]
    fn the_provider_gets_a_plain_call() {
        let body = r#"{"model":"m","background":true,"store":true,"input":"\u0041","stream":true}"#;
        let background = read(body).unwrap().unwrap();
        assert!(background.stream);
        assert_eq!(background.body, r#"{"model":"m","input":"\u0041"}"#);
    }

    #[test]
    fn a_text_that_names_it_is_no_wish() {
        for body in [
            r#"{"input":"\"background\""}"#,
            r#"{"input":["background"]}"#,
            r#"{"background":false}"#,
            r#"{"background":null}"#,
            r#"{"model":"m"}"#,
        ] {
            assert_eq!(read(body), Ok(None), "{body}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_name() {
        let param = |body| read(body).unwrap_err().param.unwrap();
        assert_eq!(param(r#"{"background":"yes"}"#), "background");
        assert_eq!(
            param(r#"{"background":true,"background":false}"#),
            "background"
        );
        assert_eq!(param(r#"{"background":true,"store":false}"#), "store");
    }
}
