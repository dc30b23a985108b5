use std::sync::Arc;
use std::time::Duration;

use llmq_core::Status;

use super::inner::Inner;
use crate::error::QueueError;
use crate::hooks::{HookEvent, tell};
use crate::live::{End, Live};
use crate::registry::Finished;
use crate::response::QueueResponse;

/// A request that its driver must finish. Dropped before that, it was cancelled.
pub(crate) struct Active<P, T> {
    pub(crate) inner: Arc<Inner<P, T>>,
    pub(crate) live: Arc<Live<T>>,
    is_open: bool,
}

impl<P, T> Active<P, T> {
    /// The guard of a request that was just accepted.
    pub(super) fn new(inner: Arc<Inner<P, T>>, live: Arc<Live<T>>) -> Self {
        Self {
            inner,
            live,
            is_open: true,
        }
    }

    pub(crate) fn event(&self, age: Duration, processing_time: Option<Duration>) -> HookEvent<'_> {
        self.live
            .hook_event(&self.inner.model, age, processing_time)
    }

    fn count(&self, result: Result<(), &QueueError>) -> Status {
        let counters = &self.inner.counters;
        match result {
            Ok(()) => {
                counters.completed.one();
                Status::Completed
            }
            Err(QueueError::QueueTimeout { attempts, .. }) => {
                counters.timed_out.one();
                if *attempts == 0 {
                    Status::Expired
                } else {
                    Status::Failed
                }
            }
            Err(QueueError::Cancelled { .. } | QueueError::ShuttingDown { .. }) => {
                counters.cancelled.one();
                Status::Cancelled
            }
            Err(_) => {
                counters.failed.one();
                Status::Failed
            }
        }
    }

    /// The error of a request that was asked to end.
    pub(crate) fn ended(&self, end: End) -> QueueError {
        let model = Arc::clone(&self.inner.model);
        match end {
            End::Cancelled => QueueError::Cancelled {
                model,
                request: self.live.id,
            },
            End::ShutDown => QueueError::ShuttingDown { model },
        }
    }

    fn tell_end(&self, response: &QueueResponse<T>) {
        let Some(hooks) = self.inner.engine.hooks.as_ref() else {
            return;
        };
        let age = self.inner.engine.now().mono - self.live.submitted.mono;
        let event = self.event(age, response.processing_time);
        tell(Some(hooks), |hooks| match &response.error {
            None => hooks.completed(&event),
            Some(error) => hooks.failed(&event, error),
        });
    }
}

impl<P, T: Clone> Active<P, T> {
    /// Records the end of a request and tells everybody.
    pub(crate) fn finish(
        mut self,
        result: Result<T, QueueError>,
    ) -> Result<QueueResponse<T>, QueueError> {
        self.is_open = false;
        // Who was told that it has been ended was told the truth.
        let result = match self.live.close() {
            Some(end) => Err(self.ended(end)),
            None => result,
        };
        let status = self.count(result.as_ref().map(|_| ()));
        let mut response = self.live.response(&self.inner.model, status);
        match result {
            Ok(result) => {
                // A result that goes to the caller alone is not kept beside it.
                if !self.live.is_shared() {
                    self.record(response.clone());
                    response.result = Some(result);
                    self.over(&response);
                    return Ok(response);
                }
                response.result = Some(result);
            }
            Err(error) => response.error = Some(error),
        }
        self.record(response.clone());
        self.live.publish(|| response.clone());
        self.over(&response);
        match response.error {
            Some(error) => Err(error),
            None => Ok(response),
        }
    }
}

impl<P, T> Active<P, T> {
    fn record(&self, response: QueueResponse<T>) {
        let mut registry = self.inner.registry();
        let finished = registry.remembers().then(|| Finished {
            response,
            ticket: self.live.ticket,
        });
        registry.finish(&self.live, finished);
    }

    fn over(&self, response: &QueueResponse<T>) {
        self.tell_end(response);
        self.inner.leave();
    }
}

impl<P, T> Drop for Active<P, T> {
    fn drop(&mut self) {
        if !self.is_open {
            return;
        }
        if let Some(usage) = self.live.attempts_usage() {
            self.inner.correct(self.live.ticket, &usage);
        }
        let end = self.live.close().unwrap_or(End::Cancelled);
        let error = self.ended(end);
        let status = self.count(Err(&error));
        let response = || QueueResponse {
            error: Some(error.clone()),
            ..self.live.response(&self.inner.model, status)
        };
        self.record(response());
        self.live.publish(response);
        self.over(&response());
    }
}
