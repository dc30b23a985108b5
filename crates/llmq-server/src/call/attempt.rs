//! One attempt: the call is sent, and its answer judged.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use llmq_core::{Clock, FailureClass, Now, Timestamp, Usage};
use llmq_dispatch::Event;
use llmq_engine::{
    AfterFailure, Asked, AssembledRoute, Grant, Ticket, outcome, refuses_stream_options,
};
use llmq_provider::{
    Answer, Dialect, Operation, Request, Verdict, WholeAnswer, check_answer, processing_time,
};

use super::body::ReplyBody;
use super::forward;
use super::incoming::Incoming;
use super::outgoing;
use super::progress::Progress;
use super::reply::{self, Reply};
use super::stream;
use crate::Gateway;
use crate::dialect::Refusal;
use crate::made::Maker;
use crate::models::Model;

/// What became of an attempt.
pub(crate) enum Attempted {
    Answered(Box<Reply>),
    /// That upstream cannot be told the call: it stands in line for others.
    Skipped(Ticket, Box<Progress>),
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
    /// What is told where the provider has said nothing.
    pub(crate) refusal: Refusal,
    /// What may help where another attempt does not.
    pub(crate) remedy: Remedy,
    /// The provider's own words, in its dialect.
    pub(crate) answer: Option<(StatusCode, HeaderMap, Bytes)>,
    pub(crate) dialect: Dialect,
    /// When it named a time to come back.
    pub(crate) until: Option<Timestamp>,
}

/// What may help a call that has failed for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    Nothing,
    /// The prompt does not fit the model: one with a larger context.
    LargerContext,
    /// The upstream does not know what llmq had added: the same call without it.
    WithoutUsage,
}

/// Of two failures of a call the one to tell.
pub(crate) fn telling(first: Option<Failure>, next: Failure) -> Failure {
    let is_consequence =
        |first: &Failure| outcome::is_consequence(&first.upstream, &next.upstream, next.class);
    match first {
        Some(first) if is_consequence(&first) => first,
        _ => next,
    }
}

pub(crate) async fn attempt(
    gateway: &Arc<Gateway>,
    incoming: &Incoming,
    model: &Arc<Model>,
    grant: Grant,
    mut progress: Progress,
) -> Attempted {
    let route = gateway
        .models
        .route(grant.start().upstream)
        .expect("the dispatcher starts calls only where its routes lead");
    if let Some(only) = &incoming.only
        && only.account != route.account
    {
        let reason = format!("what the call names is kept by {}", only.account);
        return declined(&route, grant, reason, progress);
    }
    let outgoing = match outgoing::words(incoming, model, &route) {
        Ok(outgoing) => outgoing,
        Err(untranslatable) => {
            return declined(&route, grant, untranslatable.to_string(), progress);
        }
    };
    let mut headers = outgoing::headers(incoming, &route);
    progress.mark(&route.provider, &mut headers);
    let (hub, ticket) = (Arc::clone(&gateway.hub), grant.start().ticket);
    let serving = gateway.models.serving(model, route.upstream);
    let has_left = Arc::new(AtomicBool::new(false));
    let (name, left) = (Arc::clone(&route.name), Arc::clone(&has_left));
    progress.begins(name, serving, left, gateway.clock.now().mono);
    let mut trial = Trial {
        progress,
        gateway,
        incoming,
        route: Arc::clone(&route),
        grant,
        asked: Asked::new(&outgoing, &route, incoming.dialect, incoming.size.choices),
    };
    let request = Request {
        headers,
        has_left: Some(has_left),
        ..Request::new(outgoing.operation, outgoing.body)
            .on_sent(move |at| hub.handle(Event::Sent(ticket, at)))
    };
    let answer = match route.provider.call(request).await {
        Ok(answer) => answer,
        Err(error) => {
            if !error.may_have_been_sent() {
                trial.progress.was_free();
            }
            return trial.failed(&Verdict::from(&error), None);
        }
    };
    trial.grant.first_byte(processing_time(answer.headers()));
    if answer.status().is_success() && answer.is_event_stream() {
        return stream::open(trial, model, answer).await;
    }
    trial.whole(answer).await
}

/// Nothing is sent: this upstream cannot take the call.
fn declined(route: &AssembledRoute, grant: Grant, reason: String, progress: Progress) -> Attempted {
    let progress = Box::new(progress);
    match grant.decline() {
        AfterFailure::Again(ticket) => Attempted::Skipped(ticket, progress),
        AfterFailure::GivenUp { .. } => {
            let failure = Failure {
                class: FailureClass::RowFault,
                upstream: Arc::clone(&route.name),
                refusal: Refusal::invalid(reason),
                remedy: Remedy::Nothing,
                answer: None,
                dialect: route.provider.dialect(),
                until: None,
            };
            Attempted::GivenUp(failure, progress)
        }
    }
}

/// An attempt under way.
pub(super) struct Trial<'a> {
    pub(super) gateway: &'a Arc<Gateway>,
    pub(super) incoming: &'a Incoming,
    pub(super) progress: Progress,
    pub(super) route: Arc<AssembledRoute>,
    pub(super) grant: Grant,
    pub(super) asked: Asked,
}

impl Trial<'_> {
    /// Who makes its response, where that is worth remembering.
    pub(super) fn maker(&self) -> Option<Maker> {
        let incoming = self.incoming;
        let matters = incoming.operation == Operation::Responses
            && self
                .gateway
                .made
                .matters(incoming.caller.key_id().is_some());
        matters.then(|| Maker::new(self.route.upstream, &incoming.tenant_name))
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
        let checked = check_answer(self.asked.source(), &whole, now).and_then(|facts| {
            let said = self.asked.retold(&whole, now)?;
            Ok((facts, said))
        });
        match checked {
            Ok((facts, said)) => {
                let latency = now.mono - whole.times.sent;
                let provider = &self.route.provider;
                let ended = outcome::completed(provider, &whole.headers, facts.usage, latency, now);
                if let Some(by) = self.maker() {
                    self.gateway.made.note_whole(&whole.body, by);
                }
                self.grant.complete(ended);
                let progress = &mut self.progress;
                progress.asked(None, now.mono);
                // Counting is free, and says nothing of usage.
                let counts = self.incoming.operation == Operation::CountTokens;
                let usage = facts.usage.or_else(|| counts.then(Usage::default));
                progress.used(usage);
                progress.answered(facts);
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
                        forward::translate_request_id(&mut headers, self.incoming.dialect);
                        said
                    }
                };
                let body = ReplyBody::whole(body);
                let id = self.incoming.id;
                let reply = reply::answered(status, headers, body, id, progress);
                Attempted::Answered(Box::new(reply))
            }
            Err(verdict) => {
                if !outcome::may_be_billed(&verdict, whole.status) {
                    self.progress.was_free();
                }
                self.failed(&verdict, Some(whole))
            }
        }
    }

    fn remedy(&self, verdict: &Verdict, whole: Option<&WholeAnswer>) -> Remedy {
        if self.asked.asks_usage() && whole.is_some_and(refuses_stream_options) {
            self.route.found_out.refused_stream_usage();
            return Remedy::WithoutUsage;
        }
        if verdict.exceeds_context() {
            Remedy::LargerContext
        } else {
            Remedy::Nothing
        }
    }

    /// The attempt has failed; the dispatcher says what follows.
    pub(super) fn failed(mut self, verdict: &Verdict, whole: Option<WholeAnswer>) -> Attempted {
        let now = self.now();
        let heard = whole
            .as_ref()
            .map(|whole| (&whole.headers, now.mono - whole.times.sent));
        let ended = outcome::failed(&self.route.provider, verdict, heard, now);
        let remedy = self.remedy(verdict, whole.as_ref());
        let code = match verdict.code.as_deref() {
            Some("answer_too_large") => "answer_too_large",
            _ => "upstream_failed",
        };
        let failure = Failure {
            class: verdict.class,
            upstream: Arc::clone(&self.route.name),
            refusal: Refusal::new(StatusCode::BAD_GATEWAY, code, verdict.message.clone()),
            remedy,
            answer: whole.map(|whole| (whole.status, whole.headers, whole.body)),
            dialect: self.route.provider.dialect(),
            until: verdict.wait.map(|wait| now.mono + wait),
        };
        self.progress.asked(Some(verdict.class), now.mono);
        let progress = Box::new(self.progress);
        match self.grant.fail(ended) {
            AfterFailure::Again(ticket) => Attempted::Again(ticket, failure, progress),
            AfterFailure::GivenUp { .. } => Attempted::GivenUp(failure, progress),
        }
    }
}
