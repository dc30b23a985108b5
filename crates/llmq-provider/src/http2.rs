use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::Instant;

use crate::alarm::Alarm;
use crate::client::{Inner, nap};
use crate::config::Addresses;
use crate::connect::Connector;
use crate::headers::merged;
use crate::pool::IDLE_MAX;
use crate::response::BodySource;
use crate::sent::{SentBody, SentMark, Waiter};
use crate::wire::AnswerHead;
use crate::{Answer, CallError, Cause, ProviderConfig, Request};

/// How often a quiet connection is asked whether it is still there.
const PING: Duration = Duration::from_secs(20);

/// Calls over HTTP/2: all share one connection, which has a task of its own.
pub(crate) struct Http2 {
    client: Client<Connector, SentBody>,
}

impl Http2 {
    pub(crate) fn new(
        config: &ProviderConfig,
        addresses: &Addresses,
        connector: Connector,
    ) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(usize::MAX);
        builder
            // Without TLS nobody can be asked, so both sides must know.
            .http2_only(!addresses.https)
            .http2_adaptive_window(true)
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(config.timeouts.connect);
        Self {
            client: builder.build(connector),
        }
    }

    /// [`crate::Provider::call`].
    pub(crate) async fn call(
        &self,
        inner: &Inner,
        request: Request,
        started: Instant,
    ) -> Result<Answer, CallError> {
        let has_left = request.has_left.unwrap_or_default();
        let mark = Arc::new(SentMark::with_hook(
            has_left,
            request.on_sent,
            &request.body,
        ));
        let body = SentBody::new(request.body, Arc::clone(&mark), Arc::clone(&inner.clock));
        let _waiter = Waiter(&mark);
        let mut outgoing = http::Request::new(body);
        let (addresses, operation) = (&inner.addresses, request.operation);
        (*outgoing.method_mut(), *outgoing.uri_mut()) = match request.item {
            Some(item) => (item.method.clone(), addresses.below(operation, &item)),
            None => (operation.method(), addresses.uri(operation).clone()),
        };
        *outgoing.headers_mut() = merged(&inner.headers, request.headers);
        let mut alarm = Alarm::new(nap(inner.config.timeouts));
        let mut sending = pin!(self.client.request(outgoing));
        let sent = inner.in_time(
            |context| sending.as_mut().poll(context),
            &mut alarm,
            &mark,
            started,
        );
        let response = sent.await?.map_err(|error| unsent(inner, &error, &mark))?;
        // It may have answered before it has read the call.
        mark.ended(mark.moved().unwrap_or_else(|| inner.clock.now().mono));
        let (parts, body) = response.into_parts();
        let head = AnswerHead {
            status: parts.status,
            headers: parts.headers,
        };
        let body = BodySource::Shared(body, alarm);
        Ok(inner.answer(head, body, started, &mark))
    }
}

fn unsent(inner: &Inner, error: &ClientError, mark: &SentMark) -> CallError {
    let cause = Cause::of(error);
    if error.is_connect() {
        return inner.not_sent(cause);
    }
    inner.without_answer(cause, mark)
}
