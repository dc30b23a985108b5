//! A limit that joins an upstream: its calls under way meet it too.

use llmq_core::{Now, Timestamp};
use llmq_limit::{FirstWord, Limit, UnderWay};

use crate::dispatcher::Dispatcher;
use crate::ids::{LimitId, TicketId, UpstreamId};
use crate::ticket::{Running, State};

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
        let margin = self.upstreams[upstream.index()].margin.at(now.mono);
        let under_way = self.under_way(upstream, id, |running| !running.holds(id));
        let calls: Vec<UnderWay> = under_way.iter().map(|(_, call)| *call).collect();
        let limit = &mut self.limits[id.index()].limit;
        let entries = limit.begin_amid(&calls, word, now.mono, margin);
        for ((ticket, _), entry) in under_way.into_iter().zip(entries) {
            if let Some(State::Running(running)) = self.ticket_mut(ticket).map(|t| &mut t.state) {
                running.entries.push((id, entry));
            }
        }
    }

    /// How much of what is used of a limit is that of calls under way.
    pub(crate) fn used_by_calls_under_way(&mut self, id: LimitId, now: Now) -> u64 {
        let limit = &self.limits[id.index()].limit;
        let mut theirs = Limit::new(*limit.spec(), limit.rule(), now);
        for upstream in self.upstreams_with(id) {
            let under_way = self.under_way(upstream, id, |running| running.holds(id));
            let calls: Vec<UnderWay> = under_way.into_iter().map(|(_, call)| call).collect();
            let margin = self.upstreams[upstream.index()].margin.at(now.mono);
            theirs.begin_amid(&calls, None, now.mono, margin);
        }
        let used = theirs.saved(now.mono);
        used.iter().map(|(_, used)| used).sum()
    }

    /// The upstreams whose calls meet a limit.
    pub(crate) fn upstreams_with(&self, id: LimitId) -> Vec<UpstreamId> {
        let upstreams = self.upstreams.iter().enumerate();
        let with = upstreams.filter(|(_, upstream)| upstream.limits.contains(&id));
        with.map(|(index, _)| UpstreamId::at(index)).collect()
    }

    /// The calls under way to an upstream that are meant, in the order in which it was told that
    /// they were sent, with what each costs at a limit.
    fn under_way(
        &self,
        upstream: UpstreamId,
        id: LimitId,
        is_meant: impl Fn(&Running) -> bool,
    ) -> Vec<(TicketId, UnderWay)> {
        let mean_output = self.upstreams[upstream.index()].mean_output();
        let limit = &self.limits[id.index()].limit;
        let calls = self.tickets.iter().filter_map(|(_, ticket)| {
            let State::Running(running) = &ticket.state else {
                return None;
            };
            let cost = limit.cost(&ticket.call.size, mean_output);
            let sent = running.sent.map(|sent| (sent.at, sent.told_at));
            (running.upstream == upstream && is_meant(running))
                .then_some((ticket.id, UnderWay { cost, sent }))
        });
        let mut calls: Vec<(TicketId, UnderWay)> = calls.collect();
        calls.sort_by_key(|(_, call)| {
            call.sent
                .map_or(Timestamp::FAR_FUTURE, |(_, told_at)| told_at)
        });
        calls
    }
}
