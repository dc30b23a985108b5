//! Usage that is told after its call has ended.

use std::collections::VecDeque;

use llmq_core::{Now, Usage};
use llmq_limit::{Entry, Settled};
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use crate::dispatcher::{Dispatcher, LimitSlot};
use crate::events::Effect;
use crate::ids::{LimitId, QueueId, TicketId, UpstreamId};
use crate::order::Spot;
use crate::ticket::{Running, State};

/// What the last calls of a queue were charged that have ended.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// So many; the rest is forgotten.
    most: usize,
    calls: FxHashMap<TicketId, Charged>,
    /// Oldest first.
    order: VecDeque<TicketId>,
}

/// What the last attempt of a call was charged.
#[derive(Debug)]
struct Charged {
    upstream: UpstreamId,
    charges: Charges,
    /// Whether the length of its answer is still to be learned.
    teaches: bool,
}

type Charges = SmallVec<[(LimitId, Settled); 1]>;

impl Remembered {
    fn insert(&mut self, id: TicketId, charged: Charged) {
        if self.calls.insert(id, charged).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > self.most {
            if let Some(oldest) = self.order.pop_front() {
                self.calls.remove(&oldest);
            }
        }
    }
}

impl Dispatcher {
    /// Remembers of so many of a queue's last calls what they were charged, for usage that is told
    /// after their end ([`Dispatcher::correct`]). None unless said.
    pub fn remember_calls(&mut self, queue: QueueId, most: usize) {
        self.queues[queue.index()].remembered.most = most;
    }

    /// Ends an attempt's hold on its limits, each as `end` says. Where its queue wants that, it is
    /// remembered what it was charged.
    pub(crate) fn settle(
        &mut self,
        id: TicketId,
        running: &Running,
        mut end: impl FnMut(&mut LimitSlot, Entry) -> Option<Settled>,
    ) {
        let mut charges = Charges::new();
        for (limit, entry) in &running.entries {
            let settled = end(&mut self.limits[limit.index()], *entry);
            charges.extend(settled.map(|settled| (*limit, settled)));
            self.touch(Spot::Limit(*limit));
        }
        let queue = self.ticket(id).map(|ticket| ticket.call.queue);
        let Some(queue) = queue else { return };
        let remembered = &mut self.queues[queue.index()].remembered;
        // One that was not sent leaves what the attempt before it was charged.
        if remembered.most == 0 || running.sent.is_none() {
            return;
        }
        let charged = Charged {
            upstream: running.upstream,
            charges,
            teaches: false,
        };
        if !charged.charges.is_empty() {
            remembered.insert(id, charged);
        } else if let Some(before) = remembered.calls.get_mut(&id) {
            *before = charged;
        }
    }

    /// A call has its answer, and nobody has told yet how long that is.
    pub(crate) fn learns_later(&mut self, id: TicketId) {
        let queue = self.ticket(id).map(|ticket| ticket.call.queue);
        let calls = queue.map(|queue| &mut self.queues[queue.index()].remembered.calls);
        if let Some(charged) = calls.and_then(|calls| calls.get_mut(&id)) {
            charged.teaches = true;
        }
    }

    /// Tells what the last attempt of a call used, after it has ended: what every limit charged
    /// it for tokens becomes what it would be had that been told in time. Nothing happens for a
    /// call that is running, or is [not remembered](Dispatcher::remember_calls).
    pub fn correct(
        &mut self,
        queue: QueueId,
        call: TicketId,
        usage: &Usage,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let runs = |state: &State| matches!(state, State::Running(_));
        if self.ticket(call).is_some_and(|ticket| runs(&ticket.state)) {
            return;
        }
        let calls = &mut self.queues[queue.index()].remembered.calls;
        let Some(charged) = calls.get_mut(&call) else {
            return;
        };
        if std::mem::take(&mut charged.teaches) {
            self.upstreams[charged.upstream.index()].learn_output(usage.output_tokens);
        }
        let mut limits: SmallVec<[LimitId; 4]> = SmallVec::new();
        for (id, settled) in &mut charged.charges {
            let limit = &mut self.limits[id.index()].limit;
            limit.correct(settled, usage, now.mono);
            limits.push(*id);
        }
        for id in limits {
            self.touch(Spot::Limit(id));
        }
        self.pump(now, effects);
    }
}
