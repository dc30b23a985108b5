//! What callers were told, and what a store is held against.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use llmq_core::{Now, Status};
use llmq_store::{
    BatchId, BatchStatus, Batches as _, Entry, EventKind, FileId, Files as _, Filter,
    HistoryOptions, JobId, Jobs as _, Reads as _, Report, StoreError, Subject, Target,
    Webhooks as _, Worker, check_history,
};
use llmq_store_sqlite::{Options, Place, Store};

/// Where in the disk's log something was.
pub(crate) type Position = usize;

/// What callers were told, and when.
#[derive(Default)]
pub(crate) struct Book {
    /// What was seen, once that was certain.
    pub(crate) entries: Vec<(Position, Entry)>,
    /// Calls: when each was made, and when it was answered.
    pub(crate) calls: Vec<(Position, Option<Position>)>,
    /// Calls that were answered with an error.
    pub(crate) errors: Vec<String>,
    pub(crate) requests: BTreeMap<JobId, Bytes>,
    /// The answers that attempts brought, by what was reported.
    pub(crate) answers: BTreeMap<JobId, BTreeSet<Bytes>>,
    /// Jobs that were handed in together.
    pub(crate) groups: Vec<Vec<JobId>>,
    /// Books of limits, by their number: when they were recorded.
    pub(crate) saved: Vec<(Position, i64)>,
    pub(crate) batches: BTreeMap<BatchId, BatchBook>,
}

/// What is known of one batch.
#[derive(Default)]
pub(crate) struct BatchBook {
    pub(crate) members: Vec<JobId>,
    /// Statuses that it was told to have come to.
    pub(crate) came_to: Vec<(Position, BatchStatus)>,
    pub(crate) file: Option<(FileId, Bytes)>,
}

impl Book {
    /// How many calls had been made and not answered.
    pub(crate) fn in_flight(&self, at: Position) -> usize {
        let open = |(made, answered): &&(Position, Option<Position>)| {
            *made <= at && answered.is_none_or(|answered| answered > at)
        };
        self.calls.iter().filter(open).count()
    }

    /// What had been seen by then, with what the store held when all was over.
    fn history(&self, at: Position, held: Vec<(JobId, Status)>, told: Vec<Entry>) -> Vec<Entry> {
        let seen = self.entries.iter().filter(|(when, _)| *when <= at);
        let mut history: Vec<Entry> = seen.map(|(_, entry)| entry.clone()).collect();
        history.extend(told);
        history.push(Entry::End { jobs: held });
        history
    }

    /// A power cut leaves what callers do not know: what was not answered by then never was.
    pub(crate) fn forget_after(&mut self, at: Position) {
        self.entries.retain(|(when, _)| *when <= at);
        self.saved.retain(|(when, _)| *when <= at);
        for batch in self.batches.values_mut() {
            batch.came_to.retain(|(when, _)| *when <= at);
        }
        // The next life has a log of its own.
        self.entries.iter_mut().for_each(|(when, _)| *when = 0);
        self.saved.iter_mut().for_each(|(when, _)| *when = 0);
        let batches = self.batches.values_mut();
        let came_to = batches.flat_map(|batch| batch.came_to.iter_mut());
        came_to.for_each(|(when, _)| *when = 0);
        self.calls.clear();
    }

    /// Opens the store at `path` and says which promises it breaks, for one who had been told what
    /// was told by `at`. It is put in order by that, and closed again.
    pub(crate) async fn broken(&self, path: &Path, at: Position, now: Now) -> Vec<String> {
        let options = Options {
            ballast_bytes: 0,
            ..Options::default()
        };
        let store = match Store::open_with(&Place::File(path.to_owned()), options, now.wall) {
            Ok(store) => store,
            Err(error) => return vec![format!("it cannot be opened: {error}: {error:?}")],
        };
        let mut broken = self.broken_in(&store, at).await;
        // What is left can be finished.
        let recovered = store.recover(&Worker::new("here"), now).await.map(drop);
        let tended = store.tend(now).await.map(drop);
        broken.extend(recovered.and(tended).err().map(|error| error.to_string()));
        store.close();
        match llmq_store_sqlite::check(path, true) {
            Ok(checked) => {
                broken.extend(checked.findings);
                broken.extend(checked.broken);
            }
            Err(error) => broken.push(format!("it cannot be checked: {error}")),
        }
        broken
    }

    /// The promises that an open store breaks.
    pub(crate) async fn broken_in(&self, store: &Store, at: Position) -> Vec<String> {
        let broken = self.try_broken_in(store, at).await;
        broken.unwrap_or_else(|error| vec![format!("it cannot be read: {error}")])
    }

    async fn try_broken_in(&self, store: &Store, at: Position) -> Result<Vec<String>, StoreError> {
        let mut broken = Vec::new();
        let mut held = BTreeMap::new();
        let mut after = None;
        loop {
            let page = store.list(&Filter::default(), after, 1000).await?;
            held.extend(page.items.iter().map(|job| (job.id, job.status)));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let told = told(store).await?;
        let history = self.history(at, held.clone().into_iter().collect(), told);
        let options = HistoryOptions {
            faults_min: 0,
            unfinished: true,
        };
        let violations = check_history(&history, options);
        broken.extend(violations.iter().map(ToString::to_string));
        for (id, status) in &held {
            broken.extend(self.broken_bodies(store, *id, *status).await);
        }
        for group in &self.groups {
            let there = group.iter().filter(|id| held.contains_key(id)).count();
            if there != 0 && there != group.len() {
                broken.push(format!("{there} of {} that came together", group.len()));
            }
        }
        broken.extend(self.broken_books(store, at).await?);
        for (id, batch) in &self.batches {
            broken.extend(batch.broken(store, *id, at, &held).await?);
        }
        Ok(broken)
    }

    async fn broken_bodies(&self, store: &Store, id: JobId, status: Status) -> Option<String> {
        let body = store.body(id).await;
        if body.as_ref().ok().and_then(Option::as_ref) != self.requests.get(&id) {
            return Some(format!("the request of {id} is {body:?}"));
        }
        if status != Status::Completed {
            return None;
        }
        let answer = store.answer(id).await;
        let found = answer.as_ref().ok().and_then(Option::as_ref);
        let reported = self.answers.get(&id);
        let is_reported = found
            .zip(reported)
            .is_some_and(|(found, reported)| reported.contains(&found.body));
        (!is_reported).then(|| format!("the answer of {id} is {answer:?}"))
    }

    async fn broken_books(
        &self,
        store: &Store,
        at: Position,
    ) -> Result<Option<String>, StoreError> {
        let found = store.limit_books().await?;
        let found = found.map_or(0, |books| books.alive_at.as_micros());
        let saved = self.saved.iter().filter(|(when, _)| *when <= at);
        let newest = saved.map(|(_, number)| *number).max().unwrap_or(0);
        let broken = || format!("books {newest} were recorded, and {found} are there");
        Ok((found < newest).then(broken))
    }
}

impl BatchBook {
    async fn broken(
        &self,
        store: &Store,
        id: BatchId,
        at: Position,
        held: &BTreeMap<JobId, Status>,
    ) -> Result<Vec<String>, StoreError> {
        let mut broken = Vec::new();
        let mut came_to = self.came_to.iter().filter(|(when, _)| *when <= at);
        let newest = came_to.next_back().map(|(_, status)| *status);
        let Some(batch) = store.batch(id).await? else {
            let lost = newest.map(|status| format!("batch {id} was {status:?} and is not there"));
            return Ok(lost.into_iter().collect());
        };
        if newest.is_some_and(|newest| step(batch.status) < step(newest)) {
            broken.push(format!(
                "batch {id} was {newest:?} and is {:?}",
                batch.status
            ));
        }
        let there = self.members.iter().filter(|id| held.contains_key(id));
        let there = there.count();
        let is_published = batch.status != BatchStatus::Validating;
        let expected = if is_published { self.members.len() } else { 0 };
        if there != expected {
            broken.push(format!(
                "{there} of {expected} members of batch {id}, which is {:?}",
                batch.status
            ));
        }
        let ended = self.members.iter().filter(|id| {
            let status = held.get(id);
            status.is_some_and(|status| status.is_final())
        });
        let counts = batch.counts;
        let counted = counts.completed + counts.failed + counts.expired + counts.cancelled;
        let ended = ended.count();
        if counted as usize != ended {
            broken.push(format!(
                "batch {id} counts {counted} ends, and there are {ended}"
            ));
        }
        if let Some((file, content)) = &self.file {
            let seen = store.file(*file).await?.is_some();
            if seen != (batch.status == BatchStatus::Completed) {
                let status = batch.status;
                broken.push(format!(
                    "the file of batch {id}, {status:?}, is seen: {seen}"
                ));
            }
            let read = store.read_file(*file, 0).await;
            if seen && read.as_ref().ok().and_then(Option::as_ref) != Some(content) {
                broken.push(format!("the file of batch {id} holds {read:?}"));
            }
        }
        Ok(broken)
    }
}

/// How far a batch is.
fn step(status: BatchStatus) -> u8 {
    match status {
        BatchStatus::Validating => 0,
        BatchStatus::InProgress => 1,
        BatchStatus::Finalizing => 2,
        _ => 3,
    }
}

/// Whom the outbox tells of the ends of jobs.
async fn told(store: &Store) -> Result<Vec<Entry>, StoreError> {
    let deliveries = store.deliveries(None, None, 100_000).await?;
    let told = deliveries.into_iter().filter_map(|delivery| {
        let Target::Callback(callback) = delivery.target else {
            return None;
        };
        let event = delivery.event;
        match event.event.subject {
            Subject::Job { id, status, .. } if EventKind::of_end(status).is_some() => {
                Some(Entry::Told {
                    job: id,
                    target: callback.url,
                    message: event.id.0.to_string(),
                })
            }
            _ => None,
        }
    });
    Ok(told.collect())
}

/// Whether a report ends its job, and how.
pub(crate) fn end_of(report: &Report) -> Option<Status> {
    match report {
        Report::Completed { .. } => Some(Status::Completed),
        Report::Failed { .. } => Some(Status::Failed),
        _ => None,
    }
}
