//! What is handed in, read and checked.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use llmq_api::CreateRequest;
use llmq_core::{Priority, WallTime, parse_duration};
use llmq_provider::{Kept, Operation, TokenCounter, scan_request, with_model};
use llmq_store::{Callback, Details, ENQUEUE_MAX, Idempotency, NewJob};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::call::Naming;
use crate::dialect::Refusal;
use crate::keys::Caller;
use crate::models::Model;
use crate::openai::background::asks_for_background;
use crate::{Gateway, Problem};

/// Nobody plans further ahead.
pub(super) const AHEAD_MAX: Duration = Duration::from_secs(365 * 86_400);
/// So many notes …
const NOTES_MAX: usize = 64;
/// … with so many characters in a name and in a text.
const NOTE_NAME_MAX: usize = 64;
const NOTE_MAX: usize = 1_024;
const KEY_MAX: usize = 255;
const URL_MAX: usize = 2_048;

/// What a body of `POST /api/requests` asks for.
pub(super) enum Wanted<'a> {
    One(Box<CreateRequest>),
    /// Each is read when it is its turn ([`one_of_many`]): thousands are not held twice.
    Many(Vec<&'a RawValue>),
}

#[derive(Deserialize)]
struct Shape<'a> {
    #[serde(borrow)]
    requests: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Many<'a> {
    #[serde(borrow)]
    requests: Vec<&'a RawValue>,
}

/// Reads the body; what is wrong is told with its place.
pub(super) fn read(body: &[u8]) -> Result<Wanted<'_>, Problem> {
    let shape: Shape<'_> = serde_json::from_slice(body).map_err(|error| not_read("", &error))?;
    if shape.requests.is_none() {
        let one = serde_json::from_slice(body).map_err(|error| not_read("", &error))?;
        return Ok(Wanted::One(Box::new(one)));
    }
    let many: Many<'_> = serde_json::from_slice(body).map_err(|error| not_read("", &error))?;
    let count = many.requests.len();
    if count == 0 || count > ENQUEUE_MAX {
        let message = format!("`requests` has {count} entries; it takes 1 to {ENQUEUE_MAX}");
        return Err(Problem::invalid(message).with_details(json!({"field": "requests"})));
    }
    Ok(Wanted::Many(many.requests))
}

/// Reads the one at place `at` of many.
pub(super) fn one_of_many(at: usize, raw: &RawValue) -> Result<CreateRequest, Problem> {
    serde_json::from_str(raw.get()).map_err(|error| not_read(&format!("requests[{at}]: "), &error))
}

/// The reader's own words hold names of fields, and of a value that is of another kind its
/// beginning: to its own caller, and in no log.
fn not_read(place: &str, error: &serde_json::Error) -> Problem {
    let what = match error.classify() {
        serde_json::error::Category::Data => error.to_string().chars().take(300).collect(),
        _ => format!(
            "the body is not JSON at line {}, column {}",
            error.line(),
            error.column()
        ),
    };
    Problem::invalid(format!("{place}{what}"))
}

/// A field that is wrong, and why.
struct Wrong {
    field: &'static str,
    why: String,
    /// Where it is more than a wrong field.
    status: Option<Box<Problem>>,
}

fn wrong(field: &'static str, why: impl Into<String>) -> Wrong {
    Wrong {
        field,
        why: why.into(),
        status: None,
    }
}

/// The jobs that a caller wants accepted. `place` is put before each name of a field.
pub(super) async fn job(
    gateway: &Gateway,
    caller: &Caller,
    tenant: &str,
    wanted: CreateRequest,
    place: &str,
) -> Result<NewJob, Problem> {
    let checked = check(gateway, caller, tenant, wanted).await;
    checked.map_err(|wrong| {
        let field = format!("{place}{}", wrong.field);
        let problem = match wrong.status {
            // No field is at fault.
            Some(problem) if problem.status().is_server_error() => return *problem,
            Some(problem) => *problem,
            None => Problem::invalid(format!("`{field}`: {}", wrong.why)),
        };
        problem.with_details(json!({"field": field}))
    })
}

async fn check(
    gateway: &Gateway,
    caller: &Caller,
    tenant: &str,
    wanted: CreateRequest,
) -> Result<NewJob, Wrong> {
    let hash = wanted.idempotency_key.is_some().then(|| hash(&wanted));
    let operation = operation(&wanted.endpoint)?;
    let (model, body, size, kept) = body(wanted.model.as_deref(), wanted.body)?;
    if asks_for_background(operation, &body) {
        let why = "`background` cannot be true: the request is in the background as it is; leave \
                   it out";
        return Err(wrong("body", why));
    }
    let known = allowed(gateway, caller, &model)?;
    let told = gateway.models.can_be_told(&known, operation, &body);
    told.map_err(|why| wrong("body", why.to_string()))?;
    let naming = Naming {
        caller,
        tenant,
        model: &known,
        operation,
        kept: &kept,
        body: &body,
    };
    let place = match kept.is_empty() {
        true => None,
        false => naming.place(gateway).await.map_err(|unplaced| Wrong {
            status: Some(Box::new(Refusal::from(unplaced).into())),
            ..wrong("body", "")
        })?,
    };
    let now = gateway.desk.wall();
    let ttl = ttl(gateway, wanted.ttl.as_deref())?;
    let not_before = not_before(wanted.not_before.as_deref(), now, ttl)?;
    let mut job = NewJob::new(model, tenant, body);
    job.size = size;
    job.priority = wanted.priority.unwrap_or(Priority::NORMAL);
    job.ttl = Some(ttl);
    job.not_before = not_before;
    job.max_attempts = gateway.max_attempts();
    job.idempotency = match (wanted.idempotency_key, hash) {
        (Some(key), Some(request_hash)) => Some(Idempotency {
            key: checked_key(key)?,
            request_hash,
        }),
        _ => None,
    };
    job.details.endpoint = wanted.endpoint;
    job.details.metadata = notes(wanted.metadata)?;
    job.details.callback = callback(gateway, caller, wanted.callback_url)?;
    if let Some(place) = place {
        place.note(&mut job);
    }
    charge_to(&mut job.details, caller);
    Ok(job)
}

/// Notes whose key is charged for a job.
pub(super) fn charge_to(details: &mut Details, caller: &Caller) {
    details.key = caller.key_id();
}

/// Notes what the gateway wants back with a job.
pub(crate) fn note(details: &mut Details, name: &str, value: serde_json::Value) {
    if !details.extra.is_object() {
        details.extra = json!({});
    }
    if let Some(extra) = details.extra.as_object_mut() {
        extra.insert(name.to_owned(), value);
    }
}

/// Takes a note away.
pub(super) fn unnote(details: &mut Details, name: &str) {
    if let Some(extra) = details.extra.as_object_mut() {
        extra.remove(name);
    }
}

fn operation(endpoint: &str) -> Result<Operation, Wrong> {
    let operation = endpoint
        .starts_with("/v1/")
        .then(|| Operation::from_path(endpoint))
        .flatten()
        .filter(|operation| *operation != Operation::Models);
    operation.ok_or_else(|| {
        let paths: Vec<String> = Operation::ALL
            .into_iter()
            .filter(|operation| *operation != Operation::Models)
            .map(|operation| format!("/v1{operation}"))
            .collect();
        wrong("endpoint", format!("not one of {}", paths.join(", ")))
    })
}

fn body(
    named: Option<&str>,
    raw: Box<RawValue>,
) -> Result<(String, Bytes, llmq_core::CallSize, Kept), Wrong> {
    let scan = scan_request(raw.get().as_bytes(), TokenCounter::Chars)
        .map_err(|error| wrong("body", error.to_string()))?;
    if let Some(name) = scan.doubtful {
        return Err(wrong(
            "body",
            format!(
                "`{name}` stands in it more than once, or with escapes in its name: readers differ \
                 in which one they take"
            ),
        ));
    }
    if scan.stream {
        return Err(wrong(
            "body",
            "`stream` cannot be true: nobody holds a connection; leave it out",
        ));
    }
    // The same memory.
    let body = Bytes::from(String::from(Box::<str>::from(raw)));
    match (named, scan.model) {
        (Some(model), Some(inside)) if model != inside => {
            let why = format!("it names the model `{}` and `body` another", short(model));
            Err(wrong("model", why))
        }
        (_, Some(inside)) => Ok((inside, body, scan.size, scan.kept)),
        (Some(model), None) => {
            let body = with_model(&body, model).map_err(|_| wrong("body", "it is no object"))?;
            Ok((model.to_owned(), body, scan.size, scan.kept))
        }
        (None, None) => Err(wrong("model", "neither this nor `body` names a model")),
    }
}

fn allowed(
    gateway: &Gateway,
    caller: &Caller,
    model: &str,
) -> Result<std::sync::Arc<Model>, Wrong> {
    let refused = |status: Problem| Wrong {
        field: "model",
        why: String::new(),
        status: Some(Box::new(status)),
    };
    caller
        .may_use(model)
        .map_err(|error| refused(Problem::forbidden(error.to_string())))?;
    let found = gateway.models.find(model, &gateway.hub, || {
        gateway.observed.refresh();
    });
    found.ok_or_else(|| {
        let unknown = crate::call::unknown_model(gateway, caller, model);
        refused(Problem::not_found("model_not_found", unknown.message))
    })
}

fn ttl(gateway: &Gateway, text: Option<&str>) -> Result<Duration, Wrong> {
    let Some(text) = text else {
        return Ok(gateway.desk.settings.request_ttl);
    };
    let ttl = parse_duration(text.trim())
        .ok_or_else(|| wrong("ttl", "use a number and a unit, such as 30m or 4h"))?;
    if ttl.is_zero() || ttl > AHEAD_MAX {
        return Err(wrong("ttl", "it must be above 0 and at most 365d"));
    }
    Ok(ttl)
}

fn not_before(text: Option<&str>, now: WallTime, ttl: Duration) -> Result<Option<WallTime>, Wrong> {
    let Some(text) = text else { return Ok(None) };
    let at: jiff::Timestamp = text
        .trim()
        .parse()
        .map_err(|_| wrong("not_before", "use RFC 3339, such as 2026-01-31T12:00:00Z"))?;
    let at = WallTime::from_micros(at.as_microsecond());
    if at.since(now) >= ttl {
        let why = "it lies behind the time in which the request must start (`ttl`)";
        return Err(wrong("not_before", why));
    }
    Ok((at > now).then_some(at))
}

pub(crate) fn checked_key(key: String) -> Result<String, Wrongful> {
    let count = key.chars().count();
    if count == 0 || count > KEY_MAX {
        return Err(Wrongful(format!("it must have 1 to {KEY_MAX} characters")));
    }
    Ok(key)
}

/// Why an idempotency key cannot be used.
#[derive(Debug)]
pub(crate) struct Wrongful(pub(super) String);

impl fmt::Display for Wrongful {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Wrongful> for Wrong {
    fn from(wrongful: Wrongful) -> Self {
        wrong("idempotency_key", wrongful.0)
    }
}

fn notes(
    metadata: std::collections::BTreeMap<String, String>,
) -> Result<serde_json::Map<String, serde_json::Value>, Wrong> {
    if metadata.len() > NOTES_MAX {
        return Err(wrong("metadata", format!("more than {NOTES_MAX} entries")));
    }
    let too_long = metadata.iter().any(|(name, text)| {
        name.chars().count() > NOTE_NAME_MAX || text.chars().count() > NOTE_MAX
    });
    if too_long {
        let why =
            format!("names have at most {NOTE_NAME_MAX} characters, and texts at most {NOTE_MAX}");
        return Err(wrong("metadata", why));
    }
    let notes = metadata.into_iter();
    Ok(notes.map(|(name, text)| (name, text.into())).collect())
}

fn callback(
    gateway: &Gateway,
    caller: &Caller,
    url: Option<String>,
) -> Result<Option<Callback>, Wrong> {
    let Some(url) = url else { return Ok(None) };
    checked_url(&gateway.desk.reach, &url).map_err(|why| wrong("callback_url", why))?;
    Ok(Some(Callback {
        url,
        signed_by: caller.key_id().map(|key| key.to_string()),
    }))
}

/// Whether webhooks can go to `url`, as far as that can be known before a name is looked up.
pub(super) fn checked_url(reach: &llmq_engine::webhooks::Reach, url: &str) -> Result<(), String> {
    if url.len() > URL_MAX {
        return Err(format!("longer than {URL_MAX} bytes"));
    }
    let uri: http::Uri = url.parse().map_err(|error| format!("no URL: {error}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("use http:// or https://".to_owned());
    }
    let host = uri.host().unwrap_or_default();
    if host.is_empty() {
        return Err("it names no host".to_owned());
    }
    if uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err("it must not hold a name or a password".to_owned());
    }
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let local = bare.eq_ignore_ascii_case("localhost") || bare.ends_with(".localhost");
    let address = match bare.parse::<std::net::IpAddr>() {
        Ok(address) => Some(address),
        Err(_) if local => Some(std::net::Ipv4Addr::LOCALHOST.into()),
        Err(_) => None,
    };
    match address {
        Some(address) if !reach.permits(address) => Err(format!(
            "{host} is a private address, which `[webhooks] allow` does not name"
        )),
        _ => Ok(()),
    }
}

/// All that makes a request what it is.
fn hash(wanted: &CreateRequest) -> [u8; 32] {
    let mut hasher = Sha256::new();
    let mut add = |part: &str| {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    };
    let priority = wanted.priority.map(|priority| priority.value().to_string());
    for part in [
        Some(wanted.endpoint.as_str()),
        wanted.model.as_deref(),
        Some(wanted.body.get()),
        priority.as_deref(),
        wanted.ttl.as_deref(),
        wanted.not_before.as_deref(),
        wanted.callback_url.as_deref(),
    ] {
        add(if part.is_some() { "1" } else { "0" });
        add(part.unwrap_or_default());
    }
    for (name, text) in &wanted.metadata {
        add(name);
        add(text);
    }
    hasher.finalize().into()
}

fn short(text: &str) -> String {
    text.chars().take(100).collect()
}
