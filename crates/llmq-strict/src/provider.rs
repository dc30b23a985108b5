use std::time::Duration;

use llmq_core::{LimitKind, LimitSpec, Timestamp, Usage};

use crate::call::{Arrival, CallId, Charge, Refusal};
use crate::meter::{Meter, Room};

/// A provider that enforces its limits to the letter.
///
/// Admission is all or nothing over all limits. An admitted call is charged as [`Charge`]
/// says; a refused one is charged nothing, unless
/// [`counting_refused_requests`](Self::counting_refused_requests) was chosen. Memory is bounded
/// by the calls in flight and by what lies inside the windows.
///
/// ```
/// use llmq_core::{LimitSpec, Timestamp, Usage};
/// use llmq_strict::{Arrival, Charge, StrictProvider};
/// use std::time::Duration;
///
/// let limits: [LimitSpec; 1] = ["requests=2/10s".parse().unwrap()];
/// let start = Timestamp::ZERO;
/// let mut provider = StrictProvider::new(&limits, Charge::Arrival, start);
/// let first = provider.arrive(&Arrival::of_input(5), start).unwrap();
/// provider.arrive(&Arrival::of_input(5), start + Duration::from_secs(1)).unwrap();
/// provider.finish(first, Usage::default(), start + Duration::from_secs(2));
///
/// let refusal = provider.arrive(&Arrival::of_input(5), start + Duration::from_secs(3)).unwrap_err();
/// assert_eq!(refusal.retry_after, Some(Duration::from_secs(7)));
/// ```
#[derive(Debug, Clone)]
pub struct StrictProvider {
    charge: Charge,
    limits: Vec<Limit>,
    calls: Calls,
    latest: Timestamp,
    accepted: u64,
    refused_requests: RefusedRequests,
}

#[derive(Debug, Clone)]
struct Limit {
    spec: LimitSpec,
    meter: Meter,
    refused: u64,
}

/// Whether a refused call uses up a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RefusedRequests {
    Free,
    Counted,
}

/// What a provider knows of one of its limits, as its headers tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Book {
    /// The limit.
    pub spec: LimitSpec,
    /// What is used of it, rounded up: for a bucket, what is missing from a full one. Above the
    /// count when overdrawn.
    pub used: u64,
    /// The count less what is used, at least 0. For a bucket shallower than its period more is
    /// shown than can be taken at once, as providers do that check shorter slices than they show.
    pub remaining: u64,
    /// What a reset header says. For a bucket the time until it is full, which is
    /// (count − remaining) ÷ count × period up to the rounding of `used`; for a sliding window
    /// the same formula, so that a reader of headers finds the same period; for a fixed window
    /// with any use the time to its end. Zero for concurrency.
    pub reset: Duration,
    /// The exact time until nothing is used any more, if nothing else happens. Zero for
    /// concurrency, since nobody knows.
    pub full_in: Duration,
    /// Calls refused by this limit.
    pub refused: u64,
}

impl StrictProvider {
    /// A provider with `limits`, all unused at `now`. Fixed windows begin at multiples of their
    /// period since [`Timestamp::ZERO`]; see [`with_wall_clock`](Self::with_wall_clock).
    #[must_use]
    pub fn new(limits: &[LimitSpec], charge: Charge, now: Timestamp) -> Self {
        let limits = limits
            .iter()
            .map(|spec| Limit {
                spec: *spec,
                meter: Meter::new(spec, Duration::ZERO, now),
                refused: 0,
            })
            .collect();
        Self {
            charge,
            limits,
            calls: Calls::default(),
            latest: now,
            accepted: 0,
            refused_requests: RefusedRequests::Free,
        }
    }

    /// Aligns fixed windows to a wall clock that shows `at_zero` (since its epoch) at
    /// [`Timestamp::ZERO`]. To be called before the first arrival: fixed windows begin anew.
    #[must_use]
    pub fn with_wall_clock(mut self, at_zero: Duration) -> Self {
        for limit in &mut self.limits {
            if let Meter::Fixed(_) = limit.meter {
                limit.meter = Meter::new(&limit.spec, at_zero, self.latest);
            }
        }
        self
    }

    /// Lets a refused call use up a request of those request limits that had room for it.
    #[must_use]
    pub fn counting_refused_requests(mut self) -> Self {
        self.refused_requests = RefusedRequests::Counted;
        self
    }

    /// A call arrives.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] of the limit that stands in its way the longest.
    pub fn arrive(&mut self, arrival: &Arrival, now: Timestamp) -> Result<CallId, Refusal> {
        let now = self.advance(now);
        if let Err(refusal) = self.check(arrival, now) {
            self.limits[refusal.limit].refused += 1;
            if self.refused_requests == RefusedRequests::Counted {
                self.count_refused_request(now);
            }
            return Err(refusal);
        }
        Ok(self.let_in(arrival, now))
    }

    /// A call that was let in by somebody else: it is charged whatever is left, and may overdraw.
    pub fn let_in(&mut self, arrival: &Arrival, now: Timestamp) -> CallId {
        let now = self.advance(now);
        for limit in &mut self.limits {
            let cost = arrival.cost(limit.spec.kind, self.charge);
            limit.meter.charge(cost, now);
        }
        self.accepted += 1;
        self.calls.open()
    }

    /// Whether `arrival` would be admitted at `now`; changes nothing.
    #[must_use]
    pub fn would_admit(&self, arrival: &Arrival, now: Timestamp) -> bool {
        self.check(arrival, now).is_ok()
    }

    /// What [`arrive`](Self::arrive) would answer at `now`; changes nothing.
    ///
    /// # Errors
    ///
    /// The [`Refusal`] of the limit that stands in the way the longest.
    pub fn check(&self, arrival: &Arrival, now: Timestamp) -> Result<(), Refusal> {
        let now = now.max(self.latest);
        let mut worst: Option<Refusal> = None;
        for (index, limit) in self.limits.iter().enumerate() {
            let Some(refusal) = limit.refusal(index, arrival, self.charge, now) else {
                continue;
            };
            if worst.is_none_or(|worst| refusal.severity() > worst.severity()) {
                worst = Some(refusal);
            }
        }
        worst.map_or(Ok(()), Err)
    }

    /// The call has produced `tokens` more of output. Counted at once under
    /// [`Charge::Stream`], else without effect. False when the call is not in flight.
    pub fn produced(&mut self, id: CallId, tokens: u64, now: Timestamp) -> bool {
        let now = self.advance(now);
        let Some(produced) = self.calls.get_mut(id) else {
            return false;
        };
        *produced = produced.saturating_add(tokens);
        if self.charge == Charge::Stream {
            self.charge_output(tokens, now);
        }
        true
    }

    /// The call has ended; it no longer counts against concurrency. Under [`Charge::Usage`] its
    /// output is counted now, under [`Charge::Stream`] what of it was not yet told by
    /// [`produced`](Self::produced). A call that came to nothing ends with `Usage::default()`.
    /// False, and without effect, when the call is not in flight.
    pub fn finish(&mut self, id: CallId, usage: Usage, now: Timestamp) -> bool {
        let now = self.advance(now);
        let Some(produced) = self.calls.close(id) else {
            return false;
        };
        match self.charge {
            Charge::Arrival => {}
            Charge::Usage => self.charge_output(usage.output_tokens, now),
            Charge::Stream => self.charge_output(usage.output_tokens.saturating_sub(produced), now),
        }
        for limit in &mut self.limits {
            limit.meter.release();
        }
        true
    }

    /// Another client of the same account uses `amount` of every limit of `kind`, as far as all
    /// of them have room for it. Returns what was charged; 0 for concurrency.
    pub fn charge_outside(&mut self, kind: LimitKind, amount: u64, now: Timestamp) -> u64 {
        if kind == LimitKind::Concurrency {
            return 0;
        }
        let now = self.advance(now);
        let concerned = |limit: &&mut Limit| limit.spec.kind == kind;
        let room = self
            .limits
            .iter()
            .filter(|limit| limit.spec.kind == kind)
            .map(|limit| limit.meter.room(limit.spec.count, now))
            .min();
        let Some(room) = room else { return 0 };
        let taken = amount.min(room);
        for limit in self.limits.iter_mut().filter(concerned) {
            limit.meter.charge(taken, now);
        }
        taken
    }

    /// The state of every limit, in the order given to [`new`](Self::new).
    #[must_use]
    pub fn books(&self, now: Timestamp) -> Vec<Book> {
        let now = now.max(self.latest);
        self.limits.iter().map(|limit| limit.book(now)).collect()
    }

    /// The limits, in the order given to [`new`](Self::new).
    pub fn limits(&self) -> impl ExactSizeIterator<Item = &LimitSpec> {
        self.limits.iter().map(|limit| &limit.spec)
    }

    /// Calls admitted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    /// Calls refused so far.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.limits.iter().map(|limit| limit.refused).sum()
    }

    /// Calls admitted and not yet finished.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.calls.in_flight
    }

    fn advance(&mut self, now: Timestamp) -> Timestamp {
        self.latest = self.latest.max(now);
        self.latest
    }

    fn count_refused_request(&mut self, now: Timestamp) {
        for limit in &mut self.limits {
            if limit.spec.kind == LimitKind::Requests && limit.meter.room(limit.spec.count, now) > 0
            {
                limit.meter.charge(1, now);
            }
        }
    }

    fn charge_output(&mut self, tokens: u64, now: Timestamp) {
        for limit in &mut self.limits {
            if let LimitKind::OutputTokens | LimitKind::Tokens = limit.spec.kind {
                limit.meter.charge(tokens, now);
            }
        }
    }
}

impl Limit {
    fn refusal(
        &self,
        index: usize,
        arrival: &Arrival,
        charge: Charge,
        now: Timestamp,
    ) -> Option<Refusal> {
        let requested = arrival.room_needed(self.spec.kind, charge);
        let retry_after = match self.meter.room_for(requested, self.spec.count, now) {
            Room::Now => return None,
            Room::After(wait) => Some(wait),
            Room::Unknown | Room::Never => None,
        };
        Some(Refusal {
            limit: index,
            requested,
            used: self.meter.used(now),
            count: self.spec.count,
            retry_after,
        })
    }

    fn book(&self, now: Timestamp) -> Book {
        let used = self.meter.used(now);
        Book {
            spec: self.spec,
            used,
            remaining: self.spec.count.saturating_sub(used),
            reset: self.meter.reset(&self.spec, now),
            full_in: self.meter.full_in(now),
            refused: self.refused,
        }
    }
}

/// The calls in flight, each with the output told of so far. Slots are used again; a
/// generation tells the calls on one slot apart.
#[derive(Debug, Clone, Default)]
struct Calls {
    slots: Vec<Slot>,
    free: Vec<u32>,
    in_flight: usize,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    generation: u32,
    produced: Option<u64>,
}

impl Calls {
    fn open(&mut self) -> CallId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1)
                .expect("4 billion calls in flight do not fit memory")
        });
        let entry = &mut self.slots[slot as usize];
        entry.produced = Some(0);
        self.in_flight += 1;
        CallId {
            slot,
            generation: entry.generation,
        }
    }

    fn get_mut(&mut self, id: CallId) -> Option<&mut u64> {
        self.slots
            .get_mut(id.slot as usize)
            .filter(|slot| slot.generation == id.generation)?
            .produced
            .as_mut()
    }

    fn close(&mut self, id: CallId) -> Option<u64> {
        let produced = self.get_mut(id).copied()?;
        let slot = &mut self.slots[id.slot as usize];
        slot.produced = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
        self.in_flight -= 1;
        Some(produced)
    }
}
