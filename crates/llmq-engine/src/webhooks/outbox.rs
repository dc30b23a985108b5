use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use llmq_client::webhooks::WebhookSecret;
use llmq_core::{Clock, WallTime};
use llmq_store::{
    Attempted, Delivery, DeliveryState, Endpoint, EndpointId, EventId, NewEvent, Store, StoreError,
    StoredEvent, Subject, Target,
};
use serde_json::json;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::client::{DeliveryClient, DeliveryError, EndpointAnswer, Outgoing};
use super::endpoints::{EndpointState, Endpoints};
use super::{message, schedule};
use crate::{SystemClock, Tasks};

/// So many messages are on their way at once …
const AT_ONCE: usize = 128;
/// … and so many of them to one endpoint. What is due to one that does not answer still takes
/// its turn among the others, a moment each.
const AT_ONCE_EACH: usize = 16;
/// A message that waits longer for its endpoint's others is left for later.
const TURN_WITHIN: Duration = Duration::from_secs(2);
/// Nobody else takes what is being sent for so long: longer than a try takes.
const HOLD: Duration = Duration::from_secs(60);
/// When nothing is known to come due, it is looked again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// After the store could not be asked, it is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// Sends what is to be told, until it is taken or given up.
pub struct Outbox {
    store: Arc<dyn Store>,
    endpoints: Endpoints,
    client: DeliveryClient,
    clock: SystemClock,
    /// Something came due that no event tells of.
    again: Notify,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").finish_non_exhaustive()
    }
}

/// What came of one try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// Whether it was taken.
    pub taken: bool,
    /// The status, if there was an answer.
    pub status: Option<u16>,
    /// For people.
    pub outcome: String,
    /// The endpoint wants no more messages, ever.
    gone: bool,
    retry_after: Option<Duration>,
}

/// Where a message goes and who signs it.
struct Addressed {
    endpoint: Option<EndpointId>,
    url: String,
    secrets: Vec<WebhookSecret>,
}

type Turns = HashMap<String, Arc<Semaphore>>;

impl Outbox {
    /// The outbox of `store`.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        endpoints: Endpoints,
        client: DeliveryClient,
        clock: SystemClock,
    ) -> Self {
        Self {
            store,
            endpoints,
            client,
            clock,
            again: Notify::new(),
        }
    }

    /// Looks at once for what is due, such as what is to be sent again.
    pub fn look_again(&self) {
        self.again.notify_one();
    }

    /// Sends what comes due until `tasks` are cancelled. What is on its way then is sent again by
    /// the next process.
    pub async fn keep_sending(self: Arc<Self>, tasks: Tasks) {
        let mut under_way = JoinSet::new();
        let mut turns = Turns::new();
        let mut news = self.store.newest_event();
        loop {
            news.mark_unchanged();
            let pause = match self.send_due(&mut under_way, &mut turns).await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::warn!(%error, "what is to be delivered cannot be read");
                    AGAIN
                }
            };
            tokio::select! {
                Some(_) = under_way.join_next() => {}
                () = tokio::time::sleep(pause), if under_way.len() < AT_ONCE => {}
                changed = news.changed(), if under_way.len() < AT_ONCE => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = self.again.notified() => {}
                () = tasks.cancelled() => return,
            }
        }
    }

    /// Begins to send what is due; tells how long nothing more is.
    async fn send_due(
        self: &Arc<Self>,
        under_way: &mut JoinSet<()>,
        turns: &mut Turns,
    ) -> Result<Duration, StoreError> {
        while under_way.try_join_next().is_some() {}
        let room = AT_ONCE.saturating_sub(under_way.len());
        let due = match room {
            0 => Vec::new(),
            room => {
                self.store
                    .due_deliveries(room, HOLD, self.clock.now())
                    .await?
            }
        };
        if due.is_empty() {
            if under_way.is_empty() {
                turns.clear();
            }
            let next = self.store.next_delivery().await?;
            let wait = next.map(|at| at.since(self.clock.now().wall));
            // What is held is due again when its hold ends.
            return Ok(wait
                .unwrap_or(LOOK_AGAIN)
                .clamp(Duration::from_millis(10), LOOK_AGAIN));
        }
        let endpoints = self.store.endpoints().await?;
        for delivery in due {
            let addressed = self.address(&delivery.target, &endpoints).await?;
            let url = addressed.as_ref().map(|addressed| addressed.url.clone());
            let turn = turns.entry(url.unwrap_or_default());
            let turn = turn.or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE_EACH)));
            let (outbox, turn) = (Arc::clone(self), Arc::clone(turn));
            under_way.spawn(async move {
                let turn = tokio::time::timeout(TURN_WITHIN, turn.acquire_owned()).await;
                let Ok(Ok(_turn)) = turn else {
                    return;
                };
                if let Err(error) = outbox.send(delivery, addressed).await {
                    tracing::warn!(%error, "what came of a webhook could not be recorded");
                }
            });
        }
        Ok(Duration::ZERO)
    }

    /// None where the endpoint is gone.
    async fn address(
        &self,
        target: &Target,
        endpoints: &[Endpoint],
    ) -> Result<Option<Addressed>, StoreError> {
        Ok(match target {
            Target::Endpoint(id) => endpoints
                .iter()
                .find(|endpoint| endpoint.id == *id)
                .map(|endpoint| self.addressed(endpoint)),
            Target::Callback(callback) => {
                let key = callback.signed_by.as_deref();
                Some(Addressed {
                    endpoint: None,
                    url: callback.url.clone(),
                    secrets: vec![self.endpoints.callback_secret(key).await?],
                })
            }
        })
    }

    fn addressed(&self, endpoint: &Endpoint) -> Addressed {
        Addressed {
            endpoint: Some(endpoint.id),
            url: endpoint.url.clone(),
            secrets: EndpointState::of(endpoint).signing(self.clock.now().wall),
        }
    }

    async fn send(
        &self,
        delivery: Delivery,
        addressed: Option<Addressed>,
    ) -> Result<(), StoreError> {
        let Some(addressed) = addressed else {
            let state = DeliveryState::GivenUp;
            let outcome = "the webhook was removed".to_owned();
            return self.record(&delivery, state, outcome).await;
        };
        let tried = self.try_once(&delivery.event, &addressed).await?;
        let state = self.state_after(&delivery, &tried);
        self.record(&delivery, state, tried.outcome.clone()).await?;
        match addressed.endpoint {
            // Nothing was sent, and what is kept with the endpoint is not to be overwritten.
            Some(_) if addressed.secrets.is_empty() => Ok(()),
            Some(endpoint) => {
                self.endpoints
                    .tried(endpoint, tried.taken, tried.gone)
                    .await
            }
            None => Ok(()),
        }
    }

    fn state_after(&self, delivery: &Delivery, tried: &Tried) -> DeliveryState {
        if tried.taken {
            return DeliveryState::Delivered;
        }
        let random = fastrand::f64();
        match schedule::wait(delivery.attempts + 1, tried.retry_after, random) {
            Some(wait) if !tried.gone => DeliveryState::Due(self.clock.now().wall + wait),
            _ => DeliveryState::GivenUp,
        }
    }

    async fn record(
        &self,
        delivery: &Delivery,
        state: DeliveryState,
        outcome: String,
    ) -> Result<(), StoreError> {
        let attempted = Attempted {
            delivery: delivery.id,
            state,
            outcome,
        };
        self.store
            .delivered(vec![attempted], self.clock.now())
            .await
    }

    async fn try_once(
        &self,
        event: &StoredEvent,
        addressed: &Addressed,
    ) -> Result<Tried, StoreError> {
        let job = match &event.event.subject {
            // The message does without a job that cannot be read.
            Subject::Job { id, .. } => self.store.job(*id).await.ok().flatten(),
            _ => None,
        };
        if addressed.secrets.is_empty() {
            return Ok(Tried {
                taken: false,
                status: None,
                outcome: "the webhook has no secret that can be read: rotate it".to_owned(),
                gone: false,
                retry_after: None,
            });
        }
        let outgoing = Outgoing {
            url: &addressed.url,
            id: &message::message_id(self.store.id(), event),
            body: message::body(event, job.as_ref()),
            secrets: &addressed.secrets,
        };
        let now = self.clock.now().wall;
        Ok(told(self.client.deliver(outgoing, now).await))
    }

    /// Sends an endpoint a message that tells of nothing, to see whether it takes it. Nothing is
    /// recorded.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub async fn test(&self, endpoint: &Endpoint) -> Result<Tried, StoreError> {
        let now = self.clock.now().wall;
        let event = StoredEvent {
            id: EventId(test_number(now)),
            at: now,
            event: NewEvent {
                kind: "webhook.test".to_owned(),
                tenant: endpoint.tenant.clone(),
                subject: Subject::Other(endpoint.id.to_string()),
                data: json!({"message": "this is a test"}),
            },
        };
        self.try_once(&event, &self.addressed(endpoint)).await
    }
}

/// A test is no event of the store, and must not have the id of one.
fn test_number(now: WallTime) -> u64 {
    u64::try_from(now.as_micros()).unwrap_or(0) | 1 << 63
}

fn told(answer: Result<EndpointAnswer, DeliveryError>) -> Tried {
    match answer {
        Ok(answer) => Tried {
            taken: answer.status.is_success(),
            status: Some(answer.status.as_u16()),
            outcome: match answer.excerpt.as_str() {
                "" => answer.status.to_string(),
                words => format!("{}: {words}", answer.status),
            },
            gone: answer.status == http::StatusCode::GONE,
            retry_after: answer.retry_after,
        },
        Err(error) => Tried {
            taken: false,
            status: None,
            outcome: error.to_string(),
            gone: false,
            retry_after: None,
        },
    }
}
