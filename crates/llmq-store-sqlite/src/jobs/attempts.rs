//! Attempts: how they begin and end.

use llmq_core::{Event, FailureClass, Now, Status, Verdict, WallTime};
use llmq_store::{
    Cancelled, GiveBack, Job, JobError, JobId, Lease, LeaseToken, Moved, Report, Start, StartError,
    Started, StoredAnswer, Worker,
};

use super::blobs;
use super::desk::{Desk, Done, Fault};
use super::index::Held;
use super::row::{CALENDAR, JobRow, MAY_HAVE_BEEN_SENT};

/// A report that came too late.
#[derive(Debug)]
pub(crate) struct Lost;

impl Desk<'_> {
    pub(crate) fn start(&mut self, start: &Start, now: Now) -> Done<Started, StartError> {
        self.takes_work()?;
        let job = start.job;
        let row = self.find(job)?;
        let mut row = row.ok_or(Fault::Refused(StartError::NotFound { job }))?;
        if row.status != Status::Queued {
            let status = row.status;
            return Err(Fault::Refused(StartError::NotQueued { job, status }));
        }
        if self.is_late(&row, now) {
            self.move_row(&mut row, Event::TtlPassed, now)?;
            return Err(Fault::Refused(StartError::Expired { job }));
        }
        let due_at = self.due_at(&row, now);
        if due_at > now.mono {
            // It was due, and the wall was set back since: it stands where its time says.
            self.index.leave(&row);
            self.index.wait(&row);
            return Err(Fault::Refused(StartError::NotDue { job, due_at }));
        }
        let body = self.blob(row.body)?;
        self.index.last_token += 1;
        let token = LeaseToken(self.index.last_token);
        row.attempts += 1;
        row.started_at = Some(now.wall.as_micros());
        row.token = token.0.cast_signed();
        row.know(|known| known.upstream.clone_from(&start.upstream))?;
        self.move_row(&mut row, Event::Leased, now)?;
        let Ok(body) = body else {
            let error = JobError::new(
                JobError::DAMAGED,
                "what was stored of the request is damaged",
            );
            row.know(|known| known.error = Some(error))?;
            self.move_row(&mut row, Event::Failed(Verdict::GiveUp), now)?;
            return Err(Fault::Refused(StartError::Damaged { job }));
        };
        let held = Held {
            token,
            worker: Some(start.worker.clone()),
            length: start.lease,
            alive_at: now.mono,
            row,
        };
        let started = Started {
            lease: Lease { job, token },
            job: self.job(&held.row)?,
            body,
        };
        self.index.leases.insert(job, held);
        Ok(started)
    }

    pub(crate) fn extend(&mut self, leases: &[Lease], now: Now) -> Vec<Lease> {
        let lost = |lease: &&Lease| match self.index.leases.get_mut(&lease.job) {
            Some(held) if held.token == lease.token => {
                held.alive_at = now.mono;
                false
            }
            _ => true,
        };
        leases.iter().filter(lost).copied().collect()
    }

    pub(crate) fn report(&mut self, lease: Lease, report: &Report, now: Now) -> Done<Job, Lost> {
        let held = self.index.leases.get(&lease.job);
        let held = held.filter(|held| held.token == lease.token);
        let mut row = held
            .map(|held| held.row.clone())
            .ok_or(Fault::Refused(Lost))?;
        let event = match report {
            Report::Completed {
                answer,
                usage,
                cost_nano_usd,
            } => {
                row.know(|known| {
                    known.usage = *usage;
                    known.cost_nano_usd = *cost_nano_usd;
                    known.error = None;
                })?;
                self.keep_answer(&mut row, answer)?;
                Event::Succeeded
            }
            Report::Retry {
                error,
                after,
                may_have_been_sent,
            } => {
                row.know(|known| known.error = Some(error.clone()))?;
                row.throttles = 0;
                row.flags |= if *may_have_been_sent {
                    MAY_HAVE_BEEN_SENT
                } else {
                    0
                };
                self.wait_for(&mut row, *after, now);
                Event::Failed(Verdict::Retry)
            }
            Report::Failed {
                error,
                answer,
                cost_nano_usd,
            } => {
                row.know(|known| {
                    known.error = Some(error.clone());
                    known.cost_nano_usd = *cost_nano_usd;
                })?;
                if let Some(answer) = answer {
                    self.keep_answer(&mut row, answer)?;
                }
                Event::Failed(Verdict::GiveUp)
            }
            Report::GivenBack { why, error, after } => {
                if let Some(error) = error {
                    row.know(|known| known.error = Some(error.clone()))?;
                }
                row.attempts = row.attempts.saturating_sub(1);
                row.throttles += u32::from(*why == GiveBack::Throttled);
                self.wait_for(&mut row, *after, now);
                Event::Throttled
            }
            _ => return Err(Fault::Refused(Lost)),
        };
        self.index.give_up(lease.job);
        self.move_row(&mut row, event, now)?;
        Ok(self.job(&row)?)
    }

    fn keep_answer(&mut self, row: &mut JobRow, answer: &StoredAnswer) -> rusqlite::Result<()> {
        self.index.last_blob += 1;
        row.answer = Some(self.index.last_blob);
        blobs::put(self.connection, self.index.last_blob, &blobs::pack(answer))
    }

    /// The job waits for `after` before its next attempt.
    fn wait_for(&self, row: &mut JobRow, after: std::time::Duration, now: Now) {
        row.flags &= !CALENDAR;
        row.not_before = if after.is_zero() {
            None
        } else {
            Some((self.index.steady(now) + after).as_micros())
        };
    }

    pub(crate) fn cancel(&mut self, id: JobId, now: Now) -> Done<Cancelled> {
        let Some(mut row) = self.find(id)? else {
            return Ok(Cancelled::NotFound);
        };
        let moved = self.move_row(&mut row, Event::Cancelled, now)?;
        let job = self.job(&row)?;
        Ok(match moved {
            Some(_) => Cancelled::Now(job),
            None => Cancelled::Ended(job),
        })
    }

    pub(crate) fn recover(&mut self, worker: &Worker, now: Now) -> Done<Vec<Moved>> {
        let theirs = |held: &Held| match &held.worker {
            None => true,
            Some(other) => other.node == worker.node && other.incarnation != worker.incarnation,
        };
        let lost = self.index.leases.iter().filter(|(_, held)| theirs(held));
        let mut lost: Vec<_> = lost.map(|(job, _)| *job).collect();
        lost.sort_unstable();
        let mut moved = Vec::new();
        for job in lost {
            moved.extend(self.lose(job, now)?);
        }
        Ok(moved)
    }

    /// Nobody knows what became of an attempt.
    pub(crate) fn lose(&mut self, job: JobId, now: Now) -> Done<Option<Moved>> {
        self.index.give_up(job);
        let mut row = match self.find(job) {
            Ok(Some(row)) => row,
            // What is wrong with a damaged row is said to whoever reads it.
            Ok(None) | Err(Fault::Store(_)) => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let verdict = if row.attempts >= row.max_attempts {
            Verdict::GiveUp
        } else {
            self.index.settings.lost_attempt
        };
        row.flags |= MAY_HAVE_BEEN_SENT;
        row.flags &= !CALENDAR;
        row.throttles = 0;
        row.not_before = None;
        let error = JobError {
            class: Some(FailureClass::Ambiguous),
            code: JobError::LEASE_EXPIRED.to_owned(),
            message: "nobody reported how the attempt ended".to_owned(),
        };
        row.know(|known| known.error = Some(error))?;
        let moved = self.move_row(&mut row, Event::LeaseExpired(verdict), now)?;
        let at = WallTime::from_micros(now.wall.as_micros());
        Ok(moved.map(|status| Moved { job, status, at }))
    }
}
