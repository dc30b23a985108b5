use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use llmq_strict::Book;

use super::answer::{Answer, Content, Draft};
use super::body::MockBody;
use super::call::{Call, Dialect, Endpoint};
use super::config::{Hints, OutageStyle};
use super::fault::{Fault, add_retry_after};
use super::state::{Admitted, Denied, Fate, Running, State};
use super::text::Fnv;
use super::{anthropic, openai, rate_headers, record};

/// The largest body that is read (Anthropic's documented bound).
const BODY_MAX: usize = 32 << 20;

/// The key that is never let in.
const BAD_KEY: &str = "bad";

/// The connection ends here without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the stand-in closes the connection")]
pub(super) struct HangUp;

/// Serves one request.
pub(super) async fn serve(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<MockBody>, HangUp> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    if parts.method == Method::GET && path == "/mock/report" {
        return Ok(report(&state));
    }
    let visit = Visit {
        state: &state,
        method: &parts.method,
        path,
        key: key_of(&parts.headers),
        dialect: dialect_of(path, &parts.headers),
    };
    match (&parts.method, Endpoint::of(path)) {
        (&Method::POST, Some(endpoint)) => visit.call(endpoint, body).await,
        (&Method::GET, None) if path == "/v1/models" || path.starts_with("/v1/models/") => {
            Ok(visit.models())
        }
        (method, _) => {
            let method = method.as_str();
            Ok(visit.refuse(&Fault::NotFound { method, path }, 0, &[]))
        }
    }
}

/// The books as JSON.
fn report(state: &State) -> Response<MockBody> {
    let (status, body) = match serde_json::to_string_pretty(&state.report()) {
        Ok(body) => (StatusCode::OK, body),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    send_whole(Answer::json(status, body))
}

fn key_of(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| {
        let value = value.to_str().ok()?;
        value
            .strip_prefix("Bearer ")
            .or_else(|| value.strip_prefix("bearer "))
    });
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())
}

/// By the path; what both have is OpenAI's unless the call names a version of Anthropic's.
fn dialect_of(path: &str, headers: &HeaderMap) -> Dialect {
    match Endpoint::of(path) {
        Some(endpoint) => endpoint.dialect(),
        None if headers.contains_key("anthropic-version") => Dialect::Anthropic,
        None => Dialect::OpenAi,
    }
}

/// One request, apart from its body.
struct Visit<'a> {
    state: &'a Arc<State>,
    method: &'a Method,
    path: &'a str,
    key: Option<&'a str>,
    dialect: Dialect,
}

impl Visit<'_> {
    async fn call(&self, endpoint: Endpoint, body: Incoming) -> Result<Response<MockBody>, HangUp> {
        let body = match Limited::new(body, BODY_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                let number = self.state.count_call();
                return Ok(self.refuse(&Fault::TooMuchBody, number, &[]));
            }
            Err(_) => return Err(HangUp),
        };
        let number = self.state.count_call();
        if self.state.in_outage() {
            self.state.count_outage();
            return match self.state.config.outage_style {
                OutageStyle::Unavailable => Ok(self.refuse(&Fault::Outage, number, &[])),
                OutageStyle::Refused => Err(HangUp),
            };
        }
        if !self.is_let_in() {
            return Ok(self.refuse(&Fault::BadKey, number, &[]));
        }
        if self.state.config.replay.is_some() {
            return Ok(self.replay(number, &body).await);
        }
        match Call::read(endpoint, &body) {
            Ok(call) if endpoint == Endpoint::CountTokens => {
                let mut answer = self.draft(&call, number).write();
                self.add_ids(&mut answer.headers, number);
                self.state.count_status(answer.status.as_u16());
                self.record(number, &body, &answer).await;
                Ok(send_whole(answer))
            }
            Ok(call) => self.admit(&call, number, &body).await,
            Err(bad) => Ok(self.refuse(&Fault::BadBody(&bad), number, &[])),
        }
    }

    /// From the limits on.
    async fn admit(
        &self,
        call: &Call<'_>,
        number: u64,
        body: &Bytes,
    ) -> Result<Response<MockBody>, HangUp> {
        let identity = Fnv::new().with(self.path.as_bytes()).with(body).value();
        let admitted = match self.state.arrive(call, identity) {
            Ok(admitted) => admitted,
            Err(Denied::NoMoney) => return Ok(self.refuse(&Fault::NoMoney, number, &[])),
            Err(Denied::Limited {
                spec,
                refusal,
                books,
            }) => {
                let model = &call.model;
                let fault = Fault::Limited {
                    spec,
                    refusal,
                    model,
                };
                return Ok(self.refuse(&fault, number, &books));
            }
        };
        // The work on a call begins when its limits have let it in.
        let admitted_at = self.state.elapsed();
        let Admitted {
            running,
            fate,
            latency,
            books,
        } = admitted;
        let draft = self.draft(call, number);
        let answer = match fate {
            Fate::Answered => Some(draft.write()),
            Fate::Broken => Some(Fault::Broken.answer(self.dialect, &request_id(number))),
            Fate::BrokenHtml => Some(Fault::BrokenHtml.answer(self.dialect, &request_id(number))),
            Fate::Dropped => None,
        };
        // A stream begins after half of its time, and spreads over the rest.
        let (before, after) = match &answer {
            Some(Answer {
                content: Content::Events(_),
                ..
            }) => (latency / 2, latency - latency / 2),
            _ => (latency, Duration::ZERO),
        };
        if !before.is_zero() {
            tokio::time::sleep(before).await;
        }
        let output = draft.output_tokens() * u64::from(call.choices);
        let Some(mut answer) = answer else {
            running.dropped(output);
            return Err(HangUp);
        };
        self.add_ids(&mut answer.headers, number);
        self.add_rates(&mut answer.headers, &books);
        if self.dialect == Dialect::OpenAi {
            let millis = (self.state.elapsed().saturating_sub(admitted_at)).as_millis();
            let millis = u64::try_from(millis).unwrap_or(u64::MAX);
            let name = HeaderName::from_static("openai-processing-ms");
            answer.headers.insert(name, HeaderValue::from(millis));
        }
        self.record(number, body, &answer).await;
        Ok(send(answer, after, running, output))
    }

    fn draft<'c>(&self, call: &'c Call<'c>, number: u64) -> Draft<'c> {
        Draft {
            call,
            number,
            created: self.state.wall().as_secs(),
            wanted: self.state.config.output_tokens,
            seed: self.state.config.seed,
        }
    }

    fn models(&self) -> Response<MockBody> {
        if !self.is_let_in() {
            return self.refuse(&Fault::BadKey, 0, &[]);
        }
        let wanted = self.path.strip_prefix("/v1/models/");
        let all = &self.state.config.models;
        let mut answer = match (self.dialect, wanted) {
            (Dialect::OpenAi, Some(name)) => openai::model(name),
            (Dialect::OpenAi, None) => openai::models(all),
            (Dialect::Anthropic, Some(name)) => anthropic::model(name),
            (Dialect::Anthropic, None) => anthropic::models(all),
        };
        self.add_ids(&mut answer.headers, 0);
        self.state.count_status(answer.status.as_u16());
        send_whole(answer)
    }

    fn is_let_in(&self) -> bool {
        let keys = &self.state.config.api_keys;
        if keys.is_empty() {
            return self.key != Some(BAD_KEY);
        }
        keys.iter().any(|key| Some(key.expose()) == self.key)
    }

    /// Answers with an error that belongs to no admitted call.
    fn refuse(&self, fault: &Fault<'_>, number: u64, books: &[Book]) -> Response<MockBody> {
        let mut answer = fault.answer(self.dialect, &request_id(number));
        self.add_ids(&mut answer.headers, number);
        self.add_rates(&mut answer.headers, books);
        if let (Some(wait), Hints::Sent) = (fault.wait(), self.state.config.retry_after) {
            add_retry_after(&mut answer.headers, wait);
        }
        self.state.count_status(answer.status.as_u16());
        send_whole(answer)
    }

    fn add_ids(&self, headers: &mut HeaderMap, number: u64) {
        let name = match self.dialect {
            Dialect::OpenAi => HeaderName::from_static("x-request-id"),
            Dialect::Anthropic => HeaderName::from_static("request-id"),
        };
        if let Ok(id) = HeaderValue::try_from(request_id(number)) {
            headers.insert(name, id);
        }
    }

    fn add_rates(&self, headers: &mut HeaderMap, books: &[Book]) {
        if self.state.config.rate_headers == Hints::Sent {
            rate_headers::add(headers, self.dialect, books, self.state.wall());
        }
    }

    async fn record(&self, number: u64, body: &[u8], answer: &Answer) {
        let Some(directory) = &self.state.config.record else {
            return;
        };
        let call = (self.method.as_str(), self.path, body);
        if let Err(error) = record::write(directory, call, self.key, number, answer).await {
            let directory = directory.display();
            tracing::warn!(%error, %directory, "a call could not be recorded");
        }
    }

    async fn replay(&self, number: u64, body: &[u8]) -> Response<MockBody> {
        let name = record::file_name(self.method.as_str(), self.path, body);
        let directory = self.state.config.replay.as_deref();
        let file = directory.map(|directory| directory.join(&name));
        let recorded = match file {
            Some(file) => record::read(&file).await,
            None => Ok(None),
        };
        match recorded {
            Ok(Some(answer)) => {
                self.state.count_status(answer.status.as_u16());
                send_whole(answer)
            }
            Ok(None) => self.refuse(&Fault::NotRecorded { wanted: &name }, number, &[]),
            Err(error) => {
                tracing::warn!(%error, file = name, "a recording cannot be read");
                self.refuse(&Fault::NotRecorded { wanted: &name }, number, &[])
            }
        }
    }
}

fn request_id(number: u64) -> String {
    format!("req_mock{number:08x}")
}

/// Sends the answer to an admitted call, its events over `time`.
fn send(answer: Answer, time: Duration, running: Running, output: u64) -> Response<MockBody> {
    let status = answer.status;
    let body = match answer.content {
        Content::Whole(bytes) => {
            let output = if status.is_success() { output } else { 0 };
            running.answered(status.as_u16(), output);
            MockBody::whole(bytes)
        }
        Content::Events(events) => MockBody::paced(events, time, running),
    };
    response(status, answer.headers, body)
}

/// Sends an answer in one piece.
fn send_whole(answer: Answer) -> Response<MockBody> {
    let bytes = match answer.content {
        Content::Whole(bytes) => bytes,
        Content::Events(_) => Bytes::new(),
    };
    response(answer.status, answer.headers, MockBody::whole(bytes))
}

fn response(status: StatusCode, headers: HeaderMap, body: MockBody) -> Response<MockBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
