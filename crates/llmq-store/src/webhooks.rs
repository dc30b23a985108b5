use std::time::Duration;

use async_trait::async_trait;
use llmq_core::{Now, WallTime};
use serde::{Deserialize, Serialize};

use crate::{Callback, EndpointId, NewEvent, StoreError, StoredEvent};

/// Where events are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its id.
    pub id: EndpointId,
    /// Whose it is: it is told of this tenant's events and of nobody's. `None`: of all.
    pub tenant: Option<String>,
    /// Where it is.
    pub url: String,
    /// The events it asks for, such as `request.completed` or `batch.*`; empty: all that
    /// webhooks are offered ([`is_offered`]).
    pub events: Vec<String>,
    /// Nothing is delivered while it is set, and nothing is added to what is to be delivered.
    pub disabled: bool,
    /// What its owner keeps with it (secrets, a description, since when it fails), which no store
    /// looks at.
    pub state: serde_json::Value,
    /// When it was made.
    pub created_at: WallTime,
}

impl Endpoint {
    /// Whether it is to be told of `event`.
    ///
    /// ```
    /// # use llmq_store::*;
    /// # let event = |kind: &str| NewEvent { kind: kind.into(), tenant: None, subject: Subject::Other(String::new()), data: Default::default() };
    /// let endpoint = Endpoint {
    ///     id: EndpointId::new(), tenant: None, url: "https://example.com".into(),
    ///     events: vec!["batch.*".into()], disabled: false, state: Default::default(),
    ///     created_at: Default::default(),
    /// };
    /// assert!(endpoint.wants(&event("batch.completed")));
    /// assert!(!endpoint.wants(&event("request.completed")));
    /// ```
    #[must_use]
    pub fn wants(&self, event: &NewEvent) -> bool {
        let of_tenant = match (&self.tenant, &event.tenant) {
            (Some(mine), Some(its)) => mine == its,
            (Some(_), None) => !event.is_for_operators(),
            (None, _) => true,
        };
        !self.disabled && is_offered(&event.kind) && of_tenant && self.asks_for(&event.kind)
    }

    fn asks_for(&self, kind: &str) -> bool {
        self.events.is_empty()
            || self
                .events
                .iter()
                .any(|wanted| match wanted.strip_suffix('*') {
                    Some(beginning) => kind.starts_with(beginning),
                    None => kind == wanted,
                })
    }
}

/// What webhooks are told of, by name. The steps of a job on its way, and of an upstream, are for
/// those who watch ([`Events`](crate::Events)).
pub const OFFERED: [&str; 16] = [
    "request.completed",
    "request.failed",
    "request.expired",
    "request.cancelled",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
    "queue.paused",
    "queue.resumed",
    "quota.warning",
    "quota.critical",
    "quota.emergency",
    "breaker.opened",
    "breaker.closed",
    "webhook.disabled",
];

/// Whether webhooks are told of events of this name at all.
#[must_use]
pub fn is_offered(kind: &str) -> bool {
    OFFERED.contains(&kind)
}

/// A delivery's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeliveryId(pub u64);

/// Whom a delivery goes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// An endpoint.
    Endpoint(EndpointId),
    /// A job's own callback.
    Callback(Callback),
}

/// One event that one target is to be told of, and how far that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Its number.
    pub id: DeliveryId,
    /// Who is told.
    pub target: Target,
    /// Of what. Kept here whole, since it may be delivered when the log has let it go. The
    /// `webhook-id` is made of the store's id and the event's number, so it is the same in every
    /// attempt.
    pub event: StoredEvent,
    /// How far it is.
    pub state: DeliveryState,
    /// Attempts so far.
    pub attempts: u32,
    /// When the newest attempt was, or when it was given up without one.
    pub last_attempt_at: Option<WallTime>,
    /// What came of it, for people: a status, or an error.
    pub last_outcome: Option<String>,
}

/// How far a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It waits until then.
    Due(WallTime),
    /// The target took it.
    Delivered,
    /// Nobody tries any more.
    GivenUp,
}

/// What came of an attempt to deliver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempted {
    /// The delivery.
    pub delivery: DeliveryId,
    /// What follows.
    pub next: NextTry,
    /// For people: a status, or an error.
    pub outcome: String,
}

/// What follows an attempt to deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextTry {
    /// Nothing: the target took it.
    Delivered,
    /// Nothing: nobody tries any more.
    GivenUp,
    /// Another, so much later. A jump of the wall does not move it.
    After(Duration),
}

/// How much is taken of what is to be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Take {
    /// At most so many in all.
    pub max: usize,
    /// At most so many are out to one addressee at once …
    pub each: usize,
    /// … and to one that did not take the last that it was sent.
    pub each_failing: usize,
    /// For so long they are handed to nobody else.
    pub hold: Duration,
}

/// What is to be delivered now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Due {
    /// Longest due first, as far as their addressees differ.
    pub deliveries: Vec<Delivery>,
    /// How long it is until the next may be taken, if nobody reports before: `None` when none
    /// waits, or all that wait are behind one that is out.
    pub wait: Option<Duration>,
}

/// Endpoints, and the outbox of what they are to be told.
#[async_trait]
pub trait Webhooks {
    /// Records an endpoint, in the place of the one with its id, with an event that tells of it
    /// if there is one to tell (`webhook.disabled`).
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn put_endpoint(
        &self,
        endpoint: Endpoint,
        event: Option<NewEvent>,
        now: Now,
    ) -> Result<(), StoreError>;

    /// Removes an endpoint with what was and what was to be delivered to it: nobody is handed any
    /// of it any more, and housekeeping ([`Jobs::tend`](crate::Jobs::tend)) gives back its room in
    /// slices. Whether there was one.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn delete_endpoint(&self, endpoint: EndpointId) -> Result<bool, StoreError>;

    /// All endpoints, oldest first.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn endpoints(&self) -> Result<Vec<Endpoint>, StoreError>;

    /// Takes deliveries that are due. Each addressee ([`Addressee`](crate::Addressee)) has its own
    /// line, so that one that takes nothing, or long, delays nobody else. What is taken is handed
    /// to nobody else for `take.hold`, so that a process that dies meanwhile loses none and two
    /// that share the store seldom send one twice. What is to go to a disabled endpoint waits; it
    /// is given up when it has waited for [`Settings::keep_results`](crate::Settings).
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn due_deliveries(&self, take: Take, now: Now) -> Result<Due, StoreError>;

    /// Records what came of attempts. One whose delivery is gone is passed over.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: none was recorded.
    async fn delivered(&self, attempts: Vec<Attempted>, now: Now) -> Result<(), StoreError>;

    /// A delivery; `None` for one that is not there.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn delivery(&self, delivery: DeliveryId) -> Result<Option<Delivery>, StoreError>;

    /// Deliveries to an endpoint, or all, newest first, from behind `after` on.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn deliveries(
        &self,
        endpoint: Option<EndpointId>,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Result<Vec<Delivery>, StoreError>;

    /// Makes a delivery due now, whatever its state. Whether it is there.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    async fn redeliver(&self, delivery: DeliveryId, now: Now) -> Result<bool, StoreError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_a_filter_is_told_what_webhooks_offer_and_nothing_else() {
        let endpoint = Endpoint {
            id: EndpointId::new(),
            tenant: None,
            url: "https://example.com".to_owned(),
            events: Vec::new(),
            disabled: false,
            state: serde_json::Value::Null,
            created_at: WallTime::from_micros(0),
        };
        let event = |kind: &str| NewEvent {
            kind: kind.to_owned(),
            tenant: None,
            subject: crate::Subject::Other("x".to_owned()),
            data: serde_json::Value::Null,
        };
        for kind in OFFERED {
            assert!(endpoint.wants(&event(kind)), "{kind}");
        }
        for kind in [
            "upstream.rate_limited",
            "limit.learned",
            "quota.paused",
            "request.queued",
        ] {
            assert!(!endpoint.wants(&event(kind)), "{kind}");
        }
    }
}
