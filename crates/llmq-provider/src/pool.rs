use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::Uri;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tower_service::Service;

use crate::alarm::Alarm;
use crate::connect::Connector;
use crate::link::Link;

/// Below the 60 s after which many servers close a quiet connection: a call sent on one that
/// is just being closed is lost, and cannot be told from one that was billed.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(50);
/// More connections that nobody uses are closed. As many calls in flight at one account are rare.
const LINKS_MAX: usize = 4_096;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The HTTP/1.1 connections to one server that carry no call at the moment.
///
/// A call takes the one that was used last and gives it back when its answer has come to its end;
/// where there is none it opens one. So there are as many as calls in flight at a time, and those
/// that are not needed any more grow old.
pub(crate) struct Pool {
    connector: Connector,
    server: Uri,
    /// The shortest time that a call may have to be woken after.
    nap: Duration,
    idle: Arc<Idle>,
}

#[derive(Default)]
struct Idle {
    /// The longest unused first.
    links: Mutex<VecDeque<(Instant, Box<Link>)>>,
    sweeper: Mutex<Option<AbortHandle>>,
}

impl Pool {
    /// A pool for the server that `server` names with scheme and authority.
    pub(crate) fn new(connector: Connector, server: Uri, nap: Duration) -> Self {
        Self {
            connector,
            server,
            nap,
            idle: Arc::default(),
        }
    }

    /// A connection that is open at `now`, as far as is known.
    pub(crate) fn take(&self, now: Instant) -> Option<Box<Link>> {
        loop {
            let (since, mut link) = self.idle.links().pop_back()?;
            if now.saturating_duration_since(since) < IDLE_MAX && link.is_free() {
                return Some(link);
            }
        }
    }

    /// A new connection.
    ///
    /// # Errors
    ///
    /// The connector's, its time limit among them.
    pub(crate) async fn open(&self) -> Result<Box<Link>, BoxError> {
        let stream = self.connector.clone().call(self.server.clone()).await?;
        Ok(Box::new(Link::new(stream.into(), Alarm::new(self.nap))))
    }

    /// Takes back a connection whose call is over, if it may carry another.
    pub(crate) fn give_back(&self, link: Box<Link>) {
        if !link.may_carry_another() {
            return;
        }
        let surplus = {
            let mut links = self.idle.links();
            links.push_back((Instant::now(), link));
            (links.len() > LINKS_MAX).then(|| links.pop_front())
        };
        drop(surplus);
        self.idle.keep_swept();
    }
}

impl Idle {
    fn links(&self) -> MutexGuard<'_, VecDeque<(Instant, Box<Link>)>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that connections that nobody uses any more are closed.
    fn keep_swept(self: &Arc<Self>) {
        let mut sweeper = self.sweeper.lock().unwrap_or_else(PoisonError::into_inner);
        if sweeper.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        // Without a runtime nothing is in use.
        if let Ok(runtime) = Handle::try_current() {
            *sweeper = Some(runtime.spawn(sweep(Arc::downgrade(self))).abort_handle());
        }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let sweeper = self.sweeper.get_mut();
        if let Some(task) = sweeper.unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

/// Closes connections that have not been used for long, as long as there is a pool.
async fn sweep(idle: Weak<Idle>) {
    loop {
        tokio::time::sleep(IDLE_MAX / 2).await;
        let Some(idle) = idle.upgrade() else { return };
        let now = Instant::now();
        let old = {
            let mut links = idle.links();
            let old = links.partition_point(|(since, _)| now - *since >= IDLE_MAX);
            let rest = links.split_off(old);
            std::mem::replace(&mut *links, rest)
        };
        drop(old);
    }
}
