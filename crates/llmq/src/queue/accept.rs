use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use llmq_core::CallSize;
use llmq_dispatch::{Call, CallKind, Refusal};
use llmq_engine::Ticket;

use super::active::Active;
use super::inner::Inner;
use crate::error::QueueError;
use crate::hooks::tell;
use crate::live::{Birth, End, Live};
use crate::registry::Taken;
use crate::request::QueueRequest;

/// What became of a request that was handed in.
pub(super) enum Accepted<P, T> {
    New(Active<P, T>, Ticket),
    Joined(Arc<Live<T>>),
}

/// Takes a request into the line, or joins it to the one that has its key.
pub(super) fn accept<P, T>(
    inner: &Arc<Inner<P, T>>,
    request: &QueueRequest<P>,
    kind: CallKind,
) -> Result<Accepted<P, T>, QueueError> {
    try_accept(inner, request, kind).inspect_err(|error| {
        if matches!(error, QueueError::QueueFull { .. }) {
            inner.counters.refused.one();
        }
    })
}

/// The same, where a full queue is not the last word.
pub(super) fn try_accept<P, T>(
    inner: &Arc<Inner<P, T>>,
    request: &QueueRequest<P>,
    kind: CallKind,
) -> Result<Accepted<P, T>, QueueError> {
    if request.model_id != inner.model {
        return Err(QueueError::ModelNotRegistered {
            model: Arc::clone(&request.model_id),
        });
    }
    if let Some(key) = &request.dedup_key
        && let Some(live) = inner.registry().keyed(key)
    {
        inner.counters.deduplicated.one();
        return Ok(Accepted::Joined(live));
    }
    // The caller's own code, which may panic: nothing is counted yet.
    let size = inner.size_of(request);
    // Counted before the look at `is_closed`: whoever shuts down closes first and counts then.
    inner.in_flight.fetch_add(1, Ordering::SeqCst);
    let accepted = enter(inner, request, size, kind);
    match accepted {
        Ok(Entered::New(live, ticket)) => {
            inner.counters.accepted.one();
            // Either this sees the runtime's end, or that end sees the request.
            if inner.engine.runtime_has_ended() {
                live.end(End::ShutDown);
            }
            let active = Active::new(Arc::clone(inner), live);
            tell(active.inner.engine.hooks.as_ref(), |hooks| {
                hooks.queued(&active.event(Duration::ZERO, None));
            });
            Ok(Accepted::New(active, ticket))
        }
        Ok(Entered::Joined(live)) => {
            inner.counters.deduplicated.one();
            inner.leave();
            Ok(Accepted::Joined(live))
        }
        Err(error) => {
            if !matches!(error, QueueError::QueueFull { .. }) {
                inner.counters.refused.one();
            }
            inner.leave();
            Err(error)
        }
    }
}

/// Takes a request into the line whose submitter drives it himself, and nobody else.
pub(crate) fn accept_alone<P, T>(
    inner: &Arc<Inner<P, T>>,
    request: &QueueRequest<P>,
) -> Result<(Active<P, T>, Ticket), QueueError> {
    match accept(inner, request, CallKind::Plain)? {
        Accepted::New(active, ticket) => Ok((active, ticket)),
        // Only a request with a key can be joined to another, and such a one is not alone.
        Accepted::Joined(live) => Err(QueueError::DuplicateRequest {
            model: Arc::clone(&inner.model),
            request: live.id,
        }),
    }
}

enum Entered<T> {
    New(Arc<Live<T>>, Ticket),
    Joined(Arc<Live<T>>),
}

fn enter<P, T>(
    inner: &Inner<P, T>,
    request: &QueueRequest<P>,
    size: CallSize,
    kind: CallKind,
) -> Result<Entered<T>, QueueError> {
    if inner.is_closed() {
        return Err(QueueError::ShuttingDown {
            model: Arc::clone(&inner.model),
        });
    }
    inner.engine.check_runtime(&inner.model)?;
    let tenant = request.tenant.as_ref();
    let Some(tenant) = inner.engine.tenant(tenant.map(|name| &**name)) else {
        return Err(QueueError::UnknownTenant {
            tenant: tenant.map(Arc::clone).unwrap_or_default(),
        });
    };
    let now = inner.engine.now();
    let start_by = inner.timeout_of(request).map(|timeout| now.mono + timeout);
    let call = Call {
        priority: request.priority,
        size,
        kind,
        start_by,
        ..Call::new(inner.place.queue, tenant)
    };
    let ticket = inner.engine.hub.submit(call).map_err(|refusal| {
        let model = Arc::clone(&inner.model);
        match refusal {
            Refusal::Full { jobs, .. } => QueueError::QueueFull {
                model,
                requests: jobs,
            },
            _ => QueueError::ShuttingDown { model },
        }
    })?;
    let live = Arc::new(Live::new(Birth {
        id: request.id,
        ticket: ticket.id(),
        submitted: now,
        priority: request.priority,
        key: request.dedup_key.as_deref().map(Into::into),
        metadata: match inner.engine.hooks {
            Some(_) => request.metadata.clone(),
            None => Default::default(),
        },
        is_shared: kind == CallKind::Stored,
    }));
    let inserted = inner.registry().insert(&live);
    match inserted {
        Ok(()) => Ok(Entered::New(live, ticket)),
        Err(Taken::Key(other)) => Ok(Entered::Joined(other)),
        Err(Taken::Id) => Err(QueueError::DuplicateRequest {
            model: Arc::clone(&inner.model),
            request: request.id,
        }),
    }
}
