//! One attempt: the call is sent, and its answer judged.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use llmq_core::{Clock, FailureClass, Now, Timestamp};
use llmq_dispatch::Event;
use llmq_engine::{AfterFailure, AssembledRoute, Grant, Ticket, outcome};
use llmq_provider::{
    Answer, Request, Source, Verdict, WholeAnswer, check_answer, processing_time, with_model,
};

use super::body::ReplyBody;
use super::incoming::Incoming;
use super::line::Progress;
use super::reply::{self, Reply};
use super::stream;
use crate::Gateway;
use crate::models::Model;

/// What became of an attempt.
pub(crate) enum Attempted {
    Answered(Box<Reply>),
    /// It stands in line again.
    Again(Ticket, Failure),
    /// It has failed for good.
    GivenUp(Failure),
}

/// How an attempt failed, as far as the caller may want to know.
#[derive(Debug)]
pub(crate) struct Failure {
    class: FailureClass,
    upstream: Arc<str>,
    pub(crate) message: String,
    /// The provider's own words.
    pub(crate) answer: Option<(StatusCode, HeaderMap, Bytes)>,
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
    progress: &mut Progress,
) -> Attempted {
    let route = gateway
        .models
        .route(grant.start().upstream)
        .expect("the dispatcher starts calls only where its routes lead");
    progress.attempts += 1;
    progress.upstream = Some(Arc::clone(&route.name));
    let (hub, ticket) = (Arc::clone(&gateway.hub), grant.start().ticket);
    let request = Request {
        headers: incoming.headers.clone(),
        ..Request::new(incoming.operation, body_for(incoming, &route))
            .on_sent(move |_| hub.handle(Event::Sent(ticket)))
    };
    let trial = Trial {
        gateway,
        incoming,
        route: Arc::clone(&route),
        grant,
    };
    let answer = match route.provider.call(request).await {
        Ok(answer) => answer,
        Err(error) => return trial.failed(&Verdict::from(&error), None),
    };
    trial.grant.first_byte(processing_time(answer.headers()));
    if answer.status().is_success() && answer.is_event_stream() {
        return stream::open(trial, model, answer, progress).await;
    }
    trial.whole(answer, progress).await
}

/// The body as this route's provider is to get it: the caller's own bytes, but for the name of
/// the model where the provider knows it by another.
fn body_for(incoming: &Incoming, route: &AssembledRoute) -> Bytes {
    match route
        .model
        .as_deref()
        .filter(|name| *name != incoming.model)
    {
        // A body that was scanned is an object.
        Some(name) => with_model(&incoming.body, name).unwrap_or_else(|_| incoming.body.clone()),
        None => incoming.body.clone(),
    }
}

/// An attempt under way.
pub(super) struct Trial<'a> {
    pub(super) gateway: &'a Arc<Gateway>,
    pub(super) incoming: &'a Incoming,
    pub(super) route: Arc<AssembledRoute>,
    pub(super) grant: Grant,
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

    async fn whole(self, answer: Answer, progress: &Progress) -> Attempted {
        let whole = match answer.collect().await {
            Ok(whole) => whole,
            Err(error) => return self.failed(&Verdict::from(&error), None),
        };
        let now = self.now();
        match check_answer(self.source(), &whole, now) {
            Ok(facts) => {
                let latency = now.mono - whole.times.sent;
                let provider = &self.route.provider;
                let ended = outcome::completed(provider, &whole.headers, facts.usage, latency, now);
                self.grant.complete(ended);
                let WholeAnswer {
                    status,
                    headers,
                    body,
                    ..
                } = whole;
                let body = ReplyBody::whole(body);
                let id = self.incoming.id;
                let reply = reply::answered(status, headers, body, id, progress);
                Attempted::Answered(Box::new(reply))
            }
            Err(verdict) => self.failed(&verdict, Some(whole)),
        }
    }

    /// The attempt has failed; the dispatcher says what follows.
    pub(super) fn failed(self, verdict: &Verdict, whole: Option<WholeAnswer>) -> Attempted {
        let now = self.now();
        let heard = whole
            .as_ref()
            .map(|whole| (&whole.headers, now.mono - whole.times.sent));
        let ended = outcome::failed(&self.route.provider, verdict, heard, now);
        let failure = Failure {
            class: verdict.class,
            upstream: Arc::clone(&self.route.name),
            message: verdict.message.clone(),
            answer: whole.map(|whole| (whole.status, whole.headers, whole.body)),
            until: verdict.wait.map(|wait| now.mono + wait),
        };
        match self.grant.fail(ended) {
            AfterFailure::Again(ticket) => Attempted::Again(ticket, failure),
            AfterFailure::GivenUp { .. } => Attempted::GivenUp(failure),
        }
    }
}
