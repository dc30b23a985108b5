use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{self, Connection, SendRequest};

use crate::alarm::Alarm;
use crate::connect::Stream;
use crate::sent::SentBody;

/// One HTTP/1.1 connection, driven by whoever holds it.
///
/// A connection with a task of its own would hand every piece over from task to task, which costs
/// more than all else that is done with it. Since nothing but driving it moves a call on, what
/// waits at its other end needs no waker.
pub(crate) struct Link {
    sender: SendRequest<SentBody>,
    /// `None` once it has ended.
    connection: Option<Box<Connection<Stream, SentBody>>>,
    /// For the deadlines of the calls that it carries, one after the other.
    pub(crate) alarm: Alarm,
}

/// What came of a call that was given to a link.
pub(crate) type Sent = Result<Response<Incoming>, TrySendError<Request<SentBody>>>;

impl Link {
    /// Speaks HTTP/1.1 on a connection that was just opened.
    ///
    /// # Errors
    ///
    /// hyper's, if it will not.
    pub(crate) async fn new(stream: Stream, alarm: Alarm) -> Result<Self, hyper::Error> {
        let (sender, connection) = http1::handshake(stream).await?;
        Ok(Self {
            sender,
            connection: Some(Box::new(connection)),
            alarm,
        })
    }

    /// Whether it is open, as far as is known, and carries no call. To be asked before each one:
    /// a connection that was closed meanwhile is found here.
    pub(crate) fn is_free(&mut self) -> bool {
        // Nobody waits for it, and nobody is to be woken by what happens to it.
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.connection.is_some() && self.sender.is_ready()
    }

    /// Whether it has ended, as far as was heard when it was driven last.
    pub(crate) fn is_closed(&self) -> bool {
        self.connection.is_none()
    }

    /// Sends a call and waits for the head of its answer.
    ///
    /// # Cancel safety
    ///
    /// Not cancel safe: the call may have been sent. The link is of no use then.
    pub(crate) async fn send(&mut self, request: Request<SentBody>) -> Sent {
        let mut answer = pin!(self.sender.try_send_request(request));
        poll_fn(|context| {
            self.drive(context);
            answer
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
        })
        .await
    }

    /// The next of the answer's body.
    pub(crate) fn poll_body(
        &mut self,
        body: &mut Incoming,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let waiting = next_of(body);
        if waiting.is_ready() {
            return waiting;
        }
        self.drive(context);
        next_of(body)
    }

    fn drive(&mut self, context: &mut Context<'_>) {
        let ended = self
            .connection
            .as_mut()
            .is_some_and(|connection| Pin::new(connection).poll(context).is_ready());
        if ended {
            // How it ended is told to the call that it carried. Dropped, it hands back one that
            // it has not begun to send.
            self.connection = None;
        }
    }
}

fn next_of(body: &mut Incoming) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
    Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()))
}
