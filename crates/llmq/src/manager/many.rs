use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use rustc_hash::FxHashMap;

use super::QueueManager;
use crate::error::QueueError;
use crate::request::QueueRequest;
use crate::response::QueueResponse;

/// So many requests of one [`QueueManager::submit_all`] are taken from it at once; the rest is as
/// they finish.
const SUBMIT_WINDOW: usize = 4_096;

type Answer<T> = Result<QueueResponse<T>, QueueError>;

/// Ends with a request's index, its model and its answer.
type Running<'a, T> = BoxFuture<'a, (usize, Arc<str>, Answer<T>)>;

/// Requests that are submitted together, each as soon as its queue has room.
pub(super) struct Many<'a, P, T> {
    manager: &'a QueueManager<P, T>,
    running: FuturesUnordered<Running<'a, T>>,
    lines: FxHashMap<Arc<str>, Line<P>>,
    /// Requests that stand outside of queues that are full.
    outside: usize,
}

/// The requests to one model.
struct Line<P> {
    running: usize,
    outside: VecDeque<(usize, QueueRequest<P>)>,
}

impl<P> Default for Line<P> {
    fn default() -> Self {
        Self {
            running: 0,
            outside: VecDeque::new(),
        }
    }
}

impl<'a, P, T> Many<'a, P, T>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    pub(super) fn new(manager: &'a QueueManager<P, T>) -> Self {
        Self {
            manager,
            running: FuturesUnordered::new(),
            lines: FxHashMap::default(),
            outside: 0,
        }
    }

    /// Whether another one is to be added.
    pub(super) fn has_room(&self) -> bool {
        self.running.len() + self.outside < SUBMIT_WINDOW
    }

    pub(super) fn add(&mut self, index: usize, request: QueueRequest<P>) {
        let model = Arc::clone(&request.model_id);
        let line = self.lines.entry(Arc::clone(&model)).or_default();
        line.outside.push_back((index, request));
        self.outside += 1;
        if line.outside.len() == 1 {
            self.let_in(&model);
        }
    }

    /// The next answer, and whose it is; none when there is nothing more.
    pub(super) async fn next(&mut self) -> Option<(usize, Answer<T>)> {
        let (index, model, answer) = self.running.next().await?;
        if let Some(line) = self.lines.get_mut(&model) {
            line.running -= 1;
        }
        self.let_in(&model);
        Some((index, answer))
    }

    /// Submits as many to a model as its queue takes.
    fn let_in(&mut self, model: &Arc<str>) {
        let Some(line) = self.lines.get_mut(model) else {
            return;
        };
        while let Some((index, request)) = line.outside.pop_front() {
            let submission = match self.manager.try_submit(request) {
                Ok(submission) => submission,
                // The next of ours to finish makes room.
                Err(request) if line.running > 0 => {
                    line.outside.push_front((index, *request));
                    return;
                }
                // It is others that fill the queue: that is told.
                Err(request) => Box::pin(self.manager.submit_request(*request)),
            };
            line.running += 1;
            self.outside -= 1;
            let model = Arc::clone(model);
            let answer = async move { (index, model, submission.await) };
            self.running.push(Box::pin(answer));
        }
    }
}
