//! What is to be delivered, in a line for each addressee.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use llmq_core::{Now, Timestamp, WallTime};

use crate::{
    Addressee, Attempted, Delivery, DeliveryId, DeliveryState, Due, Endpoint, EndpointId, NextTry,
    Steady, StoredEvent, Take, Target,
};

/// Deliveries; their `Due` instants are in steady time.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    deliveries: BTreeMap<DeliveryId, Delivery>,
    lines: HashMap<Addressee, Line>,
    last: u64,
}

/// What waits for one addressee.
#[derive(Debug, Default)]
struct Line {
    by_due: BTreeSet<(WallTime, DeliveryId)>,
    by_age: BTreeSet<DeliveryId>,
    /// Until when nobody else is handed them.
    out: HashMap<DeliveryId, Timestamp>,
    /// The last that was sent was not taken.
    is_failing: bool,
}

impl Line {
    fn room(&self, take: &Take) -> usize {
        let each = if self.is_failing {
            take.each_failing
        } else {
            take.each
        };
        each.saturating_sub(self.out.len())
    }
}

type Endpoints = BTreeMap<EndpointId, Endpoint>;

impl Outbox {
    /// Adds a delivery that is due at `due`; the oldest of more than `max` is given up.
    pub(super) fn add(
        &mut self,
        target: Target,
        event: StoredEvent,
        due: WallTime,
        max: u64,
        now: Now,
    ) {
        self.last += 1;
        let id = DeliveryId(self.last);
        let addressee = Addressee::of(&target, &event.event);
        let delivery = Delivery {
            id,
            target,
            event,
            state: DeliveryState::Due(due),
            attempts: 0,
            last_attempt_at: None,
            last_outcome: None,
        };
        self.deliveries.insert(id, delivery);
        let line = self.lines.entry(addressee).or_default();
        line.by_due.insert((due, id));
        line.by_age.insert(id);
        if line.by_age.len() as u64 > max {
            let oldest = line.by_age.iter().find(|id| !line.out.contains_key(id));
            if let Some(oldest) = oldest.copied() {
                self.give_up(oldest, "too many wait", now);
            }
        }
    }

    fn give_up(&mut self, id: DeliveryId, outcome: &str, now: Now) {
        self.leave(id);
        if let Some(delivery) = self.deliveries.get_mut(&id) {
            delivery.state = DeliveryState::GivenUp;
            delivery.last_attempt_at = Some(now.wall);
            delivery.last_outcome = Some(outcome.to_owned());
        }
    }

    /// A delivery waits no more.
    fn leave(&mut self, id: DeliveryId) {
        let Some(delivery) = self.deliveries.get(&id) else {
            return;
        };
        let addressee = Addressee::of(&delivery.target, &delivery.event.event);
        let Some(line) = self.lines.get_mut(&addressee) else {
            return;
        };
        if let DeliveryState::Due(due) = delivery.state {
            line.by_due.remove(&(due, id));
        }
        line.by_age.remove(&id);
        line.out.remove(&id);
        if line.by_age.is_empty() {
            self.lines.remove(&addressee);
        }
    }

    fn line_of(&mut self, id: DeliveryId) -> Option<(&mut Line, &mut Delivery)> {
        let delivery = self.deliveries.get_mut(&id)?;
        let addressee = Addressee::of(&delivery.target, &delivery.event.event);
        Some((self.lines.entry(addressee).or_default(), delivery))
    }

    pub(super) fn take(
        &mut self,
        take: &Take,
        endpoints: &Endpoints,
        steady: WallTime,
        now: Now,
    ) -> Due {
        let mut due = Vec::new();
        let mut wait: Option<Duration> = None;
        let mut at_least = |span: Duration| wait = Some(wait.map_or(span, |wait| wait.min(span)));
        for (addressee, line) in &mut self.lines {
            line.out.retain(|_, until| *until > now.mono);
            if is_closed(addressee, endpoints) {
                continue;
            }
            line.out
                .values()
                .for_each(|until| at_least(*until - now.mono));
            let free = line
                .by_due
                .iter()
                .filter(|(_, id)| !line.out.contains_key(id));
            for (at, id) in free.take(line.room(take)) {
                if *at <= steady {
                    due.push((*at, *id, addressee.clone()));
                } else {
                    at_least(at.since(steady));
                    break;
                }
            }
        }
        due.sort_unstable();
        let is_cut = due.len() > take.max;
        due.truncate(take.max);
        let mut deliveries = Vec::new();
        for (_, id, addressee) in due {
            if let (Some(line), Some(delivery)) =
                (self.lines.get_mut(&addressee), self.deliveries.get(&id))
            {
                line.out.insert(id, now.mono + take.hold);
                deliveries.push(delivery.clone());
            }
        }
        if is_cut {
            wait = Some(Duration::ZERO);
        }
        Due { deliveries, wait }
    }

    pub(super) fn attempted(&mut self, attempt: Attempted, steady: WallTime, now: Now) {
        let id = attempt.delivery;
        let Some((line, delivery)) = self.line_of(id) else {
            return;
        };
        line.is_failing = attempt.next != NextTry::Delivered;
        delivery.attempts += 1;
        delivery.last_attempt_at = Some(now.wall);
        delivery.last_outcome = Some(attempt.outcome);
        match attempt.next {
            NextTry::After(wait) => self.wait_until(id, steady + wait),
            NextTry::Delivered => self.end(id, DeliveryState::Delivered),
            NextTry::GivenUp => self.end(id, DeliveryState::GivenUp),
        }
    }

    fn end(&mut self, id: DeliveryId, state: DeliveryState) {
        self.leave(id);
        if let Some(delivery) = self.deliveries.get_mut(&id) {
            delivery.state = state;
        }
    }

    fn wait_until(&mut self, id: DeliveryId, due: WallTime) {
        let Some((line, delivery)) = self.line_of(id) else {
            return;
        };
        let before = std::mem::replace(&mut delivery.state, DeliveryState::Due(due));
        if let DeliveryState::Due(before) = before {
            line.by_due.remove(&(before, id));
        }
        line.by_due.insert((due, id));
        line.by_age.insert(id);
        line.out.remove(&id);
    }

    /// Makes a delivery due at once. Whether it is there.
    pub(super) fn again(&mut self, id: DeliveryId, steady: WallTime) -> bool {
        let is_there = self.deliveries.contains_key(&id);
        self.wait_until(id, steady);
        is_there
    }

    /// Gives up what a disabled endpoint did not ask for in time, and lets go of what ended.
    pub(super) fn let_go(
        &mut self,
        slice: usize,
        endpoints: &Endpoints,
        before: WallTime,
        now: Now,
    ) {
        let closed = self.lines.iter();
        let closed = closed.filter(|(addressee, _)| is_closed(addressee, endpoints));
        let late = closed.flat_map(|(_, line)| {
            let due = line.by_due.iter();
            due.take_while(|(at, _)| *at <= before)
        });
        let late: Vec<_> = late.map(|(_, id)| *id).take(slice).collect();
        for id in late {
            self.give_up(id, "its webhook was disabled", now);
        }
        let done = self.deliveries.values();
        let done = done.filter(|delivery| match delivery.state {
            DeliveryState::Due(_) => false,
            DeliveryState::Delivered | DeliveryState::GivenUp => {
                delivery.last_attempt_at.is_none_or(|at| at <= before)
            }
        });
        let done: Vec<_> = done.map(|delivery| delivery.id).take(slice).collect();
        for id in done {
            self.deliveries.remove(&id);
        }
    }

    pub(super) fn forget(&mut self, endpoint: EndpointId) {
        self.deliveries
            .retain(|_, delivery| delivery.target != Target::Endpoint(endpoint));
        self.lines.remove(&Addressee::Endpoint(endpoint));
    }

    pub(super) fn get(&self, id: DeliveryId, clock: Steady, now: Now) -> Option<Delivery> {
        self.deliveries
            .get(&id)
            .map(|delivery| shown(delivery, clock, now))
    }

    pub(super) fn list(
        &self,
        endpoint: Option<EndpointId>,
        after: Option<DeliveryId>,
        limit: usize,
        clock: Steady,
        now: Now,
    ) -> Vec<Delivery> {
        let to_it = |delivery: &&Delivery| {
            endpoint.is_none_or(|endpoint| delivery.target == Target::Endpoint(endpoint))
        };
        let behind = |delivery: &&Delivery| after.is_none_or(|after| delivery.id < after);
        let deliveries = self.deliveries.values().rev().filter(to_it).filter(behind);
        deliveries
            .take(limit)
            .map(|delivery| shown(delivery, clock, now))
            .collect()
    }
}

fn is_closed(addressee: &Addressee, endpoints: &Endpoints) -> bool {
    match addressee {
        Addressee::Endpoint(id) => endpoints.get(id).is_none_or(|found| found.disabled),
        Addressee::Host { .. } => false,
    }
}

fn shown(delivery: &Delivery, clock: Steady, now: Now) -> Delivery {
    let mut delivery = delivery.clone();
    if let DeliveryState::Due(at) = &mut delivery.state {
        *at = clock.on_the_wall(*at, now);
    }
    delivery
}
