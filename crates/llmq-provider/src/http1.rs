use std::sync::Arc;

use http::{HeaderMap, Method};
use tokio::time::{Instant, timeout_at};

use crate::alarm::Alarm;
use crate::client::{Inner, nap};
use crate::config::Addresses;
use crate::connect::Connector;
use crate::headers::merged;
use crate::link::Link;
use crate::pool::{IDLE_MAX, Pool};
use crate::response::BodySource;
use crate::sent::{Leaving, SentMark};
use crate::wire::{Outgoing, RequestHead, lines};
use crate::{Answer, CallError, Cause, ProviderConfig, Request};

/// Calls over HTTP/1.1: each has a connection for itself.
pub(crate) struct Http1 {
    pool: Arc<Pool>,
    /// The headers of a call that adds none.
    lines: Vec<u8>,
}

impl Http1 {
    pub(crate) fn new(
        config: &ProviderConfig,
        addresses: &Addresses,
        headers: &HeaderMap,
        connector: Connector,
    ) -> Self {
        let server = addresses.server.clone();
        Self {
            pool: Arc::new(Pool::new(connector, server, nap(config.timeouts))),
            lines: lines(headers),
        }
    }

    /// [`crate::Provider::call`].
    pub(crate) async fn call(
        &self,
        inner: &Inner,
        mut request: Request,
        started: Instant,
    ) -> Result<Answer, CallError> {
        let (method, mut outgoing) = self.written(inner, &mut request);
        let mark = SentMark::new(request.has_left.take().unwrap_or_default());
        let mut leaving = Leaving::new(&mark, request.on_sent.take(), &*inner.clock);
        loop {
            let (mut link, is_new) = match self.pool.take(started) {
                Some(link) => (link, false),
                // Boxed: most calls find a connection, and need no room for opening one.
                None => (Box::pin(self.connect(inner, started)).await?, true),
            };
            let mut alarm = std::mem::replace(&mut link.alarm, Alarm::new(IDLE_MAX));
            link.begin(outgoing, &method);
            let head = inner.in_time(
                |context| link.poll_head(&mut leaving, context),
                &mut alarm,
                &mark,
                started,
            );
            let head = head.await?;
            link.alarm = alarm;
            let error = match head {
                Ok(head) => {
                    if mark.sent().is_none() {
                        leaving.ended(mark.moved().unwrap_or_else(|| leaving.now()));
                    }
                    let body = BodySource::own(link, Arc::clone(&self.pool));
                    return Ok(inner.answer(head, body, started, &mark));
                }
                Err(error) => error,
            };
            // It was closed while it was idle, before a byte was written: as if it had never been
            // there.
            match link.take_back() {
                Some(unsent) if !is_new && !mark.touched() => outgoing = unsent,
                _ => return Err(inner.without_answer(error.cause(), &mark)),
            }
        }
    }

    /// The call as it stands on the wire, and its method.
    fn written(&self, inner: &Inner, request: &mut Request) -> (Method, Outgoing) {
        let (operation, item) = (request.operation, &request.item);
        let method = match item {
            Some(item) => item.method.clone(),
            None => operation.method(),
        };
        let below = item
            .as_ref()
            .map(|item| inner.addresses.below(operation, item));
        let uri = below.as_ref().unwrap_or(inner.addresses.uri(operation));
        let merged = (!request.headers.is_empty()).then(|| {
            let extra = std::mem::take(&mut request.headers);
            lines(&merged(&inner.headers, extra))
        });
        let head = RequestHead {
            method: &method,
            target: uri.path_and_query().map_or("/", |target| target.as_str()),
            lines: merged.as_ref().unwrap_or(&self.lines),
        };
        let outgoing = Outgoing::new(&head, std::mem::take(&mut request.body));
        (method, outgoing)
    }

    async fn connect(&self, inner: &Inner, started: Instant) -> Result<Box<Link>, CallError> {
        let total = inner.config.timeouts.total;
        let cause = match timeout_at(started + total, self.pool.open()).await {
            Ok(Ok(link)) => return Ok(link),
            Ok(Err(error)) => Cause::of(&*error),
            Err(_) => Cause::TotalTimeout(total),
        };
        Err(inner.not_sent(cause))
    }
}
