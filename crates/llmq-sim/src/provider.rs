//! A provider as the run meets it: strict books, a network before it, headers and faults.

use std::time::Duration;

use llmq_core::{FailureClass, LimitKind, Timestamp, Usage};
use llmq_dispatch::{Ended, Outcome};
use llmq_limit::{HeaderSource, LimitText, Observation, RateLimitHeaders, infer_window};
use llmq_strict::{Arrival, Book, CallId, Refusal, StrictProvider};

use crate::dated::{self, Reading};
use crate::scenario::{HeaderStyle, Outage, OutageKind, UpstreamPlan};
use crate::surprises::{Knew, Surprises};

const HOUR: Duration = Duration::from_secs(3_600);
/// To what Anthropic rounds.
const ROUNDED_TO: u64 = 1_000;

#[derive(Debug)]
pub(crate) struct Provider {
    plan: UpstreamPlan,
    start: Timestamp,
    /// What its own wall clock shows at zero, since 1970.
    wall_at_zero: Duration,
    real: StrictProvider,
    /// The same, told of our calls alone and with a clock that is right; none where that is
    /// no different.
    alone: Option<StrictProvider>,
    /// Refusals that others brought about.
    pub(crate) surprises: Surprises,
}

/// A call's names with the provider, from its admission to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admitted {
    real: CallId,
    alone: Option<CallId>,
}

/// What a provider makes of a call that arrives.
#[derive(Debug)]
pub(crate) enum Decision {
    Admitted(Admitted, RateLimitHeaders),
    Refused {
        answer: Box<Ended>,
        ours: bool,
        /// The index of the limit that refused it.
        limit: usize,
        /// What refused, in words.
        by: String,
        /// No waiting helps: not a matter of rates.
        too_large: bool,
    },
    Down(Box<Ended>),
    /// It is let in and counted, and no answer will come.
    Silent(Admitted),
}

impl Provider {
    pub(crate) fn new(plan: &UpstreamPlan, wall_at_zero: Duration, start: Timestamp) -> Self {
        let skew = Duration::from_millis(u64::from(plan.skew_ms.unsigned_abs()));
        let skewed = if plan.skew_ms < 0 {
            wall_at_zero.saturating_sub(skew)
        } else {
            wall_at_zero + skew
        };
        let model = |wall| {
            StrictProvider::new(&plan.limits, plan.account.charge(), start).with_wall_clock(wall)
        };
        let differs = plan.foreign.is_some() || plan.skew_ms != 0;
        Self {
            plan: plan.clone(),
            start,
            wall_at_zero: skewed,
            real: model(skewed),
            alone: differs.then(|| model(wall_at_zero)),
            surprises: Surprises::new(plan.limits.iter().map(|spec| spec.period)),
        }
    }

    /// How it is down at `now`, if it is.
    pub(crate) fn outage(&self, now: Timestamp) -> Option<OutageKind> {
        let on = |outage: &&Outage| {
            let from = self.start + outage.after;
            from <= now && now < from + outage.lasts
        };
        self.plan.outages.iter().find(on).map(|outage| outage.kind)
    }

    /// Whether it was down at any time from `from` to `to`.
    pub(crate) fn was_down(&self, from: Timestamp, to: Timestamp) -> bool {
        self.plan.outages.iter().any(|outage| {
            let begins = self.start + outage.after;
            begins <= to && from < begins + outage.lasts
        })
    }

    pub(crate) fn arrive(
        &mut self,
        arrival: &Arrival,
        knew: Knew,
        now: Timestamp,
        reading: Reading,
    ) -> Decision {
        let outage = self.outage(now);
        if outage.is_some_and(|kind| kind != OutageKind::Silent) {
            return Decision::Down(failure(FailureClass::Overload, None, None));
        }
        match self.real.arrive(arrival, now) {
            Ok(real) => {
                let alone = self.alone.as_mut().map(|alone| alone.let_in(arrival, now));
                let admitted = Admitted { real, alone };
                match outage {
                    Some(_) => Decision::Silent(admitted),
                    None => Decision::Admitted(admitted, self.headers(now, None, reading)),
                }
            }
            Err(refusal) => self.refuse(arrival, refusal, knew, now, reading),
        }
    }

    fn refuse(
        &mut self,
        arrival: &Arrival,
        refusal: Refusal,
        knew: Knew,
        now: Timestamp,
        reading: Reading,
    ) -> Decision {
        let ours = self
            .alone
            .as_ref()
            .is_none_or(|alone| !alone.would_admit(arrival, now));
        let too_large = refusal.is_too_large();
        if !ours && !too_large {
            self.note_surprise(&refusal, knew, now);
        }
        let spec = self.plan.limits[refusal.limit];
        let class = match spec.period {
            _ if too_large => FailureClass::TooLarge,
            period if period >= HOUR => FailureClass::QuotaDay,
            _ => FailureClass::QuotaWindow,
        };
        let exact = refusal.retry_after.filter(|_| self.plan.tells_wait);
        let headers = self.headers(now, exact, reading);
        let told = headers.retry_after.or(exact);
        let text = LimitText {
            class,
            kind: Some(spec.kind),
            period: (spec.kind != LimitKind::Concurrency).then_some(spec.period),
            limit: Some(refusal.count),
            used: Some(refusal.used),
            requested: Some(refusal.requested),
            try_again: told,
            resets_at: None,
        };
        let mut answer = failure(class, told, Some(text));
        answer.headers = Some(headers);
        let by = format!(
            "{spec}: {} used, {} asked for",
            refusal.used, refusal.requested
        );
        Decision::Refused {
            answer,
            ours,
            limit: refusal.limit,
            by,
            too_large,
        }
    }

    fn note_surprise(&mut self, refusal: &Refusal, knew: Knew, now: Timestamp) {
        let spec = &self.plan.limits[refusal.limit];
        let over = (refusal.used + refusal.requested).saturating_sub(refusal.count);
        self.surprises.refused(refusal.limit, spec, over, knew, now);
    }

    pub(crate) fn produced(&mut self, id: Admitted, tokens: u64, now: Timestamp) {
        self.real.produced(id.real, tokens, now);
        if let (Some(alone), Some(id)) = (&mut self.alone, id.alone) {
            alone.produced(id, tokens, now);
        }
    }

    pub(crate) fn finish(&mut self, id: Admitted, usage: Usage, now: Timestamp) {
        self.real.finish(id.real, usage, now);
        if let (Some(alone), Some(id)) = (&mut self.alone, id.alone) {
            alone.finish(id, usage, now);
        }
    }

    /// Others use the account; returns how much they got.
    pub(crate) fn used_by_others(&mut self, kind: LimitKind, amount: u64, now: Timestamp) -> u64 {
        let got = self.real.charge_outside(kind, amount, now);
        self.surprises.used(got, now);
        got
    }

    /// An answer that it is too busy, and is not to be asked again within `wait`.
    pub(crate) fn busy(&self, wait: Duration, now: Timestamp, reading: Reading) -> Box<Ended> {
        let headers = self.headers(now, Some(wait), reading);
        let mut answer = failure(FailureClass::Overload, headers.retry_after, None);
        answer.headers = Some(headers);
        answer
    }

    fn headers(
        &self,
        now: Timestamp,
        retry: Option<Duration>,
        reading: Reading,
    ) -> RateLimitHeaders {
        if self.plan.headers == HeaderStyle::Dated {
            let wall = self.wall_at_zero + Duration::from_nanos(now.as_nanos());
            let host = self.plan.account.host();
            return dated::read(host, wall, &self.real.books(now), retry, reading);
        }
        let observations = match self.plan.headers {
            HeaderStyle::None => Vec::new(),
            style => {
                let books = self.real.books(now);
                let counted = books
                    .iter()
                    .filter(|book| book.spec.kind != LimitKind::Concurrency);
                counted.map(|book| observation(book, style)).collect()
            }
        };
        RateLimitHeaders {
            observations,
            ..RateLimitHeaders::default()
        }
    }
}

fn observation(book: &Book, style: HeaderStyle) -> Observation {
    let window = match style {
        HeaderStyle::Full | HeaderStyle::Rounded => Some(book.spec.period),
        HeaderStyle::Bare | HeaderStyle::Dated | HeaderStyle::None => {
            // What is printed is whole milliseconds.
            let printed = Duration::from_millis(u64::try_from(book.reset.as_millis()).unwrap_or(0));
            infer_window(book.spec.count, book.remaining, printed)
        }
    };
    let rounding = match (style, book.spec.kind) {
        (HeaderStyle::Rounded, kind) if kind != LimitKind::Requests => ROUNDED_TO,
        _ => 1,
    };
    let remaining = (book.remaining + rounding / 2) / rounding * rounding;
    Observation {
        kind: book.spec.kind,
        source: HeaderSource::Standard,
        limit: Some(book.spec.count),
        remaining: Some(remaining),
        reset: Some(book.reset),
        window,
        rounding,
        query_cost: None,
    }
}

/// An answer that is none.
pub(crate) fn failure(
    class: FailureClass,
    told: Option<Duration>,
    text: Option<LimitText>,
) -> Box<Ended> {
    Box::new(Ended {
        outcome: Outcome::Failed { class, told, text },
        ..Ended::default()
    })
}
