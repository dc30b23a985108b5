//! A call on its way: out to its provider, and the answer back.

use std::time::Duration;

use llmq_core::{FailureClass, Timestamp, Usage};
use llmq_dispatch::{Event, Outcome, TicketId, UpstreamId};
use llmq_strict::Arrival;

use super::{Next, Told, World};
use crate::books::Place;
use crate::judge::WRITE_MAX;
use crate::provider::{Decision, failure};
use crate::scenario::{OutageKind, SILENCE_MAX, Telling};
use crate::surprises::Knew;

/// So many refusals of ours are told in words.
const REFUSALS_MAX: usize = 5;

impl World<'_> {
    pub(super) fn delay(&mut self) -> Duration {
        self.scenario.network_max.mul_f64(self.rng.f64())
    }

    /// How late something is told.
    fn lateness(&mut self) -> Duration {
        let Telling { late, late_max } = self.scenario.telling;
        if late > 0.0 && self.rng.f64() < late {
            late_max.mul_f64(self.rng.f64().powi(2))
        } else {
            Duration::ZERO
        }
    }

    /// A call is started: its bytes will be written.
    pub(super) fn start(&mut self, ticket: TicketId, upstream: UpstreamId) {
        let Some(index) = self.by_ticket.get(&ticket).copied() else {
            return self.books.fault(self.now, "an unknown ticket was started");
        };
        self.books.start(index, self.now);
        let upstream = self.upstreams.iter().position(|id| *id == upstream);
        let upstream = upstream.unwrap_or(0);
        let arrival = self.arrival(index);
        let knew = Knew::as_of(self.told[upstream], self.now);
        let call = &mut self.calls[index];
        call.knew = knew;
        call.attempt += 1;
        call.upstream = upstream;
        call.admitted = None;
        call.produced = 0;
        call.told = 0;
        call.heard = self.now;
        call.asked_until = None;
        call.untold = None;
        call.refused_by = None;
        let attempt = call.attempt;
        self.report.sent += 1;
        self.report.sent_to[upstream] += 1;
        self.choose(index, upstream, &arrival);
        let owners = self.owners(index);
        let ideal = self.ideals.started(owners, &arrival, self.now);
        self.calls[index].ideal = Some(ideal);
        self.check_reserve(index, &arrival);
        self.shares.started(self.tenant_of(index), &arrival);
        if self.providers[upstream].outage(self.now) == Some(OutageKind::Refused) {
            let told = Told::Ended(failure(FailureClass::Transient, None, None));
            let at = self.now + Duration::from_millis(1);
            self.agenda.add(at, Next::Told(index, attempt, told));
            return;
        }
        let write = WRITE_MAX.mul_f64(self.rng.f64());
        self.agenda
            .add(self.now + write, Next::Write(index, attempt));
    }

    pub(super) fn arrival(&self, index: usize) -> Arrival {
        let plan = &self.calls[index].plan;
        Arrival {
            input_tokens: plan.usage.input_tokens,
            ..Arrival::from(plan.size)
        }
    }

    pub(super) fn is_present(&self, index: usize, attempt: u32) -> bool {
        self.calls[index].attempt == attempt && self.books.place(index) == Place::Running
    }

    pub(super) fn write(&mut self, index: usize, attempt: u32) {
        if !self.is_present(index, attempt) {
            return;
        }
        let late = self.lateness();
        let call = &mut self.calls[index];
        call.untold = Some(self.now);
        call.heard = self.now + late;
        if late.is_zero() {
            self.written(index, attempt);
        } else {
            self.agenda
                .add(self.now + late, Next::Written(index, attempt));
        }
        let at = self.now + self.delay();
        self.agenda.add(at, Next::Arrive(index, attempt));
    }

    /// It is told that a call has been written.
    pub(super) fn written(&mut self, index: usize, attempt: u32) {
        if !self.is_present(index, attempt) {
            return;
        }
        let call = &mut self.calls[index];
        if let (Some(ticket), Some(at)) = (call.ticket, call.untold.take()) {
            self.tell(Event::Sent(ticket, at));
        }
    }

    pub(super) fn arrive(&mut self, index: usize, attempt: u32) {
        let arrival = self.arrival(index);
        let upstream = self.calls[index].upstream;
        let reading = self.reading();
        let knew = self.calls[index].knew;
        let decision = self.providers[upstream].arrive(&arrival, knew, self.now, reading);
        self.calls[index].arrived = self.now;
        if let Decision::Admitted(admitted, _) | Decision::Silent(admitted) = &decision {
            self.calls[index].admitted = Some(*admitted);
            self.count_own(index, &arrival);
        }
        match decision {
            Decision::Admitted(_, headers) => {
                if self.is_present(index, attempt) {
                    self.serve(index, attempt, headers);
                } else {
                    let usage = Usage {
                        output_tokens: 0,
                        ..self.calls[index].plan.usage
                    };
                    self.finish_at_provider(index, attempt, usage);
                }
            }
            Decision::Refused {
                answer,
                ours,
                limit,
                by,
                too_large,
            } => {
                self.calls[index].refused_by = Some(limit);
                if ours && !too_large && self.report.refusals.len() < REFUSALS_MAX {
                    let at = self.now.as_nanos() / 1_000;
                    let text = format!("at {at} µs, upstream {upstream}, {by}");
                    self.report.refusals.push(text);
                }
                if !too_large {
                    self.report.ours += u64::from(ours);
                    self.report.ours_when_known += u64::from(ours && self.knew_limits(index));
                    self.report.not_ours += u64::from(!ours);
                }
                self.answer(index, attempt, Told::Ended(answer));
            }
            Decision::Silent(_) => {
                let nothing = Usage {
                    output_tokens: 0,
                    ..self.calls[index].plan.usage
                };
                let at = self.now + SILENCE_MAX;
                self.agenda.add(at, Next::Finish(index, attempt, nothing));
                let told = Told::Ended(failure(FailureClass::Ambiguous, None, None));
                self.agenda.add(at, Next::Told(index, attempt, told));
            }
            Decision::Down(answer) => self.answer(index, attempt, Told::Ended(answer)),
        }
    }

    fn answer(&mut self, index: usize, attempt: u32, told: Told) {
        self.answer_at(self.now, index, attempt, told);
    }

    /// The answer travels back; what was said first comes first.
    pub(super) fn answer_at(&mut self, said: Timestamp, index: usize, attempt: u32, told: Told) {
        let at = said + self.delay() + self.lateness();
        let at = at.max(self.calls[index].heard);
        self.calls[index].heard = at;
        self.agenda.add(at, Next::Told(index, attempt, told));
    }

    pub(super) fn told(&mut self, index: usize, attempt: u32, told: Told) {
        if !self.is_present(index, attempt) {
            return;
        }
        let call = &mut self.calls[index];
        let Some(ticket) = call.ticket else { return };
        match told {
            Told::FirstByte(processing) => self.tell(Event::FirstByte(ticket, processing)),
            Told::Produced(tokens) => {
                let new = tokens.saturating_sub(call.told);
                call.told += new;
                if let Some(ideal) = &mut call.ideal {
                    self.ideals.produced(ideal, new, self.now);
                    self.rest.produced(&call.rest, new, self.now);
                }
                self.tell(Event::Produced(ticket, tokens));
            }
            Told::Ended(ended) => {
                if let Some(limit) = call.refused_by.take() {
                    self.providers[call.upstream]
                        .surprises
                        .heard(limit, self.now);
                }
                let headers = ended.headers.as_ref();
                if headers.is_some_and(|headers| !headers.observations.is_empty()) {
                    let told = &mut self.told[call.upstream];
                    *told = (*told).max(call.arrived);
                    for ideal in self.ideals.of_upstream(call.upstream) {
                        ideal.told(call.arrived);
                    }
                }
                if let Some(ideal) = call.ideal.take() {
                    let usage = match ended.outcome {
                        // What may have been billed counts as if it had been.
                        Outcome::Completed
                        | Outcome::Failed {
                            class: FailureClass::Ambiguous,
                            ..
                        } => call.plan.usage,
                        Outcome::Failed { .. } => Usage::default(),
                    };
                    self.ideals.ended(&ideal, usage, self.now);
                    self.rest.finish(&call.rest, usage, self.now);
                }
                self.tell(Event::Ended(ticket, ended));
            }
        }
    }
}
