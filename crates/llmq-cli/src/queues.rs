//! `llmq queues`.

use clap::{Args, Subcommand};
use hyper::Method;
use llmq_api::{LimitState, QueueList, QueueMotion, QueueState, UpstreamState};

use crate::cli::{Format, Global};
use crate::client::{ServerArgs, escaped};
use crate::exit::Failure;
use crate::output;

/// Queues of a running server: what waits in them, and whether they move
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq queues list
  llmq queues show gpt-4o-mini
  llmq queues pause gpt-4o-mini
  llmq queues resume gpt-4o-mini")]
pub(crate) struct QueuesArgs {
    #[command(subcommand)]
    command: QueuesCommand,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum QueuesCommand {
    /// Every queue, a line each
    #[command(after_help = "Example:\n  llmq queues list --format json")]
    List,
    /// One queue, with its upstreams and their limits
    #[command(after_help = "Example:\n  llmq queues show gpt-4o-mini")]
    Show(Named),
    /// Take calls and start none; those in flight go on
    #[command(after_help = "Example:\n  llmq queues pause gpt-4o-mini")]
    Pause(Named),
    /// Go on after a pause or a drain, and open upstreams that wait for a person
    #[command(after_help = "Example:\n  llmq queues resume gpt-4o-mini")]
    Resume(Named),
    /// Refuse new calls and finish those that wait
    #[command(after_help = "Example:\n  llmq queues drain gpt-4o-mini")]
    Drain(Named),
}

#[derive(Debug, Args)]
struct Named {
    /// The public model name
    name: String,
}

/// Does it.
pub(crate) fn queues(args: &QueuesArgs, global: &Global) -> Result<(), Failure> {
    let server = &args.server;
    match &args.command {
        QueuesCommand::List => {
            let list: QueueList = server.get("/api/queues")?;
            let text = match global.format {
                Format::Table => table(&list.queues),
                format => output::json_list(&list.queues, format)?,
            };
            output::print(&text)
        }
        QueuesCommand::Show(Named { name }) => show(&server.get(&path(name, ""))?, global),
        QueuesCommand::Pause(named) => steer(server, named, "/pause", global),
        QueuesCommand::Resume(named) => steer(server, named, "/resume", global),
        QueuesCommand::Drain(named) => steer(server, named, "/drain", global),
    }
}

fn steer(server: &ServerArgs, named: &Named, what: &str, global: &Global) -> Result<(), Failure> {
    let queue: QueueState = server.send(Method::POST, &path(&named.name, what), None::<&()>)?;
    match global.format {
        Format::Table => {
            if !global.quiet {
                let (waiting, running) = (queue.waiting, queue.running);
                let state = word(queue.state);
                say!(
                    "{} is {state}: {waiting} wait, {running} in flight",
                    queue.name
                );
            }
            Ok(())
        }
        format => output::print(&output::json(&queue, format)?),
    }
}

fn show(queue: &QueueState, global: &Global) -> Result<(), Failure> {
    let text = match global.format {
        Format::Table => {
            let limits = queue.upstreams.iter().flat_map(limits);
            let head = ["UPSTREAM", "STATE", "IN FLIGHT", "LIMIT", "IN USE"];
            format!(
                "{}\n{}",
                table(std::slice::from_ref(queue)),
                output::table(head, limits)
            )
        }
        format => output::json(queue, format)?,
    };
    output::print(&text)
}

/// The path of a queue; names of models hold slashes and more.
fn path(name: &str, what: &str) -> String {
    format!("/api/queues/{}{what}", escaped(name))
}

fn word(state: QueueMotion) -> &'static str {
    match state {
        QueueMotion::Running => "running",
        QueueMotion::Paused => "paused",
        QueueMotion::Draining => "draining",
        QueueMotion::Parked => "parked",
    }
}

fn table(queues: &[QueueState]) -> String {
    let head = [
        "NAME",
        "STATE",
        "WAITING",
        "RUNNING",
        "ACCEPTED",
        "WAITS FOR",
    ];
    let rows = queues.iter().map(|queue| {
        let tightest = queue.upstreams.iter().flat_map(|upstream| &upstream.limits);
        let waits = tightest.filter(|limit| limit.waiting_lines > 0);
        let waits: Vec<&str> = waits.map(|limit| limit.name.as_str()).collect();
        let waits = queue.waiting_for.clone().unwrap_or(waits.join(", "));
        let accepted = queue
            .accepted
            .map(|counts| counts.queued + counts.processing);
        [
            queue.name.clone(),
            word(queue.state).to_owned(),
            queue.waiting.to_string(),
            queue.running.to_string(),
            accepted.map_or_else(String::new, |count| count.to_string()),
            waits,
        ]
    });
    output::table(head, rows)
}

/// A line for each limit of an upstream, and one for an upstream without any.
fn limits(upstream: &UpstreamState) -> Vec<[String; 5]> {
    let state = match (&upstream.closed_by, upstream.usable) {
        (Some(class), _) => class.clone(),
        (None, true) => "usable".to_owned(),
        (None, false) => "down".to_owned(),
    };
    let line = |limit: Option<&LimitState>| {
        let text = limit.map(|limit| {
            let learned = if limit.learned { " (learned)" } else { "" };
            format!("{}{learned}", limit.limit)
        });
        let in_use = limit.map(|limit| format!("{:.0} %", limit.in_use * 100.0));
        [
            upstream.name.clone(),
            state.clone(),
            upstream.in_flight.to_string(),
            text.unwrap_or_default(),
            in_use.unwrap_or_default(),
        ]
    };
    if upstream.limits.is_empty() {
        return vec![line(None)];
    }
    upstream
        .limits
        .iter()
        .map(|limit| line(Some(limit)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_any_letters_is_one_part_of_a_path() {
        let check = |name, expected| assert_eq!(path(name, "/pause"), expected);
        check("gpt-4o_mini.1~", "/api/queues/gpt-4o_mini.1~/pause");
        check("org/model:x?#", "/api/queues/org%2Fmodel%3Ax%3F%23/pause");
        check("ä", "/api/queues/%C3%A4/pause");
    }
}
