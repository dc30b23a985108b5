//! Where the writer sits: its own thread comes to it for all that waits, and a caller who is alone
//! may come himself.
//!
//! A caller who asks the thread waits for two changes of threads, which take as long as half a
//! sync. In a crowd they cost nothing, for many share them; alone they are most of what is added
//! to the sync.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::{BATCH_MAX, Work, Writer};

/// After so many turns in a row with one piece of work each, callers come one by one. In a crowd
/// each would make a transaction of its own where a turn makes one for all.
const LONE_TURNS_MIN: u32 = 8;

/// The writer, or nobody once it has ended.
#[derive(Clone)]
pub(crate) struct Room(Arc<Shared>);

struct Shared {
    writer: Mutex<Option<Writer>>,
    /// Handed over and not done.
    under_way: AtomicUsize,
    /// Turns in a row with one piece of work each.
    lone_turns: AtomicU32,
}

/// Work that is handed over: nobody who comes later may do his own before.
pub(crate) struct Entered<'a>(&'a Shared);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Release);
    }
}

impl Entered<'_> {
    /// It is the thread's, which says when it is done.
    pub(crate) fn leave_to_thread(self) {
        std::mem::forget(self);
    }
}

impl Room {
    pub(crate) fn new(writer: Writer) -> Self {
        Self(Arc::new(Shared {
            writer: Mutex::new(Some(writer)),
            under_way: AtomicUsize::new(0),
            lone_turns: AtomicU32::new(0),
        }))
    }

    pub(crate) fn enter(&self) -> Entered<'_> {
        self.0.under_way.fetch_add(1, Ordering::Acquire);
        Entered(&self.0)
    }

    /// Whether something is handed over and not done.
    #[cfg(test)]
    pub(crate) fn is_busy(&self) -> bool {
        self.0.under_way.load(Ordering::Acquire) > 0
    }

    /// Carries the work out on this thread if callers come one by one and nobody else is here;
    /// gives it back otherwise.
    ///
    /// # Panics
    ///
    /// Outside the tasks of a multi-threaded runtime.
    pub(crate) fn commit_alone(&self, work: Box<dyn Work>) -> Option<Box<dyn Work>> {
        let room = &*self.0;
        if room.under_way.load(Ordering::Acquire) > 1
            || room.lone_turns.load(Ordering::Relaxed) < LONE_TURNS_MIN
        {
            return Some(work);
        }
        // One that panicked here has left the writer in the middle of something: its thread ends
        // it.
        let Ok(mut writer) = room.writer.try_lock() else {
            return Some(work);
        };
        match writer.as_mut().filter(|writer| writer.bulks.is_empty()) {
            Some(writer) => tokio::task::block_in_place(|| writer.turn(&mut vec![work])),
            None => return Some(work),
        }
        None
    }

    /// Works until every sender is gone and everything they sent is done.
    pub(crate) fn work(self, mut waiting: mpsc::Receiver<Box<dyn Work>>) {
        let leaves = Leaves(self);
        let room = &*leaves.0.0;
        let mut batch = Vec::new();
        let mut is_busy = false;
        loop {
            if !is_busy && waiting.blocking_recv_many(&mut batch, BATCH_MAX) == 0 {
                break;
            }
            let Ok(mut writer) = room.writer.lock() else {
                break;
            };
            let Some(writer) = writer.as_mut() else {
                break;
            };
            while batch.len() < BATCH_MAX
                && let Ok(work) = waiting.try_recv()
            {
                batch.push(work);
            }
            let done = batch.len();
            if done == 1 && writer.bulks.is_empty() {
                let turns = room.lone_turns.load(Ordering::Relaxed);
                let turns = turns.saturating_add(1);
                room.lone_turns.store(turns, Ordering::Relaxed);
            } else {
                room.lone_turns.store(0, Ordering::Relaxed);
            }
            writer.turn(&mut batch);
            is_busy = !writer.bulks.is_empty();
            room.under_way.fetch_sub(done, Ordering::Release);
        }
    }
}

/// The writer leaves with its thread, which alone keeps the file from others.
struct Leaves(Room);

impl Drop for Leaves {
    fn drop(&mut self) {
        let room = &self.0.0;
        let writer = room.writer.lock();
        let writer = writer.unwrap_or_else(PoisonError::into_inner).take();
        // Copies the log into the database and removes it; if that fails, the log is read next
        // time.
        if let Some(writer) = writer {
            let _ = writer.connection.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};
    use std::thread::ThreadId;

    use llmq_core::WallTime;
    use tokio::task::JoinSet;

    use super::*;
    use crate::{Options, Place, Store, StoreError};

    fn open(directory: &tempfile::TempDir) -> Store {
        let options = Options {
            ballast_bytes: 0,
            in_place: true,
            ..Options::default()
        };
        let place = Place::File(directory.path().join("llmq.db"));
        Store::open_with(&place, options, WallTime::default()).expect("a store")
    }

    /// The thread on which a question is answered.
    async fn answering(store: &Store) -> ThreadId {
        let asked = store.read(|_| Ok(std::thread::current().id()));
        asked.await.expect("it is answered")
    }

    /// And what they are answered once callers come one by one.
    async fn settled(store: &Store) -> ThreadId {
        let writer = answering(store).await;
        for _ in 1..LONE_TURNS_MIN {
            assert_eq!(answering(store).await, writer);
        }
        // The last of them is counted before it is answered, but ends after it.
        while store.room().is_busy() {
            tokio::task::yield_now().await;
        }
        writer
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_is_alone_does_it_on_its_own_thread() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory);
        let writer = settled(&store).await;
        let here = std::thread::current().id();
        assert_ne!(here, writer);
        for _ in 0..3 {
            assert_eq!(answering(&store).await, here);
        }
        // A crowd is served by the thread, in few turns.
        let asks = (0..512).map(|_| {
            let store = store.clone();
            async move { answering(&store).await }
        });
        let asked: JoinSet<_> = asks.collect();
        let asked = asked.join_all().await;
        assert!(asked.iter().filter(|at| **at == writer).count() > 256);
        assert_eq!(answering(&store).await, writer);
    }

    /// What the thread has taken and not begun is done before what comes later, though nobody
    /// waits for it any more.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nobody_is_overtaken() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory);
        settled(&store).await;
        let put = |value: i64| {
            let put = move |connection: &rusqlite::Connection| {
                connection.pragma_update(None, "application_id", value)
            };
            store.write(put)
        };
        for round in 1..100 {
            {
                let _writer = store.room().0.writer.lock().expect("nobody panicked");
                let mut first = pin!(put(round));
                let polled = first.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                assert!(polled.is_pending());
                while store.waiting() > 0 {
                    std::thread::yield_now();
                }
            }
            put(-round).await.expect("it is written");
            let found = store.read(|connection| {
                connection.pragma_query_value(None, "application_id", |row| row.get(0))
            });
            assert_eq!(found.await.ok(), Some(-round));
            while store.room().is_busy() {
                tokio::task::yield_now().await;
            }
        }
    }

    /// As when the thread panics: nothing is done after it in a transaction that is half made.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_panic_in_place_closes_the_store() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory);
        settled(&store).await;
        let asking = store.clone();
        let mut panicking = JoinSet::new();
        panicking.spawn(async move {
            let asked = asking.read::<()>(|_| panic!("the test has it panic"));
            asked.await
        });
        let panicked = panicking.join_next().await.expect("it was asked");
        assert!(panicked.expect_err("it panics").is_panic());
        for _ in 0..2 {
            let asked = store.read(|_| Ok(())).await;
            assert!(matches!(asked, Err(StoreError::Closed)), "{asked:?}");
        }
        store.close();
        answering(&open(&directory)).await;
    }
}
