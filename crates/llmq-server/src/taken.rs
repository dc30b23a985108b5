//! Answers over HTTP/2, whose callers must go on taking them.
//!
//! A stream's caller opens its window as it reads. One that never does is asked for nothing more:
//! its body is not polled, so no deadline of its call is looked at; and the connection, which other
//! streams may use well, is no measure of it. So each stream is watched for itself.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::call::Broken;

/// So much of an answer is handed over at once: what hyper and h2 hold for a stream whose caller
/// takes nothing is twice this at most. A frame of HTTP/2 holds as much (RFC 9113, section 6.5.2).
const PIECE_BYTES: usize = 16 << 10;
/// Ended answers are looked for when the list has grown by so many: as many as one connection has
/// at once.
const LOOKED_AT: usize = 256;

/// The answers under way on one connection.
pub(crate) struct Streams<B> {
    open: Mutex<Vec<Weak<Mutex<Held<B>>>>>,
}

impl<B> Default for Streams<B> {
    fn default() -> Self {
        Self {
            open: Mutex::default(),
        }
    }
}

/// An answer's body, in pieces that are handed over one after the other.
pub(crate) struct Taken<B>(Arc<Mutex<Held<B>>>);

struct Held<B> {
    /// None: its caller has been left.
    body: Option<B>,
    /// Of the last frame what was not handed over yet.
    rest: Bytes,
    /// Since when it is for the caller to take the last piece; none: it has nothing to take.
    offered_at: Option<Instant>,
}

impl<B> Streams<B> {
    /// Watches over an answer.
    pub(crate) fn watch(&self, body: B) -> Taken<B> {
        let held = Arc::new(Mutex::new(Held {
            body: Some(body),
            rest: Bytes::new(),
            offered_at: None,
        }));
        let mut open = lock(&self.open);
        if open.len() >= LOOKED_AT {
            open.retain(|held| held.strong_count() > 0);
        }
        open.push(Arc::downgrade(&held));
        Taken(held)
    }

    /// Leaves every caller that has taken nothing of its answer for so long: what the call holds
    /// is free then, and the stream is reset as soon as its caller does ask for more. Never ends.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost by dropping it.
    pub(crate) async fn leave_those_that_take_nothing(&self, within: Duration) {
        loop {
            let now = Instant::now();
            let mut next = now + within;
            let open: Vec<_> = lock(&self.open).iter().filter_map(Weak::upgrade).collect();
            for held in open {
                let mut held = lock(&held);
                let Some(until) = held.offered_at.map(|at| at + within) else {
                    continue;
                };
                if until > now {
                    next = next.min(until);
                    continue;
                }
                tracing::debug!(?within, "a caller takes nothing of its answer");
                held.offered_at = None;
                held.rest = Bytes::new();
                let left = held.body.take();
                drop(held);
                // What ends with it is none of the lock's business.
                drop(left);
            }
            tokio::time::sleep_until(next).await;
        }
    }
}

impl<B: Body<Data = Bytes, Error = Broken> + Unpin> Body for Taken<B> {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut held = lock(&self.0);
        let held = &mut *held;
        held.offered_at = None;
        if held.rest.is_empty() {
            let Some(body) = &mut held.body else {
                return Poll::Ready(Some(Err(Broken)));
            };
            let Some(frame) = ready!(Pin::new(body).poll_frame(context)) else {
                return Poll::Ready(None);
            };
            match frame?.into_data() {
                Ok(data) => held.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let piece = held.rest.split_to(held.rest.len().min(PIECE_BYTES));
        held.offered_at = Some(Instant::now());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        let held = lock(&self.0);
        let is_over = |body: &B| body.is_end_stream();
        held.rest.is_empty() && held.body.as_ref().is_some_and(is_over)
    }

    fn size_hint(&self) -> SizeHint {
        let held = lock(&self.0);
        let rest = held.rest.len() as u64;
        let body = held.body.as_ref().map(Body::size_hint).unwrap_or_default();
        let mut hint = SizeHint::new();
        hint.set_lower(body.lower() + rest);
        if let Some(upper) = body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

/// What is behind the lock is whole at every instant, also where somebody panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::call::ReplyBody;

    #[tokio::test]
    async fn an_answer_comes_whole_in_pieces_that_are_no_larger_than_a_frame() {
        let answer: Bytes = (0..100_000_u32)
            .flat_map(u32::to_be_bytes)
            .collect::<Vec<u8>>()
            .into();
        let streams = Streams::default();
        let mut taken = streams.watch(ReplyBody::whole(answer.clone()));
        assert_eq!(taken.size_hint().exact(), Some(400_000));
        let mut seen = Vec::new();
        while !taken.is_end_stream() {
            let piece = taken.frame().await.unwrap().unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE_BYTES);
            seen.extend_from_slice(&piece);
            assert_eq!(taken.size_hint().exact(), Some(400_000 - seen.len() as u64));
        }
        assert_eq!(seen, answer);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_a_piece_in_time_is_not_left_and_whoever_takes_none_is() {
        const WITHIN: Duration = Duration::from_secs(30);
        let streams = Streams::default();
        let long = || ReplyBody::whole(vec![b'a'; 5 * PIECE_BYTES].into());
        let (mut reads, mut sleeps) = (streams.watch(long()), streams.watch(long()));
        let reading = async {
            sleeps.frame().await.unwrap().unwrap();
            while !reads.is_end_stream() {
                reads.frame().await.unwrap().unwrap();
                tokio::time::sleep(WITHIN - Duration::from_secs(1)).await;
            }
        };
        tokio::select! {
            () = reading => {}
            () = streams.leave_those_that_take_nothing(WITHIN) => unreachable!("it never ends"),
        }
        assert!(lock(&sleeps.0).body.is_none());
        assert!(sleeps.frame().await.unwrap().is_err(), "it is no end");
    }

    #[test]
    fn answers_that_ended_are_not_remembered() {
        let streams = Streams::default();
        let open = streams.watch(ReplyBody::whole(Bytes::new()));
        for _ in 0..10 * LOOKED_AT {
            drop(streams.watch(ReplyBody::whole(Bytes::new())));
        }
        assert!(lock(&streams.open).len() <= LOOKED_AT);
        drop(open);
    }
}
