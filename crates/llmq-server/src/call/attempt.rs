//! One attempt: the call is sent, and its answer judged.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use llmq_core::{Clock, FailureClass, Now, Timestamp};
use llmq_dispatch::Event;
use llmq_engine::{AfterFailure, AssembledRoute, Grant, Ticket, outcome};
use llmq_provider::{
    Answer, Dialect, Operation, Request, Source, Verdict, WholeAnswer, check_answer,
    processing_time, translate, with_model,
};

use super::body::ReplyBody;
use super::incoming::Incoming;
use super::progress::Progress;
use super::reply::{self, Reply};
use super::stream;
use crate::Gateway;
use crate::models::Model;

/// What became of an attempt.
pub(crate) enum Attempted {
    Answered(Box<Reply>),
    /// It stands in line again.
    Again(Ticket, Failure, Box<Progress>),
    /// It has failed for good.
    GivenUp(Failure, Box<Progress>),
}

/// How an attempt failed, as far as the caller may want to know.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) class: FailureClass,
    upstream: Arc<str>,
    pub(crate) message: String,
    /// The prompt does not fit the model.
    pub(crate) is_context: bool,
    /// The provider's own words, in its dialect.
    pub(crate) answer: Option<(StatusCode, HeaderMap, Bytes)>,
    pub(crate) dialect: Dialect,
    /// When it named a time to come back.
    pub(crate) until: Option<Timestamp>,
}

/// Of two failures of a call the one to tell: what another upstream says after the first is
/// often only a consequence of being asked at all, such as its 400 for a prompt it cannot take.
pub(crate) fn telling(first: Option<Failure>, next: Failure) -> Failure {
    match first {
        Some(first) if first.upstream != next.upstream && next.class == FailureClass::RowFault => {
            first
        }
        _ => next,
    }
}

pub(crate) async fn attempt(
    gateway: &Arc<Gateway>,
    incoming: &Incoming,
    model: &Model,
    grant: Grant,
    mut progress: Progress,
) -> Attempted {
    let route = gateway
        .models
        .route(grant.start().upstream)
        .expect("the dispatcher starts calls only where its routes lead");
    progress.attempts += 1;
    progress.upstream = Some(Arc::clone(&route.name));
    let (hub, ticket) = (Arc::clone(&gateway.hub), grant.start().ticket);
    let outgoing = Outgoing::of(incoming, &route);
    progress.sent();
    let started = gateway.clock.now().mono;
    let trial = Trial {
        progress,
        started,
        gateway,
        incoming,
        route: Arc::clone(&route),
        grant,
        include_usage: outgoing
            .as_ref()
            .ok()
            .and_then(|outgoing| outgoing.include_usage),
    };
    let outgoing = match outgoing {
        Ok(outgoing) => outgoing,
        Err(untranslatable) => return trial.failed(&cannot_be_said(&untranslatable), None),
    };
    let request = Request {
        headers: incoming.headers.clone(),
        ..Request::new(outgoing.operation, outgoing.body)
            .on_sent(move |_| hub.handle(Event::Sent(ticket)))
    };
    let answer = match route.provider.call(request).await {
        Ok(answer) => answer,
        Err(error) => return trial.failed(&Verdict::from(&error), None),
    };
    trial.grant.first_byte(processing_time(answer.headers()));
    if answer.status().is_success() && answer.is_event_stream() {
        return stream::open(trial, model, answer).await;
    }
    trial.whole(answer).await
}

/// What this route's provider is to get.
struct Outgoing {
    operation: Operation,
    body: Bytes,
    /// Set where the call is translated: whether the caller asked for a stream's usage.
    include_usage: Option<bool>,
}

impl Outgoing {
    /// The caller's own bytes, but for the name of the model where the provider knows it by
    /// another; in the other dialect where the provider speaks that.
    fn of(incoming: &Incoming, route: &AssembledRoute) -> Result<Self, translate::Untranslatable> {
        let name = route.model.as_deref().unwrap_or(&incoming.model);
        if !incoming.operation.speaks(route.provider.dialect()) {
            let target = translate::Target::new(name);
            let said = translate::request(incoming.operation, &incoming.body, target)?;
            return Ok(Self {
                operation: said.operation,
                body: said.body,
                include_usage: Some(said.include_usage),
            });
        }
        let body = if name == incoming.model {
            incoming.body.clone()
        } else {
            // A body that was scanned is an object.
            with_model(&incoming.body, name).unwrap_or_else(|_| incoming.body.clone())
        };
        Ok(Self {
            operation: incoming.operation,
            body,
            include_usage: None,
        })
    }
}

/// Whether a call can be said to at least one of a model's upstreams; else why not.
pub(crate) fn speakable(
    incoming: &Incoming,
    model: &Model,
) -> Result<(), translate::Untranslatable> {
    let native = |route: &Arc<AssembledRoute>| incoming.operation.speaks(route.provider.dialect());
    if model.routes.iter().any(native) {
        return Ok(());
    }
    let mut first = None;
    for route in &model.routes {
        match Outgoing::of(incoming, route) {
            Ok(_) => return Ok(()),
            Err(untranslatable) => first = first.or(Some(untranslatable)),
        }
    }
    first.map_or(Ok(()), Err)
}

fn cannot_be_said(untranslatable: &translate::Untranslatable) -> Verdict {
    let class = FailureClass::RowFault;
    Verdict {
        class,
        wait: None,
        pause: class.rule().pause,
        status: None,
        code: None,
        message: untranslatable.to_string(),
        limit: None,
    }
}

/// An attempt under way.
pub(super) struct Trial<'a> {
    pub(super) gateway: &'a Arc<Gateway>,
    pub(super) incoming: &'a Incoming,
    pub(super) progress: Progress,
    /// When it began.
    pub(super) started: Timestamp,
    pub(super) route: Arc<AssembledRoute>,
    pub(super) grant: Grant,
    /// Set where the call is translated: whether the caller asked for a stream's usage.
    pub(super) include_usage: Option<bool>,
}

impl Trial<'_> {
    pub(super) fn source(&self) -> Source {
        Source {
            host: self.route.provider.host(),
            dialect: self.route.provider.dialect(),
        }
    }

    pub(super) fn now(&self) -> Now {
        self.gateway.clock.now()
    }

    async fn whole(mut self, answer: Answer) -> Attempted {
        let whole = match answer.collect().await {
            Ok(whole) => whole,
            Err(error) => return self.failed(&Verdict::from(&error), None),
        };
        let now = self.now();
        let checked = check_answer(self.source(), &whole, now).and_then(|facts| {
            let said = self.said(&whole, now)?;
            Ok((facts, said))
        });
        match checked {
            Ok((facts, said)) => {
                let latency = now.mono - whole.times.sent;
                let provider = &self.route.provider;
                let ended = outcome::completed(provider, &whole.headers, facts.usage, latency, now);
                self.grant.complete(ended);
                let progress = &mut self.progress;
                progress.upstream_time += now.mono - self.started;
                progress.used(facts.usage);
                self.gateway
                    .observed
                    .metrics
                    .attempt(&self.route.name, None);
                progress.ends(whole.status.as_u16(), None);
                let WholeAnswer {
                    status,
                    mut headers,
                    body,
                    ..
                } = whole;
                let body = match said {
                    None => body,
                    Some(said) => {
                        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                        said
                    }
                };
                let body = ReplyBody::whole(body);
                let id = self.incoming.id;
                let reply = reply::answered(status, headers, body, id, progress);
                Attempted::Answered(Box::new(reply))
            }
            Err(verdict) => self.failed(&verdict, Some(whole)),
        }
    }

    /// A whole answer in the caller's dialect, where that is another.
    fn said(&self, whole: &WholeAnswer, now: Now) -> Result<Option<Bytes>, Box<Verdict>> {
        if self.include_usage.is_none() {
            return Ok(None);
        }
        let created_s = u64::try_from(now.wall.as_micros() / 1_000_000).unwrap_or(0);
        match translate::answer(self.incoming.dialect, &whole.body, created_s) {
            Ok(said) => Ok(Some(said)),
            Err(unreadable) => {
                let class = FailureClass::Transient;
                Err(Box::new(Verdict {
                    class,
                    wait: None,
                    pause: class.rule().pause,
                    status: Some(whole.status.as_u16()),
                    code: None,
                    message: unreadable.to_string(),
                    limit: None,
                }))
            }
        }
    }

    /// The attempt has failed; the dispatcher says what follows.
    pub(super) fn failed(mut self, verdict: &Verdict, whole: Option<WholeAnswer>) -> Attempted {
        let now = self.now();
        let heard = whole
            .as_ref()
            .map(|whole| (&whole.headers, now.mono - whole.times.sent));
        let ended = outcome::failed(&self.route.provider, verdict, heard, now);
        let failure = Failure {
            class: verdict.class,
            upstream: Arc::clone(&self.route.name),
            message: verdict.message.clone(),
            // OpenAI says it by a code, Anthropic by a text ("Errors", docs.anthropic.com, 2026).
            is_context: verdict.code.as_deref() == Some("context_length_exceeded")
                || verdict.message.contains("prompt is too long"),
            answer: whole.map(|whole| (whole.status, whole.headers, whole.body)),
            dialect: self.route.provider.dialect(),
            until: verdict.wait.map(|wait| now.mono + wait),
        };
        self.progress.upstream_time += now.mono - self.started;
        let metrics = &self.gateway.observed.metrics;
        metrics.attempt(&self.route.name, Some(verdict.class));
        let progress = Box::new(self.progress);
        match self.grant.fail(ended) {
            AfterFailure::Again(ticket) => Attempted::Again(ticket, failure, progress),
            AfterFailure::GivenUp { .. } => Attempted::GivenUp(failure, progress),
        }
    }
}
