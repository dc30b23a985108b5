use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use llmq_dispatch::{Dispatcher, Event, UpstreamId};
use llmq_engine::Hub;
use tokio::runtime::Handle;

use crate::quota::write;

/// How long until what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The files in which models keep the count of their day.
#[derive(Debug)]
pub(crate) struct QuotaFiles {
    runtime: Handle,
    by_upstream: Mutex<HashMap<UpstreamId, Arc<QuotaFile>>>,
}

#[derive(Debug)]
struct QuotaFile {
    upstream: UpstreamId,
    path: PathBuf,
    /// Whether the last was written; held while a state is looked at and written, so that no older
    /// one comes after it.
    is_over: Mutex<bool>,
}

impl QuotaFiles {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            by_upstream: Mutex::default(),
        }
    }

    /// Whether another upstream's count is kept in this file.
    pub(crate) fn is_taken(&self, path: &Path, by_other_than: Option<UpstreamId>) -> bool {
        let files = self.files();
        let mut others = files
            .values()
            .filter(|file| Some(file.upstream) != by_other_than);
        others.any(|file| file.path == path)
    }

    /// From here on an upstream's count is in this file, or in none.
    pub(crate) fn keep(&self, upstream: UpstreamId, path: Option<PathBuf>) {
        let mut files = self.files();
        match path {
            Some(path) => {
                let file = QuotaFile {
                    upstream,
                    path,
                    is_over: Mutex::default(),
                };
                files.insert(upstream, Arc::new(file));
            }
            None => drop(files.remove(&upstream)),
        }
    }

    /// The dispatcher starts nothing more at this upstream until its count is on disk.
    pub(crate) fn ask(&self, upstream: UpstreamId, hub: Weak<Hub>) {
        let Some(file) = self.files().get(&upstream).cloned() else {
            return;
        };
        self.runtime.spawn(async move {
            while let Some(hub) = hub.upgrade() {
                match written(&file, &hub, false).await {
                    true => return hub.handle(Event::QuotaSaved(upstream)),
                    false => drop(hub),
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    /// Writes what was used when no more is started; what still runs is counted already.
    ///
    /// # Cancel safety
    ///
    /// It is written all the same.
    pub(crate) async fn end(&self, upstream: UpstreamId, hub: &Arc<Hub>) {
        let Some(file) = self.files().get(&upstream).cloned() else {
            return;
        };
        // Where it fails, what is on disk covers what was used all the same.
        let _ = written(&file, hub, true).await;
    }

    fn files(&self) -> MutexGuard<'_, HashMap<UpstreamId, Arc<QuotaFile>>> {
        self.by_upstream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it is on disk; the log says why not.
async fn written(file: &Arc<QuotaFile>, hub: &Arc<Hub>, is_last: bool) -> bool {
    let (writer, hub) = (Arc::clone(file), Arc::clone(hub));
    let written = tokio::task::spawn_blocking(move || writer.write(&hub, is_last)).await;
    match written {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => {
            let path = file.path.display();
            tracing::error!(%path, %error, "the quota cannot be written: nothing is started");
        }
        // The runtime ends.
        Err(_) => {}
    }
    false
}

impl QuotaFile {
    fn write(&self, hub: &Hub, is_last: bool) -> io::Result<()> {
        let mut is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_over {
            return Ok(());
        }
        let state = hub.with(|dispatcher: &mut Dispatcher| {
            let quota = dispatcher.quota(self.upstream)?;
            Some(match is_last {
                true => quota.to_final_state(),
                false => quota.to_state(),
            })
        });
        if let Some(state) = state {
            write(&self.path, &state)?;
        }
        *is_over = is_last;
        Ok(())
    }
}
