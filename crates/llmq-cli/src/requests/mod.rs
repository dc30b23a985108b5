//! `llmq requests`.

mod submit;

use std::time::Duration;

use clap::{Args, Subcommand};
use hyper::Method;
use llmq_api::{RequestList, RequestState};
use llmq_core::{Priority, Status};
use uuid::Uuid;

use crate::cli::{Format, Global};
use crate::client::{ServerArgs, escaped};
use crate::exit::{FAILED, Failure};
use crate::output;
use crate::text::time;
use submit::SubmitArgs;

/// Requests that a server keeps and finishes: hand them in, look at them, fetch what came of them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq requests submit --model gpt-4o-mini --prompt 'Say hello.' --wait
  llmq requests submit calls.jsonl
  llmq requests list --status queued
  llmq requests get 0198c0de-7a11-7000-8000-000000000000 --wait 30s
  llmq requests result 0198c0de-7a11-7000-8000-000000000000")]
pub(crate) struct RequestsArgs {
    #[command(subcommand)]
    command: RequestsCommand,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum RequestsCommand {
    /// Hand in one request, or a file of them
    #[command(after_help = "\
Examples:
  llmq requests submit --model gpt-4o-mini --prompt 'Say hello.' --wait
  llmq requests submit calls.jsonl --model gpt-4o-mini --priority low --ttl 12h")]
    Submit(Box<SubmitArgs>),
    /// Show one
    #[command(after_help = "\
Example:
  llmq requests get 0198c0de-7a11-7000-8000-000000000000 --wait 30s")]
    Get {
        /// Its queue_id
        id: Uuid,
        /// Wait so long for its end
        #[arg(long, value_name = "TIME", value_parser = time)]
        wait: Option<Duration>,
    },
    /// List them, newest first
    #[command(after_help = "Example:\n  llmq requests list --status queued --model gpt-4o-mini")]
    List(ListArgs),
    /// End one that is not wanted any more
    #[command(after_help = "Example:\n  llmq requests cancel 0198c0de-7a11-7000-8000-000000000000")]
    Cancel {
        /// Its queue_id
        id: Uuid,
    },
    /// Hand one in again that failed, expired or was cancelled
    #[command(after_help = "Example:\n  llmq requests retry 0198c0de-7a11-7000-8000-000000000000")]
    Retry {
        /// Its queue_id
        id: Uuid,
    },
    /// Print what came of one: the provider's own answer
    #[command(after_help = "\
Example:
  llmq requests result 0198c0de-7a11-7000-8000-000000000000 --wait 10m")]
    Result {
        /// Its queue_id
        id: Uuid,
        /// Wait so long for its end
        #[arg(long, value_name = "TIME", value_parser = time)]
        wait: Option<Duration>,
    },
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only in this status: queued, processing, completed, failed, expired or cancelled
    #[arg(long)]
    status: Option<Status>,
    /// Only of this model
    #[arg(long)]
    model: Option<String>,
    /// Only of this priority: low, normal, high, critical or 0 to 100
    #[arg(long)]
    priority: Option<Priority>,
    /// Only of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only accepted at or after this (RFC 3339)
    #[arg(long, value_name = "INSTANT")]
    created_after: Option<String>,
    /// Only accepted before this
    #[arg(long, value_name = "INSTANT")]
    created_before: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

/// Does it.
pub(crate) fn requests(args: RequestsArgs, global: &Global) -> Result<(), Failure> {
    let server = args.server;
    match args.command {
        RequestsCommand::Submit(wanted) => submit::submit(&server, *wanted, global),
        RequestsCommand::Get { id, wait } => print(&get(&server, id, wait)?, global),
        RequestsCommand::List(wanted) => list(&server, &wanted, global),
        RequestsCommand::Cancel { id } => {
            let path = format!("/api/requests/{id}");
            let state: RequestState = server.send(Method::DELETE, &path, None::<&()>)?;
            print(&state, global)
        }
        RequestsCommand::Retry { id } => {
            let path = format!("/api/requests/{id}/retry");
            let state: RequestState = server.send(Method::POST, &path, None::<&()>)?;
            print(&state, global)
        }
        RequestsCommand::Result { id, wait } => {
            get(&server, id, wait)?;
            result(&server, id)
        }
    }
}

fn get(server: &ServerArgs, id: Uuid, wait: Option<Duration>) -> Result<RequestState, Failure> {
    /// The server holds a question no longer.
    const HELD: Duration = Duration::from_secs(60);
    let mut left = wait.unwrap_or_default();
    loop {
        let now = left.min(HELD);
        let path = format!("/api/requests/{id}?wait={}", now.as_secs_f64());
        let state: RequestState = server.waiting(now).get(&path)?;
        left = left.saturating_sub(now);
        if left.is_zero() || state.status.is_final() {
            return Ok(state);
        }
    }
}

/// The provider's own bytes; exit code 1 where they are no answer.
fn result(server: &ServerArgs, id: Uuid) -> Result<(), Failure> {
    let path = format!("/api/requests/{id}/result");
    let (status, body) = server.raw(&path)?;
    let mut text = String::from_utf8_lossy(&body).into_owned();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    if status.as_u16() == 200 {
        return output::print(&text);
    }
    let message = match serde_json::from_slice::<llmq_api::ProblemBody>(&body) {
        Ok(problem) => problem.message,
        Err(_) if status.as_u16() == 202 => format!("request {id} has not ended: ask with --wait"),
        Err(_) => {
            output::print(&text)?;
            format!("the provider answered {status}")
        }
    };
    Err(Failure {
        code: FAILED,
        message,
    })
}

fn list(server: &ServerArgs, wanted: &ListArgs, global: &Global) -> Result<(), Failure> {
    let filters = [
        ("status", wanted.status.map(|status| status.to_string())),
        ("model", wanted.model.clone()),
        (
            "priority",
            wanted.priority.map(|priority| priority.to_string()),
        ),
        ("tenant", wanted.tenant.clone()),
        ("created_after", wanted.created_after.clone()),
        ("created_before", wanted.created_before.clone()),
    ];
    let filters: String = filters
        .into_iter()
        .filter_map(|(name, value)| Some(format!("&{name}={}", escaped(&value?))))
        .collect();
    let mut all = Vec::new();
    let mut cursor = String::new();
    while all.len() < wanted.limit {
        let left = (wanted.limit - all.len()).min(1_000);
        let path = format!("/api/requests?limit={left}{filters}{cursor}");
        let page: RequestList = server.get(&path)?;
        all.extend(page.requests);
        match page.next_cursor {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    print_all(&all, global)
}

/// One request, for people or programs.
pub(crate) fn print(state: &RequestState, global: &Global) -> Result<(), Failure> {
    match global.format {
        Format::Table => output::print(&output::columns(&described(state))),
        format => output::print(&output::json(state, format)?),
    }
}

fn described(state: &RequestState) -> Vec<(String, String)> {
    let position = match (state.position, state.position_at_least) {
        (Some(place), _) => Some(place.to_string()),
        (None, Some(place)) => Some(format!("{place} or later")),
        (None, None) => None,
    };
    let usage = state.usage.map(|usage| {
        format!(
            "{} input, {} output tokens",
            usage.input_tokens, usage.output_tokens
        )
    });
    let error = state.error.as_ref();
    let rows = [
        ("request", Some(state.queue_id.clone())),
        ("status", Some(state.status.to_string())),
        ("model", Some(state.model.clone())),
        ("priority", Some(state.priority.to_string())),
        ("tenant", Some(state.tenant.clone())),
        ("position", position),
        ("waits for", state.waiting_for.clone()),
        ("may start", state.estimated_start.clone()),
        ("created", Some(state.created_at.clone())),
        ("must start by", state.expires_at.clone()),
        ("finished", state.finished_at.clone()),
        ("attempts", Some(state.attempts.to_string())),
        ("usage", usage),
        (
            "error",
            error.map(|error| format!("{}: {}", error.code, error.message)),
        ),
        ("retry of", state.retry_of.clone()),
    ];
    let rows = rows.into_iter();
    rows.filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

/// Several, a line each.
pub(super) fn print_all(all: &[RequestState], global: &Global) -> Result<(), Failure> {
    let text = match global.format {
        Format::Table => {
            let head = [
                "REQUEST", "STATUS", "MODEL", "PRIORITY", "TENANT", "ATTEMPTS", "CREATED",
            ];
            let rows = all.iter().map(|state| {
                [
                    state.queue_id.clone(),
                    state.status.to_string(),
                    state.model.clone(),
                    state.priority.to_string(),
                    state.tenant.clone(),
                    state.attempts.to_string(),
                    state.created_at.clone(),
                ]
            });
            output::table(head, rows)
        }
        format => output::json_list(all, format)?,
    };
    output::print(&text)
}
