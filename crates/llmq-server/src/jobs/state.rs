//! How a job stands, as its caller sees it.

use llmq_api::{RequestError, RequestState, RequestUsage};
use llmq_core::{Clock, Status};
use llmq_store::{Job, Position};

use super::Desk;
use super::desk::Standing;
use crate::shown::{deadline, instant as text, usd};

impl Desk {
    /// A job as it is shown.
    pub(crate) async fn show(&self, job: Job) -> RequestState {
        let standing = self.placed(vec![job]).await.remove(0);
        self.state(&standing)
    }

    /// A job as it is shown, with what is known of its place.
    pub(crate) fn state(&self, standing: &Standing) -> RequestState {
        let job = &standing.job;
        let mut state = shown(job);
        if job.status != Status::Queued {
            return state;
        }
        match standing.position {
            Some(Position::Exactly(place)) => state.position = Some(place),
            Some(Position::AtLeast(place)) => state.position_at_least = Some(place),
            None => {}
        }
        let now = self.clock.now();
        if let Some(look) = self.runner.look(job.id) {
            state.waiting_for = look.waiting_for;
            state.estimated_start = look.until.map(|at| text(now.wall_at(at)));
        } else if let Some(at) = job.not_before.filter(|at| *at > now.wall) {
            state.waiting_for = Some("not_before".to_owned());
            state.estimated_start = Some(text(at));
        }
        state
    }
}

/// A job without its place in line.
fn shown(job: &Job) -> RequestState {
    let id = job.id;
    RequestState {
        queue_id: id.to_string(),
        status: job.status,
        model: job.queue.clone(),
        priority: job.priority.value(),
        tenant: job.tenant.clone(),
        position: None,
        position_at_least: None,
        estimated_start: None,
        created_at: text(job.created_at),
        not_before: job.not_before.map(text),
        expires_at: job.expires_at.map(deadline),
        started_at: job.started_at.map(text),
        finished_at: job.finished_at.map(text),
        attempts: job.attempts,
        may_have_been_sent: job.may_have_been_sent,
        waiting_for: None,
        metadata: job.details.metadata.clone(),
        usage: job.usage.map(|usage| RequestUsage {
            input_tokens: usage.input_tokens,
            output_tokens: usage.output_tokens,
            cost_usd: job.cost_nano_usd.map(usd),
        }),
        error: job.error.as_ref().map(|error| RequestError {
            code: error.code.clone(),
            message: error.message.clone(),
        }),
        retry_of: job.details.retry_of.map(|id| id.to_string()),
        status_url: format!("/api/requests/{id}"),
        result_url: format!("/api/requests/{id}/result"),
    }
}
