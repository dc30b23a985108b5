//! Requests that nobody drives: they wait without a task, and get one when their turn comes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

use futures_util::FutureExt;
use llmq_core::Status;
use llmq_dispatch::CallKind;

use super::accept::{Accepted, accept};
use super::inner::Inner;
use crate::drive::Drive;
use crate::engine::{EndsWithRuntime, Engine};
use crate::error::QueueError;
use crate::request::QueueRequest;
use crate::response::QueueResponse;

/// Accepts a request that goes on without its submitter.
pub(super) async fn submit_shared<P, T>(
    inner: Arc<Inner<P, T>>,
    request: QueueRequest<P>,
) -> Result<QueueResponse<T>, QueueError>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    let accepted = accept(&inner, &request, CallKind::Stored)?;
    go_on(inner, request, accepted).await
}

/// What follows for one that goes on without its submitter; it is in line when this returns.
pub(super) fn go_on<P, T>(
    inner: Arc<Inner<P, T>>,
    request: QueueRequest<P>,
    accepted: Accepted<P, T>,
) -> impl Future<Output = Result<QueueResponse<T>, QueueError>> + Send + use<P, T>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    let waits = request.wait_for_completion;
    let (live, response, timeout) = match accepted {
        Accepted::Joined(live) => {
            let response = live.response(&inner.model, live.status());
            (live, response, inner.timeout_of(&request))
        }
        Accepted::New(active, ticket) => {
            let live = Arc::clone(&active.live);
            // As of now: its task may begin before this one goes on.
            let response = live.response(&inner.model, Status::Queued);
            park(&inner, Drive::accepted(active, ticket, request));
            // It keeps its own time.
            (live, response, None)
        }
    };
    async move {
        match timeout {
            _ if !waits => Ok(response),
            None => live.outcome().await,
            // Only this one leaves; the one that it was joined to goes on.
            Some(timeout) => tokio::time::timeout(timeout, live.outcome())
                .await
                .unwrap_or_else(|_| {
                    Err(QueueError::QueueTimeout {
                        model: Arc::clone(&inner.model),
                        timeout,
                        attempts: live.attempts(),
                    })
                }),
        }
    }
}

/// A request that waits for its turn, or for its end before that. Whoever calls it wakes this.
///
/// Its wakers hold it, and what it holds keeps their places: a circle that only a call opens.
/// Hence [`EndsWithRuntime`]: without its runtime's timer nobody would call.
struct Parked<P, T> {
    inner: Arc<Inner<P, T>>,
    slot: Mutex<Slot<P, T>>,
}

struct Slot<P, T> {
    /// Here from when its wakers are set until it is called.
    drive: Option<Drive<P, T>>,
    is_called: bool,
}

/// Lets a request wait without a task.
fn park<P, T>(inner: &Arc<Inner<P, T>>, mut drive: Drive<P, T>)
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    let parked = Arc::new(Parked {
        inner: Arc::clone(inner),
        slot: Mutex::new(Slot {
            drive: None,
            is_called: false,
        }),
    });
    let waker = Waker::from(Arc::clone(&parked));
    if drive.poll_turn(&mut Context::from_waker(&waker)).is_ready() {
        return start(&inner.engine, drive);
    }
    if let Some(called) = parked.keep(drive) {
        start(&inner.engine, called);
    }
}

impl<P, T> Parked<P, T> {
    /// Keeps a request until it is called; gives it back if it has been.
    fn keep(&self, drive: Drive<P, T>) -> Option<Drive<P, T>> {
        let mut slot = self.slot();
        if slot.is_called {
            return Some(drive);
        }
        slot.drive = Some(drive);
        None
    }

    fn slot(&self) -> MutexGuard<'_, Slot<P, T>> {
        // Nothing runs under it but a move.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P, T> Wake for Parked<P, T>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let called = {
            let mut slot = self.slot();
            slot.is_called = true;
            slot.drive.take()
        };
        if let Some(drive) = called {
            start(&self.inner.engine, drive);
        }
    }
}

/// Gives a request a task of its own.
fn start<P, T>(engine: &Arc<Engine>, drive: Drive<P, T>)
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    let engine = Arc::clone(engine);
    one_after_another(move || engine.spawn(drive.map(drop)));
}

type Start = Box<dyn FnOnce()>;

thread_local! {
    /// What this thread starts after what it is starting; none: it starts nothing.
    static LATER: RefCell<Option<VecDeque<Start>>> = const { RefCell::new(None) };
}

/// Calls `start`, or has it called after the one that is being called on this thread.
///
/// A runtime that has ended drops at once what is spawned on it. What is dropped there gives
/// its place to the next in line, which is then woken: without the list, each that waits would
/// be a call inside a call, and a long line would overflow the stack.
fn one_after_another(start: impl FnOnce() + 'static) {
    let mut start = Some(start);
    let is_first = LATER.try_with(|later| {
        let mut later = later.borrow_mut();
        match &mut *later {
            Some(later) => {
                if let Some(start) = start.take() {
                    later.push_back(Box::new(start));
                }
                false
            }
            none => {
                *none = Some(VecDeque::new());
                true
            }
        }
    });
    let Some(start) = start else { return };
    // On a thread that is ending there is no list any more.
    let _emptied = is_first.unwrap_or(false).then(|| EmptyAtEnd);
    start();
    while let Some(next) = next_later() {
        next();
    }
}

fn next_later() -> Option<Start> {
    let next = LATER.try_with(|later| later.borrow_mut().as_mut()?.pop_front());
    next.ok().flatten()
}

/// Lets the next one start, even after a panic.
struct EmptyAtEnd;

impl Drop for EmptyAtEnd {
    fn drop(&mut self) {
        let left = LATER.try_with(|later| later.borrow_mut().take());
        drop(left);
    }
}

impl<P, T> Inner<P, T>
where
    P: Send + 'static,
    T: Send + Sync + 'static,
{
    /// Lets its requests end with the runtime.
    pub(super) fn end_with_runtime(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.engine.end_with_runtime(weak);
    }
}

impl<P, T> EndsWithRuntime for Inner<P, T>
where
    P: Send,
    T: Send + Sync,
{
    fn runtime_ended(&self) {
        self.end_all();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::Duration;

    use tokio::runtime::Runtime;
    use uuid::Uuid;

    use super::*;
    use crate::{ModelConfig, ProcessorError, Queue, QueueManager, Status};

    type Params = Arc<()>;

    const MODEL: &str = "m";

    /// A runtime with one queue whose calls never end, one at a time, and a line of requests.
    fn line(length: usize, params: &Params) -> (Runtime, Queue<Params, ()>, Vec<Uuid>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let manager = QueueManager::new();
        let config = ModelConfig::new(MODEL)
            .concurrent(1)
            .history(length)
            .capacity(length as u64 + 1);
        let (queue, ids) = runtime.block_on(async {
            let never = |_| std::future::pending::<Result<(), ProcessorError>>();
            let queue = manager.register_queue(config, never).unwrap();
            let mut ids = Vec::new();
            for _ in 0..length {
                ids.push(submit(&queue, params).await);
            }
            (queue, ids)
        });
        (runtime, queue, ids)
    }

    async fn submit(queue: &Queue<Params, ()>, params: &Params) -> Uuid {
        let request = QueueRequest::new(MODEL, Arc::clone(params)).without_waiting();
        queue.submit(request).await.unwrap().request_id
    }

    fn statuses(queue: &Queue<Params, ()>, ids: &[Uuid]) -> Vec<Status> {
        let status = |id: &Uuid| queue.get_status(*id).unwrap().status;
        ids.iter().map(status).collect()
    }

    #[test]
    fn a_runtime_that_ends_takes_those_with_it_that_nobody_drives() {
        let length = 1_000;
        let params = Params::default();
        let (runtime, queue, ids) = line(length, &params);
        assert!(Arc::strong_count(&params) > length);
        drop(runtime);
        assert_eq!(Arc::strong_count(&params), 1);
        assert_eq!(statuses(&queue, &ids), vec![Status::Cancelled; length]);
        assert_eq!(queue.metrics().cancelled, length as u64);
    }

    #[test]
    fn a_start_inside_a_start_comes_after_it_however_many_there_are() {
        fn chain(left: usize, depth: Rc<Cell<usize>>) {
            one_after_another(move || {
                assert_eq!(depth.replace(1), 0, "inside another");
                if left > 0 {
                    chain(left - 1, Rc::clone(&depth));
                }
                depth.set(0);
            });
        }
        chain(1_000, Rc::default());
        assert!(next_later().is_none());
    }

    #[test]
    fn a_start_that_panics_leaves_the_next_one_free() {
        let panics = || one_after_another(|| panic!("in a start"));
        assert!(std::panic::catch_unwind(panics).is_err());
        let (sender, receiver) = std::sync::mpsc::channel();
        one_after_another(move || sender.send(()).unwrap());
        assert!(receiver.try_recv().is_ok());
    }

    /// Those whose submitters drove them on another runtime waited for a timer that was gone.
    #[test]
    fn after_its_runtimes_end_nothing_waits_for_ever() {
        let params = Params::default();
        let (runtime, queue, _) = line(2, &params);
        queue.pause();
        let request = || QueueRequest::new(MODEL, Arc::clone(&params));
        let timeout = Duration::from_secs(1);
        let mut waiting = Box::pin(queue.submit(request().timeout(timeout)));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(runtime);
        let ended = waiting.now_or_never().unwrap();
        assert!(matches!(ended, Err(QueueError::ShuttingDown { .. })));
        for request in [request(), request().without_waiting()] {
            let refused = queue.submit(request).now_or_never().unwrap();
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("runtime"), "{error}");
        }
        assert_eq!(Arc::strong_count(&params), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_woken_by_its_turn_its_time_and_its_end() {
        let manager = QueueManager::<u64, u64>::new();
        let config = ModelConfig::new(MODEL).concurrent(1);
        let call = Duration::from_secs(1);
        let queue = manager
            .register_queue(config, move |request: QueueRequest<u64>| async move {
                tokio::time::sleep(call).await;
                Ok::<_, ProcessorError>(request.params)
            })
            .unwrap();
        let request = |n| QueueRequest::new(MODEL, n).without_waiting();
        let late = request(1).timeout(call / 2);
        let mut ids = Vec::new();
        for request in [request(0), late, request(2), request(3)] {
            ids.push(queue.submit(request).await.unwrap().request_id);
        }
        assert!(queue.cancel(ids[2]));
        let mut ends = Vec::new();
        for id in ids {
            let _ = queue.wait(id).await;
            ends.push(queue.get_status(id).unwrap().status);
        }
        let expected = [
            Status::Completed,
            Status::Expired,
            Status::Cancelled,
            Status::Completed,
        ];
        assert_eq!(ends, expected);
    }

    #[test]
    fn what_waits_without_a_task_is_small() {
        let sizes = [
            size_of::<Parked<Box<[u8]>, usize>>(),
            size_of::<crate::live::Live<usize>>(),
        ];
        assert!(sizes[0] <= 256 && sizes[1] <= 192, "{sizes:?}");
    }
}
