use std::future::{Future, ready};

use futures_util::future::Either;
use llmq_core::Usage;
use uuid::Uuid;

use super::QueueManager;
use super::many::Many;
use crate::error::QueueError;
use crate::queue::Submission;
use crate::request::QueueRequest;
use crate::response::QueueResponse;

impl<P, T> QueueManager<P, T>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Gives a request to its model's queue; see [`Queue::submit`](crate::Queue::submit).
    ///
    /// # Errors
    ///
    /// [`QueueError`]: it was not accepted, or it has no result.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the request, unless it has a `dedup_key` or does not wait.
    pub fn submit_request(
        &self,
        request: QueueRequest<P>,
    ) -> impl Future<Output = Result<QueueResponse<T>, QueueError>> + Send + use<P, T> {
        match self.queue(&request.model_id) {
            Ok(queue) => Either::Left(queue.submit(request)),
            // Boxed, so that those that wait do not reserve the room for it.
            Err(error) => Either::Right(Box::pin(ready(Err(error)))),
        }
    }

    /// Submits many requests, to any models, and waits for all; the answers are in the order
    /// of the requests. Each has its own error: one that fails does not touch the others.
    ///
    /// However many there are, a few thousand are in line at once, so a queue is not filled up
    /// by it; where a queue is full all the same, the next one is submitted when one of these has
    /// finished. Their processors take turns on the task that polls this; give processors that
    /// compute much a task of their own.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels what has not finished.
    pub async fn submit_all(
        &self,
        requests: impl IntoIterator<Item = QueueRequest<P>, IntoIter: Send> + Send,
    ) -> Vec<Result<QueueResponse<T>, QueueError>> {
        let mut requests = requests.into_iter().enumerate();
        let mut many = Many::new(self);
        let mut answers: Vec<Option<Result<QueueResponse<T>, QueueError>>> = Vec::new();
        loop {
            while many.has_room()
                && let Some((index, request)) = requests.next()
            {
                answers.push(None);
                many.add(index, request);
            }
            match many.next().await {
                Some((index, answer)) => answers[index] = Some(answer),
                None => return answers.into_iter().flatten().collect(),
            }
        }
    }

    /// Submits a request now; gives it back where its queue is full.
    pub(super) fn try_submit(
        &self,
        request: QueueRequest<P>,
    ) -> Result<Submission<T>, Box<QueueRequest<P>>> {
        match self.queue(&request.model_id) {
            Ok(queue) => queue.try_submit(request),
            Err(error) => Ok(Box::pin(ready(Err(error)))),
        }
    }

    /// Where a request stands: one in flight, or one of the last 10,000 (unless set otherwise)
    /// that finished; none for an unknown one.
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    pub fn get_status(
        &self,
        model: &str,
        id: Uuid,
    ) -> Result<Option<QueueResponse<T>>, QueueError> {
        Ok(self.queue(model)?.get_status(id))
    }

    /// Waits for a request that was submitted without waiting; see [`Queue::wait`](crate::Queue::wait).
    ///
    /// # Errors
    ///
    /// The request's own error; [`QueueError::ModelNotRegistered`];
    /// [`QueueError::UnknownRequest`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the request goes on.
    pub async fn wait(&self, model: &str, id: Uuid) -> Result<QueueResponse<T>, QueueError> {
        self.queue(model)?.wait(id).await
    }

    /// Ends a request; see [`Queue::cancel`](crate::Queue::cancel).
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    pub fn cancel(&self, model: &str, id: Uuid) -> Result<bool, QueueError> {
        Ok(self.queue(model)?.cancel(id))
    }

    /// Tells what a request really used; see [`Queue::update_token_usage`](crate::Queue::update_token_usage).
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    pub fn update_token_usage(
        &self,
        model: &str,
        id: Uuid,
        input_tokens: u64,
        output_tokens: u64,
    ) -> Result<bool, QueueError> {
        let usage = Usage {
            input_tokens,
            output_tokens,
            ..Usage::default()
        };
        Ok(self.queue(model)?.update_token_usage(id, usage))
    }

    /// Tells what an answer's headers say of limits; see [`Queue::update_from_response`](crate::Queue::update_from_response).
    ///
    /// # Errors
    ///
    /// [`QueueError::ModelNotRegistered`].
    pub fn update_from_response<'a>(
        &self,
        model: &str,
        id: Uuid,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<bool, QueueError> {
        Ok(self.queue(model)?.update_from_response(id, headers))
    }
}
