//! `llmq batches`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use hyper::Method;
use serde_json::{Value, json};

use crate::cli::{Format, Global};
use crate::client::{Asked, ServerArgs, Upload};
use crate::exit::{FAILED, Failure};
use crate::output;

/// How often a batch that is waited for is asked after.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A large file takes its time on a slow line.
const UPLOAD: Duration = Duration::from_secs(600);

/// Batches of a server: many calls in one file, and their answers in another.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq batches create calls.jsonl --wait
  llmq batches get batch_0198c0de7a11700080000000000000aa
  llmq batches results batch_0198c0de7a11700080000000000000aa > results.jsonl")]
pub(crate) struct BatchesArgs {
    #[command(subcommand)]
    command: BatchesCommand,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Debug, Subcommand)]
enum BatchesCommand {
    /// Hand in a file of calls, in OpenAI's batch form
    #[command(after_help = "\
Examples:
  llmq batches create calls.jsonl --wait
  llmq batches create calls.jsonl --completion-window 2h --metadata job=nightly")]
    Create(CreateArgs),
    /// Show one
    #[command(after_help = "Example:\n  llmq batches get batch_0198c0de7a11700080000000000000aa")]
    Get {
        /// Its id
        id: String,
    },
    /// List them, newest first
    #[command(after_help = "Example:\n  llmq batches list --limit 5")]
    List {
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: usize,
        /// From behind this one on
        #[arg(long, value_name = "ID")]
        after: Option<String>,
    },
    /// End one early; what is done is kept
    #[command(after_help = "\
Example:
  llmq batches cancel batch_0198c0de7a11700080000000000000aa")]
    Cancel {
        /// Its id
        id: String,
    },
    /// Print the answers of one that has ended, and what failed
    #[command(after_help = "\
Example:
  llmq batches results batch_0198c0de7a11700080000000000000aa > results.jsonl")]
    Results {
        /// Its id
        id: String,
    },
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// JSON lines, each with `custom_id`, `method`, `url` and `body`
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The path of the API; that of the first line unless said
    #[arg(long, value_name = "PATH")]
    endpoint: Option<String>,
    /// The time in which its calls must start
    #[arg(long, value_name = "TIME", default_value = "24h")]
    completion_window: String,
    /// A note of your own, which comes back with it; may be repeated
    #[arg(long, value_name = "NAME=TEXT", value_parser = note)]
    metadata: Vec<(String, String)>,
    /// Wait for its end
    #[arg(long)]
    wait: bool,
}

fn note(text: &str) -> Result<(String, String), String> {
    let (name, text) = text.split_once('=').ok_or("use NAME=TEXT")?;
    Ok((name.to_owned(), text.to_owned()))
}

/// Does it.
pub(crate) fn batches(args: BatchesArgs, global: &Global) -> Result<(), Failure> {
    let server = args.server;
    match args.command {
        BatchesCommand::Create(wanted) => create(&server, wanted, global),
        BatchesCommand::Get { id } => print(&get(&server, &id)?, global),
        BatchesCommand::List { limit, after } => list(&server, limit, after, global),
        BatchesCommand::Cancel { id } => {
            let path = format!("/v1/batches/{id}/cancel");
            let batch: Value = server.send(Method::POST, &path, None::<&()>)?;
            print(&batch, global)
        }
        BatchesCommand::Results { id } => results(&server, &id),
    }
}

fn create(server: &ServerArgs, wanted: CreateArgs, global: &Global) -> Result<(), Failure> {
    let endpoint = match wanted.endpoint {
        Some(endpoint) => endpoint,
        None => first_url(&wanted.file)?,
    };
    let file = upload(server, &wanted.file)?;
    let metadata: BTreeMap<String, String> = wanted.metadata.into_iter().collect();
    let body = json!({
        "input_file_id": file,
        "endpoint": endpoint,
        "completion_window": wanted.completion_window,
        "metadata": metadata,
    });
    let mut batch: Value = server.send(Method::POST, "/v1/batches", Some(&body))?;
    if wanted.wait {
        batch = end(server, batch)?;
    }
    print(&batch, global)?;
    if is_final(&batch) {
        return verdict(&batch);
    }
    Ok(())
}

/// A batch at its end. The server keeps it while it is away itself, so it is asked until it is
/// back.
fn end(server: &ServerArgs, mut batch: Value) -> Result<Value, Failure> {
    let id = text(&batch, "id").to_owned();
    let mut is_away = false;
    while !is_final(&batch) {
        std::thread::sleep(ASK_EVERY);
        match server.ask(&format!("/v1/batches/{id}"))? {
            Asked::Found(found) => {
                if std::mem::take(&mut is_away) {
                    say!("the server is there again");
                }
                batch = found;
            }
            Asked::Away(away) => {
                if !std::mem::replace(&mut is_away, true) {
                    say!("{}; waiting for it (batch {id})", away.message);
                }
            }
            Asked::Unknown(message) => return Err(failed(&message)),
        }
    }
    Ok(batch)
}

/// How a batch that has ended is to end this program.
fn verdict(batch: &Value) -> Result<(), Failure> {
    let failures = batch["request_counts"]["failed"].as_u64().unwrap_or(0);
    match text(batch, "status") {
        "failed" => Err(failed("the batch failed: see its errors")),
        "completed" if failures == 0 => Ok(()),
        _ if failures > 0 => Err(failed(&format!("{failures} of its calls have no answer"))),
        status => Err(failed(&format!("the batch is {status}"))),
    }
}

/// What stands before and behind a batch's input in the form that brings it, and the form's kind.
pub(crate) fn form(name: &str) -> (String, String, String) {
    const BOUNDARY: &str = "llmq-1f0b7c6a5d2e4938";
    let name = name.replace(['"', '\r', '\n'], "_");
    let before = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
         --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\
         Content-Type: application/jsonl\r\n\r\n"
    );
    let behind = format!("\r\n--{BOUNDARY}--\r\n");
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    (before, behind, kind)
}

fn upload(server: &ServerArgs, path: &Path) -> Result<String, Failure> {
    let file = std::fs::File::open(path).map_err(|error| cannot_read(path, &error))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (before, behind, kind) = form(&name);
    let form = Upload::new(before.into(), file, behind.into());
    let form = form.map_err(|error| cannot_read(path, &error))?;
    let file: Value = server.waiting(UPLOAD).upload("/v1/files", kind, form)?;
    Ok(text(&file, "id").to_owned())
}

/// Where the first line of a file goes.
fn first_url(path: &Path) -> Result<String, Failure> {
    let file = std::fs::File::open(path).map_err(|error| cannot_read(path, &error))?;
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|error| cannot_read(path, &error))?;
        // Some editors begin a file with a byte order mark.
        let line = line.trim_start_matches('\u{feff}');
        if line.trim().is_empty() {
            continue;
        }
        let line: Option<Value> = serde_json::from_str(line).ok();
        let url = line.as_ref().map(|line| text(line, "url"));
        return match url {
            Some(url) if !url.is_empty() => Ok(url.to_owned()),
            _ => Err(Failure::usage(format!(
                "{}: its first line has no `url`; say --endpoint",
                path.display()
            ))),
        };
    }
    Err(Failure::usage(format!("{} has no lines", path.display())))
}

fn cannot_read(path: &Path, error: &std::io::Error) -> Failure {
    Failure::usage(format!("cannot read {}: {error}", path.display()))
}

fn get(server: &ServerArgs, id: &str) -> Result<Value, Failure> {
    server.get(&format!("/v1/batches/{id}"))
}

fn list(
    server: &ServerArgs,
    limit: usize,
    after: Option<String>,
    global: &Global,
) -> Result<(), Failure> {
    let (mut all, mut after) = (Vec::new(), after);
    while all.len() < limit {
        let left = (limit - all.len()).min(100);
        let cursor = after.map_or_else(String::new, |after| format!("&after={after}"));
        let mut page: Value = server.get(&format!("/v1/batches?limit={left}{cursor}"))?;
        if let Some(data) = page["data"].as_array_mut() {
            all.append(data);
        }
        if page["has_more"] != true {
            break;
        }
        after = page["last_id"].as_str().map(str::to_owned);
    }
    let text = match global.format {
        Format::Table => {
            let head = ["BATCH", "STATUS", "MODEL", "TOTAL", "COMPLETED", "FAILED"];
            output::table(
                head,
                all.iter().map(|batch| {
                    let count = |name: &str| batch["request_counts"][name].to_string();
                    [
                        text(batch, "id").to_owned(),
                        text(batch, "status").to_owned(),
                        text(batch, "model").to_owned(),
                        count("total"),
                        count("completed"),
                        count("failed"),
                    ]
                }),
            )
        }
        format => output::json_list(&all, format)?,
    };
    output::print(&text)
}

/// Answers to standard output; exit code 1 where there are failures, or no answers yet.
fn results(server: &ServerArgs, id: &str) -> Result<(), Failure> {
    let batch = get(server, id)?;
    if !is_final(&batch) {
        let message = format!(
            "batch {id} is {}: it has no results yet",
            text(&batch, "status")
        );
        return Err(failed(&message));
    }
    for file in ["output_file_id", "error_file_id"] {
        let Some(file) = batch[file].as_str() else {
            continue;
        };
        let path = format!("/v1/files/{file}/content");
        server.copy(&path, output::print_bytes)?.found()?;
    }
    verdict(&batch)
}

fn print(batch: &Value, global: &Global) -> Result<(), Failure> {
    if global.format != Format::Table {
        return output::print(&output::json(batch, global.format)?);
    }
    let counts = &batch["request_counts"];
    let mut rows = vec![
        ("batch", text(batch, "id").to_owned()),
        ("status", text(batch, "status").to_owned()),
        ("endpoint", text(batch, "endpoint").to_owned()),
        (
            "calls",
            format!(
                "{} of {} completed, {} failed",
                counts["completed"], counts["total"], counts["failed"]
            ),
        ),
    ];
    for (name, field) in [
        ("model", "model"),
        ("output", "output_file_id"),
        ("failures", "error_file_id"),
    ] {
        if let Some(value) = batch[field].as_str() {
            rows.push((name, value.to_owned()));
        }
    }
    for error in batch["errors"]["data"].as_array().into_iter().flatten() {
        let line = error["line"].as_u64();
        let line = line.map_or_else(String::new, |line| format!("line {line}: "));
        let (code, message) = (text(error, "code"), text(error, "message"));
        rows.push(("error", format!("{line}{code}: {message}")));
    }
    let rows: Vec<_> = rows
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    output::print(&output::columns(&rows))
}

/// Whether a batch has ended.
pub(crate) fn is_final(batch: &Value) -> bool {
    let status = text(batch, "status");
    matches!(status, "failed" | "completed" | "expired" | "cancelled")
}

/// A member that is a text; empty where there is none.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

fn failed(message: &str) -> Failure {
    Failure {
        code: FAILED,
        message: message.to_owned(),
    }
}
