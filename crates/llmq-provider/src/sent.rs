use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use llmq_core::{Clock, Timestamp};

/// A body goes out over HTTP/2 in pieces of this size, so that the connection asks for the last
/// one only when most of those before it are written: hyper holds back at most about 400 KiB.
const PIECE_BYTES: usize = 64 << 10;

/// Called once, at the moment the last byte of a request is handed to its connection.
///
/// It runs while the connection is driven, so it must be short: take a lock, note the time. Over
/// HTTP/2 it is called before the bytes are on the wire, by microseconds for small bodies; at most
/// about 400 KiB of a large one are still on their way then, and of a call without a body it is
/// called when the answer is there. A server that answers before it has read the call ends its
/// sending too: what is told is when some of it was handed over last, which is before that answer.
pub type SentHook = Box<dyn FnOnce(Timestamp) + Send>;

/// A request body that knows how far it got, for HTTP/2.
///
/// The connection takes the head together with the first piece, so a body that was never
/// touched means that not one byte of the call left.
pub(crate) struct SentBody {
    rest: Bytes,
    mark: Arc<SentMark>,
    clock: Arc<dyn Clock>,
}

/// What is known of a request's way out; shared by its body and the call that waits for it.
pub(crate) struct SentMark {
    touched: Arc<AtomicBool>,
    /// Nanoseconds of the moment some of it was handed over last; `u64::MAX` before the first.
    moved: AtomicU64,
    /// The same of the last byte.
    sent: AtomicU64,
    /// Over HTTP/2 the body and the answer's head come in either order, and only the first of them
    /// calls it: the body may go on long after its call is over.
    hook: Mutex<Option<SentHook>>,
    /// Nobody is told when it leaves.
    leaves_unseen: bool,
}

impl SentMark {
    /// `touched` is told as soon as any byte of the call may have left.
    pub(crate) fn new(touched: Arc<AtomicBool>) -> Self {
        Self {
            touched,
            moved: AtomicU64::new(u64::MAX),
            sent: AtomicU64::new(u64::MAX),
            hook: Mutex::new(None),
            leaves_unseen: false,
        }
    }

    /// The same of a call with this body over HTTP/2: whoever is first to know calls the hook.
    pub(crate) fn with_hook(
        touched: Arc<AtomicBool>,
        hook: Option<SentHook>,
        body: &Bytes,
    ) -> Self {
        Self {
            hook: Mutex::new(hook),
            leaves_unseen: body.is_empty(),
            ..Self::new(touched)
        }
    }

    /// The last byte is handed over, or nobody waits for the rest: of two times the first counts.
    pub(crate) fn ended(&self, at: Timestamp) {
        let (unset, at_nanos) = (u64::MAX, at.as_nanos());
        let set = self
            .sent
            .compare_exchange(unset, at_nanos, Ordering::AcqRel, Ordering::Acquire);
        if set.is_ok()
            && let Some(hook) = self.take_hook()
        {
            hook(at);
        }
    }

    fn take_hook(&self) -> Option<SentHook> {
        let mut hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner);
        hook.take()
    }

    /// Whether any byte of the call is known to have left. Over HTTP/2 calls without a body are
    /// never touched: see [`leaves_unseen`](Self::leaves_unseen).
    pub(crate) fn touched(&self) -> bool {
        self.touched.load(Ordering::Acquire)
    }

    /// When the last byte was handed to the connection.
    pub(crate) fn sent(&self) -> Option<Timestamp> {
        time(&self.sent)
    }

    /// When the connection took something of the call last.
    pub(crate) fn moved(&self) -> Option<Timestamp> {
        time(&self.moved)
    }

    /// Whether nobody is told when it leaves: a call without a body over HTTP/2.
    pub(crate) fn leaves_unseen(&self) -> bool {
        self.leaves_unseen
    }

    fn moves(&self, at: Timestamp) {
        self.touched.store(true, Ordering::Release);
        self.moved.store(at.as_nanos(), Ordering::Release);
    }
}

fn time(nanos: &AtomicU64) -> Option<Timestamp> {
    match nanos.load(Ordering::Acquire) {
        u64::MAX => None,
        nanos => Some(Timestamp::from_nanos(nanos)),
    }
}

/// Waits for a call's answer. When nobody does any more, the connection may send on, but tells
/// nobody: by then the hook's owner may have begun another call.
pub(crate) struct Waiter<'a>(pub(crate) &'a SentMark);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        drop(self.0.take_hook());
    }
}

/// A call that leaves on a connection of its own.
pub(crate) struct Leaving<'a> {
    mark: &'a SentMark,
    hook: Option<SentHook>,
    clock: &'a dyn Clock,
}

impl<'a> Leaving<'a> {
    pub(crate) fn new(mark: &'a SentMark, hook: Option<SentHook>, clock: &'a dyn Clock) -> Self {
        Self { mark, hook, clock }
    }

    /// To be read before some of it is written: the other side may have it soon after.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now().mono
    }

    /// Some of it has left.
    pub(crate) fn moves(&self, at: Timestamp) {
        self.mark.moves(at);
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.mark.touched()
    }

    /// The last of it has left, or nobody waits for the rest.
    pub(crate) fn ended(&mut self, at: Timestamp) {
        self.mark.sent.store(at.as_nanos(), Ordering::Release);
        if let Some(hook) = self.hook.take() {
            hook(at);
        }
    }
}

impl SentBody {
    pub(crate) fn new(body: Bytes, mark: Arc<SentMark>, clock: Arc<dyn Clock>) -> Self {
        Self {
            rest: body,
            mark,
            clock,
        }
    }
}

impl fmt::Debug for SentMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentMark")
            .field("touched", &self.touched())
            .field("sent", &self.sent())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SentBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SentBody")
            .field("bytes_left", &self.rest.len())
            .finish_non_exhaustive()
    }
}

impl Body for SentBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let now = self.clock.now().mono;
        self.mark.moves(now);
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let size = self.rest.len().min(PIECE_BYTES);
        let piece = self.rest.split_to(size);
        if self.rest.is_empty() {
            self.mark.ended(now);
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
