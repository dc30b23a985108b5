//! What follows from an answer: settlement, the retry table, gates and breakers.

use std::time::Duration;

use llmq_core::{FailureClass, LimitSpec, Now, Pause, Timestamp, Usage};
use llmq_limit::{
    Answer, AnswerOutcome, BreakerChange, HeaderSource, LimitText, Observation, QuotaEvent,
    RateLimitHeaders, Verdict, charge_rule, default_algorithm,
};

use crate::dispatcher::Dispatcher;
use crate::events::{Effect, Ended, Notice, Outcome};
use crate::ids::{LimitId, TicketId, UpstreamId};
use crate::order::Spot;
use crate::setup::{LimitSetup, Scope};
use crate::ticket::{Running, State};
use crate::upstream::Upstream;

/// A stated working time may be rounded up to a whole millisecond, and may begin a little
/// before the call's limits are looked at.
const STATED_EARLY: Duration = Duration::from_millis(2);

impl Dispatcher {
    fn running_mut(&mut self, id: TicketId) -> Option<&mut Running> {
        match &mut self.ticket_mut(id)?.state {
            State::Running(running) => Some(running),
            State::Waiting(_) | State::Delayed(_) => None,
        }
    }

    /// The call's bytes were written: its charges get their dates.
    pub(crate) fn sent(&mut self, id: TicketId, now: Now) {
        let Some(mut running) = self.take_running(id) else {
            return;
        };
        if running.sent_at.is_none() {
            running.sent_at = Some(now.mono);
            let margin = self.upstreams[running.upstream.index()].margin.at(now.mono);
            for (limit, entry) in &mut running.entries {
                self.limits[limit.index()]
                    .limit
                    .sent(entry, now.mono, margin);
                // What was held has a date now, so those who wait for it can have one too.
                self.touch(Spot::Limit(*limit));
            }
        }
        self.put_running(id, running);
    }

    pub(crate) fn first_byte(&mut self, id: TicketId, processing: Option<Duration>, now: Now) {
        let processing = processing.map(|stated| stated.saturating_sub(STATED_EARLY));
        let arrived = now.mono.before(processing.unwrap_or_default());
        let Some(mut running) = self.take_running(id) else {
            return;
        };
        if let (Some(_), Some(sent)) = (processing, running.sent_at) {
            let upstream = &mut self.upstreams[running.upstream.index()];
            upstream.margin.seen(arrived - sent, now.mono);
        }
        for (limit, entry) in &mut running.entries {
            let limit_of = &mut self.limits[limit.index()].limit;
            limit_of.arrived(entry, arrived, processing.is_some());
            self.touch(Spot::Limit(*limit));
        }
        self.put_running(id, running);
    }

    pub(crate) fn produced(&mut self, id: TicketId, tokens: u64, now: Now) {
        let Some(mut running) = self.take_running(id) else {
            return;
        };
        for (limit, entry) in &mut running.entries {
            self.limits[limit.index()]
                .limit
                .produced(entry, tokens, now.mono);
        }
        self.put_running(id, running);
    }

    fn take_running(&mut self, id: TicketId) -> Option<Box<Running>> {
        let ticket = self.ticket_mut(id)?;
        match std::mem::replace(&mut ticket.state, State::Delayed(Timestamp::FAR_FUTURE)) {
            State::Running(running) => Some(running),
            other => {
                ticket.state = other;
                None
            }
        }
    }

    fn put_running(&mut self, id: TicketId, running: Box<Running>) {
        if let Some(ticket) = self.ticket_mut(id) {
            ticket.state = State::Running(running);
        }
    }

    /// The call's caller has gone.
    pub(crate) fn dropped(&mut self, id: TicketId, now: Now) {
        if self.running_mut(id).is_none() {
            self.leave(id);
            return self.forget(id);
        }
        let Some(running) = self.take_running(id) else {
            return;
        };
        if running.probe {
            self.upstreams[running.upstream.index()]
                .breaker
                .probe_lost(now);
        }
        self.release(id, &running, None, now);
        self.forget(id);
    }

    /// Ends an attempt's hold on its limits: given back if it was never sent, settled to usage
    /// if that is known, kept if its fate is not.
    fn release(&mut self, id: TicketId, running: &Running, usage: Option<&Usage>, now: Now) {
        for (limit, entry) in &running.entries {
            self.limits[limit.index()]
                .limit
                .settle(*entry, usage, now.mono);
            self.touch(Spot::Limit(*limit));
        }
        self.attempt_over(id, running);
    }

    fn attempt_over(&mut self, id: TicketId, running: &Running) {
        let upstream = &mut self.upstreams[running.upstream.index()];
        upstream.in_flight = upstream.in_flight.saturating_sub(1);
        // The answer that ends the betting frees those who wait for it as well.
        self.touch(Spot::Gate(running.upstream));
        if let Some(queue) = self.ticket(id).map(|ticket| ticket.call.queue) {
            let queue = &mut self.queues[queue.index()];
            queue.running = queue.running.saturating_sub(1);
        }
    }

    /// The call ended.
    pub(crate) fn ended(
        &mut self,
        id: TicketId,
        ended: &Ended,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let Some(running) = self.take_running(id) else {
            return;
        };
        self.upstreams[running.upstream.index()].answered();
        if let Some(headers) = &ended.headers {
            self.hear(&running, headers, now, effects);
        }
        self.adapt(&running, ended, now, effects);
        match &ended.outcome {
            Outcome::Completed => self.completed(id, &running, ended, now, effects),
            Outcome::Failed { class, told, text } => {
                self.failed(
                    id,
                    &running,
                    *class,
                    *told,
                    text.as_ref(),
                    ended,
                    now,
                    effects,
                );
            }
        }
    }

    fn completed(
        &mut self,
        id: TicketId,
        running: &Running,
        ended: &Ended,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let upstream = &mut self.upstreams[running.upstream.index()];
        upstream.closures = 0;
        if let Some(usage) = &ended.usage {
            upstream.learn_output(usage.output_tokens);
        }
        if let Some(BreakerChange::Closed) = upstream
            .breaker
            .succeeded(Upstream::role(running.probe), now)
        {
            effects.push(Effect::Notice(Notice::BreakerClosed(running.upstream)));
            self.touch(Spot::Gate(running.upstream));
        }
        self.release(id, running, ended.usage.as_ref(), now);
        let attempts = self.ticket(id).map_or(0, |ticket| ticket.attempts);
        self.forget(id);
        effects.push(Effect::Completed {
            ticket: id,
            attempts,
        });
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one failure with all that is known of it"
    )]
    fn failed(
        &mut self,
        id: TicketId,
        running: &Running,
        class: FailureClass,
        told: Option<Duration>,
        text: Option<&LimitText>,
        ended: &Ended,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        if class.is_rate_limit() {
            self.rate_limited(running, text, now, effects);
        }
        let was_down = self.upstreams[running.upstream.index()]
            .breaker
            .opens_at(now)
            .is_some()
            || running.probe;
        self.tell_breaker(running, class, now, effects);
        if class.is_rate_limit() || class == FailureClass::TooLarge {
            for (limit, entry) in &running.entries {
                self.limits[limit.index()].limit.refused(*entry, now.mono);
                self.touch(Spot::Limit(*limit));
            }
            self.attempt_over(id, running);
        } else if class == FailureClass::Ambiguous || ended.usage.is_some() {
            self.release(id, running, ended.usage.as_ref(), now);
        } else {
            for (limit, entry) in &running.entries {
                self.limits[limit.index()].limit.failed(*entry);
                self.touch(Spot::Limit(*limit));
            }
            self.attempt_over(id, running);
        }
        let rule = class.rule();
        let failures = match rule.pause {
            Pause::Nothing => self.ticket(id).map_or(1, |ticket| ticket.failures + 1),
            Pause::Upstream | Pause::Credential => {
                // Calls that were in flight together tell of one and the same exhaustion.
                let upstream = &mut self.upstreams[running.upstream.index()];
                if upstream.closed.is_none() {
                    upstream.closures += 1;
                }
                upstream.closures
            }
        };
        let random = self.random.f64();
        let wait = self.rules.backoffs.wait(class, told, failures, random);
        let until = wait.map(|wait| now.mono + wait);
        if rule.pause != Pause::Nothing {
            self.close(running.upstream, class, until, rule.pause, now, effects);
        }
        // A call that found a broken upstream broken has learned nothing about itself.
        let counts = rule.counts_attempt && !(was_down && rule.trips_breaker);
        self.retry_or_fail(
            id,
            running,
            class,
            until.unwrap_or(now.mono),
            counts,
            now,
            effects,
        );
    }

    /// The retry table, applied.
    #[expect(
        clippy::too_many_arguments,
        reason = "one failure with all that follows from it"
    )]
    fn retry_or_fail(
        &mut self,
        id: TicketId,
        running: &Running,
        class: FailureClass,
        until: Timestamp,
        counts: bool,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let rule = class.rule();
        let Some(ticket) = self.ticket_mut(id) else {
            return;
        };
        ticket.failures += 1;
        if counts {
            ticket.throttles = 0;
        } else {
            ticket.attempts = ticket.attempts.saturating_sub(1);
            ticket.throttles += 1;
        }
        if !ticket.avoid.contains(&running.upstream) {
            ticket.avoid.push(running.upstream);
        }
        let (call, attempts, throttles) = (ticket.call, ticket.attempts, ticket.throttles);
        let setup = &self.queues[call.queue.index()].setup;
        let elsewhere = rule.other_upstream && self.has_other_way(id);
        let again = rule.retry && (class != FailureClass::Ambiguous || setup.retry_ambiguous);
        let spent = if counts {
            attempts >= setup.max_attempts
        } else {
            self.is_throttled_out(call.kind, throttles)
        };
        if spent || !(again || elsewhere) {
            self.forget(id);
            effects.push(Effect::Failed {
                ticket: id,
                class,
                attempts,
            });
            return;
        }
        // What stands still is the upstream where that is the rule; else only this call.
        let not_before = match rule.pause {
            Pause::Nothing if !elsewhere => until,
            Pause::Nothing | Pause::Upstream | Pause::Credential => now.mono,
        };
        effects.push(Effect::Requeued {
            ticket: id,
            class,
            not_before,
        });
        if not_before > now.mono {
            self.delay(id, not_before);
        } else {
            let behind = self.passed_by_others(id, throttles);
            self.requeue(id, behind, now);
        }
        self.watch_deadlines(id, now);
        // Its time may have run out while it ran: then it must not start again.
        self.due(now, effects);
    }

    /// Whether an upstream that has not failed this call yet could take it.
    fn has_other_way(&self, id: TicketId) -> bool {
        let Some(ticket) = self.ticket(id) else {
            return false;
        };
        let own = &self.queues[ticket.call.queue.index()].setup;
        let fallbacks = own
            .fallback
            .iter()
            .map(|queue| &self.queues[queue.index()].setup);
        std::iter::once(own)
            .chain(fallbacks)
            .flat_map(|setup| &setup.routes)
            .any(|route| !ticket.avoid.contains(&route.upstream))
    }

    /// A call that was throttled twice while others of its line passed goes behind them.
    fn passed_by_others(&mut self, id: TicketId, throttles: u32) -> bool {
        let Some(ticket) = self.ticket(id) else {
            return false;
        };
        let key = (ticket.call.queue, ticket.call.priority, ticket.call.tenant);
        let starts = self
            .lane_of
            .get(&key)
            .map_or(0, |lane| self.lanes[lane.index()].starts);
        let Some(ticket) = self.ticket_mut(id) else {
            return false;
        };
        if throttles <= 1 {
            ticket.starts_at_throttle = starts;
            return false;
        }
        // Its own restarts since then are not others'.
        starts > ticket.starts_at_throttle + u64::from(throttles) - 1
    }

    fn tell_breaker(
        &mut self,
        running: &Running,
        class: FailureClass,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let upstream = &mut self.upstreams[running.upstream.index()];
        let role = Upstream::role(running.probe);
        let change = if class.rule().trips_breaker {
            upstream.breaker.failed(role, now)
        } else {
            // It answered: whatever else is wrong, it is not down.
            upstream.breaker.succeeded(role, now)
        };
        match change {
            Some(BreakerChange::Opened { .. }) => {
                effects.push(Effect::Notice(Notice::BreakerOpened(running.upstream)));
            }
            Some(BreakerChange::Closed) => {
                effects.push(Effect::Notice(Notice::BreakerClosed(running.upstream)));
                self.touch(Spot::Gate(running.upstream));
            }
            None => {}
        }
    }

    /// Closes an upstream, and with it those that share its credential.
    fn close(
        &mut self,
        id: UpstreamId,
        class: FailureClass,
        until: Option<Timestamp>,
        pause: Pause,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let credential = self.upstreams[id.index()]
            .credential
            .filter(|_| pause == Pause::Credential);
        for index in 0..self.upstreams.len() {
            let upstream = &mut self.upstreams[index];
            let same =
                index == id.index() || (credential.is_some() && upstream.credential == credential);
            if same && upstream.close(class, until) {
                let upstream = UpstreamId::at(index);
                self.set_wake(Spot::Gate(upstream), until);
                effects.push(Effect::Notice(Notice::UpstreamPaused {
                    upstream,
                    class,
                    until,
                }));
            }
        }
        self.update_parked(now);
    }

    /// A gate's time has come.
    pub(crate) fn gate_due(&mut self, id: UpstreamId, now: Now, effects: &mut Vec<Effect>) {
        self.poll_quota(id, now, effects);
        let upstream = &mut self.upstreams[id.index()];
        if upstream
            .closed
            .is_some_and(|closed| closed.until.is_some_and(|until| until <= now.mono))
        {
            upstream.closed = None;
        }
        self.update_parked(now);
    }

    /// Counts a started call against the day.
    pub(crate) fn count_request(&mut self, id: UpstreamId, now: Now, effects: &mut Vec<Effect>) {
        let (events, state) = self.upstreams[id.index()].count_request(now);
        effects.extend(state.map(|state| Effect::Notice(Notice::SaveQuota(id, state))));
        self.tell_quota(id, events, now, effects);
    }

    pub(crate) fn poll_quota(&mut self, id: UpstreamId, now: Now, effects: &mut Vec<Effect>) {
        let Some(quota) = &mut self.upstreams[id.index()].quota else {
            return;
        };
        let events = quota.poll(now);
        self.tell_quota(id, events, now, effects);
    }

    fn tell_quota(
        &mut self,
        id: UpstreamId,
        events: Vec<QuotaEvent>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        effects.extend(
            events
                .into_iter()
                .map(|event| Effect::Notice(Notice::Quota(id, event))),
        );
        if self.upstreams[id.index()].heed_quota(now) {
            self.touch(Spot::Gate(id));
            self.touch(Spot::LowGate(id));
            self.update_parked(now);
        }
    }

    /// The day's count is on disk.
    pub(crate) fn quota_saved(&mut self, id: UpstreamId) {
        self.upstreams[id.index()].saving = false;
        self.touch(Spot::Gate(id));
    }

    /// Works out which queues stand still by a quota: their calls' time to live stands still too.
    pub(crate) fn update_parked(&mut self, now: Now) {
        for index in 0..self.queues.len() {
            let queue = &self.queues[index];
            let routes = &queue.setup.routes;
            let parked = !routes.is_empty()
                && routes.iter().all(|route| {
                    let upstream = &self.upstreams[route.upstream.index()];
                    let by_quota = |closed: crate::upstream::Closed| {
                        matches!(closed.class, FailureClass::QuotaDay | FailureClass::Money)
                    };
                    upstream.closed.is_some_and(by_quota) || upstream.low_closed.is_some()
                });
            if parked != queue.parked {
                let queue = &mut self.queues[index];
                queue.parked = parked;
                queue.update_clock(now.mono);
                self.retime_deadline(crate::ids::QueueId::at(index), now);
            }
        }
    }

    /// A 429: the books are compared with its text, and the margin grows if they were no help.
    fn rate_limited(
        &mut self,
        running: &Running,
        text: Option<&LimitText>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let margin = self.upstreams[running.upstream.index()].margin.at(now.mono);
        let mut ours = false;
        let mut explained = false;
        for (id, entry) in &running.entries {
            let limit = &mut self.limits[id.index()].limit;
            let named = text.is_none_or(|text| is_limit_of(limit.spec(), text));
            if !named {
                continue;
            }
            ours |= limit.should_have_foreseen(entry, margin);
            if let Some((limit_count, used)) = text.and_then(|text| text.limit.zip(text.used)) {
                let left = limit_count.saturating_sub(used);
                let spare = signed(limit_count) - signed(limit.spec().count);
                let left = signed(left) - spare;
                explained |= matches!(
                    limit.observe(entry, left, 1, now.mono, margin),
                    Verdict::Below(_)
                );
            }
        }
        if !explained {
            self.upstreams[running.upstream.index()]
                .margin
                .surprised(now.mono);
        }
        effects.push(Effect::Notice(Notice::RateLimited {
            upstream: running.upstream,
            ours,
        }));
    }

    /// Tells the adaptive concurrency, where there is one.
    fn adapt(&mut self, running: &Running, ended: &Ended, now: Now, effects: &mut Vec<Effect>) {
        let id = running.upstream;
        let upstream = &mut self.upstreams[id.index()];
        let in_flight = upstream.in_flight;
        let Some((adaptive, limit)) = &mut upstream.adaptive else {
            return;
        };
        let outcome = match &ended.outcome {
            Outcome::Completed => AnswerOutcome::Success,
            Outcome::Failed {
                class: FailureClass::Overload | FailureClass::Ramp,
                ..
            } => AnswerOutcome::Overload,
            Outcome::Failed { class, .. } if class.rule().trips_breaker => AnswerOutcome::Error,
            // A refused row or a used-up limit says nothing about the server's capacity.
            Outcome::Failed { .. } => return,
        };
        let answer = Answer {
            latency: ended.latency.unwrap_or_default(),
            output_tokens: ended.usage.map_or(0, |usage| usage.output_tokens),
            outcome,
            in_flight,
        };
        let limit = *limit;
        if let Some(change) = adaptive.on_answer(answer, None, now) {
            self.limits[limit.index()]
                .limit
                .set_count(change.new, now.mono);
            effects.push(Effect::Notice(Notice::Concurrency(id, change)));
            self.touch(Spot::Limit(limit));
        }
    }

    /// Compares every header with the books of the call it answers; limits nobody configured
    /// are learned.
    fn hear(
        &mut self,
        running: &Running,
        headers: &RateLimitHeaders,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let margin = self.upstreams[running.upstream.index()].margin.at(now.mono);
        if let Some(quota) = &mut self.upstreams[running.upstream.index()].quota {
            let events = quota.observe(headers, now);
            self.tell_quota(running.upstream, events, now, effects);
        }
        for seen in &headers.observations {
            if seen.source == HeaderSource::Informational {
                continue;
            }
            let Some((id, entry)) = running.entries.iter().find(|(id, _)| {
                let slot = &self.limits[id.index()];
                slot.scope >= Scope::Upstream && is_seen(slot.limit.spec(), seen)
            }) else {
                self.learn_limit(running.upstream, seen, now, effects);
                continue;
            };
            let (id, entry) = (*id, *entry);
            self.heed_count(running.upstream, id, seen, now, effects);
            if let Some(remaining) = seen.remaining {
                let limit = &mut self.limits[id.index()].limit;
                // Where a lower limit is kept than the provider's, use is what compares.
                let spare = seen
                    .limit
                    .map_or(0, |stated| signed(stated) - signed(limit.spec().count));
                limit.observe(
                    &entry,
                    signed(remaining) - spare,
                    seen.rounding,
                    now.mono,
                    margin,
                );
                self.touch(Spot::Limit(id));
            }
        }
    }

    /// A limit that the provider states lower than we were told is lowered; a person's lower
    /// number stands.
    fn heed_count(
        &mut self,
        upstream: UpstreamId,
        id: LimitId,
        seen: &Observation,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let limit = &mut self.limits[id.index()].limit;
        let (Some(stated), Some(_)) = (seen.limit, seen.window) else {
            return;
        };
        if stated < limit.spec().count {
            limit.set_count(stated, now.mono);
            effects.push(Effect::Notice(Notice::LimitLearned(upstream, id)));
        }
    }

    fn learn_limit(
        &mut self,
        id: UpstreamId,
        seen: &Observation,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        // Without a window the number means nothing: a day's would pass for a minute's.
        let (Some(count), Some(window)) = (seen.limit, seen.window) else {
            return;
        };
        let known = self.upstreams[id.index()]
            .limits
            .iter()
            .any(|limit| is_seen(self.limits[limit.index()].limit.spec(), seen));
        let upstream = &mut self.upstreams[id.index()];
        let Some(host) = upstream.learn_as else {
            return;
        };
        if known || !upstream.hears_of(seen.kind, count, window) {
            return;
        }
        let spec = LimitSpec::per(seen.kind, count, window, default_algorithm(host, window));
        let name = format!("{} {}", spec.name(), self.upstreams[id.index()].name);
        let rule = charge_rule(host, seen.kind);
        let limit = self.add_limit(
            LimitSetup {
                name,
                spec,
                rule,
                scope: Scope::Upstream,
            },
            now,
        );
        if let Some(remaining) = seen.remaining {
            self.limits[limit.index()]
                .limit
                .start_with(remaining, now.mono);
        }
        self.upstreams[id.index()].limits.push(limit);
        effects.push(Effect::Notice(Notice::LimitLearned(id, limit)));
    }
}

/// Whether an observation speaks of this limit: by its window, or by its very count where the
/// window is not told.
fn is_seen(spec: &LimitSpec, seen: &Observation) -> bool {
    spec.kind == seen.kind && (seen.window == Some(spec.period) || seen.limit == Some(spec.count))
}

fn is_limit_of(spec: &LimitSpec, text: &LimitText) -> bool {
    text.kind.is_none_or(|kind| kind == spec.kind)
        && text.period.is_none_or(|period| period == spec.period)
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX / 4)
}
