use std::sync::Arc;
use std::time::Duration;

use llmq_client::webhooks::WebhookSecret;
use llmq_core::{Clock, WallTime};
use llmq_store::{
    Attempted, Delivery, Endpoint, EndpointId, EventId, NewEvent, NextTry, Store, StoreError,
    StoredEvent, Subject, Take, Target,
};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::client::{DeliveryClient, DeliveryError, EndpointAnswer, Outgoing};
use super::endpoints::{EndpointState, Endpoints};
use super::{message, schedule};
use crate::{SystemClock, Tasks};

/// So much is on its way at once, and so much of it to one addressee. One that does not answer, or
/// refuses, holds a small share of it until it takes something again.
const TAKE: Take = Take {
    max: AT_ONCE,
    each: 16,
    each_failing: 2,
    // Longer than a try takes.
    hold: Duration::from_secs(60),
};
const AT_ONCE: usize = 128;
/// However long nothing comes due, it is looked again after this time.
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
        let mut news = self.store.newest_event();
        loop {
            news.mark_unchanged();
            let pause = match self.send_due(&mut under_way).await {
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
    ) -> Result<Duration, StoreError> {
        while under_way.try_join_next().is_some() {}
        let take = Take {
            max: AT_ONCE.saturating_sub(under_way.len()),
            ..TAKE
        };
        if take.max == 0 {
            return Ok(LOOK_AGAIN);
        }
        let due = self.store.due_deliveries(take, self.clock.now()).await?;
        if !due.deliveries.is_empty() {
            let endpoints = self.store.endpoints().await?;
            for delivery in due.deliveries {
                let addressed = match self.address(&delivery.target, &endpoints).await {
                    Ok(addressed) => addressed,
                    // It is handed out again later; the others go on.
                    Err(error) => {
                        tracing::warn!(delivery = delivery.id.0, %error, "a webhook is not sent yet");
                        continue;
                    }
                };
                let outbox = Arc::clone(self);
                under_way.spawn(async move {
                    if let Err(error) = outbox.send(delivery, addressed).await {
                        tracing::warn!(%error, "what came of a webhook could not be recorded");
                    }
                });
            }
        }
        let wait = due.wait.unwrap_or(LOOK_AGAIN);
        Ok(wait.clamp(Duration::from_millis(10), LOOK_AGAIN))
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
                let secrets = match self.endpoints.callback_secret(key).await {
                    Ok(secret) => vec![secret],
                    // No other one is made: its receivers know the one that was.
                    Err(StoreError::Damaged { what }) => {
                        tracing::error!(what, "the secret of callbacks is damaged: none is sent");
                        Vec::new()
                    }
                    Err(error) => return Err(error),
                };
                Some(Addressed {
                    endpoint: None,
                    url: callback.url.clone(),
                    secrets,
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
            let outcome = "the webhook was removed".to_owned();
            return self.record(&delivery, NextTry::GivenUp, outcome).await;
        };
        let tried = self.try_once(&delivery.event, &addressed).await?;
        let next = next_try(&delivery, &tried);
        self.record(&delivery, next, tried.outcome.clone()).await?;
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

    async fn record(
        &self,
        delivery: &Delivery,
        next: NextTry,
        outcome: String,
    ) -> Result<(), StoreError> {
        let attempted = Attempted {
            delivery: delivery.id,
            next,
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
                outcome: match addressed.endpoint {
                    Some(_) => "the webhook has no secret that can be read: rotate it",
                    None => "the secret that signs callbacks is damaged in the store",
                }
                .to_owned(),
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

fn next_try(delivery: &Delivery, tried: &Tried) -> NextTry {
    if tried.taken {
        return NextTry::Delivered;
    }
    let random = fastrand::f64();
    match schedule::wait(delivery.attempts + 1, tried.retry_after, random) {
        Some(wait) if !tried.gone => NextTry::After(wait),
        _ => NextTry::GivenUp,
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
