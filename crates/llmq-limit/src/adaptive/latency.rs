use std::time::Duration;

use llmq_core::{Now, Timestamp};

use super::{Answer, AnswerOutcome, ChangeReason};

/// A round has at least so many answers, so that one slow answer does not decide.
pub(super) const ROUND_MIN: u64 = 32;
/// How much slower than usual an output token may come before the limit shrinks. Batching
/// servers slow down somewhat with every call they take in, and are still the faster for it.
const SLOWDOWN: f64 = 2.0;
/// Doubling ends when tokens come this much slower than usual: the server is near what it can
/// do, and the last doubling would only have made a queue of its own.
const NEAR: f64 = 1.25;
/// The most that one round takes away.
const SHRINK_MIN: f64 = 0.5;
/// How far one faster round moves what is usual.
const FASTER: f64 = 0.25;
/// When the limit has come down to this part and tokens are as slow as before, it is not the
/// number of calls that slows them.
const NOT_OURS: u64 = 4;

/// The policy `latency`: once a round, compares the time an output token took with what is
/// usual; shrinks in proportion when it took too long, grows when the limit was really used.
///
/// The raw latency says nothing, since it follows the length of the answers. Summing times and
/// tokens over a round weighs each token alike.
#[derive(Debug, Clone)]
pub(super) struct Latency {
    round: Round,
    /// What an output token takes while the provider is at ease, in seconds. It falls with faster
    /// rounds and does not follow slower ones, for it would follow those that we cause and never
    /// object; see [`NOT_OURS`] for the exception.
    usual: Option<f64>,
    /// The limit at which the slow rounds began, of which this is the latest.
    slow_from: Option<u64>,
    /// Doubling until the first sign that it is enough.
    searching: bool,
    last_cut: Option<Timestamp>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Round {
    answers: u64,
    tokens: u64,
    time: Duration,
    in_flight_max: u64,
}

impl Latency {
    pub(super) fn new() -> Self {
        Self {
            round: Round::default(),
            usual: None,
            slow_from: None,
            searching: true,
            last_cut: None,
        }
    }

    pub(super) fn on_answer(
        &mut self,
        limit: u64,
        answer: Answer,
        now: Now,
    ) -> Option<(u64, ChangeReason)> {
        // Of the calls in flight at a cut, any number still report the same trouble: only one that
        // was sent after the cut can say that it was not enough.
        let sent = now.mono.before(answer.latency);
        if self.last_cut.is_some_and(|cut| sent < cut) {
            return None;
        }
        match answer.outcome {
            AnswerOutcome::Overload => {
                self.cut(now);
                Some((limit.saturating_mul(7) / 10, ChangeReason::Overload))
            }
            // Says nothing about how fast the provider works.
            AnswerOutcome::Error => None,
            AnswerOutcome::Success => {
                self.round.add(answer);
                let is_whole = self.round.answers >= limit.max(ROUND_MIN);
                is_whole.then(|| self.end_round(limit, now)).flatten()
            }
        }
    }

    fn cut(&mut self, now: Now) {
        self.last_cut = Some(now.mono);
        self.searching = false;
        self.round = Round::default();
    }

    fn end_round(&mut self, limit: u64, now: Now) -> Option<(u64, ChangeReason)> {
        let round = std::mem::take(&mut self.round);
        let took = round.seconds_per_token();
        self.searching &= took
            .zip(self.usual)
            .is_none_or(|(took, usual)| took <= usual * NEAR);
        let slowdown = took.map_or(1.0, |took| self.slowdown(limit, took));
        if slowdown > SLOWDOWN {
            self.cut(now);
            let factor = (SLOWDOWN / slowdown).max(SHRINK_MIN);
            return Some((scaled(limit, factor), ChangeReason::Slower));
        }
        // Growing unused says nothing about what the provider can take.
        let used = round.in_flight_max >= limit - limit / 5;
        let step = match self.searching {
            true => limit,
            false => limit.isqrt().max(1),
        };
        used.then(|| (limit.saturating_add(step), ChangeReason::Room))
    }

    /// How many times the usual time a token took; learns what is usual.
    fn slowdown(&mut self, limit: u64, took: f64) -> f64 {
        let usual = self.usual.unwrap_or(took);
        if took <= usual * SLOWDOWN {
            self.slow_from = None;
            self.usual = Some(usual + (took - usual).min(0.0) * FASTER);
            return 1.0;
        }
        let slow_from = *self.slow_from.get_or_insert(limit);
        if limit > slow_from / NOT_OURS && limit > 1 {
            return took / usual;
        }
        self.slow_from = None;
        self.usual = Some(took);
        1.0
    }
}

impl Round {
    fn add(&mut self, answer: Answer) {
        self.answers += 1;
        self.in_flight_max = self.in_flight_max.max(answer.in_flight);
        if answer.output_tokens > 0 {
            self.tokens = self.tokens.saturating_add(answer.output_tokens);
            self.time = self.time.saturating_add(answer.latency);
        }
    }

    fn seconds_per_token(&self) -> Option<f64> {
        (self.tokens > 0).then(|| self.time.as_secs_f64() / self.tokens as f64)
    }
}

pub(super) fn scaled(limit: u64, factor: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of a small count, rounded down on purpose"
    )]
    let scaled = (limit as f64 * factor) as u64;
    scaled
}
