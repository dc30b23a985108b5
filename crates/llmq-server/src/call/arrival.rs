//! A call on its way into the line, and what is recorded of one that is refused before it stands
//! there.

use std::time::Duration;

use llmq_core::{Clock, Now, Priority};
use llmq_engine::spoken;
use llmq_provider::Operation;
use uuid::Uuid;

use super::body::ReplyBody;
use super::incoming::Incoming;
use super::reply::{self, Reply};
use crate::Gateway;
use crate::dialect::Refusal;
use crate::observe::CallRecord;

/// As much as has been read of a call: what it has not said yet is empty.
pub(crate) struct Arrival {
    pub(super) id: Uuid,
    pub(super) operation: Operation,
    pub(super) at: Now,
    pub(super) tenant: String,
    pub(super) model: String,
    pub(super) priority: Priority,
    pub(super) stream: bool,
}

impl Arrival {
    pub(super) fn new(operation: Operation, at: Now) -> Self {
        Self {
            id: Uuid::now_v7(),
            operation,
            at,
            tenant: String::new(),
            model: String::new(),
            priority: Priority::HIGH,
            stream: false,
        }
    }

    /// The call is over with these words: it is counted and logged like any other.
    pub(super) fn refused(&self, gateway: &Gateway, refusal: &Refusal) -> Reply {
        // The name is the caller's text, of any length: it is shown short.
        let model: String = self.model.chars().take(100).collect();
        let took = gateway.clock.now().mono - self.at.mono;
        let record = CallRecord {
            id: self.id,
            tenant: &self.tenant,
            model: &model,
            upstream: None,
            operation: self.operation,
            priority: self.priority,
            stream: self.stream,
            status: refusal.status.as_u16(),
            outcome: None,
            attempts: 0,
            queued: Duration::ZERO,
            took,
            added: took,
            first_token: None,
            usage: None,
        };
        gateway.observed.metrics.call(&record);
        if !gateway.log.call(&record) {
            gateway.observed.metrics.not_logged();
        }
        reply::own_words(refusal, spoken(self.operation), self.id).map(ReplyBody::whole)
    }
}

impl Incoming {
    /// The same for a call that was read, and neither stands in line nor has become a job.
    pub(crate) fn refused(&self, gateway: &Gateway, refusal: &Refusal) -> Reply {
        let arrival = Arrival {
            id: self.id,
            operation: self.operation,
            at: self.arrived,
            tenant: self.tenant_name.clone(),
            model: self.model.clone(),
            priority: self.priority,
            stream: self.stream,
        };
        arrival.refused(gateway, refusal)
    }
}
