//! The transitions.

use std::collections::{HashMap, HashSet};

use llmq_core::{Event, FailureClass, Now, Status, Verdict, WallTime};

use super::state::{Held, Row, State, UsedKey};
use crate::capacity::Capacity;
use crate::order::DueAt;
use crate::{
    Cancelled, ENQUEUE_MAX, EnqueueError, Enqueued, GiveBack, Job, JobError, JobId, Lease,
    LeaseToken, Moved, NewJob, Place, Report, ReportError, Start, StartError, Started, Tended,
    Worker, note_positions,
};

impl State {
    pub(super) fn enqueue(
        &mut self,
        jobs: Vec<NewJob>,
        now: Now,
    ) -> Result<Vec<Enqueued>, EnqueueError> {
        if jobs.len() > ENQUEUE_MAX {
            return Err(EnqueueError::TooMany { count: jobs.len() });
        }
        self.forget_old_keys(now);
        let mut answers = self.look_up(&jobs)?;
        let new = jobs.into_iter().zip(&answers);
        let new = new.filter_map(|(job, answer)| answer.is_new.then_some(job));
        let new: Vec<_> = new.collect();
        let bytes = new.iter().map(Capacity::bytes_of).sum();
        self.capacity
            .take(new.len() as u64, bytes, &self.settings)?;
        let mut positions = Vec::with_capacity(new.len());
        for job in new {
            let id = job.id;
            self.admit(job, now);
            self.tell_of(id, now);
            let place = self.jobs.get(&id).map_or(Place(0), |row| row.place);
            positions.push((place, self.position(id)));
        }
        note_positions(&mut answers, positions);
        Ok(answers)
    }

    /// What each job is, a new one or one that its key made before; nothing is changed.
    fn look_up(&self, jobs: &[NewJob]) -> Result<Vec<Enqueued>, EnqueueError> {
        let mut ids = HashSet::new();
        let mut keys = HashMap::new();
        let mut answers = Vec::with_capacity(jobs.len());
        for (index, job) in jobs.iter().enumerate() {
            if let Some(key) = &job.idempotency {
                let scope = (job.tenant.clone(), key.key.clone());
                let used = self
                    .keys
                    .get(&scope)
                    .map(|used| (used.request_hash, used.job));
                match used.or_else(|| keys.get(&scope).copied()) {
                    Some((hash, existing)) if hash == key.request_hash => {
                        answers.push(Enqueued::existing(existing));
                        continue;
                    }
                    Some((_, existing)) => return Err(EnqueueError::Conflict { index, existing }),
                    None => keys.insert(scope, (key.request_hash, job.id)),
                };
            }
            // Only now: what a key made before is found whatever is refused.
            if self.drains(&job.queue) {
                let queue = job.queue.clone();
                return Err(EnqueueError::Draining { queue });
            }
            if self.jobs.contains_key(&job.id) || !ids.insert(job.id) {
                return Err(EnqueueError::DuplicateId { job: job.id });
            }
            answers.push(Enqueued::new(job.id));
        }
        Ok(answers)
    }

    /// Whether a queue takes nothing new.
    pub(super) fn drains(&self, queue: &str) -> bool {
        let queue = self.queues.get(queue);
        queue.is_some_and(|queue| queue.state.drains)
    }

    /// Takes in a job for which there is room, and has it wait unless it is staged.
    pub(super) fn admit(&mut self, new: NewJob, now: Now) {
        let steady = self.clock(now).at(now);
        let (id, lane, bytes) = (new.id, new.lane(), Capacity::bytes_of(&new));
        let staged = new.member.is_some();
        if let Some(key) = &new.idempotency {
            let scope = (new.tenant.clone(), key.key.clone());
            let request_hash = key.request_hash;
            let used = UsedKey {
                request_hash,
                job: id,
            };
            self.keys.insert(scope.clone(), used);
            self.keys_by_age.push_back((steady, scope, id));
        }
        if let Some(member) = &new.member {
            self.members.insert((member.batch, member.line), id);
        }
        let row = Row {
            // When it ends is told as things stand when it is asked for.
            job: Job {
                expires_at: None,
                ..new.accepted(now.wall)
            },
            body: new.body,
            answer: None,
            bytes,
            place: Place(0),
            due: new.not_before.map_or(DueAt::Now, DueAt::On),
            ttl: new.ttl,
            deadline: None,
            key: new.idempotency,
            staged,
        };
        self.jobs.insert(id, row);
        if !staged {
            self.appear(id, now);
        }
        let queue = self.queue(&lane.queue);
        queue.counts.bytes += bytes;
    }

    /// A job that was taken in becomes visible, and its time begins.
    pub(super) fn appear(&mut self, id: JobId, now: Now) {
        let steady = self.clock(now).at(now);
        self.last_place += 1;
        let place = Place(self.last_place);
        let Some(row) = self.jobs.get_mut(&id) else {
            return;
        };
        row.staged = false;
        row.place = place;
        let (lane, ttl) = (row.job.lane(), row.ttl);
        let queue = self.queue(&lane.queue);
        queue.counts.queued += 1;
        let deadline = ttl.map(|ttl| queue.stood.deadline(ttl, steady));
        if let Some(row) = self.jobs.get_mut(&id) {
            row.deadline = deadline;
        }
        self.wait(&lane, id);
    }

    pub(super) fn start(&mut self, start: &Start, now: Now) -> Result<Started, StartError> {
        let job = start.job;
        let row = self.visible(job).ok_or(StartError::NotFound { job })?;
        if row.job.status != Status::Queued {
            let status = row.job.status;
            return Err(StartError::NotQueued { job, status });
        }
        let clock = self.clock(now);
        let due_at = match row.due {
            DueAt::Now => now.mono,
            DueAt::After(at) => clock.when(at, now),
            DueAt::On(at) => now.when(at),
        };
        let (deadline, queue) = (row.deadline, row.job.queue.clone());
        let stood = self.queue(&queue).stood;
        if deadline.is_some_and(|deadline| stood.queue_time(clock.at(now)) >= deadline) {
            self.move_job(job, Event::TtlPassed, now);
            return Err(StartError::Expired { job });
        }
        if due_at > now.mono {
            self.wait_again(job);
            return Err(StartError::NotDue { job, due_at });
        }
        self.last_token += 1;
        let token = LeaseToken(self.last_token);
        if let Some(row) = self.jobs.get_mut(&job) {
            row.job.attempts += 1;
            row.job.started_at = Some(now.wall);
            row.job.upstream.clone_from(&start.upstream);
        }
        self.move_job(job, Event::Leased, now);
        let held = Held {
            token,
            worker: start.worker.clone(),
            length: start.lease,
            alive_at: now.mono,
        };
        self.leases.insert(job, held);
        let row = self.jobs.get(&job).ok_or(StartError::NotFound { job })?;
        Ok(Started {
            lease: Lease { job, token },
            job: self.shown(row),
            body: row.body.clone(),
        })
    }

    pub(super) fn extend(&mut self, leases: Vec<Lease>, now: Now) -> Vec<Lease> {
        let lost = |lease: &Lease| match self.leases.get_mut(&lease.job) {
            Some(held) if held.token == lease.token => {
                held.alive_at = now.mono;
                false
            }
            _ => true,
        };
        leases.into_iter().filter(lost).collect()
    }

    pub(super) fn report(
        &mut self,
        lease: Lease,
        report: Report,
        now: Now,
    ) -> Result<Job, ReportError> {
        let job = lease.job;
        let lost = ReportError::LeaseLost { job };
        if !self.holds(lease) {
            return Err(lost);
        }
        let steady = self.clock(now).at(now);
        self.leases.remove(&job);
        let Some(row) = self.jobs.get_mut(&job) else {
            return Err(lost);
        };
        let wait = |row: &mut Row, after: std::time::Duration| {
            if after.is_zero() {
                (row.due, row.job.not_before) = (DueAt::Now, None);
            } else {
                row.due = DueAt::After(steady + after);
                row.job.not_before = Some(now.wall + after);
            }
        };
        let event = match report {
            Report::Completed {
                answer,
                usage,
                cost_nano_usd,
            } => {
                row.answer = Some(answer);
                row.job.usage = usage;
                row.job.cost_nano_usd = cost_nano_usd;
                row.job.error = None;
                Event::Succeeded
            }
            Report::Retry {
                error,
                after,
                may_have_been_sent,
            } => {
                row.job.error = Some(error);
                row.job.throttles = 0;
                row.job.may_have_been_sent |= may_have_been_sent;
                wait(row, after);
                Event::Failed(Verdict::Retry)
            }
            Report::Failed {
                error,
                answer,
                cost_nano_usd,
            } => {
                row.job.error = Some(error);
                row.answer = answer;
                row.job.cost_nano_usd = cost_nano_usd;
                Event::Failed(Verdict::GiveUp)
            }
            Report::GivenBack { why, error, after } => {
                row.job.error = error.or(row.job.error.take());
                row.job.attempts -= 1;
                row.job.throttles += u32::from(why == GiveBack::Throttled);
                wait(row, after);
                Event::Throttled
            }
        };
        self.move_job(job, event, now);
        self.jobs.get(&job).map(|row| self.shown(row)).ok_or(lost)
    }

    pub(super) fn cancel(&mut self, id: JobId, now: Now) -> Cancelled {
        if self.visible(id).is_none() {
            return Cancelled::NotFound;
        }
        let moved = self.move_job(id, Event::Cancelled, now);
        match (moved, self.job(id)) {
            (_, None) => Cancelled::NotFound,
            (Some(_), Some(job)) => Cancelled::Now(job),
            (None, Some(job)) => Cancelled::Ended(job),
        }
    }

    pub(super) fn recover(&mut self, worker: &Worker, now: Now) -> Vec<Moved> {
        let theirs = |held: &Held| {
            held.worker.node == worker.node && held.worker.incarnation != worker.incarnation
        };
        let lost = self.leases.iter().filter(|(_, held)| theirs(held));
        let mut lost: Vec<_> = lost.map(|(job, _)| *job).collect();
        lost.sort_unstable();
        let lost = lost.into_iter();
        lost.filter_map(|job| self.lose(job, now)).collect()
    }

    /// Nobody knows what became of an attempt.
    fn lose(&mut self, job: JobId, now: Now) -> Option<Moved> {
        self.leases.remove(&job);
        let row = self.jobs.get_mut(&job)?;
        let used_up = row.job.attempts >= row.job.max_attempts;
        let verdict = if used_up {
            Verdict::GiveUp
        } else {
            self.settings.lost_attempt
        };
        row.job.may_have_been_sent = true;
        row.job.throttles = 0;
        row.due = DueAt::Now;
        row.job.not_before = None;
        row.job.error = Some(JobError {
            class: Some(FailureClass::Ambiguous),
            code: JobError::LEASE_EXPIRED.to_owned(),
            message: "nobody reported how the attempt ended".to_owned(),
        });
        let status = self.move_job(job, Event::LeaseExpired(verdict), now)?;
        let at = now.wall;
        Some(Moved { job, status, at })
    }

    pub(super) fn tend(&mut self, slice: usize, now: Now) -> Tended {
        let steady = self.clock(now).at(now);
        let mut moved = Vec::new();
        for job in self.silent(now).into_iter().take(slice) {
            moved.extend(self.lose(job, now));
        }
        for job in self.too_late(now, slice - moved.len()) {
            let status = self.move_job(job, Event::TtlPassed, now);
            let at = now.wall;
            moved.extend(status.map(|status| Moved { job, status, at }));
        }
        let purged = self.purge(slice, steady);
        self.forget_old_keys(now);
        self.let_go(slice, now);
        Tended {
            more: moved.len() >= slice || purged >= slice,
            moved,
            purged,
        }
    }

    /// Removes jobs that ended long enough ago; not what a batch is still to write, nor a job
    /// whose key may be used again.
    fn purge(&mut self, max: usize, steady: WallTime) -> usize {
        let (results, keys) = (self.settings.keep_results, self.settings.keep_idempotency);
        let before = steady.before(results);
        let before_keys = steady.before(results.max(keys));
        let is_over = |(at, id): &&(WallTime, JobId)| {
            let Some(row) = self.jobs.get(id) else {
                return true;
            };
            let batch = row.job.member.as_ref();
            let batch = batch.and_then(|member| self.batches.get(&member.batch));
            let is_awaited = batch.is_some_and(|batch| !batch.status.is_final());
            !is_awaited && (row.key.is_none() || *at <= before_keys)
        };
        let old = self.ended.iter().take_while(|(at, _)| *at <= before);
        let gone: Vec<_> = old.filter(is_over).take(max).copied().collect();
        for ended in &gone {
            self.ended.remove(ended);
            self.remove_job(ended.1);
        }
        gone.len()
    }

    /// Leases without a sign of life for their length.
    fn silent(&self, now: Now) -> Vec<JobId> {
        let silent = |held: &Held| now.mono - held.alive_at >= held.length;
        let leases = self.leases.iter().filter(|(_, held)| silent(held));
        let mut jobs: Vec<_> = leases.map(|(job, _)| *job).collect();
        jobs.sort_unstable();
        jobs
    }

    /// Waiting jobs whose time to start has passed.
    fn too_late(&self, now: Now, max: usize) -> Vec<JobId> {
        let steady = self.clock(now).at(now);
        let of_queue = |(name, set): (&String, &std::collections::BTreeSet<_>)| {
            let stood = self.queues.get(name).map(|queue| queue.stood);
            let time = stood.unwrap_or_default().queue_time(steady);
            let late = set
                .iter()
                .take_while(move |(deadline, _)| *deadline <= time);
            late.map(|(_, job)| *job).take(max).collect::<Vec<_>>()
        };
        self.deadlines.iter().flat_map(of_queue).take(max).collect()
    }

    pub(super) fn remove_job(&mut self, id: JobId) {
        let Some(row) = self.jobs.remove(&id) else {
            return;
        };
        if let Some(member) = &row.job.member {
            self.members.remove(&(member.batch, member.line));
        }
        if row.staged {
            self.capacity.give_back(1, row.bytes);
            self.queue(&row.job.queue).counts.bytes -= row.bytes;
            return;
        }
        let counts = &mut self.queue(&row.job.queue).counts;
        *super::state::of_status(counts, row.job.status) -= 1;
    }

    /// What another attempt may cure may be asked for again.
    pub(super) fn forget_key_if_curable(&mut self, id: JobId) {
        let Some(row) = self.jobs.get(&id) else {
            return;
        };
        let class = row.job.error.as_ref().and_then(|error| error.class);
        let curable = match row.job.status {
            Status::Expired => true,
            Status::Failed => class.is_some_and(|class| self.settings.frees_key(class)),
            _ => false,
        };
        if let (true, Some(key)) = (curable, &row.key) {
            let scope = (row.job.tenant.clone(), key.key.clone());
            self.keys.remove(&scope);
        }
    }

    fn forget_old_keys(&mut self, now: Now) {
        let before = self
            .clock(now)
            .at(now)
            .before(self.settings.keep_idempotency);
        while let Some((at, scope, job)) = self.keys_by_age.front()
            && *at <= before
        {
            // The key may have been forgotten and used again meanwhile.
            if self.keys.get(scope).is_some_and(|used| used.job == *job) {
                self.keys.remove(scope);
            }
            self.keys_by_age.pop_front();
        }
    }
}
