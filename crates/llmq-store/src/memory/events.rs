//! The log of events and the outbox.

use std::time::Duration;

use llmq_core::{Now, WallTime};

use super::state::State;
use crate::{
    Attempted, Delivery, DeliveryId, DeliveryState, Endpoint, EndpointId, EventId, EventPage,
    JobId, NewEvent, StoredEvent, Target, outbox,
};

impl State {
    /// Records an event, with a delivery for each who is to be told. `of` is the job it is about.
    pub(super) fn tell(&mut self, event: NewEvent, of: Option<JobId>, now: Now) {
        self.last_event += 1;
        let event = StoredEvent {
            id: EventId(self.last_event),
            at: now.wall,
            event,
        };
        let job = of.and_then(|id| self.jobs.get(&id)).map(|row| &row.job);
        for target in outbox::targets(&event.event, job, self.endpoints.values()) {
            self.last_delivery += 1;
            let id = DeliveryId(self.last_delivery);
            let delivery = Delivery {
                id,
                target,
                event: event.clone(),
                state: DeliveryState::Due(now.wall),
                attempts: 0,
                last_attempt_at: None,
                last_outcome: None,
            };
            self.deliveries.insert(id, delivery);
        }
        self.events.push_back(event);
    }

    pub(super) fn events(&self, after: EventId, max: usize) -> EventPage {
        let oldest = self
            .events
            .front()
            .map_or(self.last_event + 1, |event| event.id.0);
        if after.0 + 1 < oldest {
            let oldest = EventId(oldest);
            return EventPage::Gap { oldest };
        }
        let skip = usize::try_from(after.0 + 1 - oldest).unwrap_or(usize::MAX);
        let events = self.events.iter().skip(skip).take(max);
        EventPage::Events(events.cloned().collect())
    }

    /// Lets go of events, deliveries, files and batches that were kept long enough.
    pub(super) fn let_go(&mut self, slice: usize, now: Now) {
        let before = now.wall.before(self.settings.keep_events);
        while let Some(event) = self.events.front()
            && (event.at <= before || self.events.len() as u64 > self.settings.max_events)
        {
            self.events.pop_front();
        }
        let before = now.wall.before(self.settings.keep_results);
        let done = self
            .deliveries
            .values()
            .filter(|delivery| match delivery.state {
                DeliveryState::Due(_) => false,
                DeliveryState::Delivered | DeliveryState::GivenUp => delivery
                    .last_attempt_at
                    .is_none_or(|attempt| attempt <= before),
            });
        let done: Vec<_> = done.map(|delivery| delivery.id).take(slice).collect();
        for id in done {
            self.deliveries.remove(&id);
        }
        let is_over = |at: Option<WallTime>| at.is_some_and(|at| at <= now.wall);
        self.files.retain(|_, row| !is_over(row.file.expires_at));
        let members = &self.members;
        self.batches.retain(|id, batch| {
            let mut of_it = members.range((*id, 0)..=(*id, u32::MAX));
            !(batch.status.is_final() && batch.changed_at <= before && of_it.next().is_none())
        });
    }

    pub(super) fn put_endpoint(&mut self, endpoint: Endpoint, event: Option<NewEvent>, now: Now) {
        self.endpoints.insert(endpoint.id, endpoint);
        if let Some(event) = event {
            self.tell(event, None, now);
        }
    }

    pub(super) fn delete_endpoint(&mut self, id: EndpointId) -> bool {
        self.deliveries
            .retain(|_, delivery| delivery.target != Target::Endpoint(id));
        self.endpoints.remove(&id).is_some()
    }

    /// Deliveries that wait and whose endpoint is not disabled, with when they are due.
    fn waiting_deliveries(&self) -> impl Iterator<Item = (WallTime, DeliveryId)> {
        let is_open = |target: &Target| match target {
            Target::Endpoint(id) => self.endpoints.get(id).is_some_and(|found| !found.disabled),
            Target::Callback(_) => true,
        };
        let open = self.deliveries.values();
        let open = open.filter(move |delivery| is_open(&delivery.target));
        open.filter_map(|delivery| match delivery.state {
            DeliveryState::Due(at) => Some((at, delivery.id)),
            DeliveryState::Delivered | DeliveryState::GivenUp => None,
        })
    }

    pub(super) fn due_deliveries(&mut self, max: usize, hold: Duration, now: Now) -> Vec<Delivery> {
        let due = self.waiting_deliveries().filter(|(at, _)| *at <= now.wall);
        let mut due: Vec<_> = due.collect();
        due.sort_unstable();
        let mut held = Vec::new();
        for (_, id) in due.into_iter().take(max) {
            if let Some(delivery) = self.deliveries.get_mut(&id) {
                delivery.state = DeliveryState::Due(now.wall + hold);
                held.push(delivery.clone());
            }
        }
        held
    }

    pub(super) fn next_delivery(&self) -> Option<WallTime> {
        self.waiting_deliveries().map(|(at, _)| at).min()
    }

    pub(super) fn delivered(&mut self, attempts: Vec<Attempted>, now: Now) {
        for attempt in attempts {
            if let Some(delivery) = self.deliveries.get_mut(&attempt.delivery) {
                delivery.state = attempt.state;
                delivery.attempts += 1;
                delivery.last_attempt_at = Some(now.wall);
                delivery.last_outcome = Some(attempt.outcome);
            }
        }
    }

    pub(super) fn list_deliveries(
        &self,
        endpoint: Option<EndpointId>,
        after: Option<DeliveryId>,
        limit: usize,
    ) -> Vec<Delivery> {
        let to_it = |delivery: &&Delivery| {
            endpoint.is_none_or(|endpoint| delivery.target == Target::Endpoint(endpoint))
        };
        let behind = |delivery: &&Delivery| after.is_none_or(|after| delivery.id < after);
        let deliveries = self.deliveries.values().rev().filter(to_it).filter(behind);
        deliveries.take(limit).cloned().collect()
    }

    pub(super) fn redeliver(&mut self, id: DeliveryId, now: Now) -> bool {
        let delivery = self.deliveries.get_mut(&id);
        delivery
            .map(|delivery| delivery.state = DeliveryState::Due(now.wall))
            .is_some()
    }
}
