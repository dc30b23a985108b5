use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::answer::Event;
use super::state::Running;

/// The body of an answer: all at once, or event by event at a steady pace.
#[derive(Debug)]
pub(super) enum MockBody {
    Whole(Option<Bytes>),
    Paced(Box<Paced>),
}

/// A streamed answer under way. Dropped before its last event it was left by its client.
#[derive(Debug)]
pub(super) struct Paced {
    events: std::vec::IntoIter<Event>,
    running: Option<Running>,
    pace: Option<Pace>,
}

#[derive(Debug)]
struct Pace {
    step: Duration,
    next: Pin<Box<Sleep>>,
}

impl MockBody {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes))
    }

    /// Sends `events` over `time`, the first at once; without any timer when `time` is zero.
    pub(super) fn paced(events: Vec<Event>, time: Duration, running: Running) -> Self {
        let count = u32::try_from(events.len()).unwrap_or(u32::MAX).max(1);
        let step = time / count;
        let pace = (!step.is_zero()).then(|| Pace {
            step,
            next: Box::pin(sleep_until(Instant::now())),
        });
        Self::Paced(Box::new(Paced {
            events: events.into_iter(),
            running: Some(running),
            pace,
        }))
    }
}

impl Paced {
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.events.as_slice().is_empty() {
            return Poll::Ready(None);
        }
        if let Some(pace) = &mut self.pace {
            ready!(pace.next.as_mut().poll(context));
            let due = pace.next.deadline() + pace.step;
            pace.next.as_mut().reset(due);
        }
        let event = self.events.next();
        if let (Some(event), Some(running)) = (&event, &mut self.running) {
            running.produced(event.tokens);
        }
        if self.events.as_slice().is_empty()
            && let Some(running) = self.running.take()
        {
            running.answered(200, 0);
        }
        Poll::Ready(event.map(|event| event.bytes))
    }
}

impl Body for MockBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.get_mut() {
            Self::Whole(bytes) => bytes.take(),
            Self::Paced(paced) => ready!(paced.poll_event(context)),
        };
        Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Paced(paced) => paced.events.as_slice().is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Paced(_) => SizeHint::default(),
        }
    }
}
