//! What scripted upstreams say.

/// A whole answer that names who gave it.
pub(crate) fn whole(by: &str) -> String {
    let body = format!(
        concat!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"{0}","#,
            r#""choices":[{{"index":0,"message":{{"role":"assistant","content":"from {0}"}},"#,
            r#""finish_reason":"stop"}}],"#,
            r#""usage":{{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}}}"#
        ),
        by
    );
    with_body("200 OK", "application/json", "", &body)
}

/// An error in OpenAI's form. `headers` are whole lines.
pub(crate) fn error(status: &str, headers: &str, code: &str, message: &str) -> String {
    let body = format!(
        r#"{{"error":{{"message":"{message}","type":"{code}","param":null,"code":"{code}"}}}}"#
    );
    with_body(status, "application/json", headers, &body)
}

pub(crate) fn with_body(status: &str, kind: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n{headers}\
         connection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The head of a stream.
pub(crate) const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
     transfer-encoding: chunked\r\nconnection: close\r\n\r\n";

/// The end of a chunked body.
pub(crate) const END: &str = "0\r\n\r\n";

/// One piece of a chunked body.
pub(crate) fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// An event with a word of the answer.
pub(crate) fn word(by: &str, word: &str) -> String {
    chunk(&format!(
        concat!(
            r#"data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"#,
            r#""model":"{}","choices":[{{"index":0,"delta":{{"content":"{}"}},"#,
            r#""finish_reason":null}}]}}"#,
            "\n\n"
        ),
        by, word
    ))
}

/// OpenAI's first event of a chat: whose turn it is, and no word yet.
pub(crate) fn role(by: &str) -> String {
    chunk(&format!(
        concat!(
            r#"data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"#,
            r#""model":"{}","choices":[{{"index":0,"delta":{{"role":"assistant","content":""}},"#,
            r#""finish_reason":null}}]}}"#,
            "\n\n"
        ),
        by
    ))
}

/// The event that says why the answer ended.
pub(crate) fn stop(by: &str) -> String {
    chunk(&format!(
        concat!(
            r#"data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"#,
            r#""model":"{}","choices":[{{"index":0,"delta":{{}},"finish_reason":"stop"}}]}}"#,
            "\n\n"
        ),
        by
    ))
}

/// OpenAI's last event.
pub(crate) fn done() -> String {
    chunk("data: [DONE]\n\n")
}

/// The same with its usage in a chunk of its own, as `include_usage` asks for it.
pub(crate) fn stream_with_usage(by: &str) -> String {
    let from = word(by, &format!("from {by}"));
    let usage = chunk(&format!(
        concat!(
            r#"data: {{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"#,
            r#""model":"{}","choices":[],"usage":{{"prompt_tokens":7,"completion_tokens":3,"#,
            r#""total_tokens":10}}}}"#,
            "\n\n"
        ),
        by
    ));
    format!("{STREAM}{from}{}{usage}{}{END}", stop(by), done())
}

/// A whole stream that names who gave it.
pub(crate) fn stream(by: &str) -> String {
    let from = word(by, &format!("from {by}"));
    format!("{STREAM}{from}{}{}{END}", stop(by), done())
}
