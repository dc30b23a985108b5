use llmq_engine::bulk::{BadRow, CallMaker, Item, Prepared, RowReader};
use llmq_provider::with_model;
use serde_json::{Value, json};

use crate::cli::{Format, Global};
use crate::exit::Failure;
use crate::output;
use crate::prompt::Input;
use crate::text::{grouped, rows};
use crate::upstream::Chosen;

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
pub(super) fn dry_run(
    input: Input,
    calls: &CallMaker,
    chosen: &Chosen,
    global: &Global,
) -> Result<(), Failure> {
    let mut look = Look::default();
    let reader = RowReader::open(&input.source, input.kind, input.read)
        .map_err(|error| Failure::wrong(&error))?;
    calls
        .check(&input.source, &reader)
        .map_err(|error| Failure::wrong(&error))?;
    for item in reader {
        look.rows += 1;
        match item.map_err(|error| Failure::wrong(&error))? {
            Item::Row(row) => match calls.prepare(row, chosen.model(), chosen.dialect) {
                Ok(call) => look.take(&call, chosen),
                Err(bad) => look.take_bad(&bad),
            },
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
    fn take(&mut self, call: &Prepared, chosen: &Chosen) {
        self.input_tokens += u64::from(call.size.input_tokens);
        if self.calls.len() >= SHOWN {
            return;
        }
        // As the first of its upstreams calls the model.
        let there = chosen.upstreams.first();
        let model = there.and_then(|upstream| upstream.model.as_deref());
        let renamed = model.and_then(|model| with_model(&call.body, model).ok());
        let body = renamed.as_ref().unwrap_or(&call.body);
        let body = serde_json::from_slice::<Value>(body).unwrap_or_default();
        self.calls.push(json!({
            "custom_id": call.custom_id,
            "method": "POST",
            "url": format!("/v1{}", call.operation.path()),
            "body": body,
        }));
    }

    fn take_bad(&mut self, bad: &BadRow) {
        self.bad += 1;
        if self.bad_messages.len() < NAMED {
            self.bad_messages.push(bad.message.clone());
        }
    }
}
