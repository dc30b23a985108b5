//! `llmq why`.

use clap::Args;
use llmq_api::{CallList, CallState, CallStatus, RequestState};

use crate::cli::{Format, Global};
use crate::client::{Asked, ServerArgs};
use crate::exit::{FAILED, Failure};
use crate::{output, requests};

/// What a call or an accepted request waits for, or all calls that wait
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq why
  llmq why 0192f0c1-6a5e-7cc3-98c4-dc0c0c07398f

The id is a call's X-LLMQ-Request-Id, or an accepted request's. A call that does not wait is not
known: exit code 1. Accepted requests are listed by `llmq requests list --status queued`.")]
pub(crate) struct WhyArgs {
    /// The call's or request's id; without one the calls that wait are listed, oldest first
    #[arg(value_name = "ID")]
    id: Option<uuid::Uuid>,
    /// List at most so many
    #[arg(long, value_name = "N", default_value_t = 100, conflicts_with = "id",
        value_parser = clap::value_parser!(u16).range(1..=1_000))]
    limit: u16,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn why(args: &WhyArgs, global: &Global) -> Result<(), Failure> {
    let Some(id) = args.id else {
        return list(args, global);
    };
    // A call that waits now, and else what was accepted.
    let no_call = match args.server.ask::<CallState>(&format!("/api/calls/{id}"))? {
        Asked::Found(call) => {
            let text = match global.format {
                Format::Table => table(&call),
                format => output::json(&call, format)?,
            };
            return output::print(&text);
        }
        Asked::Unknown(no_call) => no_call,
        Asked::Away(failure) => return Err(failure),
    };
    let path = format!("/api/requests/{id}");
    match args.server.ask::<RequestState>(&path)? {
        Asked::Found(request) => requests::print(&request, global),
        Asked::Unknown(_) => Err(Failure {
            code: FAILED,
            message: format!("{no_call}; nor was a request of this id accepted"),
        }),
        Asked::Away(failure) => Err(failure),
    }
}

fn list(args: &WhyArgs, global: &Global) -> Result<(), Failure> {
    let list: CallList = args
        .server
        .get(&format!("/api/calls?limit={}", args.limit))?;
    let text = match global.format {
        Format::Table => lines(&list.calls),
        format => output::json_list(&list.calls, format)?,
    };
    output::print(&text)?;
    let more = list.total.saturating_sub(u64::from(args.limit));
    if more > 0 && !global.quiet {
        say!("{more} more wait: see --limit");
    }
    Ok(())
}

/// A line for each call that waits.
fn lines(calls: &[CallState]) -> String {
    let head = [
        "CALL",
        "MODEL",
        "PRIORITY",
        "WAITED",
        "WAITS FOR",
        "MAY START",
    ];
    let known = |text: &Option<String>| text.clone().unwrap_or_default();
    let rows = calls.iter().map(|call| {
        [
            call.id.clone(),
            call.model.clone(),
            call.priority.to_string(),
            format!("{:.1} s", seconds(call.waited_ms)),
            known(&call.waiting_for),
            known(&call.estimated_start),
        ]
    });
    output::table(head, rows)
}

fn table(call: &CallState) -> String {
    let status = match call.status {
        CallStatus::Queued => "waits for its turn",
        CallStatus::Processing => "was sent; its answer is under way",
    };
    let unknown = || "not known".to_owned();
    let mut rows = vec![
        ("call", call.id.clone()),
        ("model", call.model.clone()),
        ("status", status.to_owned()),
        ("waited", format!("{:.1} s", seconds(call.waited_ms))),
    ];
    if call.status == CallStatus::Queued {
        let waits = call.waiting_for.clone();
        let position = call.position.map(|position| position.to_string());
        rows.push(("waits for", waits.unwrap_or_else(unknown)));
        rows.push(("position", position.unwrap_or_else(unknown)));
        let start = call.estimated_start.clone();
        rows.push(("may start", start.unwrap_or_else(unknown)));
    }
    let rows: Vec<(String, String)> = rows
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    output::columns(&rows)
}

#[expect(clippy::cast_precision_loss, reason = "a time that a person waits")]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_stands_in_the_way() {
        let call = CallState {
            id: "x".to_owned(),
            status: CallStatus::Queued,
            model: "gpt".to_owned(),
            priority: 70,
            waited_ms: 2_140,
            position: Some(3),
            estimated_start: None,
            waiting_for: Some("tpm openai/gpt".to_owned()),
        };
        let text = table(&call);
        assert!(text.contains("waits for  tpm openai/gpt\n"), "{text}");
        assert!(text.contains("waited     2.1 s\n"), "{text}");
        assert!(text.contains("may start  not known\n"), "{text}");
        let sent = CallState {
            status: CallStatus::Processing,
            ..call.clone()
        };
        assert!(!table(&sent).contains("position"));
        let listed = lines(&[call]);
        assert!(listed.starts_with("CALL  MODEL  PRIORITY  WAITED  WAITS FOR       MAY START\n"));
        assert!(
            listed.contains("x     gpt    70        2.1 s   tpm openai/gpt"),
            "{listed}"
        );
    }
}
