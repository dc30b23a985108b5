//! What follows from an answer for its own call: settlement and the retry table.

use std::time::Duration;

use llmq_core::{FailureClass, Now, Pause, Timestamp, Usage};
use llmq_limit::{BreakerChange, LimitText};

use crate::dispatcher::Dispatcher;
use crate::events::{CallKind, Effect, Ended, Notice, Outcome};
use crate::ids::TicketId;
use crate::order::Spot;
use crate::ticket::{Running, Sent, State};
use crate::upstream::Upstream;

/// A stated working time may be rounded up to a whole millisecond, and may begin a little
/// before the call's limits are looked at.
const STATED_EARLY: Duration = Duration::from_millis(2);

/// What is refused and may be one call's own fault, or mended without us, is asked again.
const TRY_AGAIN: Duration = Duration::from_secs(300);

/// As what an attempt that failed is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tally {
    /// One of the attempts that a call has.
    Attempt,
    /// A refusal that is no fault of the call's.
    Throttle,
    /// A broken upstream was found broken, or an empty account still empty.
    Nothing,
}

impl Dispatcher {
    fn running_mut(&mut self, id: TicketId) -> Option<&mut Running> {
        match &mut self.ticket_mut(id)?.state {
            State::Running(running) => Some(running),
            State::Waiting(_) | State::Delayed(_) => None,
        }
    }

    /// The call's bytes were written, the last of them at `at` or soon after: its charges get
    /// their dates.
    pub(crate) fn sent(&mut self, id: TicketId, at: Timestamp, now: Now) {
        let Some(mut running) = self.take_running(id) else {
            return;
        };
        if running.sent.is_none() {
            let at = at.min(now.mono);
            running.sent = Some(Sent {
                at,
                told_at: now.mono,
            });
            let margin = self.upstreams[running.upstream.index()].margin.at(now.mono);
            for (limit, entry) in &mut running.entries {
                self.limits[limit.index()]
                    .limit
                    .sent(entry, at, now.mono, margin);
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
        if let (Some(_), Some(sent)) = (processing, running.sent) {
            let upstream = &mut self.upstreams[running.upstream.index()];
            // Charges are dated from the telling on: only what comes after it is to be added.
            upstream.margin.seen(arrived - sent.told_at, now.mono);
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
            let sooner = self.limits[limit.index()]
                .limit
                .produced(entry, tokens, now.mono);
            // What was held has a date now: a head that waited for an answer's end has one too.
            let spot = Spot::Limit(*limit);
            if sooner || self.waiters(spot).wake.is_none() {
                self.touch(spot);
            }
        }
        self.put_running(id, running);
    }

    pub(crate) fn take_running(&mut self, id: TicketId) -> Option<Box<Running>> {
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
    pub(crate) fn dropped(&mut self, id: TicketId, now: Now, effects: &mut Vec<Effect>) {
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
        self.release(id, &running, None, now, effects);
        self.forget(id);
    }

    /// Ends an attempt's hold on its limits: given back if it was never sent, settled to usage
    /// if that is known, kept if its fate is not.
    pub(crate) fn release(
        &mut self,
        id: TicketId,
        running: &Running,
        usage: Option<&Usage>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        self.settle(id, running, |slot, entry| {
            slot.limit.settle(entry, usage, now.mono)
        });
        self.attempt_over(id, running, now, effects);
    }

    fn attempt_over(
        &mut self,
        id: TicketId,
        running: &Running,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        if running.sent.is_none() {
            self.uncount_request(running, now, effects);
        }
        let upstream = &mut self.upstreams[running.upstream.index()];
        if running.sent.is_none() {
            upstream.has_not_sent(running.granted_at);
        }
        upstream.has_ended(running.granted_at);
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
        let upstream = &mut self.upstreams[running.upstream.index()];
        upstream.answered(running.granted_at);
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
        upstream.has_completed = true;
        upstream.has_taken(running.granted_at);
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
        self.release(id, running, ended.usage.as_ref(), now, effects);
        if ended.usage.is_none() {
            self.learns_later(id);
        }
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
            if let Some(text) = text {
                self.hear_text(running, text, ended.headers.as_ref(), now, effects);
            }
        }
        // Nothing was served since it was closed. Where others are, the call asks for too much.
        let was_empty =
            class == FailureClass::Money && self.upstreams[running.upstream.index()].closures > 0;
        let was_down = self.upstreams[running.upstream.index()]
            .breaker
            .opens_at(now)
            .is_some()
            || running.probe;
        self.tell_breaker(running, class, now, effects);
        let is_throttle = class.is_rate_limit() || class == FailureClass::Ramp;
        if !is_throttle {
            self.upstreams[running.upstream.index()].has_taken(running.granted_at);
        } else if !self.knows_limit(running, class, text) {
            self.upstreams[running.upstream.index()].was_unforeseen = true;
        }
        if class == FailureClass::Ramp {
            let sent = running.sent.map_or(now.mono, |sent| sent.at);
            self.upstreams[running.upstream.index()]
                .ramp
                .slow_down(sent, now);
        }
        if class.is_rate_limit() || class == FailureClass::TooLarge {
            self.settle(id, running, |slot, entry| {
                match slot.may_have_refused(class, text) {
                    true => slot.limit.refused(entry, now.mono),
                    false => slot.limit.refused_for_another(entry, now.mono),
                }
                None
            });
            self.attempt_over(id, running, now, effects);
        } else if class == FailureClass::Ambiguous || ended.usage.is_some() {
            self.release(id, running, ended.usage.as_ref(), now, effects);
        } else {
            self.settle(id, running, |slot, entry| {
                slot.limit.failed(entry, now.mono)
            });
            self.attempt_over(id, running, now, effects);
        }
        if ended.was_silent {
            self.bar_silent(id, running.upstream, ended.is_awaited);
        }
        let rule = class.rule();
        let upstream = &self.upstreams[running.upstream.index()];
        let pause = match ended.pause.unwrap_or(rule.pause) {
            // What has answered is there: what one call misses may be that call's fault.
            _ if ended.may_be_the_calls && upstream.has_completed => Pause::Nothing,
            pause => pause,
        };
        let failures = match pause {
            Pause::Nothing => self.ticket(id).map_or(1, |ticket| ticket.failures + 1),
            Pause::Upstream | Pause::Credential => {
                // Calls that were in flight together tell of one and the same exhaustion.
                let upstream = &mut self.upstreams[running.upstream.index()];
                if upstream.refused_by().is_none() {
                    upstream.closures += 1;
                }
                upstream.closures
            }
        };
        let random = self.random.f64();
        let wait = self.rules.backoffs.wait(class, told, failures, random);
        // Only a refused key or an empty account is for a person to mend.
        let again =
            (class == FailureClass::NoAccess && pause == Pause::Upstream).then_some(TRY_AGAIN);
        let until = wait.or(again).map(|wait| now.mono + wait);
        // Where the day is watched, its monitor begins and ends the pause, and tells of both.
        let of_the_day = class == FailureClass::QuotaDay
            && pause == Pause::Upstream
            && self.refused_for_the_day(running.upstream, told.and(until), now, effects);
        if pause != Pause::Nothing && !of_the_day {
            self.close(running, class, until, pause, now, effects);
        }
        // A call that found a broken upstream broken has learned nothing about itself.
        let tally = if was_down && rule.trips_breaker || was_empty {
            Tally::Nothing
        } else if rule.counts_attempt {
            Tally::Attempt
        } else {
            Tally::Throttle
        };
        self.retry_or_fail(
            id,
            running,
            class,
            pause,
            until.unwrap_or(now.mono),
            tally,
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
        pause: Pause,
        until: Timestamp,
        tally: Tally,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let rule = class.rule();
        let Some(ticket) = self.ticket_mut(id) else {
            return;
        };
        ticket.was_away(now.mono - running.granted_at);
        ticket.failures += 1;
        let probes = tally == Tally::Nothing && ticket.call.kind == CallKind::Stored;
        if tally == Tally::Attempt {
            ticket.throttles = 0;
        } else {
            ticket.attempts = ticket.attempts.saturating_sub(1);
            // The first of a line probes a broken upstream again and again, and all that waits
            // meets an empty account each time it is asked: neither, of any length, must end a
            // call that nobody waits for.
            ticket.throttles += u32::from(!probes);
        }
        if !ticket.avoid.contains(&running.upstream) {
            ticket.avoid.push(running.upstream);
        }
        let (call, attempts, throttles) = (ticket.call, ticket.attempts, ticket.throttles);
        let setup = &self.queues[call.queue.index()].setup;
        // What may have been billed is not sent twice where that is set, wherever to.
        let may_go = class != FailureClass::Ambiguous || setup.retry_ambiguous;
        let elsewhere = may_go && rule.other_upstream && self.has_other_way(id, now);
        // Who refuses the key says nothing of the call: those that failed it may still serve it.
        let is_closed = class == FailureClass::NoAccess && pause != Pause::Nothing;
        let retry = rule.retry || is_closed && self.has_willing_way(id, running.upstream);
        let again = may_go && retry && self.has_any_way(id);
        let spent = match tally {
            Tally::Attempt => attempts >= setup.max_attempts,
            Tally::Throttle | Tally::Nothing => {
                !probes && self.is_throttled_out(call.kind, throttles)
            }
        };
        // What an upstream could not do, another may: a call has one try at each that is left.
        let last_chance = spent && may_go && rule.other_upstream && self.has_untried_way(id);
        if let Some(ticket) = self.ticket_mut(id) {
            ticket.exhausted |= last_chance;
        }
        if spent && !last_chance || !(again || elsewhere || last_chance) {
            self.forget(id);
            effects.push(Effect::Failed {
                ticket: id,
                class,
                attempts,
            });
            return;
        }
        // What stands still is the upstream where that is the rule; else only this call, unless
        // it is taken over at once: in line it might be the upstream that has just failed it
        // that has room first.
        let at_once =
            last_chance || elsewhere && (self.all_down(id, now) || self.can_go_elsewhere(id, now));
        let not_before = match pause {
            Pause::Nothing if !at_once => until,
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
    }

    /// A call that was throttled twice while others of its line passed goes behind them.
    fn passed_by_others(&mut self, id: TicketId, throttles: u32) -> bool {
        let Some(ticket) = self.ticket(id) else {
            return false;
        };
        let starts = self
            .lane_of
            .get(&ticket.lane_key())
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
}
