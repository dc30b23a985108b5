use llmq_engine::bulk::{BadRow, CallMaker, Item, Row, RowCall, RowReader};
use llmq_provider::{Operation, Prompt, prompt_body, scan_request, with_model};
use serde_json::{Value, json};

use crate::cli::{Format, Global};
use crate::exit::Failure;
use crate::output;
use crate::prompt::Input;
use crate::text::{grouped, rows};

/// Calls that are shown.
const SHOWN: usize = 3;
/// Bad rows that are named.
const NAMED: usize = 3;

/// What there is to do.
#[derive(Default)]
struct Look {
    calls: Vec<Value>,
    rows: u64,
    bad: u64,
    bad_messages: Vec<String>,
    input_tokens: u64,
}

/// `--dry-run`: shows the first calls as they would be sent, and counts the rest.
pub(super) fn dry_run(input: Input, calls: &CallMaker, global: &Global) -> Result<(), Failure> {
    let mut look = Look::default();
    let reader = RowReader::open(&input.source, input.kind, input.read)
        .map_err(|error| Failure::wrong(&error))?;
    for item in reader {
        look.rows += 1;
        match item.map_err(|error| Failure::wrong(&error))? {
            Item::Row(row) => look.take(&row, calls),
            Item::Bad(bad) => look.take_bad(&bad),
        }
    }
    if global.format != Format::Table {
        let whole = json!({
            "calls": look.calls,
            "rows": look.rows,
            "bad_rows": look.bad,
            "input_tokens": look.input_tokens,
        });
        return output::print(&output::json(&whole, global.format)?);
    }
    for call in &look.calls {
        output::print(&output::json(call, Format::Json)?)?;
    }
    if !global.quiet {
        say!(
            "{}, about {} input tokens; {} bad; nothing was sent",
            rows(look.rows),
            grouped(look.input_tokens),
            grouped(look.bad)
        );
        for message in &look.bad_messages {
            say!("  {message}");
        }
    }
    Ok(())
}

impl Look {
    fn take(&mut self, row: &Row, calls: &CallMaker) {
        let (path, body) = body(row, calls);
        if let Ok(scan) = scan_request(&body, calls.counter) {
            self.input_tokens += u64::from(scan.size.input_tokens);
        }
        if self.calls.len() < SHOWN {
            let body = serde_json::from_slice::<Value>(&body).unwrap_or_default();
            let call =
                json!({"custom_id": row.custom_id, "method": "POST", "url": path, "body": body});
            self.calls.push(call);
        }
    }

    fn take_bad(&mut self, bad: &BadRow) {
        self.bad += 1;
        if self.bad_messages.len() < NAMED {
            self.bad_messages.push(bad.message.clone());
        }
    }
}

/// The path and the body of a row's call.
pub(crate) fn body(row: &Row, calls: &CallMaker) -> (String, Vec<u8>) {
    match &row.call {
        RowCall::Prompt(text) => {
            let prompt = Prompt {
                model: calls.model.as_deref().unwrap_or_default(),
                system: calls.system.as_deref(),
                text,
                params: &calls.params,
            };
            (
                versioned(calls.operation),
                prompt_body(calls.operation, prompt).to_vec(),
            )
        }
        RowCall::Batch { url, body } => {
            let body = body.get().as_bytes();
            let renamed = calls
                .model
                .as_ref()
                .and_then(|model| with_model(body, model).ok());
            (
                url.clone(),
                renamed.map_or_else(|| body.to_vec(), |body| body.to_vec()),
            )
        }
    }
}

fn versioned(operation: Operation) -> String {
    format!("/v1{}", operation.path())
}
