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

/// The file of one registration of a model.
#[derive(Debug)]
pub(crate) struct QuotaFile {
    path: PathBuf,
    /// Held while a state is looked at and written, so that no older one comes after it.
    stage: Mutex<Stage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    #[default]
    Open,
    /// The last was written.
    Over,
    /// The model was registered again: its count is in the file of that, or in none.
    Replaced,
}

/// Keeps a file from being written while a registration takes place.
pub(crate) struct Held<'a>(MutexGuard<'a, Stage>);

impl Held<'_> {
    /// Another one has taken its place.
    pub(crate) fn replaced(mut self) {
        *self.0 = Stage::Replaced;
    }
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
            .iter()
            .filter(|(upstream, _)| Some(**upstream) != by_other_than);
        others.any(|(_, file)| file.path == path)
    }

    /// From here on an upstream's count is in this file, or in none.
    pub(crate) fn keep(&self, upstream: UpstreamId, file: Option<&Arc<QuotaFile>>) {
        let mut files = self.files();
        match file {
            Some(file) => drop(files.insert(upstream, Arc::clone(file))),
            None => drop(files.remove(&upstream)),
        }
    }

    /// The dispatcher starts nothing more at this upstream until its count is on disk.
    pub(crate) fn ask(self: &Arc<Self>, upstream: UpstreamId, hub: Weak<Hub>) {
        let files = Arc::clone(self);
        self.runtime.spawn(async move {
            while let Some(hub) = hub.upgrade() {
                let Some(file) = files.files().get(&upstream).cloned() else {
                    return;
                };
                match written(&file, upstream, &hub, false).await {
                    Some(Stage::Replaced) => continue,
                    Some(Stage::Open | Stage::Over) => {
                        return hub.handle(Event::QuotaSaved(upstream));
                    }
                    None => drop(hub),
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
    }

    fn files(&self) -> MutexGuard<'_, HashMap<UpstreamId, Arc<QuotaFile>>> {
        self.by_upstream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file's stage once it is written; none where it cannot be, and the log says why.
async fn written(
    file: &Arc<QuotaFile>,
    upstream: UpstreamId,
    hub: &Arc<Hub>,
    is_last: bool,
) -> Option<Stage> {
    let (writer, hub) = (Arc::clone(file), Arc::clone(hub));
    let written = tokio::task::spawn_blocking(move || writer.write(upstream, &hub, is_last)).await;
    match written {
        Ok(Ok(stage)) => return Some(stage),
        Ok(Err(error)) => {
            let path = file.path.display();
            tracing::error!(%path, %error, "the quota cannot be written: nothing is started");
        }
        // The runtime ends.
        Err(_) => {}
    }
    None
}

impl QuotaFile {
    pub(crate) fn new(path: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            path,
            stage: Mutex::default(),
        })
    }

    /// Nothing is written meanwhile.
    pub(crate) fn hold(&self) -> Held<'_> {
        Held(self.stage())
    }

    /// Writes what was used when no more is started; what still runs is counted already. Nothing
    /// where the model has been registered again.
    ///
    /// # Cancel safety
    ///
    /// It is written all the same.
    pub(crate) async fn end(self: &Arc<Self>, upstream: UpstreamId, hub: &Arc<Hub>) {
        // Where it fails, what is on disk covers what was used all the same.
        let _ = written(self, upstream, hub, true).await;
    }

    fn write(&self, upstream: UpstreamId, hub: &Hub, is_last: bool) -> io::Result<Stage> {
        let mut stage = self.stage();
        if *stage != Stage::Open {
            return Ok(*stage);
        }
        let state = hub.with(|dispatcher: &mut Dispatcher| {
            let quota = dispatcher.quota(upstream)?;
            Some(match is_last {
                true => quota.to_final_state(),
                false => quota.to_state(),
            })
        });
        if let Some(state) = state {
            write(&self.path, &state)?;
        }
        if is_last {
            *stage = Stage::Over;
        }
        Ok(*stage)
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
