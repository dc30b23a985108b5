//! A limit that joins an upstream: its calls under way meet it too.

use llmq_core::{Now, Timestamp};
use llmq_limit::{FirstWord, UnderWay};

use crate::dispatcher::Dispatcher;
use crate::ids::{LimitId, TicketId, UpstreamId};
use crate::ticket::State;

impl Dispatcher {
    /// Counts the calls that are under way to an upstream at a limit of which they hold nothing
    /// yet, so that they are in its books and their answers tell of it. This goes through all
    /// tickets, and is for limits that are learned or configured anew.
    pub(crate) fn join(
        &mut self,
        upstream: UpstreamId,
        id: LimitId,
        word: Option<&FirstWord>,
        now: Now,
    ) {
        let mean_output = self.upstreams[upstream.index()].mean_output();
        let margin = self.upstreams[upstream.index()].margin.at(now.mono);
        let limit = &self.limits[id.index()].limit;
        let under_way = self.tickets.iter().filter_map(|(_, ticket)| {
            let State::Running(running) = &ticket.state else {
                return None;
            };
            let is_there = running.entries.iter().any(|(limit, _)| *limit == id);
            let cost = limit.cost(&ticket.call.size, mean_output);
            let sent = running.sent.map(|sent| (sent.at, sent.told_at));
            (running.upstream == upstream && !is_there)
                .then_some((ticket.id, UnderWay { cost, sent }))
        });
        let mut under_way: Vec<(TicketId, UnderWay)> = under_way.collect();
        under_way.sort_by_key(|(_, call)| {
            call.sent
                .map_or(Timestamp::FAR_FUTURE, |(_, told_at)| told_at)
        });
        let calls: Vec<UnderWay> = under_way.iter().map(|(_, call)| *call).collect();
        let limit = &mut self.limits[id.index()].limit;
        let entries = limit.begin_amid(&calls, word, now.mono, margin);
        for ((ticket, _), entry) in under_way.into_iter().zip(entries) {
            if let Some(State::Running(running)) = self.ticket_mut(ticket).map(|t| &mut t.state) {
                running.entries.push((id, entry));
            }
        }
    }
}
