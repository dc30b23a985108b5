//! The body of what the gateway answers.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::early::{Early, Next};
use super::stream::Passing;

/// The caller must not take what it got for whole: its connection is closed without an end.
#[derive(Debug, thiserror::Error)]
#[error("the answer broke off")]
pub(crate) struct Broken;

/// What is sent as a body.
pub(crate) enum ReplyBody {
    /// All at once.
    Whole(Option<Bytes>),
    /// As it comes from the provider.
    Passing(Box<Passing>),
    /// It has begun, and there is no answer yet.
    Early(Box<Early>),
    /// The last that is said of an answer that has failed.
    LastWords(Option<Bytes>),
    /// It has broken off, and what was said of that is being written out.
    Breaking,
    /// From one of the small routes.
    Other(axum::body::Body),
}

impl ReplyBody {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::Whole((!bytes.is_empty()).then_some(bytes))
    }

    /// hyper throws away what it has not written yet once a body fails, and the last of it tells
    /// why. It writes when a body has nothing more to give.
    fn break_off<T>(&mut self, context: &Context<'_>) -> Poll<T> {
        *self = Self::Breaking;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = self.get_mut();
        if let Self::Early(early) = this {
            match std::task::ready!(early.poll_next(context)) {
                Next::Comment(comment) => return Poll::Ready(Some(Ok(Frame::data(comment)))),
                Next::Body(body) => *this = body,
            }
        }
        match this {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Passing(passing) => match passing.poll_frame(context) {
                Poll::Ready(Some(Err(Broken))) => this.break_off(context),
                other => other,
            },
            Self::LastWords(words) => match words.take() {
                Some(words) => Poll::Ready(Some(Ok(Frame::data(words)))),
                None => this.break_off(context),
            },
            // It becomes something else above.
            Self::Early(_) => Poll::Pending,
            Self::Breaking => Poll::Ready(Some(Err(Broken))),
            Self::Other(body) => Pin::new(body)
                .poll_frame(context)
                .map(|frame| frame.map(|frame| frame.map_err(|_| Broken))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Early(_) | Self::Passing(_) | Self::LastWords(_) | Self::Breaking => false,
            Self::Other(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Early(_) | Self::Passing(_) | Self::LastWords(_) | Self::Breaking => {
                SizeHint::default()
            }
            Self::Other(body) => body.size_hint(),
        }
    }
}
