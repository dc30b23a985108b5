//! The books of limits, in the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use llmq_dispatch::UpstreamId;
use llmq_engine::Hub;
use llmq_engine::books::{Earlier, Keeper, Page, Parts, Save, Shelf, Spent, Wanted, learner};
use llmq_store_sqlite::{LimitBooks, Store, StoreError, UsedPart};
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use crate::models::Models;

/// What was spent so long ago is in no window any more.
const OLDEST: Duration = Duration::from_secs(40 * 86_400);

/// What an earlier process left in the store.
pub(crate) async fn earlier(store: &Store) -> Result<Earlier, StoreError> {
    let Some(books) = store.limit_books().await? else {
        return Ok(Earlier::default());
    };
    let learned = store.learned().await?.into_iter();
    let learned = learned.map(|told| (learner(&told.upstream, &told.host), told.limits));
    let parts = |used: Vec<UsedPart>| Parts {
        used: used.into_iter().map(Into::into).collect(),
    };
    let limits = books.used.into_iter();
    Ok(Earlier {
        spent: Spent {
            clean: books.clean,
            limits: limits.map(|(name, used)| (name, parts(used))).collect(),
            learned: learned.collect(),
            charged_per_million: books.charged_per_million,
        },
        quota: books.quota,
        alive_at: Some(books.alive_at),
        touched_at: store.touched_before(),
    })
}

/// The keeper at work; its thread ends with [`Keeping::end`].
pub(crate) struct Keeping {
    wanted: Wanted,
    thread: Mutex<Option<JoinHandle<Result<(), StoreError>>>>,
}

impl Keeping {
    /// Writes the books once, and from then on until the end; first of all what was `asked` for
    /// while the limits were set up.
    pub(crate) async fn begin(
        hub: Arc<Hub>,
        shelf: StoreShelf,
        wanted: Wanted,
        asked: Receiver<Save>,
    ) -> Result<Self, StoreError> {
        let mut keeper = Keeper::new(hub, shelf);
        let first = tokio::task::spawn_blocking(move || keeper.write(false).map(|()| keeper));
        let keeper = first.await.map_err(|_| StoreError::Closed)??;
        let thread = tokio::task::spawn_blocking(move || {
            keeper.run(&asked, |error| {
                // Limits of a day stand still meanwhile: what cannot be written is not used.
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "what was spent of limits could not be written");
                Ok(())
            })
        });
        Ok(Self {
            wanted,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Writes the last books, when no call is started any more.
    pub(crate) async fn end(&self) -> Result<(), StoreError> {
        self.wanted.end();
        match self.thread.lock().await.take() {
            Some(thread) => thread.await.unwrap_or(Err(StoreError::Closed)),
            None => Ok(()),
        }
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        // A gateway that was never closed still lets its thread go.
        self.wanted.end();
    }
}

/// The books in the store. Blocks the thread that writes, so it is for one that may be blocked.
pub(crate) struct StoreShelf {
    store: Store,
    runtime: Handle,
    models: Arc<Models>,
    earlier: Earlier,
    /// What is in the store of learned limits.
    learned: BTreeMap<String, Vec<String>>,
}

impl StoreShelf {
    pub(crate) fn new(store: Store, models: Arc<Models>, earlier: Earlier) -> Self {
        Self {
            store,
            runtime: Handle::current(),
            models,
            learned: earlier.spent.learned.clone(),
            earlier,
        }
    }

    async fn write(&mut self, page: Page) -> Result<(), StoreError> {
        for (name, upstream, host) in self.models.learned_from() {
            let limits = page.spent.learned.get(&name);
            if self.learned.get(&name) == limits {
                continue;
            }
            let limits = limits.cloned().unwrap_or_default();
            let saved = self.store.save_learned(&upstream, &host, limits.clone());
            saved.await?;
            if limits.is_empty() {
                self.learned.remove(&name);
            } else {
                self.learned.insert(name, limits);
            }
        }
        self.store.save_limit_books(self.books(page)).await
    }

    /// The page, and what an earlier process left of limits that this one has not met yet.
    fn books(&self, page: Page) -> LimitBooks {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        let gone = self.earlier.alive_at.map(|then| page.alive_at.since(then));
        let (gone, oldest) = (millis(gone.unwrap_or(OLDEST)), millis(OLDEST));
        let mut used: BTreeMap<String, Vec<UsedPart>> = BTreeMap::new();
        for (name, parts) in &self.earlier.spent.limits {
            let parts = parts.used.iter();
            let older = parts.map(|(age, used)| (age.saturating_add(gone), *used));
            let kept: Vec<UsedPart> = older
                .filter(|(age, _)| *age <= oldest)
                .map(Into::into)
                .collect();
            if !kept.is_empty() {
                used.insert(name.clone(), kept);
            }
        }
        let met = page.spent.limits.into_iter();
        used.extend(met.map(|(name, parts)| {
            let parts = parts.used.into_iter();
            (name, parts.map(Into::into).collect())
        }));
        let mut charged_per_million = self.earlier.spent.charged_per_million.clone();
        charged_per_million.extend(page.spent.charged_per_million);
        let mut quota = self.earlier.quota.clone();
        quota.extend(page.quota);
        LimitBooks {
            alive_at: page.alive_at,
            clean: page.spent.clean,
            used,
            charged_per_million,
            quota,
        }
    }
}

impl Shelf for StoreShelf {
    type Error = StoreError;

    fn learners(&self) -> Vec<(UpstreamId, String)> {
        self.models.learners()
    }

    fn put(&mut self, page: Page) -> Result<(), StoreError> {
        let runtime = self.runtime.clone();
        runtime.block_on(self.write(page))
    }
}
