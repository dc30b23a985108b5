//! A call as it came in: body, model, size, and how it wants to be treated.

use std::hash::Hasher as _;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use llmq_core::{CallSize, Now, Priority, parse_duration};
use llmq_dispatch::TenantId;
use llmq_engine::{AssembledRoute, spoken};
use llmq_provider::{Dialect, Kept, Operation, TokenCounter, scan_request};
use rustc_hash::FxHasher;
use uuid::Uuid;

use super::arrival::Arrival;
use super::forward;
use crate::Gateway;
use crate::dialect::Refusal;
use crate::jobs::{Later, asks_for_job};
use crate::keys::{self, Caller, Denied, HandIn, Need as _};
use crate::openai::background::{self, Background};
use crate::timed::{BodyError, Timed};

/// Nobody may ask for a longer wait.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3_600);

const PRIORITY: HeaderName = HeaderName::from_static("x-llmq-priority");
const MAX_WAIT: HeaderName = HeaderName::from_static("x-llmq-max-wait");
const EARLY_HEADERS: HeaderName = HeaderName::from_static("x-llmq-early-headers");
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// A call that can stand in line.
pub(crate) struct Incoming {
    pub(crate) id: Uuid,
    pub(crate) operation: Operation,
    /// In which the caller is spoken to.
    pub(crate) dialect: Dialect,
    pub(crate) model: String,
    pub(crate) body: Bytes,
    pub(crate) size: CallSize,
    pub(crate) stream: bool,
    /// What it names that one account keeps.
    pub(crate) kept: Kept,
    /// A route to the only account that it may go to.
    pub(crate) only: Option<Arc<AssembledRoute>>,
    /// Where its prompt begins in the body.
    prompt_at: Option<usize>,
    /// Whether it wants a stream's usage; none: it leaves that open.
    pub(crate) include_usage: Option<bool>,
    pub(crate) priority: Priority,
    pub(crate) max_wait: Duration,
    /// How long its caller bears silence, if it says so.
    pub(crate) early_headers: Option<Duration>,
    /// Who it is charged to.
    pub(crate) tenant: TenantId,
    pub(crate) tenant_name: String,
    pub(crate) caller: Caller,
    /// Headers that every provider may see.
    pub(crate) headers: HeaderMap,
    /// Headers that choose an account, for the upstreams that may see them.
    pub(crate) account_headers: HeaderMap,
    pub(crate) arrived: Now,
    /// What it says of being kept and finished later; nearly always nothing.
    pub(crate) later: Option<Box<Later>>,
    /// A response that its caller does not wait for; its body is the plain call.
    pub(crate) background: Option<Box<Background>>,
}

impl Incoming {
    /// Reads a call that has arrived. Where it is refused, `arrival` knows what was read by then.
    pub(super) async fn read(
        gateway: &Gateway,
        request: Request<hyper::body::Incoming>,
        arrival: &mut Arrival,
    ) -> Result<Self, Refusal> {
        let (operation, arrived) = (arrival.operation, arrival.at);
        let (parts, body) = request.into_parts();
        let caller = keys::caller(&gateway.keys, &parts.headers, HandIn::SCOPES)?;
        keys::tenant(&caller, &parts.headers)?.clone_into(&mut arrival.tenant);
        let wishes = Wishes::read(&parts.headers, gateway.max_wait())?;
        arrival.priority = wishes.priority;
        let respond_async = prefers(&parts.headers, "respond-async").is_some();
        let waits_first = respond_async && prefers(&parts.headers, "wait").is_some();
        let may_be_kept = gateway.live.load().keeps_calls;
        let mut later = asks_for_job(&parts.headers, respond_async, waits_first, may_be_kept)?;
        let mut body = whole(body, &parts.headers, gateway).await?;
        let mut scan = scan_request(&body, TokenCounter::Chars)
            .map_err(|error| Refusal::invalid(error.to_string()))?;
        arrival.stream = scan.stream;
        if let Some(name) = scan.doubtful {
            let message = format!(
                "`{name}` stands in the body more than once, or with escapes in its name: \
                 readers differ in which one they take"
            );
            return Err(Refusal::invalid(message).about(name));
        }
        let Some(model) = scan.model else {
            let message = "the body names no model: set `model` to a text";
            return Err(Refusal::invalid(message).about("model"));
        };
        arrival.model = model;
        caller.may_use(&arrival.model).map_err(Denied::from)?;
        let mut later_told = None;
        if operation == Operation::Responses
            && let Some(found) = background::asked(&body)?
        {
            (body, scan.stream) = (found.body.clone(), false);
            later = asks_for_job(&parts.headers, true, false, false)?;
            later_told = Some(Box::new(found));
        }
        let tenant = gateway
            .tenants
            .of(&caller, &arrival.tenant, &gateway.hub, arrived);
        Ok(Self {
            tenant,
            tenant_name: mem::take(&mut arrival.tenant),
            caller,
            id: arrival.id,
            operation,
            dialect: spoken(operation),
            model: mem::take(&mut arrival.model),
            body,
            size: scan.size,
            stream: scan.stream,
            include_usage: scan.include_usage,
            prompt_at: scan.prompt_at,
            kept: scan.kept,
            only: None,
            priority: wishes.priority,
            max_wait: wishes.max_wait,
            early_headers: wishes.early_headers,
            headers: forward::for_provider(&parts.headers),
            account_headers: match gateway.live.load().passes_account {
                true => forward::of_account(&parts.headers),
                false => HeaderMap::new(),
            },
            arrived,
            later: later.and_then(|later| later.of_stream(scan.stream)),
            background: later_told,
        })
    }
}

impl Incoming {
    /// The beginning of its prompt as a number, the same for calls that begin alike; 0 for one
    /// without a prompt.
    pub(crate) fn affinity(&self) -> u64 {
        /// Providers keep no shorter beginnings (1,024 tokens), and longer ones differ too often.
        const BYTES: usize = 2 << 10;
        let Some(prompt) = self.prompt_at.and_then(|at| self.body.get(at..)) else {
            return 0;
        };
        let mut hasher = FxHasher::default();
        hasher.write(&prompt[..prompt.len().min(BYTES)]);
        hasher.finish().max(1)
    }
}

/// The whole body, as much of it as may be, within the time that so much may take.
async fn whole(
    body: hyper::body::Incoming,
    headers: &HeaderMap,
    gateway: &Gateway,
) -> Result<Bytes, Refusal> {
    let max = gateway.max_body_bytes();
    let stated = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if stated.is_some_and(|stated| stated > max) {
        return Err(too_large(max));
    }
    let mut body = pin!(Timed::new(body, gateway.bounds));
    let Some(first) = piece(&mut body).await? else {
        return Ok(Bytes::new());
    };
    if stated == Some(first.len() as u64) {
        return Ok(first);
    }
    let expected = usize::try_from(stated.unwrap_or(0).min(max)).unwrap_or(0);
    let mut all = BytesMut::with_capacity(expected.max(first.len()));
    let mut next = Some(first);
    while let Some(part) = next {
        if (all.len() + part.len()) as u64 > max {
            return Err(too_large(max));
        }
        all.extend_from_slice(&part);
        next = piece(&mut body).await?;
    }
    Ok(all.freeze())
}

/// The next piece of a body.
async fn piece(
    body: &mut Pin<&mut Timed<hyper::body::Incoming>>,
) -> Result<Option<Bytes>, Refusal> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            let message = error.to_string();
            match error {
                BodyError::Broken => Refusal::invalid(message),
                BodyError::TooSlow { .. } => {
                    Refusal::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
                }
            }
        })?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

fn too_large(max: u64) -> Refusal {
    let message = format!("the body is larger than {max} bytes (server.max_body)");
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
}

/// How a call wants to be treated.
#[derive(Debug, PartialEq, Eq)]
struct Wishes {
    priority: Priority,
    max_wait: Duration,
    early_headers: Option<Duration>,
}

impl Wishes {
    fn read(headers: &HeaderMap, default_wait: Duration) -> Result<Self, Refusal> {
        let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or(""));
        let priority = match text(PRIORITY) {
            None => Priority::HIGH,
            Some(text) => text
                .trim()
                .parse()
                .map_err(|error| bad("X-LLMQ-Priority", &error))?,
        };
        let early_headers = text(EARLY_HEADERS);
        let early_headers = early_headers.map(|text| time("X-LLMQ-Early-Headers", text));
        let max_wait = match text(MAX_WAIT) {
            Some(text) => time("X-LLMQ-Max-Wait", text)?,
            // RFC 7240, 4.3: `wait` is in whole seconds.
            None => prefers(headers, "wait")
                .and_then(|seconds| seconds.parse().ok().map(Duration::from_secs))
                .unwrap_or(default_wait),
        };
        Ok(Self {
            priority,
            max_wait: max_wait.min(WAIT_MAX),
            early_headers: early_headers.transpose()?,
        })
    }
}

/// A length of time in a header.
fn time(header: &str, text: &str) -> Result<Duration, Refusal> {
    let help = "use a number and a unit, such as 30s or 2m";
    parse_duration(text.trim()).ok_or_else(|| bad(header, &help))
}

fn bad(header: &str, error: &dyn std::fmt::Display) -> Refusal {
    Refusal::invalid(format!("{header}: {error}")).about(header)
}

/// The value of a preference (RFC 7240, section 2); unknown ones are passed over.
fn prefers<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let fields = headers.get_all(PREFER).iter();
    fields
        .filter_map(|value| value.to_str().ok())
        .flat_map(|text| text.split([',', ';']))
        .filter_map(|preference| {
            let (word, value) = preference.split_once('=').unwrap_or((preference, ""));
            (word.trim().eq_ignore_ascii_case(name)).then(|| value.trim().trim_matches('"'))
        })
        .next()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn wishes(name: &'static str, value: &'static str) -> Result<Wishes, Refusal> {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_static(value));
        Wishes::read(&headers, MINUTE)
    }

    #[test]
    fn a_call_says_how_long_it_waits_in_either_way() {
        let wait = |name, value| wishes(name, value).unwrap().max_wait;
        assert_eq!(wait("x-llmq-max-wait", "90s"), Duration::from_secs(90));
        assert_eq!(wait("prefer", "wait=30"), Duration::from_secs(30));
        let both = "respond-async, Wait = \"7\"";
        assert_eq!(wait("prefer", both), Duration::from_secs(7));
        assert_eq!(wait("prefer", "handling=strict"), MINUTE);
        assert_eq!(wait("x-llmq-max-wait", "100d"), WAIT_MAX);
    }

    #[test]
    fn a_wish_that_cannot_be_read_is_refused_by_its_name() {
        let table = [
            ("x-llmq-priority", "urgent"),
            ("x-llmq-max-wait", "soon"),
            ("x-llmq-early-headers", "15"),
        ];
        for (name, value) in table {
            let refusal = wishes(name, value).unwrap_err();
            let param = refusal.param.unwrap();
            assert!(param.eq_ignore_ascii_case(name), "{param}");
        }
        assert_eq!(
            wishes("x-llmq-priority", "low").unwrap().priority,
            Priority::LOW
        );
    }
}
