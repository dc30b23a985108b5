//! What time brings: signs of life, times to live, the store's health, queues that stand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use llmq_core::{Now, Status};
use llmq_dispatch::{Event, QueueId};
use llmq_store::{Lease, Moved, QueueState, StoreError};

use super::runner::Inner;
use super::table::Came;

/// How often is looked.
const TICK: Duration = Duration::from_millis(250);
/// Each lease is kept alive so many times while it lasts.
const SIGNS_A_LEASE: u32 = 3;
/// How often what is held here is compared with what waits in the store.
const COMPARE: Duration = Duration::from_secs(5);
/// So many slices of housekeeping at once; the rest is for the next look.
const SLICES: usize = 40;

/// So many of the jobs that housekeeping moved are read at once: beside live work, each turn of the
/// store costs a sync.
const READS: usize = 64;

/// The state of queues, as the store has it.
#[derive(Debug, Default)]
pub(super) struct KnownQueues {
    told: BTreeMap<String, QueueState>,
    /// Of queues that stood, or were drained, and that nobody offers: it is theirs again when
    /// they come back.
    absent: BTreeMap<String, QueueState>,
}

impl Inner {
    pub(super) async fn keep_tended(self: Arc<Self>) {
        let mut sign_at = self.now().mono;
        let mut suspects = Vec::new();
        let mut compare_at = sign_at + COMPARE;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.tasks.cancelled() => return,
            }
            self.follow_health();
            // Before leases are looked at, and at the same instant: a process that was stopped
            // for long and goes on still holds what it held, if nobody else took it.
            let now = self.now();
            if now.mono >= sign_at {
                if self.give_sign(now, &mut suspects).await {
                    sign_at = now.mono + self.lease / SIGNS_A_LEASE;
                } else if !self.store.health().takes_work() {
                    // It may record again at any moment: the first that it hears then is the sign.
                    continue;
                }
            }
            if let Err(error) = self.tend(now, &mut suspects).await {
                tracing::warn!(%error, "the store could not be tended");
            }
            if now.mono >= compare_at {
                compare_at = now.mono + COMPARE;
                if let Err(error) = self.reconcile().await {
                    tracing::warn!(%error, "the lines of waiting jobs could not be compared");
                }
            }
            if let Err(error) = self.follow_queues().await {
                tracing::warn!(%error, "the state of the queues could not be recorded");
            }
        }
    }

    fn follow_health(&self) {
        let ready = self.store.health().takes_work();
        let changed = self
            .open
            .send_if_modified(|open| std::mem::replace(open, ready) != ready);
        if changed && ready {
            tracing::info!("the store records again: jobs are started");
        } else if changed {
            tracing::warn!("the store cannot record: no job is started");
        }
    }

    /// Whether it was given. `suspects` are the leases that the store did not know the last time: one
    /// that was reported on just then is still held here for a moment, and is not lost.
    async fn give_sign(&self, now: Now, suspects: &mut Vec<Lease>) -> bool {
        let leases = self.table().leases();
        if leases.is_empty() {
            return true;
        }
        match self.store.extend(leases, now).await {
            Ok(mut lost) => {
                // Looked at and left in one turn: a job that waits again meanwhile goes on.
                let mut table = self.table();
                lost.retain(|lease| {
                    let held = table.get(lease.job).and_then(|held| held.lease);
                    held == Some(*lease)
                });
                for lease in lost.iter().filter(|lease| suspects.contains(lease)) {
                    tracing::warn!(job = %lease.job, "the lease of a job was lost");
                    table.leave(lease.job);
                }
                *suspects = lost;
                true
            }
            Err(error) => {
                tracing::warn!(%error, "leases could not be extended");
                false
            }
        }
    }

    async fn tend(&self, mut now: Now, suspects: &mut Vec<Lease>) -> Result<(), StoreError> {
        for _ in 0..SLICES {
            let tended = self.store.tend(now).await?;
            self.moved(&tended.moved).await;
            if !tended.more {
                break;
            }
            // All that took its time, and the next slice looks at the leases again.
            now = self.now();
            if !self.give_sign(now, suspects).await {
                break;
            }
        }
        Ok(())
    }

    /// Jobs changed inside the store. One that cannot be read keeps no other from being followed.
    async fn moved(&self, moved: &[Moved]) {
        let mut is_unclear = false;
        for moved in moved {
            self.leave(moved.job);
        }
        let read = moved.iter().copied();
        let read = read.map(|moved| async move { (moved, self.store.job(moved.job).await) });
        let mut read = stream::iter(read).buffer_unordered(READS);
        while let Some((moved, job)) = read.next().await {
            match job {
                Ok(Some(job)) if job.status == Status::Queued => {
                    self.came(Arc::new(job.lane()), Came::Somewhere);
                }
                Ok(Some(job)) => self.ended(&job, None),
                Ok(None) => self.ends.ended(moved.job),
                Err(error) => {
                    tracing::warn!(job = %moved.job, %error, "a job that moved cannot be read");
                    self.ends.ended(moved.job);
                    is_unclear |= moved.status == Status::Queued;
                }
            }
        }
        if is_unclear && let Err(error) = self.look_again().await {
            tracing::warn!(%error, "waiting jobs could not be looked for");
        }
    }

    /// Queues stand or are drained as they were.
    pub(super) async fn restore_queues(&self) -> Result<(), StoreError> {
        let mut known = self.queues.lock().await;
        for queue in self.store.queues().await? {
            if queue.state == QueueState::default() {
                continue;
            }
            match self.directory.queue(&queue.name) {
                Some(id) => {
                    self.restore(id, queue.state);
                    known.told.insert(queue.name, queue.state);
                }
                None => {
                    known.absent.insert(queue.name, queue.state);
                }
            }
        }
        Ok(())
    }

    fn restore(&self, id: QueueId, state: QueueState) {
        if state.paused {
            self.hub.handle(Event::Pause(id));
        }
        self.hub
            .with(|dispatcher| dispatcher.drain(id, state.drains));
    }

    /// The store learns which queues stand, so that the time of their jobs does, and which take
    /// nothing new.
    pub(super) async fn follow_queues(&self) -> Result<(), StoreError> {
        // Held over the writes, so that two who look at once do not cross.
        let mut known = self.queues.lock().await;
        for (id, name, mut state) in self.queue_states() {
            if let Some(before) = known.absent.remove(&name) {
                self.restore(id, before);
                known.told.insert(name.clone(), before);
                state = QueueState {
                    parked: state.parked,
                    ..before
                };
            }
            if known.told.get(&name).copied().unwrap_or_default() != state {
                self.store.set_queue(&name, state, self.now()).await?;
                known.told.insert(name, state);
            }
        }
        Ok(())
    }

    /// Of the queues that are offered: one that the configuration no longer has drains for that,
    /// and not since somebody said so.
    fn queue_states(&self) -> Vec<(QueueId, String, QueueState)> {
        self.hub.with(|dispatcher| {
            let ids: Vec<QueueId> = dispatcher.queue_ids().collect();
            let states = ids.into_iter().filter_map(|id| {
                let view = dispatcher.queue_view(id);
                let state = QueueState {
                    paused: view.paused,
                    parked: view.parked,
                    drains: view.draining,
                };
                let name = || dispatcher.queue_name(id).to_owned();
                (!view.retired).then(|| (id, name(), state))
            });
            states.collect()
        })
    }
}
