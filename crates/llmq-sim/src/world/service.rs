//! A provider works on a call, and others use its account meanwhile.

use std::time::Duration;

use llmq_core::{FailureClass, Usage};
use llmq_dispatch::{Ended, Outcome};

use super::{Next, Told, World};
use crate::dated::Reading;
use crate::provider::failure;
use crate::scenario::{Account, HeaderStyle, SeededBug};
use crate::workload;

/// An answer streams in this many pieces.
const PIECES: u64 = 4;
/// A busy provider asks for at most this much patience.
const BUSY_MAX: Duration = Duration::from_secs(20);

impl World<'_> {
    /// The provider works on a call: all that will come of it is known now.
    pub(super) fn serve(
        &mut self,
        index: usize,
        attempt: u32,
        headers: llmq_limit::RateLimitHeaders,
    ) {
        let upstream = self.calls[index].upstream;
        let plan = &self.scenario.upstreams[upstream];
        let spread = plan.latency_spread * (2.0 * self.rng.f64() - 1.0);
        let latency = plan.latency.mul_f64(1.0 + spread);
        let fails = self.rng.f64() < plan.failures;
        let dated = plan.headers == HeaderStyle::Dated;
        let usage = self.calls[index].plan.usage;
        let processing = |span: Duration| plan.tells_processing.then_some(span);
        let (end, usage, told) = if fails {
            let end = latency.mul_f64(self.rng.f64());
            let ended = if dated {
                let wait = BUSY_MAX.mul_f64(self.rng.f64());
                self.calls[index].asked_until = Some(self.now + end + wait);
                self.providers[upstream].busy(wait, self.now + end, self.reading())
            } else {
                let mut ended = failure(FailureClass::Transient, None, None);
                ended.headers = Some(headers);
                ended
            };
            let nothing = Usage {
                output_tokens: 0,
                ..usage
            };
            (end, nothing, ended)
        } else {
            let ended = Box::new(Ended {
                outcome: Outcome::Completed,
                usage: Some(self.reported(usage)),
                headers: Some(headers),
                latency: Some(latency),
                ..Ended::default()
            });
            (latency, usage, ended)
        };
        let end_at = self.now + end;
        if plan.account == Account::AsItStreams && !fails {
            self.stream(index, attempt, latency, processing(latency / 3));
        } else {
            let first = Told::FirstByte(processing(end));
            self.answer_at(end_at, index, attempt, first);
        }
        self.agenda.add(end_at, Next::Finish(index, attempt, usage));
        self.answer_at(end_at, index, attempt, Told::Ended(told));
    }

    /// What the client reads of the usage, unless something has been broken on purpose.
    fn reported(&mut self, usage: Usage) -> Usage {
        #[expect(clippy::cast_precision_loss, reason = "token counts")]
        let output = usage.output_tokens as f64;
        self.mean_output += (output - self.mean_output) * 0.05;
        if self.scenario.bug != Some(SeededBug::ForgetsDebt) {
            return usage;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "token counts are positive"
        )]
        let most = (self.mean_output / 2.0) as u64;
        Usage {
            output_tokens: usage.output_tokens.min(most),
            ..usage
        }
    }

    fn stream(
        &mut self,
        index: usize,
        attempt: u32,
        latency: Duration,
        processing: Option<Duration>,
    ) {
        let first = self.now + latency / 3;
        self.answer_at(first, index, attempt, Told::FirstByte(processing));
        let output = self.calls[index].plan.usage.output_tokens;
        let mut told = 0;
        for piece in 1..PIECES {
            let at = first
                + (latency - latency / 3)
                    .mul_f64(f64::from(u32::try_from(piece).unwrap_or(0)) / 4.0);
            let sofar = output * piece / PIECES;
            self.agenda
                .add(at, Next::Produce(index, attempt, sofar - told));
            told = sofar;
            let heard = match self.scenario.bug {
                Some(SeededBug::ForgetsDebt) => 0,
                _ => sofar,
            };
            self.answer_at(at, index, attempt, Told::Produced(heard));
        }
    }

    /// How our side reads what is dated.
    pub(super) fn reading(&self) -> Reading {
        Reading {
            now: self.clock.at(self.now),
            by_own_clock: self.scenario.bug == Some(SeededBug::ReadsDatesByOwnClock),
        }
    }

    pub(super) fn produce(&mut self, index: usize, attempt: u32, tokens: u64) {
        let call = &mut self.calls[index];
        if call.attempt != attempt {
            return;
        }
        call.produced += tokens;
        if let Some(admitted) = call.admitted {
            self.providers[call.upstream].produced(admitted, tokens, self.now);
            self.own.produced(&call.own, tokens, self.now);
        }
    }

    pub(super) fn finish_at_provider(&mut self, index: usize, attempt: u32, usage: Usage) {
        let call = &mut self.calls[index];
        if call.attempt != attempt {
            return;
        }
        if let Some(admitted) = call.admitted.take() {
            self.providers[call.upstream].finish(admitted, usage, self.now);
            self.own.finish(&call.own, usage, self.now);
        }
    }

    pub(super) fn others(&mut self, upstream: usize) {
        let Some(foreign) = self.scenario.upstreams[upstream].foreign else {
            return;
        };
        let got = self.providers[upstream].used_by_others(foreign.kind, foreign.amount, self.now);
        for ideal in self.ideals.of_upstream(upstream) {
            ideal.used_by_others(foreign.kind, got, self.now);
        }
        let wait = workload::exponential(foreign.every.as_secs_f64(), &mut self.rng);
        self.agenda.add(self.now + wait, Next::Foreign(upstream));
    }
}
