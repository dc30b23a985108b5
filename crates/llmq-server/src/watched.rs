//! A socket that tells when its caller has left.

use std::io::{Error, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio::net::TcpStream;

/// So much is read at once. hyper looks at a head after each read, whatever it has room for: a
/// head is longer than it may be by no more than this.
const READ_MAX: u64 = 16 << 10;

/// A socket whose end is heard of while its call is being answered.
///
/// hyper finds that out by reading on, into a buffer of 8 KB that every caller in line then holds.
/// Told not to (`half_close`), it still flushes whenever it has moved; so this looks there, and
/// takes nothing out.
pub(crate) struct Watched {
    stream: Take<TcpStream>,
    /// More has come than was read: no end can be seen before it.
    more_came: bool,
}

impl Watched {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self {
            stream: stream.take(READ_MAX),
            more_came: false,
        }
    }

    /// Whether the other side has closed, or closed its half, which is the same to us: a caller
    /// that still listens keeps its side open.
    fn poll_left(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.more_came {
            return Poll::Pending;
        }
        let mut byte = [0];
        let stream = self.stream.get_ref();
        match stream.poll_peek(context, &mut ReadBuf::new(&mut byte)) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(()),
            Poll::Ready(Ok(_)) => {
                self.more_came = true;
                Poll::Pending
            }
        }
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.more_came = false;
        self.stream.set_limit(READ_MAX);
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    /// A socket holds nothing back.
    fn poll_flush(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.poll_left(context) {
            Poll::Ready(()) => Poll::Ready(Err(Error::from(ErrorKind::ConnectionAborted))),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(context)
    }
}
