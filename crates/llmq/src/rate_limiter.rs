use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use llmq_core::{Backoffs, CallSize, LimitSpec, Usage};
use llmq_dispatch::{Call, CallKind, Ended, NoGrant, Refusal};
use llmq_engine::{Grant, Ticket};

use crate::config::ModelConfig;
use crate::engine::{Engine, Place};
use crate::error::QueueError;
use crate::info::LimitInfo;

/// Limits without a queue around them: ask before each call, in order.
///
/// First come, first served; a caller that gives up waiting leaves the line. It can be cloned,
/// and every clone is the same limiter.
///
/// ```
/// # use llmq::{QueueError, RateLimiter};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limiter = RateLimiter::new(["requests=100/1m".parse()?, "concurrency=4".parse()?])?;
/// let permit = limiter.acquire().await?;
/// // … the call …
/// drop(permit);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RateLimiter {
    engine: Arc<Engine>,
    place: Arc<Place>,
}

impl std::fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimiter")
            .field("limits", &self.place.limits)
            .finish_non_exhaustive()
    }
}

/// Leave to make one call. Its place among concurrent calls is free again when it is dropped;
/// what it was charged elsewhere stays charged.
#[must_use = "a permit that is dropped frees its place"]
#[derive(Debug)]
pub struct Permit {
    grant: Grant,
}

impl Permit {
    /// The call is over and used this much: limits on tokens are settled to it.
    pub fn settle(self, usage: Usage) {
        let _ = self.grant.complete(Ended {
            usage: Some(usage),
            ..Ended::default()
        });
    }
}

/// The name under which its errors speak of it.
const NAME: &str = "rate limiter";

impl RateLimiter {
    /// Keeps all of these limits at once, unused so far.
    ///
    /// # Errors
    ///
    /// [`QueueError::InvalidConfiguration`] with every mistake, or when there is no tokio
    /// runtime, on which its timer runs.
    pub fn new(limits: impl IntoIterator<Item = LimitSpec>) -> Result<Self, QueueError> {
        let config = ModelConfig {
            limits: limits.into_iter().collect(),
            ..ModelConfig::new(NAME)
        };
        config.check()?;
        let engine = Engine::start(Backoffs::default(), None)?;
        let place = Arc::new(engine.add_model(&config)?);
        Ok(Self { engine, place })
    }

    /// Waits for leave to make one call.
    ///
    /// # Errors
    ///
    /// [`QueueError::QueueFull`] when 100,000 wait already; [`QueueError::InvalidConfiguration`]
    /// when the runtime on which it was made has ended, or ends meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the line; nothing stays taken.
    pub async fn acquire(&self) -> Result<Permit, QueueError> {
        self.acquire_sized(CallSize::default()).await
    }

    /// The same for a call of a known size, for limits on tokens.
    ///
    /// # Errors
    ///
    /// [`QueueError::RequestTooLarge`] when it is above the whole of a limit; those of
    /// [`RateLimiter::acquire`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the line; nothing stays taken.
    pub async fn acquire_sized(&self, size: CallSize) -> Result<Permit, QueueError> {
        self.engine.check_runtime(NAME)?;
        let ticket = self.line_up(size)?;
        tokio::select! {
            biased;
            granted = ticket.granted() => permit(granted),
            refused = self.engine.runtime_ends(NAME) => Err(refused),
        }
    }

    /// Leave to make one call now, if nobody waits before it.
    ///
    /// # Errors
    ///
    /// [`QueueError::RateLimitExceeded`] with the time until it may pass, as far as that is
    /// known.
    pub fn try_acquire(&self) -> Result<Permit, QueueError> {
        self.try_acquire_sized(CallSize::default())
    }

    /// The same for a call of a known size, for limits on tokens.
    ///
    /// # Errors
    ///
    /// [`QueueError::RateLimitExceeded`] with the time until it may pass, as far as that is
    /// known; [`QueueError::RequestTooLarge`] when it never may.
    pub fn try_acquire_sized(&self, size: CallSize) -> Result<Permit, QueueError> {
        let mut ticket = self.line_up(size)?;
        let id = ticket.id();
        let granted = std::future::poll_fn(|context| ticket.poll_granted(context)).now_or_never();
        if let Some(granted) = granted {
            return permit(granted);
        }
        let now = self.engine.now();
        let hub = &self.engine.hub;
        let outlook = hub.with(|dispatcher| dispatcher.outlook(id, now));
        let start = outlook.and_then(|outlook| outlook.start);
        Err(QueueError::RateLimitExceeded {
            model: NAME.into(),
            retry_after: start.map(|at| at - now.mono),
            source: None,
        })
    }

    /// Each limit and how much of it is in use.
    #[must_use]
    pub fn limits(&self) -> Vec<LimitInfo> {
        let now = self.engine.now();
        let ids = self.place.limits.iter().map(|(id, _)| *id);
        self.engine.hub.with(|dispatcher| {
            ids.map(|id| LimitInfo::from(dispatcher.limit_view(id, now)))
                .collect()
        })
    }

    /// When a call that came now would start; zero when it would at once, none when that
    /// depends on others ending theirs.
    #[must_use]
    pub fn wait_time(&self) -> Option<Duration> {
        match self.try_wait_time() {
            Ok(()) => Some(Duration::ZERO),
            Err(wait) => wait,
        }
    }

    fn try_wait_time(&self) -> Result<(), Option<Duration>> {
        // A grant that is dropped before it is sent gives everything back.
        let ticket = self.line_up(CallSize::default()).map_err(|_| None)?;
        let now = self.engine.now();
        let id = ticket.id();
        let hub = &self.engine.hub;
        let (starts, at) = hub.with(|dispatcher| {
            let waits = dispatcher
                .why(id)
                .is_some_and(|why| !why.blockers.is_empty());
            let outlook = dispatcher.outlook(id, now);
            (!waits, outlook.and_then(|outlook| outlook.start))
        });
        if starts {
            Ok(())
        } else {
            Err(at.map(|at| at - now.mono))
        }
    }

    fn line_up(&self, size: CallSize) -> Result<Ticket, QueueError> {
        let call = Call {
            size,
            kind: CallKind::Plain,
            ..Call::new(self.place.queue, self.engine.nobody)
        };
        self.engine.hub.submit(call).map_err(|refusal| {
            let model = NAME.into();
            match refusal {
                Refusal::Full { jobs, .. } => QueueError::QueueFull {
                    model,
                    requests: jobs,
                },
                _ => QueueError::ShuttingDown { model },
            }
        })
    }
}

fn permit(granted: Result<Grant, NoGrant>) -> Result<Permit, QueueError> {
    match granted {
        Ok(grant) => {
            grant.sent();
            Ok(Permit { grant })
        }
        Err(NoGrant::TooLarge { limit, count }) => Err(QueueError::RequestTooLarge {
            model: NAME.into(),
            limit,
            count,
        }),
        Err(_) => Err(QueueError::RateLimitExceeded {
            model: NAME.into(),
            retry_after: None,
            source: None,
        }),
    }
}
