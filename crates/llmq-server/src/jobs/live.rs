//! A keyed stream for the caller who made it: as it comes, and its end once it is kept.

use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;
use http::{Response, StatusCode};
use llmq_core::Status;
use llmq_engine::jobs::{Listening, Live, Runner};
use llmq_provider::Dialect;
use llmq_store::{JobId, StoredAnswer};

use super::plain::described;
use super::result;
use crate::call::{Broken, Reply, ReplyBody};
use crate::dialect::Refusal;

/// A stream that is kept is kept at once, or its store has failed.
const KEPT_WITHIN: Duration = Duration::from_secs(60);

/// The answer to a caller whose stream has begun.
pub(super) fn reply(runner: &Runner, job: JobId, dialect: Dialect, began: Began) -> Reply {
    let answer = StoredAnswer {
        status: began.status,
        headers: began.headers,
        body: Bytes::new(),
    };
    let (attempt, upstream) = (began.attempt, Some(began.upstream));
    let head = described(result::passed_on(answer, job), attempt, upstream);
    let hearing = Hearing {
        runner: runner.clone(),
        job,
        dialect,
        heard: began.heard,
        told: 0,
        step: Step::Hear,
    };
    let body = stream::unfold(hearing, Hearing::next);
    let (parts, _) = head.into_parts();
    Response::from_parts(parts, ReplyBody::Other(Body::from_stream(body)))
}

/// How a stream began, and where the rest of it is heard.
pub(super) struct Began {
    heard: Listening,
    status: u16,
    headers: Vec<(String, String)>,
    upstream: String,
    attempt: u32,
}

impl Began {
    /// Waits for a stream to begin; none where none does, and the job ends otherwise.
    pub(super) async fn of(mut heard: Listening) -> Option<Self> {
        let Live::Began {
            status,
            headers,
            upstream,
            attempt,
        } = heard.next().await?
        else {
            return None;
        };
        Some(Self {
            heard,
            status,
            headers,
            upstream: upstream.to_string(),
            attempt,
        })
    }
}

struct Hearing {
    runner: Runner,
    job: JobId,
    /// In which the caller is told of a broken stream.
    dialect: Dialect,
    heard: Listening,
    /// So many bytes are with the caller.
    told: usize,
    step: Step,
}

enum Step {
    Hear,
    /// The last words of a stream that is broken were said.
    Break,
    End,
}

impl Hearing {
    async fn next(mut self) -> Option<(Result<Bytes, Broken>, Self)> {
        match self.step {
            Step::Hear => {}
            Step::Break => {
                self.step = Step::End;
                // What was said is written out before the connection is closed.
                tokio::task::yield_now().await;
                return Some((Err(Broken), self));
            }
            Step::End => return None,
        }
        let piece = match self.heard.next().await {
            Some(Live::Piece(piece)) => piece,
            // Its end is what is kept of it.
            None => match self.rest().await {
                Some(rest) => {
                    self.step = Step::End;
                    rest
                }
                None => self.broken(),
            },
            Some(_) => self.broken(),
        };
        self.told += piece.len();
        Some((Ok(piece), self))
    }

    /// What is kept behind what was told.
    async fn rest(&self) -> Option<Bytes> {
        let job = self.runner.ended(self.job, KEPT_WITHIN).await.ok()??;
        if job.status != Status::Completed {
            return None;
        }
        let answer = self.runner.store().answer(self.job).await.ok()??;
        (answer.body.len() >= self.told).then(|| answer.body.slice(self.told..))
    }

    fn broken(&mut self) -> Bytes {
        self.step = Step::Break;
        let message = "the answer broke off; ask again with the same Idempotency-Key";
        let refusal = Refusal::new(StatusCode::BAD_GATEWAY, "stream_broken", message.to_owned());
        refusal.event(self.dialect)
    }
}
