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
            for lane in self.take_dirty() {
                if let Err(error) = self.fill(&lane).await {
                    tracing::warn!(%error, "waiting jobs could not be read");
                    self.dirty(lane);
                    tokio::time::sleep(AGAIN).await;
                    break;
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
        let Some(wanted) = self.table().wanted(lane) else {
            return Ok(());
        };
        let window = self
            .store
            .next(lane, wanted.after, wanted.count, self.now())
            .await?;
        let taken = self.table().read(lane, wanted, &window);
        for (waiting, leave) in taken {
            self.tasks
                .spawn(Arc::clone(self).live(Arc::clone(lane), waiting, leave));
        }
        Ok(())
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
