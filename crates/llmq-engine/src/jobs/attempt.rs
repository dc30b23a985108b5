//! One attempt of a stored job: it is sent, and its answer judged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use llmq_core::{Clock, FailureClass, Timestamp};
use llmq_dispatch::Event;
use llmq_provider::translate::{self, StreamBroken};
use llmq_provider::{
    Answer, AnswerFacts, CallError, Dialect, Operation, Request, StreamEnd, Verdict, WholeAnswer,
    check_answer, check_stream, failed_status, processing_time, redirected,
};
use llmq_store::{GiveBack, Job, JobError, Report, Started, StoredAnswer};

use super::live::{Live, Speaker};
use super::runner::Inner;
use super::{Hold, Told};
use crate::{
    AfterFailure, Asked, AssembledRoute, Grant, Outgoing, STREAM_ENDS_WITHIN, end_of, heed,
    outcome, refuses_stream_options, spoken, tell_output,
};

/// Under this name a job that only one account can answer holds that account's
/// (`Details::extra`).
pub const ACCOUNT: &str = "account";

/// Under this name a job is marked for whose answer a caller holds a connection open: it is not sent
/// again to an upstream that took it and said nothing.
pub const AWAITED: &str = "awaited";

/// What became of an attempt.
pub(super) struct Attempted {
    pub(super) course: Course,
    pub(super) outcome: Outcome,
}

/// What is told of an attempt with which a job ends.
pub(super) struct Course {
    /// How long it took.
    pub(super) took: Duration,
    /// What its answer says of itself, if that is one.
    pub(super) answer: Option<AnswerFacts>,
}

impl Course {
    fn without_answer(took: Duration) -> Self {
        Self { took, answer: None }
    }
}

/// How an attempt ended.
pub(super) enum Outcome {
    /// In this way, whatever the dispatcher thinks.
    Report(Report),
    /// Nothing was sent: that upstream cannot take it, for this reason.
    Declined(String, AfterFailure),
    /// It failed, and the dispatcher says what follows.
    Failed(Box<Ended>, AfterFailure),
}

/// How an attempt failed.
pub(super) struct Ended {
    pub(super) upstream: Arc<str>,
    pub(super) error: JobError,
    pub(super) may_have_been_sent: bool,
    /// Its prompt does not fit the model: one with a larger context may take it.
    pub(super) exceeds_context: bool,
    pub(super) answer: Option<StoredAnswer>,
}

/// An answer that counts.
struct Good {
    answer: StoredAnswer,
    facts: AnswerFacts,
    headers: HeaderMap,
    latency: Duration,
}

/// An attempt that failed, with what was heard.
struct Bad {
    verdict: Box<Verdict>,
    whole: Option<WholeAnswer>,
    may_be_billed: bool,
}

impl From<Verdict> for Bad {
    fn from(verdict: Verdict) -> Self {
        Self {
            verdict: Box::new(verdict),
            whole: None,
            may_be_billed: true,
        }
    }
}

impl From<CallError> for Bad {
    fn from(error: CallError) -> Self {
        Self {
            may_be_billed: error.may_have_been_sent(),
            ..Self::from(Verdict::from(&error))
        }
    }
}

impl Inner {
    pub(super) async fn attempt(
        &self,
        grant: Grant,
        started: &Started,
        held: &mut Option<Box<dyn Hold>>,
    ) -> Attempted {
        let begun = self.clock.now().mono;
        let sent = Arc::new(AtomicBool::new(false));
        let Some(route) = self.directory.route(grant.start().upstream) else {
            // The configuration changed since the grant.
            drop(grant);
            return self.given_back(started, begun, &sent);
        };
        let only = started.job.details.extra.get(ACCOUNT);
        let only = only.and_then(serde_json::Value::as_str);
        if let Some(only) = only.filter(|only| **only != *route.account) {
            let reason = format!("what the call names is kept by {only}");
            return Attempted {
                course: Course::without_answer(Duration::ZERO),
                outcome: Outcome::Declined(reason, grant.decline()),
            };
        }
        // Only what is known is accepted.
        let operation = Operation::from_path(&started.job.details.endpoint);
        let operation = operation.unwrap_or(Operation::ChatCompletions);
        let (job, body) = (&started.job, &started.body);
        let outgoing = match self.directory.say(job, operation, body, &route) {
            Ok(outgoing) => outgoing,
            Err(untranslatable) => {
                return Attempted {
                    course: Course::without_answer(Duration::ZERO),
                    outcome: Outcome::Declined(untranslatable.to_string(), grant.decline()),
                };
            }
        };
        if let Some(held) = held {
            held.begins(Arc::clone(&sent));
        }
        let asked = tokio::select! {
            biased;
            asked = self.ask(&route, &grant, started, (operation, outgoing), &sent) => asked,
            () = self.giving_back.cancelled() => {
                drop(grant);
                return self.given_back(started, begun, &sent);
            }
        };
        let now = self.clock.now();
        let failure = asked.as_ref().err().map(|bad| bad.verdict.class);
        let upstream = &route.name;
        self.directory.told(Told::Attempt { upstream, failure });
        let mut answer = None;
        let outcome = match asked {
            Ok(good) => {
                let (provider, usage) = (&route.provider, good.facts.usage);
                let ended = outcome::completed(provider, &good.headers, usage, good.latency, now);
                grant.complete(ended);
                self.directory.told(Told::Answered {
                    job: &started.job,
                    upstream: route.upstream,
                    body: &good.answer.body,
                });
                answer = Some(good.facts);
                let model = &started.job.queue;
                let cost_nano_usd = usage
                    .as_ref()
                    .and_then(|usage| self.directory.nano_usd(model, route.upstream, usage));
                if let Some(usage) = &usage
                    && let Some(held) = held.take()
                {
                    held.settle(usage, cost_nano_usd.unwrap_or(0));
                }
                Outcome::Report(Report::Completed {
                    cost_nano_usd,
                    answer: good.answer,
                    usage,
                })
            }
            Err(bad) => {
                if let Some(held) = held
                    && !bad.may_be_billed
                {
                    held.was_free();
                }
                let heard = bad
                    .whole
                    .as_ref()
                    .map(|whole| (&whole.headers, now.mono - whole.times.sent));
                let mut ended = outcome::failed(&route.provider, &bad.verdict, heard, now);
                ended.is_awaited = started.job.details.extra.get(AWAITED).is_some();
                let after = grant.fail(ended);
                Outcome::Failed(Box::new(told(&started.job, &route, bad)), after)
            }
        };
        let took = now.mono - begun;
        Attempted {
            course: Course { took, answer },
            outcome,
        }
    }

    /// This process ends: another attempt follows in the next one, unless what was sent may not be
    /// sent again. That is decided as for a process that died.
    fn given_back(&self, started: &Started, begun: Timestamp, sent: &AtomicBool) -> Attempted {
        let after = Duration::ZERO;
        let is_last = started.job.attempts >= started.job.max_attempts
            || self.lost_attempt == llmq_core::Verdict::GiveUp;
        let error = JobError {
            class: Some(FailureClass::Ambiguous),
            ..JobError::new("stopped", "the server was stopped before the answer came")
        };
        let report = match sent.load(Ordering::Acquire) {
            false => Report::GivenBack {
                why: GiveBack::NotSent,
                error: None,
                after,
            },
            true if is_last => Report::Failed {
                error,
                answer: None,
                cost_nano_usd: None,
            },
            true => Report::Retry {
                error,
                after,
                may_have_been_sent: true,
            },
        };
        Attempted {
            course: Course::without_answer(self.clock.now().mono - begun),
            outcome: Outcome::Report(report),
        }
    }

    async fn ask(
        &self,
        route: &AssembledRoute,
        grant: &Grant,
        started: &Started,
        (operation, outgoing): (Operation, Outgoing),
        sent: &Arc<AtomicBool>,
    ) -> Result<Good, Bad> {
        let job = &started.job;
        let (hub, ticket) = (Arc::clone(&self.hub), grant.start().ticket);
        let asked = Asked::new(&outgoing, route, spoken(operation), job.size.choices);
        let request = Request {
            headers: headers_of(job, route),
            has_left: Some(Arc::clone(sent)),
            ..Request::new(outgoing.operation, outgoing.body)
                .on_sent(move |at| hub.handle(Event::Sent(ticket, at)))
        };
        let answer = route.provider.call(request).await;
        let answer = answer.map_err(Bad::from)?;
        grant.first_byte(processing_time(answer.headers()));
        let exchange = Exchange {
            route,
            grant,
            asked,
            clock: &self.clock,
            reads_facts: self.directory.reads_facts(),
        };
        if answer.status().is_success() && answer.is_event_stream() {
            let live = self.lives.speaker(job.id);
            exchange.stream(answer, job.attempts, live).await
        } else {
            exchange.whole(answer).await
        }
    }
}

/// A call that was sent, and what is to be made of its answer.
struct Exchange<'a> {
    route: &'a AssembledRoute,
    grant: &'a Grant,
    asked: Asked,
    clock: &'a crate::SystemClock,
    /// Whether a stream is asked what it says of itself.
    reads_facts: bool,
}

impl Exchange<'_> {
    async fn whole(&self, answer: Answer) -> Result<Good, Bad> {
        let whole = answer.collect().await;
        let whole = whole.map_err(Bad::from)?;
        let now = self.clock.now();
        let facts = match check_answer(self.asked.source(), &whole, now) {
            Ok(facts) => facts,
            Err(mut verdict) => {
                if self.asked.asks_usage() && refuses_stream_options(&whole) {
                    // The same call without what was added is another call.
                    self.route.found_out.refused_stream_usage();
                    verdict.class = FailureClass::Transient;
                }
                return Err(Bad {
                    may_be_billed: outcome::may_be_billed(&verdict, whole.status),
                    verdict,
                    whole: Some(whole),
                });
            }
        };
        let retold = self.asked.retold(&whole, now);
        let retold = retold.map_err(|verdict| Bad::from(*verdict))?;
        let kept = kept_headers(&whole.headers);
        let (kept, body) = match retold {
            None => (kept, whole.body),
            Some(body) => (json_headers(kept), body),
        };
        Ok(Good {
            answer: StoredAnswer {
                status: whole.status.as_u16(),
                headers: kept,
                body,
            },
            facts,
            latency: now.mono - whole.times.sent,
            headers: whole.headers,
        })
    }

    /// A stream is kept as its bytes, and only if it came to its proper end. Whoever holds a
    /// connection for it hears it from its first token on, but for its end, which is heard once it
    /// is kept.
    async fn stream(
        &self,
        mut answer: Answer,
        attempt: u32,
        mut live: Option<Speaker>,
    ) -> Result<Good, Bad> {
        let (mut heard, mut told) = (0, 0);
        let mut reader = self.asked.reader(self.grant);
        if self.reads_facts {
            reader = reader.telling();
        }
        let mut said = BytesMut::new();
        let mut retelling = self.asked.retelling(self.clock.now());
        answer.begins();
        let end = loop {
            let piece = match answer.chunk().await {
                Ok(Some(piece)) => piece,
                Ok(None) => break end_of(&mut reader, &answer),
                // Every answer has said why it ended; what is missing is the last event.
                Err(_) if reader.broke() == StreamEnd::Whole => break StreamEnd::Whole,
                Err(error) => return Err(error.into()),
            };
            answer.check_size(said.len() + piece.len())?;
            if reader.push(&piece).is_err() {
                break StreamEnd::Malformed;
            }
            heed(&reader, &mut answer);
            tell_output(&reader, self.grant, &mut told);
            match retelling.push(piece, |bytes| said.extend_from_slice(&bytes)) {
                Ok(()) => {}
                // The provider has told of a failure, which the reader knows better.
                Err(StreamBroken::Failed { .. }) => break reader.end(),
                Err(_) => break StreamEnd::Malformed,
            }
            match reader.end() {
                StreamEnd::CutOff => {
                    if let Some(live) = live.as_mut().filter(|_| reader.has_begun()) {
                        live.begins(|| Live::Began {
                            status: answer.status().as_u16(),
                            headers: kept_headers(answer.headers()),
                            upstream: Arc::clone(&self.route.name),
                            attempt,
                        });
                        if heard < said.len() {
                            live.tell(Live::Piece(Bytes::copy_from_slice(&said[heard..])));
                            heard = said.len();
                        }
                    }
                }
                StreamEnd::Whole => {
                    // Nothing of it is missing. A connection that ends with it is used again.
                    let end = answer.chunk();
                    let _ended = tokio::time::timeout(STREAM_ENDS_WITHIN, end).await;
                    break StreamEnd::Whole;
                }
                end => break end,
            }
        };
        let now = self.clock.now();
        let (source, status) = (self.asked.source(), answer.status());
        let checked = check_stream(source, status, answer.headers(), &end, now).and_then(|()| {
            let finished = retelling.finish(|bytes| said.extend_from_slice(&bytes));
            let end = StreamEnd::Malformed;
            let judged = |_| check_stream(source, status, answer.headers(), &end, now);
            finished.or_else(judged)
        });
        if let Err(verdict) = checked {
            let whole = match end {
                StreamEnd::Failed(said) => Some(answer.failed(said.into())),
                _ => None,
            };
            return Err(Bad {
                // A provider that says why it gives nothing has made nothing.
                may_be_billed: reader.has_begun() || whole.is_none(),
                whole,
                ..Bad::from(*verdict)
            });
        }
        if let Some(live) = &mut live {
            live.is_whole();
        }
        Ok(Good {
            answer: StoredAnswer {
                status: answer.status().as_u16(),
                headers: kept_headers(answer.headers()),
                body: said.freeze(),
            },
            facts: AnswerFacts {
                usage: reader.usage(),
                ..reader.facts().unwrap_or_default()
            },
            latency: now.mono - answer.times().sent,
            headers: answer.headers().clone(),
        })
    }
}

/// How a failed attempt is told.
fn told(job: &Job, route: &AssembledRoute, bad: Bad) -> Ended {
    let Bad { verdict, whole, .. } = bad;
    let operation = Operation::from_path(&job.details.endpoint);
    let dialect = operation.map_or(Dialect::OpenAi, spoken);
    let code = verdict.code.as_deref().unwrap_or(verdict.class.as_str());
    // Its page says nothing of what helps, and may quote an address with a secret in it.
    let redirected = whole
        .as_ref()
        .and_then(|whole| redirected(whole.status, &whole.headers));
    let message = redirected.as_ref().unwrap_or(&verdict.message).clone();
    Ended {
        upstream: Arc::clone(&route.name),
        error: JobError {
            class: Some(verdict.class),
            ..JobError::new(code, message)
        },
        may_have_been_sent: verdict.class == FailureClass::Ambiguous,
        exceeds_context: verdict.exceeds_context(),
        answer: whole
            .filter(|_| redirected.is_none())
            .map(|whole| said_answer(dialect, route, whole)),
    }
}

/// The provider's own error, in the caller's dialect.
fn said_answer(dialect: Dialect, route: &AssembledRoute, whole: WholeAnswer) -> StoredAnswer {
    // A failure dressed as a 200 is none for the caller, and may have come in a stream.
    let status = failed_status(whole.status, &whole.body);
    let mut headers = kept_headers(&whole.headers);
    if whole.status.is_success() {
        headers = json_headers(headers);
    }
    if route.provider.dialect() == dialect {
        return StoredAnswer {
            status: status.as_u16(),
            headers,
            body: whole.body,
        };
    }
    StoredAnswer {
        status: status.as_u16(),
        headers: json_headers(headers),
        body: translate::error(dialect, status.as_u16(), &whole.body),
    }
}

/// The headers of an answer that mean something when it is fetched: not those of the connection
/// or of limits as they were then.
fn kept_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let means = |name: &str| {
        name == "content-type" || name.ends_with("request-id") || name.starts_with("openai-")
    };
    headers
        .iter()
        .filter(|(name, _)| means(name.as_str()))
        .filter_map(|(name, value)| {
            Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
        })
        .collect()
}

fn json_headers(mut headers: Vec<(String, String)>) -> Vec<(String, String)> {
    headers.retain(|(name, _)| name != "content-type");
    headers.push(("content-type".to_owned(), "application/json".to_owned()));
    headers
}

/// What of a caller's headers goes to the provider, as the acceptor noted it (`headers`, and those
/// that choose an account in `account_headers`, objects of texts in
/// [`Details::extra`](llmq_store::Details)), and its trace.
fn headers_of(job: &Job, route: &AssembledRoute) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let noted = |name: &str| {
        let noted = job.details.extra.get(name);
        let noted = noted.and_then(serde_json::Value::as_object);
        let pairs = noted.into_iter().flatten();
        pairs.filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)))
    };
    let passes = |name: &str| route.pass_headers.iter().any(|passed| passed == name);
    let of_account = noted("account_headers").filter(|(name, _)| passes(name));
    let pairs = noted("headers").chain(of_account);
    let trace = job.details.traceparent.as_deref();
    let trace = trace.map(|trace| ("traceparent", trace));
    for (name, value) in pairs.chain(trace) {
        let name = HeaderName::try_from(name);
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            headers.insert(name, value);
        }
    }
    headers
}
