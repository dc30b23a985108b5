//! `llmq requests submit`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hyper::{Method, StatusCode};
use llmq_api::{AcceptedRequests, CreateRequest, CreateRequests, RequestState};
use llmq_core::{Priority, Status};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{print, print_all};
use crate::cli::Global;
use crate::client::{Parcel, ServerArgs};
use crate::exit::{FAILED, Failure, UNREACHABLE};
use crate::text::time;

/// So many requests are handed in with one call, and so many bytes of them: less than a server takes
/// unless its `max_body` is small.
const TOGETHER: usize = 1_000;
const BYTES_MAX: usize = 8 << 20;
/// So long one may wait for its end unless it says otherwise.
const PATIENCE: Duration = Duration::from_secs(24 * 3_600);

#[derive(Debug, Args)]
pub(super) struct SubmitArgs {
    /// JSON lines, each a request as the API takes it, or the body of one; - for standard input
    #[arg(value_name = "FILE", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// What to ask, as a chat of one message
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "file",
        requires = "model"
    )]
    prompt: Option<String>,
    /// The model, for requests that name none
    #[arg(long)]
    model: Option<String>,
    /// The path of the API, for requests that name none
    #[arg(long, value_name = "PATH", default_value = "/v1/chat/completions")]
    endpoint: String,
    /// low, normal, high, critical or 0 to 100
    #[arg(long)]
    priority: Option<Priority>,
    /// The time in which they must start, such as 4h
    #[arg(long, value_name = "TIME", value_parser = time)]
    ttl: Option<Duration>,
    /// Not to be started before this (RFC 3339)
    #[arg(long, value_name = "INSTANT")]
    not_before: Option<String>,
    /// A note of your own, which comes back with them; may be repeated
    #[arg(long, value_name = "NAME=TEXT", value_parser = note)]
    metadata: Vec<(String, String)>,
    /// The same key and request are accepted once in 24 hours
    #[arg(long, value_name = "KEY", conflicts_with = "file")]
    idempotency_key: Option<String>,
    /// Where the end of each is told
    #[arg(long, value_name = "URL")]
    callback_url: Option<String>,
    /// Wait for the end of it and print that
    #[arg(long, conflicts_with = "file")]
    wait: bool,
}

fn note(text: &str) -> Result<(String, String), String> {
    let (name, text) = text.split_once('=').ok_or("use NAME=TEXT")?;
    Ok((name.to_owned(), text.to_owned()))
}

pub(super) fn submit(
    server: &ServerArgs,
    args: SubmitArgs,
    global: &Global,
) -> Result<(), Failure> {
    match &args.file {
        None => submit_one(server, &args, global),
        Some(file) => {
            let reader: Box<dyn BufRead> = if file.as_os_str() == "-" {
                Box::new(BufReader::new(std::io::stdin()))
            } else {
                let opened = std::fs::File::open(file);
                let opened = opened
                    .map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
                Box::new(BufReader::new(opened))
            };
            submit_all(server, &args, reader, global)
        }
    }
}

fn submit_one(server: &ServerArgs, args: &SubmitArgs, global: &Global) -> Result<(), Failure> {
    let prompt = args.prompt.clone().unwrap_or_default();
    let body = json!({
        "model": args.model,
        "messages": [{"role": "user", "content": prompt}],
    });
    let mut wanted = request(args, raw(&body)?);
    wanted.wait_for_completion = args.wait;
    wanted.idempotency_key.clone_from(&args.idempotency_key);
    let server = match args.wait {
        true => server.waiting(PATIENCE),
        false => server.clone(),
    };
    let state: RequestState = server.send(Method::POST, "/api/requests", Some(&wanted))?;
    print(&state, global)?;
    match state.status {
        Status::Failed | Status::Expired | Status::Cancelled => Err(Failure::silent(FAILED)),
        _ => Ok(()),
    }
}

fn submit_all(
    server: &ServerArgs,
    args: &SubmitArgs,
    lines: impl BufRead,
    global: &Global,
) -> Result<(), Failure> {
    let mut part = Part::default();
    let mut accepted = 0;
    for (at, line) in (1..).zip(lines.lines()) {
        let line = line.map_err(|error| Failure::wrong(&error))?;
        if line.trim().is_empty() {
            continue;
        }
        if part.is_full_before(&line) {
            accepted = hand_in(server, std::mem::take(&mut part), accepted, global)?;
        }
        match read(args, &line) {
            Ok(wanted) => part.add(at, &line, wanted),
            Err(error) => {
                // The lines before it are right.
                accepted = hand_in(server, part, accepted, global)?;
                let wrong = Failure::usage(format!("line {at}: {error}"));
                return Err(behind(accepted, wrong));
            }
        }
    }
    hand_in(server, part, accepted, global).map(|_| ())
}

/// Hands a part in, behind the line up to which all are accepted. Answers which that is then.
fn hand_in(
    server: &ServerArgs,
    part: Part,
    accepted: usize,
    global: &Global,
) -> Result<usize, Failure> {
    if part.requests.is_empty() {
        return Ok(accepted);
    }
    if accepted == 0 {
        // Where nobody is, nothing can be accepted.
        server.raw("/health/live")?;
    }
    let Part { requests, last, .. } = part;
    let body = serde_json::to_vec(&CreateRequests { requests });
    let parcel = Parcel::json(body.map_err(|error| Failure::wrong(&error))?.into());
    let (status, body) = match server.answer(Method::POST, "/api/requests", Some(parcel)) {
        Err(error) if error.code == UNREACHABLE => return Err(unheard(accepted, last, error)),
        answer => answer?,
    };
    let told: Result<AcceptedRequests, Failure> = server.read(status, &body);
    let told = told.map_err(|error| match status {
        // Somebody in front of it heard nothing from it.
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => unheard(accepted, last, error),
        _ => behind(accepted, error),
    })?;
    print_all(&told.requests, global)?;
    Ok(last)
}

/// Lines that are handed in together: all of them are accepted, or none.
#[derive(Default)]
struct Part {
    requests: Vec<CreateRequest>,
    bytes: usize,
    /// The number of its last line.
    last: usize,
}

impl Part {
    /// Whether it is to be handed in before this line is added.
    fn is_full_before(&self, line: &str) -> bool {
        let is_full = self.requests.len() == TOGETHER || self.bytes + line.len() > BYTES_MAX;
        is_full && !self.requests.is_empty()
    }

    fn add(&mut self, at: usize, line: &str, wanted: CreateRequest) {
        self.requests.push(wanted);
        self.bytes += line.len();
        self.last = at;
    }
}

/// A failure behind the line up to which all are accepted.
fn behind(accepted: usize, failure: Failure) -> Failure {
    if accepted == 0 {
        return failure;
    }
    Failure {
        message: format!(
            "{}; lines 1 to {accepted} are accepted: go on behind them",
            failure.message
        ),
        ..failure
    }
}

/// No answer came to what was handed in behind the line up to which all are accepted.
fn unheard(accepted: usize, last: usize, failure: Failure) -> Failure {
    let sure = match accepted {
        0 => String::new(),
        _ => format!("lines 1 to {accepted} are accepted, "),
    };
    Failure {
        message: format!(
            "{}; {sure}lines {} to {last} may be: look with `llmq requests list` before you hand \
             these in again",
            failure.message,
            accepted + 1
        ),
        ..failure
    }
}

/// A line: a request as the API takes it, or the body of one. The options say what it leaves out.
fn read(args: &SubmitArgs, line: &str) -> Result<CreateRequest, serde_json::Error> {
    let value: Value = serde_json::from_str(line)?;
    if value.get("body").is_none() {
        let body = RawValue::from_string(line.to_owned())?;
        return Ok(request(args, body));
    }
    let said: CreateRequest = serde_json::from_str(line)?;
    let usual = request(args, said.body);
    let mut metadata = usual.metadata;
    metadata.extend(said.metadata);
    Ok(CreateRequest {
        model: said.model.or(usual.model),
        endpoint: match value.get("endpoint") {
            Some(_) => said.endpoint,
            None => usual.endpoint,
        },
        body: usual.body,
        priority: said.priority.or(usual.priority),
        ttl: said.ttl.or(usual.ttl),
        not_before: said.not_before.or(usual.not_before),
        metadata,
        idempotency_key: said.idempotency_key,
        wait_for_completion: said.wait_for_completion,
        callback_url: said.callback_url.or(usual.callback_url),
    })
}

fn request(args: &SubmitArgs, body: Box<RawValue>) -> CreateRequest {
    let names_model = serde_json::from_str::<Value>(body.get())
        .is_ok_and(|body| body.get("model").is_some_and(Value::is_string));
    CreateRequest {
        model: args.model.clone().filter(|_| !names_model),
        endpoint: args.endpoint.clone(),
        body,
        priority: args.priority,
        ttl: args.ttl.map(|ttl| format!("{}ms", ttl.as_millis())),
        not_before: args.not_before.clone(),
        metadata: args.metadata.iter().cloned().collect::<BTreeMap<_, _>>(),
        idempotency_key: None,
        wait_for_completion: false,
        callback_url: args.callback_url.clone(),
    }
}

fn raw(body: &Value) -> Result<Box<RawValue>, Failure> {
    RawValue::from_string(body.to_string()).map_err(|error| Failure::wrong(&error))
}
