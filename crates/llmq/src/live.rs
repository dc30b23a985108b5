use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use llmq_core::{Now, Priority, Status, Timestamp, Usage};
use llmq_dispatch::TicketId;
use llmq_limit::RateLimitHeaders;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::error::QueueError;
use crate::hooks::HookEvent;
use crate::response::QueueResponse;

/// A request that has not finished: what its driver, its canceller and those who ask for it
/// share.
pub(crate) struct Live<T> {
    pub(crate) id: Uuid,
    pub(crate) ticket: TicketId,
    pub(crate) submitted: Now,
    pub(crate) priority: Priority,
    pub(crate) key: Option<Arc<str>>,
    /// Only kept where there are hooks to see it.
    pub(crate) metadata: BTreeMap<String, String>,
    attempts: AtomicU32,
    is_processing: AtomicU8,
    sent_nanos: AtomicU64,
    queued_nanos: AtomicU64,
    processing_nanos: AtomicU64,
    told: OnceLock<Box<Mutex<Told>>>,
    end: AtomicU8,
    waker: AtomicWaker,
    is_shared: bool,
    /// Made when somebody waits for it, or when it is there.
    outcome: OnceLock<Box<Outcome<T>>>,
}

struct Outcome<T> {
    response: OnceLock<QueueResponse<T>>,
    done: Notify,
}

/// What a processor told of its call.
#[derive(Default)]
struct Told {
    usage: Option<Usage>,
    /// Whether the usage is that of the last attempt, and not of one before it.
    is_its: bool,
    headers: Option<RateLimitHeaders>,
}

/// Why a request ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Cancelled,
    ShutDown,
}

const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const SHUT_DOWN: u8 = 2;
const OVER: u8 = 3;

impl End {
    fn of(code: u8) -> Option<Self> {
        match code {
            CANCELLED => Some(Self::Cancelled),
            SHUT_DOWN => Some(Self::ShutDown),
            _ => None,
        }
    }
}

const UNKNOWN: u64 = u64::MAX;

/// What a request is made live with.
pub(crate) struct Birth {
    pub(crate) id: Uuid,
    pub(crate) ticket: TicketId,
    pub(crate) submitted: Now,
    pub(crate) priority: Priority,
    pub(crate) key: Option<Arc<str>>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) is_shared: bool,
}

impl<T> Live<T> {
    pub(crate) fn new(birth: Birth) -> Self {
        Self {
            id: birth.id,
            ticket: birth.ticket,
            submitted: birth.submitted,
            priority: birth.priority,
            key: birth.key,
            metadata: birth.metadata,
            attempts: AtomicU32::new(0),
            is_processing: AtomicU8::new(0),
            sent_nanos: AtomicU64::new(0),
            queued_nanos: AtomicU64::new(UNKNOWN),
            processing_nanos: AtomicU64::new(UNKNOWN),
            told: OnceLock::new(),
            end: AtomicU8::new(OPEN),
            waker: AtomicWaker::new(),
            is_shared: birth.is_shared,
            outcome: OnceLock::new(),
        }
    }

    /// An attempt begins; the wait for it, if it is the first.
    pub(crate) fn starts(&self, attempt: u32, at: Timestamp) -> Option<Duration> {
        if let Some(told) = self.told.get() {
            lock(told).is_its = false;
        }
        let is_first = self.attempts.swap(attempt, Ordering::Relaxed) == 0
            && self.queued_nanos.load(Ordering::Relaxed) == UNKNOWN;
        self.sent_nanos.store(at.as_nanos(), Ordering::Relaxed);
        self.is_processing.store(1, Ordering::Relaxed);
        let waited = at - self.submitted.mono;
        if is_first {
            self.queued_nanos.store(nanos(waited), Ordering::Relaxed);
        }
        is_first.then_some(waited)
    }

    /// The attempt is over; how long it took.
    pub(crate) fn stops(&self, at: Timestamp) -> Duration {
        let took = at - self.sent_at();
        self.is_processing.store(0, Ordering::Relaxed);
        self.processing_nanos.store(nanos(took), Ordering::Relaxed);
        took
    }

    pub(crate) fn sent_at(&self) -> Timestamp {
        Timestamp::from_nanos(self.sent_nanos.load(Ordering::Relaxed))
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }

    pub(crate) fn status(&self) -> Status {
        if self.is_processing.load(Ordering::Relaxed) == 1 {
            Status::Processing
        } else {
            Status::Queued
        }
    }

    /// Whether the result is fetched by others than its driver.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared
    }

    fn shared_outcome(&self) -> Option<&Outcome<T>> {
        let made = || {
            Box::new(Outcome {
                response: OnceLock::new(),
                done: Notify::new(),
            })
        };
        self.is_shared.then(|| &**self.outcome.get_or_init(made))
    }

    pub(crate) fn tell_usage(&self, usage: Usage) {
        let mut told = self.told();
        told.usage = Some(usage);
        told.is_its = true;
    }

    /// What was told last, of whichever attempt.
    fn usage(&self) -> Option<Usage> {
        lock(self.told.get()?).usage
    }

    /// What was told of the last attempt.
    pub(crate) fn attempts_usage(&self) -> Option<Usage> {
        let told = lock(self.told.get()?);
        told.usage.filter(|_| told.is_its)
    }

    pub(crate) fn tell_headers(&self, headers: RateLimitHeaders) {
        self.told().headers = Some(headers);
    }

    /// The headers of the attempt that has just ended; the next one has its own.
    pub(crate) fn take_headers(&self) -> Option<RateLimitHeaders> {
        lock(self.told.get()?).headers.take()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        lock(self.told.get_or_init(Box::default))
    }

    /// Asks its driver to end it; false if it was asked before, or is over.
    pub(crate) fn end(&self, end: End) -> bool {
        let code = match end {
            End::Cancelled => CANCELLED,
            End::ShutDown => SHUT_DOWN,
        };
        let first = self
            .end
            .compare_exchange(OPEN, code, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        self.waker.wake();
        first
    }

    /// Whether its driver has been asked to end it.
    pub(crate) fn asked(&self) -> Option<End> {
        End::of(self.end.load(Ordering::Acquire))
    }

    /// The same; wakes the driver when that happens.
    pub(crate) fn poll_end(&self, context: &Context<'_>) -> Option<End> {
        self.waker.register(context.waker());
        self.asked()
    }

    /// It is over, and cannot be asked any more to end; whether it has been.
    pub(crate) fn close(&self) -> Option<End> {
        let closed = self
            .end
            .compare_exchange(OPEN, OVER, Ordering::AcqRel, Ordering::Acquire);
        closed.err().and_then(End::of)
    }

    /// The response as of now, without a result.
    pub(crate) fn response(&self, model: &Arc<str>, status: Status) -> QueueResponse<T> {
        let known = |cell: &AtomicU64| match cell.load(Ordering::Relaxed) {
            UNKNOWN => None,
            nanos => Some(Duration::from_nanos(nanos)),
        };
        QueueResponse {
            request_id: self.id,
            model_id: Arc::clone(model),
            status,
            result: None,
            error: None,
            processing_time: known(&self.processing_nanos),
            queued_time: known(&self.queued_nanos),
            attempts: self.attempts(),
            usage: self.usage(),
            created_at: self.submitted.wall,
        }
    }

    pub(crate) fn hook_event<'a>(
        &'a self,
        model: &'a str,
        age: Duration,
        processing_time: Option<Duration>,
    ) -> HookEvent<'a> {
        HookEvent {
            request_id: self.id,
            model_id: model,
            priority: self.priority,
            attempt: self.attempts(),
            age,
            processing_time,
            metadata: &self.metadata,
        }
    }

    /// Tells everybody who waits, where somebody may.
    pub(crate) fn publish(&self, response: impl FnOnce() -> QueueResponse<T>) {
        if let Some(outcome) = self.shared_outcome() {
            let _ = outcome.response.set(response());
            outcome.done.notify_waiters();
        }
    }
}

impl<T: Clone> Live<T> {
    /// Waits for the outcome of a shared request; that of another one never comes.
    pub(crate) async fn outcome(&self) -> Result<QueueResponse<T>, QueueError> {
        let Some(outcome) = self.shared_outcome() else {
            return std::future::pending().await;
        };
        loop {
            let mut done = std::pin::pin!(outcome.done.notified());
            done.as_mut().enable();
            if let Some(response) = outcome.response.get() {
                return match &response.error {
                    Some(error) => Err(error.clone()),
                    None => Ok(response.clone()),
                };
            }
            done.await;
        }
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(UNKNOWN - 1)
}
