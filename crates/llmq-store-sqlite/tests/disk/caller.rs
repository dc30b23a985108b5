//! Callers of a store, who do what a seed draws.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use llmq_core::{Now, Status, Timestamp, WallTime};
use llmq_store::{
    Attempted, Batch, BatchId, BatchStatus, BatchUpdate, Batches as _, Callback, Cancelled,
    Enqueued, Entry, FileId, Files as _, GiveBack, Idempotency, JobError, JobId, Jobs as _, Lease,
    Member, NewJob, NextTry, Report, Settings, Start, StartError, StoredAnswer, StoredFile, Take,
    Webhooks as _, Worker,
};
use llmq_store_sqlite::{LimitBooks, OpenError, Options, Place, Store};
use llmq_testkit::disk::Disk;

use crate::book::{Book, end_of};

/// How long leases last.
const LEASE: Duration = Duration::from_secs(30);
/// The log is copied into the file so often that a short life meets it many times.
const LOG_BYTES: u32 = 96 << 10;
/// Jobs in an insert that is too large for one transaction, and too large for two.
const BULK: usize = 1_050;

/// Callers, and what they were told.
pub(crate) struct Caller<'a> {
    pub(crate) disk: &'a Disk,
    pub(crate) book: RefCell<Book>,
    pub(crate) now: Now,
    /// What a wall clock without jumps shows.
    steady: WallTime,
    random: fastrand::Rng,
    worker: Worker,
    state: RefCell<State>,
    /// Jobs that are started at this moment: whoever cancels one beside that may be answered
    /// first.
    starting: Vec<JobId>,
    last_saved: i64,
}

/// What callers know of what they have.
#[derive(Default)]
struct State {
    queued: Vec<JobId>,
    leases: Vec<Lease>,
    ended: u64,
    batch: Option<(BatchId, BatchStatus)>,
}

/// One call.
enum Call {
    Enqueue(Vec<NewJob>),
    EnqueueStarted(Box<NewJob>),
    Start(JobId),
    Report(Lease, Report),
    Cancel(JobId),
    Tend,
    Save(i64),
    Deliver,
    Batch,
}

/// Opens a store whose files are on `disk`.
pub(crate) fn open(disk: &Disk, path: &Path, now: Now) -> Result<Store, OpenError> {
    let options = Options {
        settings: Settings::default(),
        ballast_bytes: 0,
        log_bytes: LOG_BYTES,
        vfs: Some(disk.name().to_owned()),
        in_place: false,
    };
    Store::open_with(&Place::File(path.to_owned()), options, now.wall)
}

pub(crate) fn beginning() -> Now {
    Now {
        mono: Timestamp::from_nanos(77_000_000_000),
        // 2026-01-01 00:00 UTC.
        wall: WallTime::from_micros(1_767_225_600_000_000),
    }
}

impl<'a> Caller<'a> {
    pub(crate) fn new(disk: &'a Disk, seed: u64) -> Self {
        Self::with_book(disk, seed, Book::default(), beginning())
    }

    /// Callers who remember what they were told before.
    pub(crate) fn with_book(disk: &'a Disk, seed: u64, book: Book, now: Now) -> Self {
        let last_saved = book.saved.iter().map(|(_, number)| *number).max();
        Self {
            disk,
            book: RefCell::new(book),
            now,
            steady: now.wall,
            random: fastrand::Rng::with_seed(seed),
            worker: Worker::new("here"),
            state: RefCell::default(),
            starting: Vec::new(),
            // Those that were not answered may be there too.
            last_saved: last_saved.unwrap_or(0) + 1_000,
        }
    }

    /// Takes back what an earlier life held, and takes up what waits.
    pub(crate) async fn begin(&mut self, store: &Store) {
        match store.recover(&self.worker, self.now).await {
            Ok(moved) => {
                let ended = moved.iter().filter(|moved| moved.status.is_final());
                ended.for_each(|moved| self.ended(moved.job, moved.status, None));
            }
            Err(error) => self.book.borrow_mut().errors.push(error.to_string()),
        }
        let waiting = llmq_store::Filter {
            status: Some(Status::Queued),
            ..llmq_store::Filter::default()
        };
        if let Ok(page) = llmq_store::Reads::list(store, &waiting, None, 1000).await {
            let mut state = self.state.borrow_mut();
            state.queued = page.items.iter().map(|job| job.id).collect();
        }
    }

    /// Some calls, three at a time, so that commits are shared.
    pub(crate) async fn calls(&mut self, store: &Store, count: usize) {
        for _ in 0..count.div_ceil(3) {
            self.passes();
            self.starting.clear();
            let calls = [self.draw(), self.draw(), self.draw()];
            let [first, second, third] = calls.map(|call| self.call(store, call));
            tokio::join!(first, second, third);
        }
    }

    /// An insert that is written in slices, with calls beside it.
    pub(crate) async fn bulk(&mut self, store: &Store) {
        self.starting.clear();
        let jobs = (0..BULK).map(|_| NewJob::new("m", "t", "{}")).collect();
        let beside = [self.draw(), self.draw()];
        let [second, third] = beside.map(|call| self.call(store, call));
        let first = self.call(store, Call::Enqueue(jobs));
        tokio::join!(first, second, third);
    }

    /// A second, in which somebody may set the wall clock.
    fn passes(&mut self) {
        const SECOND: Duration = Duration::from_secs(1);
        self.now = self.now.after(SECOND);
        self.steady = self.steady + SECOND;
        let hours = Duration::from_secs(self.random.u64(..10_000));
        match self.random.u8(..20) {
            0 => self.now.wall = self.now.wall + hours,
            1 => self.now.wall = self.now.wall.before(hours),
            _ => {}
        }
    }

    fn draw(&mut self) -> Call {
        let state = self.state.borrow();
        let queued = self.random.choice(&state.queued).copied();
        let lease = self.random.choice(&state.leases).copied();
        drop(state);
        match (self.random.u8(..20), queued, lease) {
            (0..=4, ..) => {
                let count = self.random.usize(1..4);
                Call::Enqueue((0..count).map(|_| self.job()).collect())
            }
            (5, ..) => Call::EnqueueStarted(Box::new(self.job())),
            (6..=10, Some(job), _) => {
                self.starting.push(job);
                Call::Start(job)
            }
            (11..=14, _, Some(lease)) => Call::Report(lease, self.report(lease)),
            (15, Some(job), _) if !self.starting.contains(&job) => Call::Cancel(job),
            (16, ..) => Call::Tend,
            (17, ..) => {
                self.last_saved += 1;
                Call::Save(self.last_saved)
            }
            (18, ..) => Call::Deliver,
            _ => Call::Batch,
        }
    }

    fn job(&mut self) -> NewJob {
        let length = self.random.usize(2..3_000);
        let mut job = NewJob::new("m", "t", vec![b'a'; length]);
        if self.random.u8(..3) == 0 {
            job.details.callback = Some(Callback {
                url: "https://example.com/".to_owned(),
                signed_by: None,
            });
        }
        if self.random.u8(..4) == 0 {
            job.ttl = Some(Duration::from_secs(self.random.u64(1..40)));
        }
        if self.random.u8(..4) == 0 {
            job.idempotency = Some(Idempotency {
                key: job.id.to_string(),
                request_hash: [7; 32],
            });
        }
        job
    }

    fn report(&mut self, lease: Lease) -> Report {
        let error = JobError::new("x", "y");
        match self.random.u8(..8) {
            0..=4 => Report::Completed {
                answer: StoredAnswer {
                    status: 200,
                    headers: Vec::new(),
                    body: answer(lease, self.random.usize(10..6_000)),
                },
                usage: None,
                cost_nano_usd: Some(7),
            },
            5 => Report::Failed {
                error,
                answer: None,
                cost_nano_usd: None,
            },
            6 => Report::Retry {
                error,
                after: Duration::ZERO,
                may_have_been_sent: true,
            },
            _ => Report::GivenBack {
                why: GiveBack::NotSent,
                error: None,
                after: Duration::ZERO,
            },
        }
    }

    async fn call(&self, store: &Store, call: Call) {
        let made = self.disk.position();
        let number = {
            let mut book = self.book.borrow_mut();
            book.calls.push((made, None));
            book.calls.len() - 1
        };
        let done = match call {
            Call::Enqueue(jobs) => self.enqueue(store, jobs).await,
            Call::EnqueueStarted(job) => self.enqueue_started(store, *job).await,
            Call::Start(job) => self.start(store, job).await,
            Call::Report(lease, report) => self.finish(store, lease, report).await,
            Call::Cancel(job) => self.cancel(store, job).await,
            Call::Tend => self.tend(store).await,
            Call::Save(number) => self.save(store, number).await,
            Call::Deliver => self.deliver(store).await,
            Call::Batch => self.batch(store).await,
        };
        let mut book = self.book.borrow_mut();
        book.calls[number].1 = Some(self.disk.position());
        if let Err(error) = done {
            book.errors.push(error);
        }
    }

    /// Notes what was seen just now.
    fn saw(&self, entry: Entry) {
        let at = self.disk.position();
        self.book.borrow_mut().entries.push((at, entry));
    }

    fn hands_in(&self, job: &NewJob) {
        self.saw(Entry::HandedIn { job: job.id });
        let mut book = self.book.borrow_mut();
        book.requests.insert(job.id, job.body.clone());
    }

    fn accepted(&self, job: &NewJob) {
        let expires_at = job.ttl.map(|ttl| self.steady + ttl);
        let callback = job.details.callback.iter();
        self.saw(Entry::Accepted {
            job: job.id,
            expires_at,
            targets: callback.map(|callback| callback.url.clone()).collect(),
        });
    }

    async fn enqueue(&self, store: &Store, jobs: Vec<NewJob>) -> Result<(), String> {
        jobs.iter().for_each(|job| self.hands_in(job));
        let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        self.book.borrow_mut().groups.push(ids.clone());
        let accepted = store.enqueue(jobs.clone(), self.now).await;
        accepted.map_err(|error| format!("enqueue: {error:?}"))?;
        jobs.iter().for_each(|job| self.accepted(job));
        // Many at once are there to be there, and not to be started.
        let few = ids.into_iter().take(5);
        self.state.borrow_mut().queued.extend(few);
        self.again(store, &jobs).await
    }

    /// A caller who did not hear the answer asks once more with the same key.
    async fn again(&self, store: &Store, jobs: &[NewJob]) -> Result<(), String> {
        let keyed = jobs.iter().find(|job| job.idempotency.is_some());
        let Some(first) = keyed else {
            return Ok(());
        };
        let again = NewJob {
            id: JobId::new(),
            ..first.clone()
        };
        let answer = store.enqueue(vec![again], self.now).await;
        let answer = answer.map_err(|error| format!("enqueue again: {error:?}"))?;
        assert_eq!(answer, [Enqueued::existing(first.id)]);
        Ok(())
    }

    async fn enqueue_started(&self, store: &Store, job: NewJob) -> Result<(), String> {
        self.hands_in(&job);
        let start = self.start_of(job.id);
        let accepted = store.enqueue_started(job.clone(), start, self.now).await;
        let (_, started) = accepted.map_err(|error| format!("enqueue_started: {error:?}"))?;
        self.accepted(&job);
        let started = started.expect("a new job is started");
        self.started(started.lease);
        Ok(())
    }

    fn start_of(&self, job: JobId) -> Start {
        Start {
            job,
            worker: self.worker.clone(),
            lease: LEASE,
            upstream: Some("one".to_owned()),
        }
    }

    fn started(&self, lease: Lease) {
        self.saw(Entry::Started {
            job: lease.job,
            token: lease.token,
            at: self.steady,
        });
        self.state.borrow_mut().leases.push(lease);
    }

    async fn start(&self, store: &Store, job: JobId) -> Result<(), String> {
        let started = store.start(vec![self.start_of(job)], self.now).await;
        let started = started.map_err(|error| format!("start: {error:?}"))?;
        self.state.borrow_mut().queued.retain(|one| *one != job);
        match started.into_iter().next() {
            Some(Ok(started)) => self.started(started.lease),
            Some(Err(StartError::Expired { .. })) => self.ended(job, Status::Expired, None),
            Some(Err(StartError::Damaged { .. })) => return Err(format!("{job} is damaged")),
            Some(Err(_)) | None => {}
        }
        Ok(())
    }

    fn ended(&self, job: JobId, status: Status, token: Option<llmq_store::LeaseToken>) {
        self.saw(Entry::Finished { job, status, token });
        self.state.borrow_mut().ended += 1;
    }

    async fn finish(&self, store: &Store, lease: Lease, report: Report) -> Result<(), String> {
        if let Report::Completed { answer, .. } = &report {
            let mut book = self.book.borrow_mut();
            let answers = book.answers.entry(lease.job).or_default();
            answers.insert(answer.body.clone());
        }
        let end = end_of(&report);
        match store.report(lease, report, self.now).await {
            Ok(_) => {
                let mut state = self.state.borrow_mut();
                state.leases.retain(|one| *one != lease);
                if end.is_none() {
                    state.queued.push(lease.job);
                }
                drop(state);
                if let Some(end) = end {
                    self.ended(lease.job, end, Some(lease.token));
                }
                Ok(())
            }
            Err(llmq_store::ReportError::LeaseLost { .. }) => {
                let mut state = self.state.borrow_mut();
                state.leases.retain(|one| *one != lease);
                Ok(())
            }
            Err(error) => Err(format!("report: {error:?}")),
        }
    }

    async fn cancel(&self, store: &Store, job: JobId) -> Result<(), String> {
        let cancelled = store.cancel(job, self.now).await;
        match cancelled.map_err(|error| format!("cancel: {error:?}"))? {
            Cancelled::Now(_) => self.ended(job, Status::Cancelled, None),
            Cancelled::Ended(_) => {}
            Cancelled::NotFound => panic!("{job} was accepted and is not there"),
        }
        self.state.borrow_mut().queued.retain(|one| *one != job);
        Ok(())
    }

    async fn tend(&self, store: &Store) -> Result<(), String> {
        let tended = store.tend(self.now).await;
        let tended = tended.map_err(|error| format!("tend: {error:?}"))?;
        for moved in tended.moved {
            if moved.status.is_final() {
                self.ended(moved.job, moved.status, None);
            } else {
                self.state.borrow_mut().queued.push(moved.job);
            }
        }
        Ok(())
    }

    async fn save(&self, store: &Store, number: i64) -> Result<(), String> {
        let books = LimitBooks {
            alive_at: WallTime::from_micros(number),
            clean: false,
            used: BTreeMap::new(),
            quota: BTreeMap::new(),
            charged_per_million: BTreeMap::new(),
        };
        let saved = store.save_limit_books(books).await;
        saved.map_err(|error| format!("save: {error:?}"))?;
        let at = self.disk.position();
        self.book.borrow_mut().saved.push((at, number));
        Ok(())
    }

    async fn deliver(&self, store: &Store) -> Result<(), String> {
        let take = Take {
            max: 3,
            each: 3,
            each_failing: 3,
            hold: LEASE,
        };
        let due = store.due_deliveries(take, self.now).await;
        let due = due.map_err(|error| format!("due_deliveries: {error:?}"))?;
        let attempts = due.deliveries.into_iter().map(|delivery| Attempted {
            delivery: delivery.id,
            next: NextTry::Delivered,
            outcome: "200".to_owned(),
        });
        let delivered = store.delivered(attempts.collect(), self.now).await;
        delivered.map_err(|error| format!("delivered: {error:?}"))
    }

    /// The next step of the one batch, or a new one.
    async fn batch(&self, store: &Store) -> Result<(), String> {
        // Two at once would be two stewards.
        let batch = self.state.borrow_mut().batch.take();
        let done = self.step_of_batch(store, batch).await;
        match done {
            Ok(next) => {
                self.state.borrow_mut().batch = next;
                Ok(())
            }
            Err(error) => Err(format!("batch: {error}")),
        }
    }

    async fn step_of_batch(
        &self,
        store: &Store,
        batch: Option<(BatchId, BatchStatus)>,
    ) -> Result<Option<(BatchId, BatchStatus)>, String> {
        let failed = |error: &dyn std::fmt::Debug| format!("{error:?}");
        let Some((id, status)) = batch else {
            let batch = new_batch(self.now);
            let id = batch.id;
            self.book.borrow_mut().batches.entry(id).or_default();
            store.create_batch(batch).await.map_err(|e| failed(&e))?;
            return Ok(Some(self.came_to(id, BatchStatus::Validating)));
        };
        match status {
            BatchStatus::Validating => {
                let members: Vec<NewJob> = (1..=4).map(|line| member(id, line)).collect();
                {
                    let mut book = self.book.borrow_mut();
                    let entry = book.batches.entry(id).or_default();
                    entry.members = members.iter().map(|job| job.id).collect();
                }
                let staged = store.stage(members.clone(), self.now).await;
                staged.map_err(|e| failed(&e))?;
                members.iter().for_each(|job| self.hands_in(job));
                let update = update(status, BatchStatus::InProgress, Vec::new());
                let published = store.publish_batch(id, update, self.now).await;
                let published = published.map_err(|e| failed(&e))?;
                assert!(published.is_some(), "{id} was validating");
                members.iter().for_each(|job| self.accepted(job));
                let ids = members.iter().map(|job| job.id);
                self.state.borrow_mut().queued.extend(ids);
                Ok(Some(self.came_to(id, BatchStatus::InProgress)))
            }
            BatchStatus::InProgress => {
                let found = store.batch(id).await.map_err(|e| failed(&e))?;
                if !found.is_some_and(|batch| batch.counts.all_ended()) {
                    return Ok(Some((id, status)));
                }
                let update = update(status, BatchStatus::Finalizing, Vec::new());
                let updated = store.update_batch(id, update, self.now).await;
                updated.map_err(|e| failed(&e))?;
                Ok(Some(self.came_to(id, BatchStatus::Finalizing)))
            }
            _ => {
                let file = FileId::new();
                let content = Bytes::from(id.to_string().repeat(100));
                {
                    let mut book = self.book.borrow_mut();
                    let entry = book.batches.entry(id).or_default();
                    entry.file = Some((file, content.clone()));
                }
                let made = store.create_file(new_file(file, self.now)).await;
                made.map_err(|e| failed(&e))?;
                let appended = store.append_file(file, content).await;
                appended.map_err(|e| failed(&e))?;
                let update = update(status, BatchStatus::Completed, vec![file]);
                let updated = store.update_batch(id, update, self.now).await;
                updated.map_err(|e| failed(&e))?;
                self.came_to(id, BatchStatus::Completed);
                Ok(None)
            }
        }
    }

    fn came_to(&self, id: BatchId, status: BatchStatus) -> (BatchId, BatchStatus) {
        let at = self.disk.position();
        let mut book = self.book.borrow_mut();
        book.batches
            .entry(id)
            .or_default()
            .came_to
            .push((at, status));
        (id, status)
    }
}

/// An answer that says which attempt brought it.
fn answer(lease: Lease, length: usize) -> Bytes {
    let mut text = format!("answer {} ", lease.token.0);
    text.push_str(&"z".repeat(length));
    text.into()
}

fn new_batch(now: Now) -> Batch {
    Batch::new("t", serde_json::Value::Null, now.wall)
}

fn member(batch: BatchId, line: u32) -> NewJob {
    let member = Member {
        batch,
        line,
        custom_id: line.to_string(),
    };
    NewJob {
        member: Some(member),
        ..NewJob::new("m", "t", format!("{{\"line\":{line}}}"))
    }
}

fn new_file(id: FileId, now: Now) -> StoredFile {
    StoredFile {
        id,
        tenant: "t".to_owned(),
        filename: "out.jsonl".to_owned(),
        purpose: "batch_output".to_owned(),
        bytes: 0,
        created_at: now.wall,
        expires_at: None,
    }
}

fn update(from: BatchStatus, to: BatchStatus, files: Vec<FileId>) -> BatchUpdate {
    BatchUpdate {
        from,
        to,
        details: serde_json::Value::Null,
        files,
        event: None,
    }
}
