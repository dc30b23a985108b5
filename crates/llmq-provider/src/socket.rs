use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::connect::Stream;

/// What is read at once. As much as waits goes on together, so that a flood of small events
/// costs few reads and writes.
const READ_BYTES: usize = 64 << 10;

thread_local! {
    /// Where bytes are read to first. A buffer for each connection would lie idle nearly always:
    /// thousands of them wait at any time, and one is read from.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

/// A connection to a provider, of which nothing is buffered here.
pub(crate) enum Socket {
    Plain(TcpStream),
    Secure(Box<TokioIo<Stream>>),
}

impl From<Stream> for Socket {
    fn from(stream: Stream) -> Self {
        match stream {
            MaybeHttpsStream::Http(tcp) => Self::Plain(tcp.into_inner()),
            secure @ MaybeHttpsStream::Https(_) => Self::Secure(Box::new(TokioIo::new(secure))),
        }
    }
}

impl Socket {
    /// Whether it is open, as far as is known, and nothing has come on it.
    pub(crate) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        match self {
            Self::Plain(tcp) => {
                let read = tcp.try_read(&mut byte);
                read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            Self::Secure(tls) => {
                // Nobody waits for it, and nobody is to be woken by what happens to it.
                let mut context = Context::from_waker(Waker::noop());
                let mut byte = ReadBuf::new(&mut byte);
                Pin::new(tls)
                    .poll_read(&mut context, &mut byte)
                    .is_pending()
            }
        }
    }

    /// Gives what has come to `take`; nothing when the other side has ended.
    pub(crate) fn poll_read<T>(
        &mut self,
        context: &mut Context<'_>,
        take: impl FnOnce(&mut [u8]) -> T,
    ) -> Poll<io::Result<T>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut read = ReadBuf::new(scratch);
            let polled = match self {
                Self::Plain(tcp) => Pin::new(tcp).poll_read(context, &mut read),
                Self::Secure(tls) => Pin::new(tls).poll_read(context, &mut read),
            };
            polled.map_ok(|()| take(read.filled_mut()))
        })
    }

    pub(crate) fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(context, bytes),
            Self::Secure(tls) => Pin::new(tls).poll_write(context, bytes),
        }
    }

    /// Sees to it that all that was written leaves: TLS holds back what it has encrypted.
    pub(crate) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Secure(tls) => Pin::new(tls).poll_flush(context),
        }
    }
}
