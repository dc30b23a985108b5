//! Keeps the window of each lane filled from the store.

use std::sync::Arc;
use std::time::Duration;

use llmq_store::{Lane, StoreError};

use super::runner::Inner;

/// After the store could not be read, it is asked again.
const AGAIN: Duration = Duration::from_millis(500);

impl Inner {
    /// Reads lanes that changed, until nothing is to be started any more.
    pub(super) async fn keep_filled(self: Arc<Self>) {
        loop {
            let mut lanes = self.take_dirty().into_iter();
            while let Some(lane) = lanes.next() {
                if let Err(error) = self.fill(&lane).await {
                    tracing::warn!(%error, "waiting jobs could not be read");
                    std::iter::once(lane)
                        .chain(lanes.by_ref())
                        .for_each(|lane| self.dirty(lane));
                    tokio::time::sleep(AGAIN).await;
                }
            }
            let (due, next) = self.table().due(self.now().mono);
            // This is heard below.
            due.into_iter().for_each(|lane| self.dirty(lane));
            let next = next.map(|at| self.clock.instant(at));
            tokio::select! {
                () = self.to_fill.notified() => {}
                () = sleep_until(next) => {}
                () = self.stopping.cancelled() => return,
            }
        }
    }

    async fn fill(self: &Arc<Self>, lane: &Arc<Lane>) -> Result<(), StoreError> {
        let Some(wanted) = self.table().begin_read(lane) else {
            return Ok(());
        };
        let (after, count) = (wanted.after, wanted.count);
        let window = self.store.next(lane, after, count, self.now()).await;
        let window = window.inspect_err(|_| self.table().unread(lane, wanted))?;
        let taken = self.table().read(lane, wanted, &window);
        for (waiting, leave) in taken {
            self.tasks
                .spawn(Arc::clone(self).live(Arc::clone(lane), waiting, leave));
        }
        // All that was read may have been held before; what stands behind it has not been seen.
        if self.table().wanted(lane).is_some() {
            self.dirty(Arc::clone(lane));
        }
        Ok(())
    }

    /// Compares what is held here with what waits in the store.
    pub(super) async fn reconcile(&self) -> Result<(), StoreError> {
        let depths = self.store.lanes(self.now()).await?;
        let (look, lost) = self.table().reconcile(&depths);
        for lane in &lost {
            tracing::warn!(
                queue = lane.queue,
                priority = %lane.priority,
                tenant = lane.tenant,
                "waiting jobs were not seen in time: they are taken up now"
            );
        }
        look.into_iter().for_each(|lane| self.dirty(lane));
        Ok(())
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
