//! One plain call, from its request to its answer.

mod arrival;
mod incoming;
mod progress;

mod line;

mod earlier;

mod attempt;
mod forward;
mod outgoing;
mod stream;

mod body;
mod early;
mod reply;

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use llmq_core::{CallSize, Clock, FailureClass, Usage, WallTime};
use llmq_dispatch::NoGrant;
use llmq_provider::{Dialect, Operation};

pub(crate) use body::{Broken, ReplyBody};
pub(crate) use earlier::{Naming, Place, Unplaced, response};
pub(crate) use incoming::Incoming;
pub(crate) use line::{comes_again, is_down, is_limit, paused};
pub(crate) use outgoing::stream_of;
pub(crate) use reply::{Reply, own_words};

use crate::Gateway;
use crate::dialect::Refusal;
use crate::jobs;
use crate::keys::{BudgetError, Caller, Spend};
use crate::models::{Model, Models};
use crate::openai;
use arrival::Arrival;
use attempt::{Attempted, Failure, Remedy};
use progress::Progress;

/// Answers a call: reads it, waits for its turn, sends it until it has an answer or has failed
/// for good.
///
/// # Cancel safety
///
/// Dropping the future leaves the line, or ends the attempt that runs: the caller has gone.
pub(crate) async fn call(
    gateway: Arc<Gateway>,
    operation: Operation,
    request: http::Request<hyper::body::Incoming>,
) -> Reply {
    let mut incoming = {
        let mut arrival = Arrival::new(operation, gateway.clock.now());
        let read = Incoming::read(&gateway, request, &mut arrival).await;
        match read {
            Ok(incoming) => incoming,
            Err(refusal) => return arrival.refused(&gateway, &refusal),
        }
    };
    let found = gateway.models.find(&incoming.model, &gateway.hub, || {
        gateway.observed.refresh();
    });
    let Some(model) = found else {
        let refusal = unknown_model(&gateway, &incoming.caller, &incoming.model);
        return incoming.refused(&gateway, &refusal);
    };
    if !incoming.kept.is_empty()
        && let Err(refusal) = Box::pin(earlier::follow(&gateway, &mut incoming, &model)).await
    {
        return incoming.refused(&gateway, &refusal);
    }
    if let Some(background) = &incoming.background {
        let accepted = openai::background::accepted(&gateway, &incoming, background, &model);
        let accepted = Box::pin(accepted).await;
        return accepted.unwrap_or_else(|refusal| incoming.refused(&gateway, &refusal));
    }
    let later = incoming.later.as_ref();
    let is_keyed = later.is_some_and(|later| later.is_keyed());
    if later.is_some_and(|later| later.respond_async && !later.waits_first) {
        let accepted = Box::pin(jobs::accepted(&gateway, &incoming, &model)).await;
        return accepted.unwrap_or_else(|refusal| incoming.refused(&gateway, &refusal));
    }
    let early_headers = incoming.early_headers.or(model.settings.early_headers);
    match early_headers.filter(|_| incoming.stream) {
        None if is_keyed => Box::pin(jobs::by_key(&gateway, &incoming, &model)).await,
        None => finish(&gateway, &incoming, &model).await,
        Some(after) => Box::pin(begin_early(gateway, incoming, model, is_keyed, after)).await,
    }
}

/// Answers a stream's call that bears no longer silence than `after`.
async fn begin_early(
    gateway: Arc<Gateway>,
    incoming: Incoming,
    model: Arc<Model>,
    is_keyed: bool,
    after: Duration,
) -> Reply {
    let dialect = incoming.dialect;
    let (id, shown) = (incoming.id, Arc::clone(&gateway));
    let call = async move {
        match is_keyed {
            true => Box::pin(jobs::by_key(&gateway, &incoming, &model)).await,
            false => finish(&gateway, &incoming, &model).await,
        }
    };
    early::reply(call, dialect, after, |reply| {
        // A call with a key has the id of whoever came first with it.
        let told = (!is_keyed).then_some(id);
        reply::begun(reply, told, line::waits_for(&shown, id));
    })
    .await
}

async fn finish(gateway: &Arc<Gateway>, incoming: &Incoming, asked: &Arc<Model>) -> Reply {
    // The one in whose line it stands.
    let mut model = Arc::clone(asked);
    let mut progress = Progress::new(gateway, incoming, asked);
    let most = most(&gateway.models, incoming.operation, incoming.size, asked);
    match gateway.keys.reserve(&incoming.caller, most).await {
        Ok(booking) => progress.books(booking),
        Err(error) => {
            let refusal = over_budget(incoming.arrived.wall, &error);
            return told(refusal, incoming, progress);
        }
    }
    if let Err(untranslatable) =
        gateway
            .models
            .can_be_told(asked, incoming.operation, &incoming.body)
    {
        let refusal = Refusal {
            param: untranslatable.path().map(str::to_owned),
            ..Refusal::invalid(untranslatable.to_string())
        };
        return told(refusal, incoming, progress);
    }
    let mut ticket = match line::enter(gateway, incoming, asked, Duration::ZERO) {
        Ok(ticket) => ticket,
        Err(refusal) => return told(refusal, incoming, progress),
    };
    let mut larger_contexts = asked.settings.context_fallback.iter();
    // What the caller hears when nothing better comes.
    let mut failure = None;
    loop {
        let grant = match line::wait(gateway, incoming, &model, ticket, &mut progress).await {
            Ok(grant) => grant,
            Err(no_grant) => {
                let class = match no_grant {
                    NoGrant::TooLarge { .. } => Some(FailureClass::TooLarge),
                    _ => failure.as_ref().map(|failure: &Failure| failure.class),
                };
                if becomes_job(gateway, incoming, asked, class) {
                    return Box::pin(as_job(gateway, incoming, asked, progress)).await;
                }
                if let Some(failure) = failure {
                    let turn = match no_grant {
                        NoGrant::Expired { could_start } => could_start,
                        _ => None,
                    };
                    return reply::failed(gateway, incoming, failure, turn, &mut progress);
                }
                let refusal = line::refusal(gateway, &model, &no_grant, incoming.arrived.mono);
                return told(refusal, incoming, progress);
            }
        };
        // Boxed, so that thousands who wait do not hold room for what comes after.
        let attempt = Box::pin(attempt::attempt(gateway, incoming, &model, grant, progress));
        match attempt.await {
            Attempted::Answered(reply) => return *reply,
            Attempted::Skipped(next, back) => {
                progress = *back;
                ticket = next;
            }
            Attempted::Again(next, failed, back) => {
                failure = Some(attempt::telling(failure, failed));
                progress = *back;
                ticket = next;
            }
            Attempted::GivenUp(failed, mut back) => {
                let elsewhere = match failed.remedy {
                    Remedy::LargerContext => {
                        larger_contexts.find_map(|name| gateway.models.known(name))
                    }
                    Remedy::WithoutUsage => Some(Arc::clone(&model)),
                    Remedy::Nothing => None,
                };
                let class = Some(failed.class);
                let told = attempt::telling(failure, failed);
                let turn = line::next_turn(gateway, incoming, &model);
                let Some(elsewhere) = elsewhere else {
                    if becomes_job(gateway, incoming, asked, class) {
                        return Box::pin(as_job(gateway, incoming, asked, *back)).await;
                    }
                    return reply::failed(gateway, incoming, told, turn, &mut back);
                };
                match line::enter(gateway, incoming, &elsewhere, back.upstream_time) {
                    Ok(next) => ticket = next,
                    Err(_) => return reply::failed(gateway, incoming, told, turn, &mut back),
                }
                failure = Some(told);
                progress = *back;
                model = elsewhere;
            }
        }
    }
}

/// Whether a call that got no answer is kept for later instead of refused. `class`: how its last
/// attempt failed, if there was one.
fn becomes_job(
    gateway: &Gateway,
    incoming: &Incoming,
    model: &Model,
    class: Option<FailureClass>,
) -> bool {
    let may_help = match class {
        None => true,
        Some(FailureClass::RowFault | FailureClass::TooLarge) => false,
        Some(class) => gateway.live.load().retry.may_repeat(class),
    };
    let asked = incoming.later.as_ref();
    let asked = asked.is_some_and(|later| later.respond_async);
    let is_down = || {
        let class = class.is_some_and(|class| class.rule().trips_breaker);
        class || line::is_down(gateway, model)
    };
    may_help && (asked || jobs::queued_instead(incoming, model) && is_down())
}

/// It becomes a job.
async fn as_job(
    gateway: &Gateway,
    incoming: &Incoming,
    model: &Model,
    mut progress: Progress,
) -> Reply {
    // The job holds its own part of the budget, when it starts.
    progress.gives_back();
    match jobs::accepted(gateway, incoming, model).await {
        Ok(reply) => {
            progress.ends(reply.status().as_u16(), None);
            reply
        }
        Err(refusal) => told(refusal, incoming, progress),
    }
}

fn told(refusal: Refusal, incoming: &Incoming, mut progress: Progress) -> Reply {
    progress.ends(refusal.status.as_u16(), None);
    reply::refused(&refusal, incoming.dialect, Some(&progress))
}

/// What a call may cost at most, as far as that can be known before it is sent.
pub(crate) fn most(models: &Models, operation: Operation, size: CallSize, model: &Model) -> Spend {
    /// Answers whose callers set no cap are seldom longer.
    const UNCAPPED: u32 = 4_096;
    let output = match operation {
        Operation::CountTokens | Operation::Embeddings => 0,
        _ => size.max_output_tokens.unwrap_or(UNCAPPED),
    };
    let usage = Usage {
        input_tokens: u64::from(size.input_tokens),
        output_tokens: u64::from(output) * u64::from(size.choices.max(1)),
        ..Usage::default()
    };
    Spend {
        tokens: usage.total(),
        nano_usd: models.most_nano_usd(model, &usage),
    }
}

/// Whether a caller's budget has room for `most` now. Nothing is held: what becomes a job holds
/// its own when it starts.
pub(crate) async fn has_room(
    gateway: &Gateway,
    caller: &Caller,
    most: Spend,
) -> Result<(), Refusal> {
    match gateway.keys.reserve(caller, most).await {
        Ok(booking) => {
            drop(booking);
            Ok(())
        }
        Err(error) => Err(over_budget(gateway.clock.now().wall, &error)),
    }
}

fn over_budget(now: WallTime, error: &BudgetError) -> Refusal {
    match error {
        // No turn of the day makes room for it.
        BudgetError::Overspent { overspent, .. } if overspent.needed > overspent.budget => {
            Refusal::new(StatusCode::BAD_REQUEST, "too_large", error.to_string())
        }
        BudgetError::Overspent { resets_at, .. } => Refusal::new(
            StatusCode::TOO_MANY_REQUESTS,
            "budget_exhausted",
            error.to_string(),
        )
        .after(Some(resets_at.since(now))),
        BudgetError::Store(_) => Refusal::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "store_unavailable",
            error.to_string(),
        ),
    }
}

/// A word of llmq's own to a caller that has no call in line.
pub(crate) fn refused(refusal: &Refusal, dialect: Dialect) -> Reply {
    reply::refused(refusal, dialect, None)
}

/// The same to the caller of a call of which nothing was read: it is counted and logged.
pub(crate) fn refused_unread(gateway: &Gateway, operation: Operation, refusal: &Refusal) -> Reply {
    Arrival::new(operation, gateway.clock.now()).refused(gateway, refusal)
}

/// Which models there are for a caller who asked for another.
pub(crate) fn unknown_model(gateway: &Gateway, caller: &Caller, name: &str) -> Refusal {
    let mut names = gateway.models.names();
    names.retain(|name| caller.may_use(name).is_ok());
    unknown_among(&names, name)
}

/// The same for one who may use these.
pub(crate) fn unknown_among(names: &[String], name: &str) -> Refusal {
    const NAMED: usize = 20;
    let known = match names.len() {
        0 => "there is none that you may use".to_owned(),
        count if count <= NAMED => format!("known models: {}", names.join(", ")),
        count => format!(
            "known models: {}, and {} more (GET /v1/models)",
            names[..NAMED].join(", "),
            count - NAMED
        ),
    };
    // The name is the caller's text: it is shown short.
    let shown: String = name.chars().take(100).collect();
    Refusal {
        param: Some("model".to_owned()),
        ..Refusal::new(
            StatusCode::NOT_FOUND,
            "model_not_found",
            format!("the model `{shown}` is not known here; {known}"),
        )
    }
}
