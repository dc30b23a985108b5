//! A body that must keep coming.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::Bounds;

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// Its sender left, or spoke no HTTP.
    #[error("the body broke off before its end")]
    Broken,
    /// It came more slowly than a body may.
    #[error("the body came too slowly: {received} bytes in {within:?}")]
    TooSlow { received: usize, within: Duration },
}

/// Whether a body came too slowly, for whoever answers its sender in the end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slow(Arc<AtomicBool>);

impl Slow {
    pub(crate) fn was_met(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// A body that fails when it does not come as fast as `bounds` say. Its time begins with the
/// first wait for it: most bodies are there at once, and cost no timer.
pub(crate) struct Timed<B> {
    body: B,
    bounds: Bounds,
    received: usize,
    waits: Option<Waits>,
    slow: Option<Slow>,
}

struct Waits {
    since: Instant,
    patience: Pin<Box<Sleep>>,
}

impl<B> Timed<B> {
    pub(crate) fn new(body: B, bounds: Bounds) -> Self {
        Self {
            body,
            bounds,
            received: 0,
            waits: None,
            slow: None,
        }
    }

    /// The same, which tells `slow` too.
    pub(crate) fn telling(self, slow: Slow) -> Self {
        Self {
            slow: Some(slow),
            ..self
        }
    }

    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<BodyError> {
        let within = self.bounds.body_time(self.received);
        let waits = self.waits.get_or_insert_with(|| {
            let since = Instant::now();
            Waits {
                since,
                patience: Box::pin(tokio::time::sleep_until(since + within)),
            }
        });
        // What came meanwhile bought it time.
        let until = waits.since + within;
        if waits.patience.deadline() != until {
            waits.patience.as_mut().reset(until);
        }
        ready!(waits.patience.as_mut().poll(context));
        if let Some(slow) = &self.slow {
            slow.0.store(true, Ordering::Release);
        }
        Poll::Ready(BodyError::TooSlow {
            received: self.received,
            within,
        })
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Timed<B> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(context) {
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(BodyError::Broken))),
            Poll::Ready(Some(Ok(frame))) => {
                this.received += frame.data_ref().map_or(0, Bytes::len);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Pending => this.poll_patience(context).map(|error| Some(Err(error))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
