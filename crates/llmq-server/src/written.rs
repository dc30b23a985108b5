//! A connection whose caller must go on taking what is written to it, and gets the last of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// After its end, a connection whose caller says nothing for so long is closed.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// A stream that breaks when nothing of what is written could be handed over for `within`.
///
/// A body is not asked for more while its connection is full, so no deadline of a call sees this.
/// The timer is made with the first wait: most connections never wait.
///
/// When it is shut down, its caller may still be sending: a body that is too large, or that comes
/// with a wrong key, is refused unread. A socket that is closed with something unread resets its
/// connection, and the reset takes the answer from whoever has not read it yet (RFC 9112, section
/// 9.6). So what still comes is read and thrown away first, for `within` at most.
pub(crate) struct Written<S> {
    stream: S,
    within: Duration,
    stuck: Option<Pin<Box<Sleep>>>,
    ending: Option<Box<Ending>>,
}

/// What is waited for once the last word was written.
struct Ending {
    until: Instant,
    silent: Pin<Box<Sleep>>,
}

impl<S> Written<S> {
    pub(crate) fn new(stream: S, within: Duration) -> Self {
        Self {
            stream,
            within,
            stuck: None,
            ending: None,
        }
    }

    /// What a write came to; or its error, if it has waited for too long.
    fn heed<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stuck = None;
            return polled;
        }
        let within = self.within;
        let stuck = self
            .stuck
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        stuck.as_mut().poll(context).map(|()| {
            tracing::debug!(?within, "a caller takes nothing of its answer");
            Err(io::ErrorKind::TimedOut.into())
        })
    }
}

impl<S: AsyncRead + Unpin> Written<S> {
    /// Reads on until the caller ends too, says nothing, or has had the time for it.
    fn poll_heard_out(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let within = self.within;
        let ending = self.ending.get_or_insert_with(|| {
            Box::new(Ending {
                until: now + within,
                silent: Box::pin(tokio::time::sleep(SILENCE_MAX.min(within))),
            })
        });
        let mut thrown_away = [0; 8 << 10];
        let mut has_come = false;
        // The timer alone would not do: beside bytes that come and come it is never asked.
        while now < ending.until {
            let mut buffer = ReadBuf::new(&mut thrown_away);
            match Pin::new(&mut self.stream).poll_read(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => has_come = true,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => {
                    if has_come {
                        let until = ending.until.min(now + SILENCE_MAX);
                        ending.silent.as_mut().reset(until);
                    }
                    return ending.silent.as_mut().poll(context);
                }
            }
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Written<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Written<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.heed(polled, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.heed(polled, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.stream).poll_flush(context);
        self.heed(polled, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.ending.is_none() {
            let polled = Pin::new(&mut self.stream).poll_shutdown(context);
            ready!(self.heed(polled, context))?;
        }
        self.poll_heard_out(context).map(Ok)
    }
}
