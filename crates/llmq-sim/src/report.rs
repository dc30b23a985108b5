use std::time::Duration;

/// What came of a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// Calls submitted.
    pub calls: u64,
    /// Calls that got their answer.
    pub completed: u64,
    /// Calls that failed for good.
    pub failed: u64,
    /// Calls that were not started in time.
    pub expired: u64,
    /// Calls above the whole of a limit.
    pub too_large: u64,
    /// Calls whose caller left.
    pub dropped: u64,
    /// Times that a call was sent.
    pub sent: u64,
    /// Refusals that the strict model gives to our calls alone as well.
    pub ours: u64,
    /// Refusals that others on the account, or a clock that is off, brought about.
    pub not_ours: u64,
    /// The most refusals that were not ours within one period of the limit that refused.
    pub not_ours_in_a_window: u64,
    /// The same, of calls that were sent when their provider had told what was left at least
    /// once: before that nobody can know of others.
    pub told_in_a_window: u64,
    /// The same, of calls that were started when a refusal of that window had been heard of: those in
    /// flight by then cannot be called back.
    pub heard_in_a_window: u64,
    /// From the first call to the end of the last.
    pub elapsed: Duration,
    /// How long work waited that the limits and not a breaker held up.
    pub waiting: Duration,
    /// How much of it there was room at a provider, whatever delays inside the margin, for the
    /// call to be sent next.
    pub idle: Duration,
    /// The same beside the rule that a full bucket is not spent in one instant.
    pub idle_unpaced: Duration,
    /// How long work waited for a breaker although its provider was up.
    pub breaker: Duration,
    /// How much of it there was room for the call to be sent next.
    pub late: Duration,
    /// Calls of ours that were refused although the limit that refused them was known when they
    /// were sent.
    pub ours_when_known: u64,
    /// Times that a call was sent to each provider.
    pub sent_to: Vec<u64>,
    /// Times that a call was sent to a fallback.
    pub fallbacks: u64,
    /// The first few refusals that were ours, in words.
    pub refusals: Vec<String>,
    /// The first few refusals that others brought about, in words.
    pub surprises: Vec<String>,
    /// Laws that were broken, the first few.
    pub faults: Vec<String>,
}

impl Report {
    /// One less the share of the waiting time in which there was room; 1 when nothing waited.
    #[must_use]
    pub fn use_share(&self) -> f64 {
        self.share(self.idle)
    }

    /// The same, not counting the time in which a full bucket is spent slowly by rule.
    #[must_use]
    pub fn use_beside_pacing(&self) -> f64 {
        self.share(self.idle_unpaced)
    }

    fn share(&self, idle: Duration) -> f64 {
        if self.waiting.is_zero() {
            return 1.0;
        }
        1.0 - idle.as_secs_f64() / self.waiting.as_secs_f64()
    }

    /// Refusals of ours, as a share of calls sent.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a share of a count")]
    pub fn ours_share(&self) -> f64 {
        self.ours as f64 / self.sent.max(1) as f64
    }

    /// Adds another run's counts and times.
    pub fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.completed += other.completed;
        self.failed += other.failed;
        self.expired += other.expired;
        self.too_large += other.too_large;
        self.dropped += other.dropped;
        self.sent += other.sent;
        self.ours += other.ours;
        self.not_ours += other.not_ours;
        self.not_ours_in_a_window = self.not_ours_in_a_window.max(other.not_ours_in_a_window);
        self.told_in_a_window = self.told_in_a_window.max(other.told_in_a_window);
        self.heard_in_a_window = self.heard_in_a_window.max(other.heard_in_a_window);
        self.elapsed += other.elapsed;
        self.waiting += other.waiting;
        self.idle += other.idle;
        self.idle_unpaced += other.idle_unpaced;
        self.breaker += other.breaker;
        self.late += other.late;
        self.ours_when_known += other.ours_when_known;
        self.fallbacks += other.fallbacks;
        self.faults.extend(other.faults.iter().cloned());
    }
}
