//! Leads each batch from state to state.
//!
//! Where a batch stands is in the store, and each step is one change there: a process that dies
//! between two leaves a batch that the next one leads on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use llmq_core::{Clock, Timestamp};
use llmq_engine::Tasks;
use llmq_store::{
    Batch, BatchCounts, BatchId, BatchStatus, BatchUpdate, EnqueueError, Job, NewEvent, NewJob,
    STAGE_MAX, StoreError, Subject,
};
use serde_json::json;
use tokio::sync::Notify;

use super::super::ids;
use super::lines::Checker;
use super::notes::{Fault, Notes};
use super::output;
use super::reading::{Lines, Next};
use crate::Gateway;

/// How often open batches are looked at though nothing was heard of them.
const LOOK: Duration = Duration::from_secs(5);
/// Ends come in crowds: one look is for all of so long.
const GATHER: Duration = Duration::from_millis(20);
/// How often the members of a batch of which none ends are looked through, at most.
const COMPARE: Duration = Duration::from_secs(60);
/// After the store could not record, it is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// So many members are read or ended at once.
const SLICE: usize = 64;
/// The most bytes of the calls in one slice of an insert.
const SLICE_BYTES: usize = 1 << 20;
/// The most faults that are told of one input.
const FAULTS_MAX: usize = 100;

/// Batches that something happened to.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    batches: Mutex<BTreeSet<BatchId>>,
    notify: Notify,
    /// Held by who makes a batch that may be there already.
    pub(super) making: tokio::sync::Mutex<()>,
}

impl Touched {
    /// A batch was made, or asked to end, or one of its members has ended.
    pub(crate) fn touch(&self, batch: BatchId) {
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        if batches.insert(batch) {
            self.notify.notify_one();
        }
    }

    fn take(&self) -> BTreeSet<BatchId> {
        std::mem::take(&mut self.batches.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Leads all batches until the end is asked for.
pub(crate) async fn keep(gateway: Arc<Gateway>, tasks: Tasks) {
    let mut steward = Steward {
        gateway,
        open: BTreeSet::new(),
        standing: BTreeMap::new(),
    };
    let work = async {
        while let Err(error) = steward.find_open().await {
            tracing::warn!(%error, "the batches could not be read");
            tokio::time::sleep(AGAIN).await;
        }
        loop {
            steward.look().await;
            let touched = &steward.gateway.batches;
            let heard = tokio::time::timeout(LOOK, touched.notify.notified()).await;
            if heard.is_ok() {
                tokio::time::sleep(GATHER).await;
            }
            let touched = touched.take();
            steward.open.extend(touched);
        }
    };
    tokio::select! {
        () = work => {}
        () = tasks.cancelled() => {}
    }
}

struct Steward {
    gateway: Arc<Gateway>,
    open: BTreeSet<BatchId>,
    standing: BTreeMap<BatchId, Standing>,
}

/// What is known of a batch in progress, some of whose members may never end.
struct Standing {
    /// What was counted when it was last looked at.
    counts: BatchCounts,
    /// Its members are not looked through before this.
    compare_at: Timestamp,
    /// The members up to this line have ended, or could not be read.
    over: u32,
}

impl Steward {
    /// Those that an earlier process has left.
    async fn find_open(&mut self) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let page = self
                .gateway
                .desk
                .store()
                .batches(None, after, SLICE)
                .await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some(last.id);
            let open = page.iter().filter(|batch| !batch.status.is_final());
            self.open.extend(open.map(|batch| batch.id));
        }
    }

    async fn look(&mut self) {
        for id in self.open.clone() {
            match self.lead(id).await {
                Ok(true) => {
                    self.open.remove(&id);
                    self.standing.remove(&id);
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, batch = %id, "a batch could not be led on"),
            }
        }
    }

    /// Leads a batch as far as it comes now. Whether it is at its end.
    async fn lead(&mut self, id: BatchId) -> Result<bool, StoreError> {
        loop {
            let Some(batch) = self.gateway.desk.store().batch(id).await? else {
                return Ok(true);
            };
            let all_ended = batch.counts.all_ended();
            match batch.status {
                BatchStatus::Validating => match self.validate(&batch).await {
                    Err(StoreError::Damaged { what }) => {
                        let fault = Fault::new("invalid_input_file", what);
                        self.fails(&batch, Notes::of(&batch)?, vec![fault]).await?;
                    }
                    other => other?,
                },
                BatchStatus::InProgress => {
                    if !all_ended && !self.is_left_to_damage(&batch).await? {
                        return Ok(false);
                    }
                    self.finalize(&batch).await?;
                }
                BatchStatus::Cancelling if !all_ended => {
                    self.cancel(id).await?;
                    let Some(batch) = self.gateway.desk.store().batch(id).await? else {
                        return Ok(true);
                    };
                    if !batch.counts.all_ended() && self.open_after(id, 0).await?.is_some() {
                        return Ok(false);
                    }
                    output::finish(&self.gateway, &batch).await?;
                }
                BatchStatus::Finalizing | BatchStatus::Cancelling => {
                    output::finish(&self.gateway, &batch).await?;
                }
                BatchStatus::Failed
                | BatchStatus::Completed
                | BatchStatus::Expired
                | BatchStatus::Cancelled => return Ok(true),
            }
        }
    }

    /// Reads the lines of a batch. They are staged on the way, and all of them appear together, or
    /// none does.
    async fn validate(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut notes = Notes::of(batch)?;
        let read = Reading::new(&self.gateway, batch, &notes).read().await?;
        let (model, faults) = match read {
            Read::Left => return Ok(()),
            Read::Done { model, faults } => (model, faults),
        };
        notes.model = model;
        if !faults.is_empty() {
            return self.fails(batch, notes, faults).await;
        }
        let now = self.gateway.clock.now();
        notes.at.in_progress = Some(now.wall);
        notes.at.expires = Some(now.wall + Duration::from_secs(notes.window_s));
        let update = update(batch.status, BatchStatus::InProgress, &notes, None);
        let desk = &self.gateway.desk;
        // The lines are there: they are not read again, but published when that can be.
        while let Err(error) = desk
            .store()
            .publish_batch(batch.id, update.clone(), now)
            .await
        {
            pause(error).await?;
        }
        while let Err(error) = desk.runner.look_again().await {
            pause(error).await?;
        }
        Ok(())
    }

    async fn fails(
        &self,
        batch: &Batch,
        mut notes: Notes,
        faults: Vec<Fault>,
    ) -> Result<(), StoreError> {
        let now = self.gateway.clock.now();
        notes.errors = faults;
        notes.at.failed = Some(now.wall);
        let event = told(batch, "batch.failed");
        let update = update(batch.status, BatchStatus::Failed, &notes, Some(event));
        let store = self.gateway.desk.store();
        while let Err(error) = store.update_batch(batch.id, update.clone(), now).await {
            pause(error).await?;
        }
        Ok(())
    }

    async fn finalize(&self, batch: &Batch) -> Result<(), StoreError> {
        let mut notes = Notes::of(batch)?;
        let now = self.gateway.clock.now();
        notes.at.finalizing = Some(now.wall);
        let update = update(batch.status, BatchStatus::Finalizing, &notes, None);
        let store = self.gateway.desk.store();
        store.update_batch(batch.id, update, now).await?;
        Ok(())
    }

    /// Whether nothing of a batch is open but what cannot be read, and so will never end. Its
    /// members are looked through when nothing of it was counted for a while.
    async fn is_left_to_damage(&mut self, batch: &Batch) -> Result<bool, StoreError> {
        let now = self.gateway.clock.now().mono;
        let standing = self.standing.entry(batch.id).or_insert(Standing {
            counts: batch.counts,
            compare_at: now + LOOK,
            over: 0,
        });
        if standing.counts != batch.counts {
            standing.counts = batch.counts;
            standing.compare_at = standing.compare_at.max(now + LOOK);
        }
        if now < standing.compare_at {
            return Ok(false);
        }
        standing.compare_at = now + COMPARE;
        let over = standing.over;
        let mut open = self.open_after(batch.id, over).await?;
        if open.is_none() && over > 0 {
            // What could not be read before may be read now.
            open = self.open_after(batch.id, 0).await?;
        }
        if let (Some(line), Some(standing)) = (open, self.standing.get_mut(&batch.id)) {
            standing.over = line.saturating_sub(1);
        }
        Ok(open.is_none())
    }

    /// The first line behind `after` whose member can be read and has not ended.
    async fn open_after(&self, id: BatchId, mut after: u32) -> Result<Option<u32>, StoreError> {
        loop {
            let page = self.gateway.desk.store().members(id, after, SLICE).await?;
            let line = |job: &Job| job.member.as_ref().map_or(after, |member| member.line);
            if let Some(open) = page.iter().find(|job| !job.status.is_final()) {
                return Ok(Some(line(open)));
            }
            let Some(last) = page.last() else {
                return Ok(None);
            };
            after = line(last);
        }
    }

    /// Ends the members of a batch that have not ended.
    async fn cancel(&self, id: BatchId) -> Result<(), StoreError> {
        let desk = &self.gateway.desk;
        let mut after = 0;
        loop {
            let page = desk.store().members(id, after, SLICE).await?;
            let lines = page.iter().filter_map(|job| job.member.as_ref());
            let Some(last) = lines.map(|member| member.line).max() else {
                return Ok(());
            };
            after = last;
            let open = page.into_iter().filter(|job| !job.status.is_final());
            let cancels = open.map(|job| async move { desk.runner.cancel(job.id).await });
            let mut cancels = stream::iter(cancels).buffer_unordered(SLICE);
            while let Some(cancelled) = cancels.next().await {
                cancelled?;
            }
        }
    }
}

/// Waits until a store that cannot record now may have come back.
///
/// # Errors
///
/// Waiting does not help.
async fn pause(error: StoreError) -> Result<(), StoreError> {
    if !matches!(error, StoreError::Unavailable { .. }) {
        return Err(error);
    }
    tracing::warn!(%error, "a batch waits for the store");
    tokio::time::sleep(AGAIN).await;
    Ok(())
}

/// The change of a batch, with its notes.
pub(super) fn update(
    from: BatchStatus,
    to: BatchStatus,
    notes: &Notes,
    event: Option<NewEvent>,
) -> BatchUpdate {
    BatchUpdate {
        from,
        to,
        details: notes.kept(),
        files: Vec::new(),
        event,
    }
}

/// What tells of a batch's end.
pub(super) fn told(batch: &Batch, kind: &str) -> NewEvent {
    NewEvent {
        kind: kind.to_owned(),
        tenant: Some(batch.tenant.clone()),
        subject: Subject::Batch(batch.id),
        data: json!({"id": ids::batch(batch.id)}),
    }
}

/// What came of reading a batch's lines.
enum Read {
    /// Somebody else has moved the batch on.
    Left,
    /// All of them were read; those without faults are staged if there is no fault at all.
    Done {
        model: Option<String>,
        faults: Vec<Fault>,
    },
}

struct Reading<'a> {
    gateway: &'a Gateway,
    batch: &'a Batch,
    notes: &'a Notes,
    faults: Vec<Fault>,
    slice: Vec<NewJob>,
    slice_bytes: usize,
}

impl<'a> Reading<'a> {
    fn new(gateway: &'a Gateway, batch: &'a Batch, notes: &'a Notes) -> Self {
        Self {
            gateway,
            batch,
            notes,
            faults: Vec::new(),
            slice: Vec::new(),
            slice_bytes: 0,
        }
    }

    async fn read(mut self) -> Result<Read, StoreError> {
        let store = self.gateway.desk.store();
        let removed = |message| Fault::new("invalid_input_file", message).about("input_file_id");
        let Some(input) = store.file(self.notes.input).await? else {
            self.faults.push(removed("the input file was removed"));
            return Ok(self.done(None));
        };
        let max = usize::try_from(self.gateway.max_body_bytes()).unwrap_or(usize::MAX);
        let lines_max = self.gateway.live.load().server.max_batch_lines;
        let mut lines = Lines::new(store.as_ref(), &input, max);
        let (batch, tenant) = (self.batch.id, self.batch.tenant.as_str());
        let mut checker = Checker::new(self.gateway, self.notes, batch, tenant);
        let mut count = 0;
        while self.faults.len() < FAULTS_MAX {
            // Earlier slices are there: they are not read again.
            let next = loop {
                match lines.next().await {
                    Ok(next) => break next,
                    Err(error) => pause(error).await?,
                }
            };
            let (number, line) = match next {
                Next::Line(number, line) => (number, line),
                Next::TooLong(number) => {
                    let message = format!("this line is longer than {max} bytes (server.max_body)");
                    let fault = Fault::new("line_too_long", message).at(number);
                    self.faults.push(fault);
                    break;
                }
                Next::Gone => {
                    let message = "the input file was removed while it was read";
                    self.faults.push(removed(message));
                    break;
                }
                Next::End => break,
            };
            count += 1;
            if count > lines_max {
                let message =
                    format!("a batch has at most {lines_max} lines (server.max_batch_lines)");
                self.faults.push(Fault::new("too_many_requests", message));
                break;
            }
            match Self::call(&mut checker, number, &line).await? {
                Ok(job) => {
                    if !self.take(job).await? {
                        return Ok(Read::Left);
                    }
                }
                Err(fault) => self.faults.push(fault),
            }
        }
        if count == 0 {
            let fault = Fault::new("empty_file", "the input file has no lines");
            self.faults.push(fault.about("input_file_id"));
        }
        if !self.stage().await? {
            return Ok(Read::Left);
        }
        let model = checker.model();
        Ok(self.done(model))
    }

    fn done(self, model: Option<String>) -> Read {
        Read::Done {
            model,
            faults: self.faults,
        }
    }

    /// The call of a line. Waits for the store while that cannot say where it has to go.
    async fn call(
        checker: &mut Checker<'_>,
        number: u32,
        line: &Bytes,
    ) -> Result<Result<NewJob, Fault>, StoreError> {
        let (mut job, kept) = match checker.job(number, line) {
            Ok(checked) => checked,
            Err(fault) => return Ok(Err(fault)),
        };
        loop {
            match checker.place(&job, &kept).await {
                Ok(Ok(place)) => {
                    if let Some(place) = place {
                        place.note(&mut job);
                    }
                    return Ok(Ok(job));
                }
                Ok(Err(fault)) => return Ok(Err(fault.at(number))),
                Err(error) => pause(error).await?,
            }
        }
    }

    async fn take(&mut self, job: NewJob) -> Result<bool, StoreError> {
        let bytes = job.body.len();
        if self.slice.len() == STAGE_MAX || self.slice_bytes + bytes > SLICE_BYTES {
            let staged = self.stage().await?;
            if !staged {
                return Ok(false);
            }
        }
        self.slice.push(job);
        self.slice_bytes += bytes;
        Ok(true)
    }

    /// Stages what was gathered. False: the batch is not one that is read any more.
    async fn stage(&mut self) -> Result<bool, StoreError> {
        let slice = std::mem::take(&mut self.slice);
        self.slice_bytes = 0;
        // What has a fault is not sent; the rest of its lines is read for their faults only.
        while self.faults.is_empty() && !slice.is_empty() {
            let now = self.gateway.clock.now();
            let store = self.gateway.desk.store();
            match store.stage(slice.clone(), now).await {
                Ok(()) => return Ok(true),
                Err(EnqueueError::Store(error)) => {
                    // What was staged stays, so that the rest is staged and not all of it again.
                    match store.batch(self.batch.id).await {
                        Ok(Some(batch)) if batch.status == BatchStatus::Validating => {}
                        Ok(_) => return Ok(false),
                        // It fails as the staging did.
                        Err(_) => {}
                    }
                    pause(error).await?;
                }
                Err(refused) => {
                    let code = match refused {
                        EnqueueError::Draining { .. } => "queue_draining",
                        _ => "queue_full",
                    };
                    self.faults.push(Fault::new(code, refused.to_string()));
                }
            }
        }
        Ok(true)
    }
}
