use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::HeaderMap;
use llmq_core::{Clock, FailureClass, Pause, Priority, Timestamp};
use llmq_dispatch::{Call, CallKind, Event, NoGrant, QueueId, TenantId, UpstreamId};
use llmq_provider::{
    AnswerFacts, CallError, Provider, Refused, Request, Source, Verdict, WholeAnswer, check_answer,
    processing_time, request_id, with_model,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Sender;
use tokio_util::sync::CancellationToken;

use super::call::Prepared;
use super::fault::{Fault, Faults};
use super::pages::Pages;
use super::progress::Counters;
use super::writer::{Finished, FinishedRow, SharedClock, Tries};
use crate::{AfterFailure, Grant, Hub, outcome};

/// What bounds how many rows are in memory.
pub(super) struct Places {
    /// Held until the row is granted.
    pub(super) in_line: OwnedSemaphorePermit,
    /// Held until the writer has taken the row's result.
    pub(super) alive: OwnedSemaphorePermit,
}

/// Where the dispatcher's grants lead.
pub(super) struct Way {
    pub(super) upstream: UpstreamId,
    pub(super) name: String,
    pub(super) provider: Provider,
    /// What the provider calls the model, if not as the row does.
    pub(super) model: Option<String>,
    /// Sent with each call.
    pub(super) headers: HeaderMap,
    pub(super) pages: Pages,
}

/// What every row's task shares.
pub(super) struct Lane {
    pub(super) hub: Arc<Hub>,
    pub(super) clock: SharedClock,
    pub(super) queue: QueueId,
    pub(super) tenant: TenantId,
    pub(super) ways: Vec<Way>,
    pub(super) counters: Arc<Counters>,
    pub(super) faults: Arc<Faults>,
    pub(super) results: Sender<Finished>,
    /// No call is sent once this is cancelled, not even one that was granted.
    pub(super) interrupt: CancellationToken,
    /// Nothing more is waited for once this is.
    pub(super) stop: CancellationToken,
    /// Calls in flight are given up once this is.
    pub(super) abort: CancellationToken,
}

/// The code of a row whose task panicked.
const PANICKED: &str = "panicked";

/// A call in flight, as it is counted.
struct InFlight<'a>(&'a AtomicU64);

impl<'a> InFlight<'a> {
    fn begins(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What an attempt brought.
enum Attempted {
    Answered(WholeAnswer, AnswerFacts),
    Failed(Box<Verdict>, Option<WholeAnswer>),
}

impl Lane {
    /// Takes one row through its line, its attempts and into the output. Where that panics, this
    /// row fails, and no other.
    ///
    /// A row that is not sent before the stop, or that the account refused, has no end: the
    /// next run sends it.
    pub(super) async fn finish(self: Arc<Self>, row: Prepared, places: Places) {
        let (line, custom_id) = (row.line, row.custom_id.clone());
        // Nobody sees what it left torn: the row is its own, and what is shared is locked whole.
        let ending = AssertUnwindSafe(Arc::clone(&self).carry(row, places));
        if ending.catch_unwind().await.is_err() {
            let message = "llmq panicked over this row, which may have been sent";
            let error = (PANICKED.to_owned(), message.to_owned());
            self.fail(line, custom_id, error).await;
        }
    }

    async fn carry(self: Arc<Self>, row: Prepared, places: Places) {
        let Places {
            in_line,
            alive: _alive,
        } = places;
        let call = Call {
            priority: Priority::LOW,
            size: row.size,
            bytes: row.body.len() as u64,
            kind: CallKind::Stored,
            ..Call::new(self.queue, self.tenant)
        };
        let submitted = self.clock.now().mono;
        let Ok(mut ticket) = self.hub.submit(call) else {
            return;
        };
        let mut in_line = Some(in_line);
        let mut starts = 0;
        let mut ambiguous = 0;
        loop {
            let grant = tokio::select! {
                biased;
                // What was granted and is not sent is given back.
                () = self.interrupt.cancelled() => return,
                grant = ticket.granted() => grant,
                () = self.stop.cancelled() => return,
            };
            let grant = match grant {
                Ok(grant) => grant,
                Err(refused) => return self.refuse(row, &refused).await,
            };
            drop(in_line.take());
            let granted = self.clock.now().mono;
            Counters::add(&self.counters.attempts, 1);
            Counters::add(&self.counters.retries, u64::from(starts > 0));
            starts += 1;
            let started = (granted - submitted, granted);
            let (next, class) = tokio::select! {
                biased;
                () = self.abort.cancelled() => return,
                attempted = self.attempt(&row, grant) => attempted,
            };
            if class == Some(FailureClass::Ambiguous) {
                ambiguous += 1;
                Counters::add(&self.counters.ambiguous_attempts, 1);
            }
            match next {
                Next::Again(next) => ticket = next,
                Next::Done(end) => return self.record(row, end, ambiguous, started).await,
                Next::Left(said) => return self.faults.leave(said),
            }
        }
    }

    /// One attempt: what follows from it, and how it failed if it did.
    async fn attempt(&self, row: &Prepared, grant: Grant) -> (Next, Option<FailureClass>) {
        let in_flight = InFlight::begins(&self.counters.in_flight);
        let upstream = grant.start().upstream;
        let way = self.ways.iter().find(|way| way.upstream == upstream);
        let way = way.expect("the dispatcher starts calls at the run's own upstreams");
        let attempted = self.send(row, way, &grant).await;
        drop(in_flight);
        let class = match &attempted {
            Attempted::Answered(..) => None,
            Attempted::Failed(verdict, _) => {
                tracing::info!(
                    line = row.line,
                    upstream = way.name,
                    attempt = grant.start().attempt,
                    class = %verdict.class,
                    status = verdict.status,
                    code = verdict.code,
                    "attempt_failed"
                );
                Some(verdict.class)
            }
        };
        let own_model = row.names_model && way.model.is_none();
        (self.settle(way, grant, attempted, own_model), class)
    }

    async fn send(&self, row: &Prepared, way: &Way, grant: &Grant) -> Attempted {
        let (provider, upstream) = (&way.provider, way.upstream);
        let body = match way.model.as_deref() {
            // A body that was scanned is an object.
            Some(model) => with_model(&row.body, model).unwrap_or_else(|_| row.body.clone()),
            None => row.body.clone(),
        };
        let (hub, ticket) = (Arc::clone(&self.hub), grant.start().ticket);
        let mut request = Request::new(row.operation, body)
            .on_sent(move |at| hub.handle(Event::Sent(ticket, at)));
        request.headers.clone_from(&way.headers);
        let answer = match provider.call(request).await {
            Ok(answer) => answer,
            Err(error) => return self.lost(upstream, &error),
        };
        grant.first_byte(processing_time(answer.headers()));
        let whole = match answer.collect().await {
            Ok(whole) => whole,
            Err(error) => return self.lost(upstream, &error),
        };
        let source = Source {
            host: provider.host(),
            dialect: provider.dialect(),
        };
        match check_answer(source, &whole, self.clock.now()) {
            Ok(facts) => Attempted::Answered(whole, facts),
            Err(verdict) => {
                self.faults.note(upstream, Fault::from(&*verdict));
                Attempted::Failed(verdict, Some(whole))
            }
        }
    }

    /// Noted before the dispatcher hears of it, so that what follows can be explained.
    fn lost(&self, upstream: UpstreamId, error: &CallError) -> Attempted {
        self.faults.note(upstream, Fault::from(error));
        Attempted::Failed(Box::new(Verdict::from(error)), None)
    }

    fn settle(&self, way: &Way, grant: Grant, attempted: Attempted, own_model: bool) -> Next {
        let (provider, now) = (&way.provider, self.clock.now());
        match attempted {
            Attempted::Answered(whole, facts) => {
                way.pages.answered();
                let latency = now.mono - whole.times.sent;
                Counters::add(&self.counters.answers, 1);
                Counters::add(&self.counters.latency_us, micros(latency));
                self.counters
                    .last_answer_ns
                    .fetch_max(now.mono.as_nanos(), Ordering::Relaxed);
                self.counters.with_pause(|pause| pause.answered(now));
                let ended = outcome::completed(provider, &whole.headers, facts.usage, latency, now);
                let attempts = grant.complete(ended);
                Next::Done(Box::new(End {
                    whole: Some(whole),
                    facts,
                    failure: None,
                    attempts,
                    at: now.mono,
                }))
            }
            Attempted::Failed(verdict, whole) => {
                let heard = whole
                    .as_ref()
                    .map(|whole| (&whole.headers, now.mono - whole.times.sent));
                // A model that one row asks for is that row's fault, and so is what is refused while
                // others get through; whatever else is refused, the rows after it would be too.
                let is_the_rows = match verdict.refused {
                    Some(Refused::Model) => own_model,
                    Some(Refused::Unclear) => way.pages.is_the_rows(),
                    Some(Refused::Key) | None => false,
                };
                let ended = outcome::failed(provider, &verdict, heard, now);
                let ended = llmq_dispatch::Ended {
                    pause: if is_the_rows {
                        Some(Pause::Nothing)
                    } else {
                        ended.pause
                    },
                    may_be_the_calls: false,
                    ..ended
                };
                match grant.fail(ended) {
                    AfterFailure::Again(ticket) => Next::Again(ticket),
                    // The account is at fault, not the row: it is for the next run.
                    AfterFailure::GivenUp { .. }
                        if !is_the_rows
                            && matches!(
                                verdict.class,
                                FailureClass::NoAccess | FailureClass::Money
                            ) =>
                    {
                        let fault = Fault::from(&*verdict);
                        Next::Left(format!("{}: {}", way.name, fault.told()))
                    }
                    AfterFailure::GivenUp { attempts } => Next::Done(Box::new(End {
                        whole,
                        facts: AnswerFacts::default(),
                        failure: Some(verdict),
                        attempts,
                        at: now.mono,
                    })),
                }
            }
        }
    }

    async fn record(
        &self,
        row: Prepared,
        end: Box<End>,
        ambiguous: u32,
        (queued, granted): (Duration, Timestamp),
    ) {
        let answer = end.whole.map(|whole| {
            let id = request_id(&whole.headers).map(str::to_owned);
            (whole.status.as_u16(), id, whole.body)
        });
        let error = end.failure.map(|verdict| {
            let code = verdict
                .code
                .clone()
                .unwrap_or_else(|| verdict.class.as_str().to_owned());
            (code, verdict.message)
        });
        let finished = FinishedRow {
            line: row.line,
            custom_id: row.custom_id,
            answer,
            usage: end.facts.usage,
            error,
            tries: Tries {
                attempts: end.attempts,
                ambiguous,
            },
            queued,
            took: end.at - granted,
        };
        // The writer outlives every row; were it gone, the row would be sent again.
        let _ = self.results.send(Finished::Row(Box::new(finished))).await;
    }

    /// The row can never be sent.
    async fn refuse(&self, row: Prepared, refused: &NoGrant) {
        let code = match refused {
            NoGrant::TooLarge { .. } => FailureClass::TooLarge.as_str(),
            _ => "not-started",
        };
        let error = (code.to_owned(), refused.to_string());
        self.fail(row.line, row.custom_id, error).await;
    }

    /// A row has failed without an answer; `error` is code and message.
    async fn fail(&self, line: u64, custom_id: String, error: (String, String)) {
        let finished = FinishedRow {
            line,
            custom_id,
            answer: None,
            usage: None,
            error: Some(error),
            tries: Tries::default(),
            queued: Duration::ZERO,
            took: Duration::ZERO,
        };
        let _ = self.results.send(Finished::Row(Box::new(finished))).await;
    }
}

/// What follows an attempt.
enum Next {
    Again(crate::Ticket),
    Done(Box<End>),
    /// The row stays as it was, for what was said.
    Left(String),
}

/// A row's last attempt.
struct End {
    whole: Option<WholeAnswer>,
    facts: AnswerFacts,
    failure: Option<Box<Verdict>>,
    attempts: u32,
    at: Timestamp,
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use llmq_core::CallSize;
    use llmq_dispatch::{Dispatcher, QueueSetup, Rules, UpstreamSetup};
    use llmq_provider::Operation;
    use tokio::sync::{Semaphore, mpsc};

    use super::*;
    use crate::{SystemClock, Tasks};

    /// A run before one upstream to which no way leads, and what it writes.
    fn lane(tasks: &Tasks) -> (Arc<Lane>, mpsc::Receiver<Finished>) {
        let clock = SystemClock::new();
        let mut dispatcher = Dispatcher::new(Rules::default(), 1);
        let upstream = dispatcher.add_upstream(UpstreamSetup::default(), clock.now());
        let queue = dispatcher.add_queue(QueueSetup::to("m", upstream));
        let tenant = dispatcher.add_tenant(1.0, Vec::new());
        let (results, finished) = mpsc::channel(1);
        let lane = Lane {
            hub: crate::run(dispatcher, clock.clone(), tasks),
            clock: Arc::new(clock),
            queue,
            tenant,
            ways: Vec::new(),
            counters: Arc::default(),
            faults: Arc::default(),
            results,
            interrupt: CancellationToken::new(),
            stop: CancellationToken::new(),
            abort: CancellationToken::new(),
        };
        (Arc::new(lane), finished)
    }

    fn row() -> (Prepared, Places) {
        let place = || Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let row = Prepared {
            line: 1,
            custom_id: "row-1".to_owned(),
            operation: Operation::ChatCompletions,
            body: Bytes::new(),
            size: CallSize::default(),
            names_model: false,
        };
        let places = Places {
            in_line: place(),
            alive: place(),
        };
        (row, places)
    }

    /// The first Ctrl-C still sent every row whose grant was there, and each call that ended
    /// then granted another.
    #[tokio::test]
    async fn a_row_that_is_granted_as_the_run_stops_is_not_sent() {
        let tasks = Tasks::new();
        let (lane, _finished) = lane(&tasks);
        lane.interrupt.cancel();
        let (row, places) = row();
        Arc::clone(&lane).finish(row, places).await;
        assert_eq!(Counters::get(&lane.counters.attempts), 0);
        tasks.cancel();
    }

    /// It had no end, and the run ended as if nothing was missing.
    #[tokio::test]
    async fn a_row_whose_task_panics_fails_with_that_as_its_reason() {
        let tasks = Tasks::new();
        let (lane, mut finished) = lane(&tasks);
        let (row, places) = row();
        // It is granted, and no way leads to its upstream: a mistake that panics.
        Arc::clone(&lane).finish(row, places).await;
        let Some(Finished::Row(row)) = finished.recv().await else {
            panic!("it has a result");
        };
        assert_eq!((row.line, row.custom_id.as_str()), (1, "row-1"));
        assert_eq!(row.error.unwrap().0, PANICKED);
        assert_eq!(Counters::get(&lane.counters.in_flight), 0);
        tasks.cancel();
    }
}
