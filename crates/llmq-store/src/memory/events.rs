//! The log of events, and who is told of them.

use llmq_core::{Now, WallTime};

use super::state::State;
use crate::{Endpoint, EndpointId, EventId, EventPage, JobId, NewEvent, StoredEvent, targets};

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
        let targets = targets(&event.event, job, self.endpoints.values());
        let due = self.clock(now).at(now);
        for target in targets {
            let max = self.settings.max_deliveries;
            self.outbox.add(target, event.clone(), due, max, now);
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
        let steady = self.clock(now).at(now);
        let late = steady.before(self.settings.keep_results);
        self.outbox.let_go(slice, &self.endpoints, late, now);
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
        self.outbox.forget(id);
        self.endpoints.remove(&id).is_some()
    }
}
