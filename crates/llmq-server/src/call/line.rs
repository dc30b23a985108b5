//! A call's place in line: its way in, its wait, and what is said when that was in vain.

use std::fmt::Write as _;
use std::time::Duration;

use http::StatusCode;
use llmq_core::{Clock, FailureClass, Timestamp};
use llmq_dispatch::{Bounded, Call, NoGrant, Refusal as LineRefusal, TicketId};
use llmq_engine::{Grant, Ticket};
use llmq_limit::BreakerState;
use uuid::Uuid;

use super::incoming::Incoming;
use super::progress::Progress;
use crate::Gateway;
use crate::dialect::Refusal;
use crate::jobs::COME_AGAIN;
use crate::models::Model;
use crate::observe::WaitingCall;

/// Puts a call in line. `at_upstreams`: time that it has spent there, which is no waiting.
pub(crate) fn enter(
    gateway: &Gateway,
    incoming: &Incoming,
    model: &Model,
    at_upstreams: Duration,
) -> Result<Ticket, Refusal> {
    let call = Call {
        bytes: incoming.body.len() as u64,
        start_by: Some(incoming.arrived.mono + at_upstreams + incoming.max_wait),
        bounded: Bounded::Wait,
        // Only a choice between upstreams asks for it.
        affinity: match model.routes.len() {
            0 | 1 => 0,
            _ => incoming.affinity(),
        },
        ..outline(incoming, model)
    };
    gateway.hub.submit(call).map_err(|refusal| match refusal {
        LineRefusal::Draining => Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "draining",
            format!("the queue of `{}` takes no new calls", model.name),
        ),
        full => Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "queue_full",
            format!("{}: {full}", model.name),
        )
        .after(Some(COME_AGAIN)),
    })
}

/// A call as far as it matters for when its turn is.
fn outline(incoming: &Incoming, model: &Model) -> Call {
    Call {
        priority: incoming.priority,
        size: incoming.size,
        ..Call::new(model.queue, incoming.tenant)
    }
}

/// When it would be a call's turn that comes again now, where that can be known and is not at
/// once.
pub(crate) fn next_turn(
    gateway: &Gateway,
    incoming: &Incoming,
    model: &Model,
) -> Option<Timestamp> {
    let now = gateway.clock.now();
    let call = outline(incoming, model);
    let outlook = gateway
        .hub
        .with(|dispatcher| dispatcher.outlook_of(&call, now));
    outlook.start.filter(|start| *start > now.mono)
}

/// How long a call should stay away that found no room in its time.
pub(crate) fn comes_again(gateway: &Gateway, incoming: &Incoming, model: &Model) -> Duration {
    let now = gateway.clock.now().mono;
    let turn = next_turn(gateway, incoming, model);
    turn.map_or(FALLBACK, |turn| turn.since(now))
}

/// Waits for leave to send.
pub(crate) async fn wait(
    gateway: &Gateway,
    incoming: &Incoming,
    model: &Model,
    mut ticket: Ticket,
    progress: &mut Progress,
) -> Result<Grant, NoGrant> {
    // Most calls never wait: they are not asked why, and no clock is read for them.
    let mut noted = None;
    let granted = std::future::poll_fn(|context| {
        let polled = ticket.poll_granted(context);
        if polled.is_pending() && noted.is_none() {
            progress.waits_since = Some(gateway.clock.now().mono);
            progress.waited_for = waiting_for(gateway, ticket.id());
            let call = WaitingCall {
                tenant: incoming.tenant_name.as_str().into(),
                ticket: ticket.id(),
                queue: model.queue,
                priority: incoming.priority,
                since: incoming.arrived.mono,
            };
            noted = Some(gateway.observed.waiting.enter(incoming.id, call));
        }
        polled
    })
    .await;
    if noted.take().is_some() {
        progress.waited(gateway.clock.now().mono);
    }
    granted
}

/// What a call waits for that is in line.
pub(crate) fn waits_for(gateway: &Gateway, id: Uuid) -> Option<String> {
    waiting_for(gateway, gateway.observed.waiting.get(id)?.ticket)
}

/// What a ticket waits for, such as `tpm openai/gpt-4o-mini 12s`.
fn waiting_for(gateway: &Gateway, ticket: TicketId) -> Option<String> {
    let now = gateway.clock.now();
    let (why, outlook) = gateway.hub.with(|dispatcher| {
        let why = dispatcher.why(ticket)?;
        Some((why, dispatcher.outlook(ticket, now)?))
    })?;
    let mut text = why.blockers.first()?.to_string();
    if let Some(start) = outlook.start {
        let left = start.since(now.mono);
        let _ = write!(text, " {}s", left.as_secs_f64().ceil());
    }
    Some(text)
}

/// What a caller is told whose call was never sent.
pub(crate) fn refusal(
    gateway: &Gateway,
    model: &Model,
    no_grant: &NoGrant,
    arrived: Timestamp,
) -> Refusal {
    let now = gateway.clock.now().mono;
    let waited = (now - arrived).as_secs_f64();
    match no_grant {
        NoGrant::TooLarge { limit, count } => {
            let message = format!(
                "the call is larger than the whole limit {limit} ({count}): it can never be sent"
            );
            Refusal::new(StatusCode::BAD_REQUEST, "too_large", message)
        }
        NoGrant::Expired { could_start } => {
            if let Some(refusal) = paused(gateway, model) {
                return refusal;
            }
            let wait = could_start.map(|at| at.since(now)).unwrap_or(FALLBACK);
            if is_down(gateway, model) {
                let message = format!(
                    "no upstream of `{}` can serve calls now; waited {waited:.0} s",
                    model.name
                );
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Refusal::new(status, "upstream_unavailable", message).after(Some(wait))
            } else {
                let message = format!(
                    "the limits of `{}` had no room for the call within {waited:.0} s; \
                     X-LLMQ-Max-Wait lets it wait longer",
                    model.name
                );
                let status = StatusCode::TOO_MANY_REQUESTS;
                Refusal::new(status, "rate_limited", message).after(Some(wait))
            }
        }
        other => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Refusal::new(status, "not_started", other.to_string())
        }
    }
}

/// When nobody knows when there will be room.
const FALLBACK: Duration = Duration::from_secs(30);

/// Whether a refusal says that there was too much at once, and nothing worse.
pub(crate) fn is_limit(class: FailureClass) -> bool {
    class.is_rate_limit() || class == FailureClass::Ramp
}

/// What a call is told whose queue stands still because a person wants that: nobody knows for how
/// long.
pub(crate) fn paused(gateway: &Gateway, model: &Model) -> Option<Refusal> {
    let queue = gateway.hub.with(|it| it.queue_view(model.queue));
    queue.paused.then(|| {
        let message = format!("`{}` was paused by whoever runs this gateway", model.name);
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "paused", message)
    })
}

/// Whether it was for its upstreams and not for limits that nothing was sent.
pub(crate) fn is_down(gateway: &Gateway, model: &Model) -> bool {
    gateway.hub.with(|dispatcher| {
        model.routes.iter().all(|route| {
            let view = dispatcher.upstream_view(route.upstream);
            let shut = view.closed.is_some_and(|(class, _)| !is_limit(class));
            shut || view.breaker != BreakerState::Closed
        })
    })
}
