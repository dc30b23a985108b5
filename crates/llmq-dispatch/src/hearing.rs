//! What answers tell of limits and load: headers against the books, 429s, concurrency.

use std::time::Duration;

use llmq_core::{FailureClass, LimitSpec, Now};
use llmq_limit::{
    Answer, AnswerOutcome, HeaderSource, LimitText, Observation, RateLimitHeaders, Verdict,
};

use crate::dispatcher::{Dispatcher, LimitSlot};
use crate::events::{Effect, Ended, Notice, Outcome};
use crate::ids::LimitId;
use crate::learned::Learned;
use crate::order::Spot;
use crate::setup::Scope;
use crate::ticket::Running;

/// The longest window of a limit that is refused for by the minute, not by the day.
const HOUR: Duration = Duration::from_secs(3_600);

impl Dispatcher {
    /// A 429: the books are compared with its text, and the margin grows if they were no help.
    pub(crate) fn rate_limited(
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
            let told = text.and_then(|text| text.limit.zip(text.used));
            if let (Some((limit_count, used)), Some(count)) = (told, entry.sent_by()) {
                // Use is what compares, whatever the count is now.
                let left = signed(count) - signed(used.min(limit_count));
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

    /// A 429's text states a limit with its kind and period: it is one more word on its count,
    /// beside what the answer's headers state.
    pub(crate) fn hear_text(
        &mut self,
        running: &Running,
        text: &LimitText,
        headers: Option<&RateLimitHeaders>,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let Some(seen) = stated_by(text) else {
            return;
        };
        // One answer is one word.
        let is_news = headers.is_none_or(|headers| {
            let mut others = headers.observations.iter();
            is_lowest(&seen, headers) && !others.any(|other| is_stated_alike(other, &seen))
        });
        if !is_news {
            return;
        }
        let slot = |id: LimitId| &self.limits[id.index()];
        let spoken_of = running.entries.iter().map(|(id, _)| *id).filter(|id| {
            slot(*id).scope >= Scope::Upstream && is_limit_of(slot(*id).limit.spec(), text)
        });
        let known = spoken_of.min_by_key(|id| {
            let is_exact = seen.limit == Some(slot(*id).limit.spec().count);
            (!is_exact, slot(*id).scope)
        });
        let known = known.map(|id| match slot(id).scope {
            Scope::Account => self.own_beside(running.upstream, id).unwrap_or(id),
            _ => id,
        });
        let is_own = known.is_some_and(|id| slot(id).scope == Scope::Upstream);
        if !is_own && text.period > Some(HOUR) {
            // When it is free again no text says for sure: kept in another way than the
            // provider's, it would stand idle for as long as it lasts.
            return;
        }
        match known {
            Some(id) => {
                let slot = &mut self.limits[id.index()];
                slot.learned = slot.learned.map(|_| Learned::stated());
                self.heed_count(running, id, &seen, now, effects);
            }
            None => self.learn_limit(running, &seen, now, effects),
        }
    }

    /// Whether a limit on the way of a call that was refused may be the one that refused it, so
    /// that its books hold back the next ones.
    pub(crate) fn knows_limit(
        &self,
        running: &Running,
        class: FailureClass,
        text: Option<&LimitText>,
    ) -> bool {
        let mut limits = running.entries.iter();
        limits.any(|(id, _)| self.limits[id.index()].may_have_refused(class, text))
    }

    /// Tells the adaptive concurrency, where there is one.
    pub(crate) fn adapt(
        &mut self,
        running: &Running,
        ended: &Ended,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
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
        let used = upstream
            .quota
            .as_ref()
            .and_then(|quota| quota.used_share(now));
        if let Some(change) = adaptive.on_answer(answer, used, now) {
            self.limits[limit.index()]
                .limit
                .set_count(change.new, now.mono);
            effects.push(Effect::Notice(Notice::Concurrency(id, change)));
            self.touch(Spot::Limit(limit));
        }
    }

    /// Compares every header with the books of the call it answers; limits nobody configured
    /// are learned.
    pub(crate) fn hear(
        &mut self,
        running: &Running,
        headers: &RateLimitHeaders,
        now: Now,
        effects: &mut Vec<Effect>,
    ) {
        let upstream = &mut self.upstreams[running.upstream.index()];
        let margin = upstream.margin.at(now.mono);
        if let Some(header) = &headers.garbled
            && upstream.garbled.allow(now)
        {
            effects.push(Effect::Notice(Notice::HeaderGarbled {
                upstream: running.upstream,
                header: header.clone(),
            }));
        }
        if let Some(quota) = &mut upstream.quota {
            let events = quota.observe(headers, now);
            self.tell_quota(running.upstream, events, now, effects);
        }
        self.doubt_learned(running.upstream, headers, now, effects);
        for seen in &headers.observations {
            if seen.source == HeaderSource::Informational {
                continue;
            }
            let spoken_of = running.entries.iter().filter(|(id, _)| {
                let slot = &self.limits[id.index()];
                slot.scope >= Scope::Upstream && is_seen(slot.limit.spec(), seen)
            });
            // That of the account and one of the upstream's own may be of the same window.
            let exact =
                |id: &LimitId| seen.limit == Some(self.limits[id.index()].limit.spec().count);
            let is_lowest = is_lowest(seen, headers);
            let spoken_of = spoken_of.min_by_key(|(id, _)| !exact(id));
            let heard = spoken_of.filter(|(id, _)| is_lowest || exact(id));
            let Some((id, entry)) = heard.copied() else {
                if is_lowest {
                    self.learn_limit(running, seen, now, effects);
                }
                continue;
            };
            let own = match self.limits[id.index()].scope {
                Scope::Account => self.own_beside(running.upstream, id),
                _ => None,
            };
            if is_lowest {
                self.heed_count(running, own.unwrap_or(id), seen, now, effects);
            }
            let slot = &mut self.limits[id.index()];
            if let (Some(remaining), Some(count)) = (seen.remaining, entry.sent_by()) {
                // Where a lower limit is kept than the provider's, or was until now, use is what
                // compares.
                let spare = seen
                    .limit
                    .map_or(0, |stated| signed(stated) - signed(count));
                slot.limit.observe(
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
}

impl LimitSlot {
    /// Whether it may be the limit that a call was refused for.
    pub(crate) fn may_have_refused(&self, class: FailureClass, text: Option<&LimitText>) -> bool {
        let spec = self.limit.spec();
        // A key's own limit is none of the provider's, nor are places for calls in flight; a day's
        // limit is not meant where the provider says to come again in a minute; and no use makes a
        // call too large.
        let is_rate = self.scope >= Scope::Upstream && !spec.period.is_zero();
        let is_meant = text.is_none_or(|text| is_limit_of(spec, text));
        let is_in_time = class != FailureClass::QuotaWindow || spec.period <= HOUR;
        is_rate && is_meant && is_in_time && class != FailureClass::TooLarge
    }
}

/// Resets are stated in whole seconds, or as dates by another clock.
const RESET_OFF: Duration = Duration::from_secs(5);

/// Whether an observation speaks of this limit: by its window, or by its very count where it may be
/// full again within its period. What is inferred of the reset of a fixed window, which counts down
/// to its end, is no window.
pub(crate) fn is_seen(spec: &LimitSpec, seen: &Observation) -> bool {
    let is_in_time = |reset| reset <= spec.period * 2 + RESET_OFF;
    let in_time = seen.window.is_none() || seen.reset.is_none_or(is_in_time);
    let by_count = in_time && seen.limit == Some(spec.count);
    spec.kind == seen.kind && (seen.window == Some(spec.period) || by_count)
}

/// Whether no other limit of its kind and window that an answer states is lower: a project's holds
/// beside its organization's, even where its window is not told.
fn is_lowest(seen: &Observation, headers: &RateLimitHeaders) -> bool {
    let is_beside = |other: &Observation| {
        other.window == seen.window
            || other.source == HeaderSource::Project && other.window.is_none()
    };
    let mut others = headers.observations.iter();
    !others.any(|other| {
        let counts = other.limit.zip(seen.limit);
        let is_lower = counts.is_some_and(|(other, seen)| other < seen);
        is_lower
            && other.kind == seen.kind
            && other.source != HeaderSource::Informational
            && is_beside(other)
    })
}

/// What a refusal's text states of a limit, if it says of which one.
fn stated_by(text: &LimitText) -> Option<Observation> {
    let (kind, limit, period) = (text.kind?, text.limit?, text.period?);
    Some(Observation {
        kind,
        source: HeaderSource::Standard,
        limit: Some(limit),
        remaining: text.used.map(|used| limit.saturating_sub(used)),
        reset: None,
        window: Some(period),
        rounding: 1,
        query_cost: None,
    })
}

fn is_stated_alike(other: &Observation, seen: &Observation) -> bool {
    (other.kind, other.limit, other.window) == (seen.kind, seen.limit, seen.window)
}

fn is_limit_of(spec: &LimitSpec, text: &LimitText) -> bool {
    text.kind.is_none_or(|kind| kind == spec.kind)
        && text.period.is_none_or(|period| period == spec.period)
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX / 4)
}
