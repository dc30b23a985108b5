//! Translates what stands on standard input into a dialect, `openai` or `anthropic`:
//!
//! ```sh
//! cargo run -p llmq-provider --example translate -- request anthropic < chat.json
//! cargo run -p llmq-provider --example translate -- answer openai < message.json
//! cargo run -p llmq-provider --example translate -- stream openai < message.sse
//! cargo run -p llmq-provider --example translate -- error openai < error.json
//! ```

use std::error::Error;
use std::io::{Read, Write};

use bytes::BytesMut;
use llmq_provider::translate::{StreamOptions, StreamTranslator, Target, answer, error, request};
use llmq_provider::{Dialect, Operation};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, to] = &arguments[..] else {
        return Err("say request, answer, stream or error, and openai or anthropic".into());
    };
    let (to, operation) = match to.as_str() {
        "openai" => (Dialect::OpenAi, Operation::Messages),
        "anthropic" => (Dialect::Anthropic, Operation::ChatCompletions),
        _ => return Err("the dialects are openai and anthropic".into()),
    };
    let mut given = Vec::new();
    std::io::stdin().read_to_end(&mut given)?;
    let told = match what.as_str() {
        "request" => request(operation, &given, Target::new("model"))?.body,
        "answer" => answer(to, &given, 1_700_000_000)?,
        "stream" => stream(to, &given)?,
        "error" => error(to, 500, &given),
        _ => return Err("what can be translated is request, answer, stream and error".into()),
    };
    std::io::stdout().write_all(&told)?;
    Ok(())
}

/// What has been told before the stream broke is written as well.
fn stream(to: Dialect, given: &[u8]) -> Result<bytes::Bytes, Box<dyn Error>> {
    let options = StreamOptions {
        include_usage: true,
        created_s: 1_700_000_000,
    };
    let mut translator = StreamTranslator::new(to, options);
    let mut out = BytesMut::new();
    let told = translator
        .push(given, &mut out)
        .and_then(|()| translator.finish(&mut out));
    if let Err(broken) = told {
        eprintln!("{broken}");
    }
    Ok(out.freeze())
}
