use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Method;

use crate::Cause;
use crate::alarm::Alarm;
use crate::sent::Leaving;
use crate::socket::Socket;
use crate::wire::{AnswerHead, AnswerReader, Came, Outgoing, WireFault};

/// One HTTP/1.1 connection, driven by the call that it carries.
///
/// It has no task, no channel and no buffers of its own: a call is written from where it stands,
/// and an answer is read when something has come.
pub(crate) struct Link {
    socket: Socket,
    /// For the deadlines of the calls that it carries, one after the other.
    pub(crate) alarm: Alarm,
    sending: Sending,
    reader: AnswerReader,
    /// What has come of the body and was not asked for yet.
    came: Bytes,
}

/// How far a call has left.
enum Sending {
    /// All of it has; or there is none.
    Done,
    Writing(Outgoing),
    /// All is written, and the connection still holds some of it.
    Flushing,
    /// The other side takes no more, and has perhaps answered for all that.
    GivenUp,
}

/// Why a connection brought no answer, or not all of one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Fault(#[from] WireFault),
}

impl WireError {
    pub(crate) fn cause(&self) -> Cause {
        match self {
            Self::Io(error) => Cause::of(error),
            Self::Fault(fault) => Cause::of(fault),
        }
    }
}

impl Link {
    pub(crate) fn new(socket: Socket, alarm: Alarm) -> Self {
        Self {
            socket,
            alarm,
            sending: Sending::Done,
            reader: AnswerReader::new(&Method::GET),
            came: Bytes::new(),
        }
    }

    /// Whether it is open, as far as is known. To be asked before each call: a connection that
    /// was closed meanwhile is found here, and one on which something came unasked.
    pub(crate) fn is_free(&mut self) -> bool {
        self.socket.is_quiet()
    }

    /// Whether its answer has come to its end, and another call may follow.
    pub(crate) fn may_carry_another(&self) -> bool {
        self.reader.leaves_connection() && matches!(self.sending, Sending::Done)
    }

    /// Takes a call on; [`Link::poll_head`] sends it.
    pub(crate) fn begin(&mut self, outgoing: Outgoing, method: &Method) {
        self.sending = Sending::Writing(outgoing);
        self.reader = AnswerReader::new(method);
    }

    /// Takes back a call of which nothing was written.
    pub(crate) fn take_back(self) -> Option<Outgoing> {
        match self.sending {
            Sending::Writing(outgoing) => Some(outgoing),
            Sending::Done | Sending::Flushing | Sending::GivenUp => None,
        }
    }

    /// Sends the call and waits for the head of its answer, which may be there before all of the
    /// call has left.
    ///
    /// # Errors
    ///
    /// The link is of no use then.
    pub(crate) fn poll_head(
        &mut self,
        leaving: &mut Leaving<'_>,
        context: &mut Context<'_>,
    ) -> Poll<Result<AnswerHead, WireError>> {
        let written = self.poll_write(Some(leaving), context);
        if !leaving.has_begun() {
            return written
                .map(|written| Err(written.err().unwrap_or_else(nothing_written).into()));
        }
        loop {
            match self.poll_read(context)? {
                Poll::Ready(Came { head, body }) => {
                    if let Some(head) = head {
                        self.came = body;
                        return Poll::Ready(Ok(head));
                    }
                }
                Poll::Pending => {
                    // Some answer before they have read the call, and then close.
                    return match written {
                        Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
                        _ => Poll::Pending,
                    };
                }
            }
        }
    }

    /// The next of the answer's body; `None` at its end.
    ///
    /// # Errors
    ///
    /// The answer broke off. The link is of no use then.
    pub(crate) fn poll_body(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, WireError>> {
        // Who answers already may not care for the rest of the call.
        if let Poll::Ready(Err(_)) = self.poll_write(None, context) {
            self.sending = Sending::GivenUp;
        }
        loop {
            if !self.came.is_empty() {
                return Poll::Ready(Ok(Some(std::mem::take(&mut self.came))));
            }
            if self.reader.is_ended() {
                return Poll::Ready(Ok(None));
            }
            self.came = ready!(self.poll_read(context))?.body;
        }
    }

    /// Whether nothing more comes of the answer but what [`Link::take_rest`] gives.
    pub(crate) fn is_at_end(&self) -> bool {
        self.reader.is_ended()
    }

    /// What has come and was not asked for yet.
    pub(crate) fn take_rest(&mut self) -> Bytes {
        std::mem::take(&mut self.came)
    }

    /// How much of the body is still to come at least.
    pub(crate) fn bytes_left(&self) -> u64 {
        self.reader.bytes_left() + self.came.len() as u64
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Result<Came, WireError>> {
        let reader = &mut self.reader;
        let read = self.socket.poll_read(context, |bytes| match bytes {
            [] => reader.close().map(|()| Came::default()),
            bytes => reader.push(bytes),
        });
        read.map(|read| Ok(read??))
    }

    fn poll_write(
        &mut self,
        mut leaving: Option<&mut Leaving<'_>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Sending::Writing(outgoing) = &mut self.sending {
            let at = leaving.as_deref().map(Leaving::now);
            let size = ready!(self.socket.poll_write(context, outgoing.next()))?;
            if size == 0 {
                return Poll::Ready(Err(nothing_written()));
            }
            outgoing.wrote(size);
            let is_done = outgoing.next().is_empty();
            if let Some((leaving, at)) = leaving.as_deref_mut().zip(at) {
                leaving.moves(at);
                if is_done {
                    leaving.ended(at);
                }
            }
            if is_done {
                self.sending = Sending::Flushing;
            }
        }
        if matches!(self.sending, Sending::Flushing) {
            ready!(self.socket.poll_flush(context))?;
            self.sending = Sending::Done;
        }
        Poll::Ready(Ok(()))
    }
}

fn nothing_written() -> io::Error {
    io::ErrorKind::WriteZero.into()
}
