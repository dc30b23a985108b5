//! What time brings: signs of life, times to live, the store's health, queues that stand.

use std::sync::Arc;
use std::time::Duration;

use llmq_core::Status;
use llmq_dispatch::{Event, QueueId};
use llmq_store::{Moved, QueueState, StoreError};

use super::runner::Inner;

/// How often is looked.
const TICK: Duration = Duration::from_millis(250);
/// Each lease is kept alive so many times while it lasts.
const SIGNS_A_LEASE: u32 = 3;
/// So many slices of housekeeping at once; the rest is for the next look.
const SLICES: usize = 40;

impl Inner {
    pub(super) async fn keep_tended(self: Arc<Self>) {
        let mut sign_at = self.now().mono;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = self.tasks.cancelled() => return,
            }
            self.follow_health();
            // Before leases are looked at: a process that was stopped for long and goes on still
            // holds what it held, if nobody else took it.
            if self.now().mono >= sign_at {
                sign_at = self.now().mono + self.lease / SIGNS_A_LEASE;
                self.give_sign().await;
            }
            if let Err(error) = self.tend().await {
                tracing::warn!(%error, "the store could not be tended");
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

    async fn give_sign(&self) {
        let leases = self.table().leases();
        if leases.is_empty() {
            return;
        }
        match self.store.extend(leases, self.now()).await {
            Ok(lost) => {
                for lease in lost {
                    // It may have ended between the two looks.
                    let held = self.table().get(lease.job).and_then(|held| held.lease);
                    if held == Some(lease) {
                        tracing::warn!(job = %lease.job, "the lease of a job was lost");
                        self.leave(lease.job);
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "leases could not be extended"),
        }
    }

    async fn tend(&self) -> Result<(), StoreError> {
        for _ in 0..SLICES {
            let tended = self.store.tend(self.now()).await?;
            for moved in &tended.moved {
                self.moved(moved).await?;
            }
            if !tended.more {
                break;
            }
        }
        Ok(())
    }

    /// A job changed inside the store.
    async fn moved(&self, moved: &Moved) -> Result<(), StoreError> {
        self.leave(moved.job);
        let Some(job) = self.store.job(moved.job).await? else {
            return Ok(());
        };
        if moved.status == Status::Queued {
            self.came(Arc::new(job.lane()), true);
        } else {
            self.ended(&job, None);
        }
        Ok(())
    }

    /// Queues stand or are drained as they were.
    pub(super) async fn restore_queues(&self) -> Result<(), StoreError> {
        let mut known = self.queues.lock().await;
        for queue in self.store.queues().await? {
            let state = queue.state;
            if !state.paused && !state.drains && !state.parked {
                continue;
            }
            if let Some(id) = self.directory.queue(&queue.name) {
                if state.paused {
                    self.hub.handle(Event::Pause(id));
                }
                self.hub
                    .with(|dispatcher| dispatcher.drain(id, state.drains));
                known.insert(queue.name, state);
            }
        }
        Ok(())
    }

    /// The store learns which queues stand, so that the time of their jobs does, and which take
    /// nothing new.
    pub(super) async fn follow_queues(&self) -> Result<(), StoreError> {
        // Held over the writes, so that two who look at once do not cross.
        let mut known = self.queues.lock().await;
        for (name, state) in self.queue_states() {
            if known.get(&name).copied().unwrap_or_default() != state {
                self.store.set_queue(&name, state, self.now()).await?;
                known.insert(name, state);
            }
        }
        Ok(())
    }

    fn queue_states(&self) -> Vec<(String, QueueState)> {
        self.hub.with(|dispatcher| {
            let ids: Vec<QueueId> = dispatcher.queue_ids().collect();
            let states = ids.into_iter().map(|id| {
                let view = dispatcher.queue_view(id);
                let state = QueueState {
                    paused: view.paused,
                    parked: view.parked,
                    drains: view.draining,
                };
                (dispatcher.queue_name(id).to_owned(), state)
            });
            states.collect()
        })
    }
}
