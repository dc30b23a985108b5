//! Who shares a turn of the writer with work that fails, or comes after it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;

use llmq_store::{
    Capacity, EventId, EventPage, Events, Health, JobId, Jobs, Lines, NewJob, Reads, Start,
    StartError, Store as _, Worker,
};
use tokio::task::JoinSet;

use super::{LEASE, World, job};
use crate::writer::Access;
use crate::{Place, Store, StoreError};

/// Keeps the writer busy until it is let go: what is asked meanwhile is one turn.
struct Busy {
    begun: mpsc::Receiver<()>,
    go: mpsc::Sender<()>,
}

impl Busy {
    /// And what keeps it busy.
    fn new() -> (Self, impl Fn() + Send + 'static) {
        let (begins, begun) = mpsc::channel();
        let (go, goes) = mpsc::channel::<()>();
        let goes = Mutex::new(goes);
        let holds = move || {
            let _ = begins.send(());
            let _ = goes.lock().expect("nobody panicked").recv();
        };
        (Self { begun, go }, holds)
    }
}

/// Asks all of them in one turn, and answers what they said.
async fn in_one_turn<T: Send + 'static>(
    store: &Store,
    asked: Vec<impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let (busy, holds) = Busy::new();
    let mut tasks = JoinSet::new();
    let held = store.clone();
    let mut holder = JoinSet::new();
    holder.spawn(async move {
        let read = held.read(move |_| {
            holds();
            Ok(())
        });
        read.await.expect("it is read");
    });
    tokio::task::block_in_place(|| busy.begun.recv()).expect("it begins");
    let asking = AtomicUsize::new(0).into();
    let count = asked.len();
    for (at, ask) in asked.into_iter().enumerate() {
        let asking: Arc<AtomicUsize> = Arc::clone(&asking);
        tasks.spawn(async move {
            let mut ask = pin!(ask);
            let mut was_asked = false;
            let answer = poll_fn(|context| {
                let polled = ask.as_mut().poll(context);
                if !std::mem::replace(&mut was_asked, true) {
                    asking.fetch_add(1, Ordering::SeqCst);
                }
                polled
            });
            (at, answer.await)
        });
    }
    while asking.load(Ordering::SeqCst) < count {
        tokio::task::yield_now().await;
    }
    busy.go.send(()).expect("it waits");
    holder.join_all().await;
    let mut answers = tasks.join_all().await;
    answers.sort_by_key(|(at, _)| *at);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// A store with a job whose request lies on a page that cannot be read.
fn poisoned(runtime: &tokio::runtime::Runtime) -> (World, JobId) {
    let mut world = World::new();
    let job = NewJob::new("m", "t", vec![b'Z'; 20_000]);
    let id = runtime.block_on(world.accept(job));
    let Place::File(path) = world.store.place().clone() else {
        unreachable!("it is in a file")
    };
    world.store.clone().close();
    let mut bytes = std::fs::read(&path).expect("it is there");
    let page = bytes
        .chunks_exact_mut(4096)
        .find(|page| page[4..].iter().all(|byte| *byte == b'Z'))
        .expect("it has pages of its own");
    page[..4].fill(0xff);
    std::fs::write(&path, bytes).expect("it is written");
    world.store = Store::open(&Place::File(path), world.now.wall).expect("a store");
    (world, id)
}

fn threads() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).build().expect("a runtime")
}

/// Up to a thousand others were told that theirs could not be recorded.
#[test]
fn who_meets_a_page_that_cannot_be_read_fails_alone() {
    let runtime = threads();
    let (world, poison) = poisoned(&runtime);
    let (store, now) = (world.store.clone(), world.now);
    runtime.block_on(async {
        let sound = world.accept(job()).await;
        let ask = |at: usize| {
            let store = store.clone();
            let start = Start {
                job: [sound, poison][usize::from(at == 25)],
                worker: Worker::new("here"),
                lease: LEASE,
                upstream: None,
            };
            async move {
                match at {
                    7 | 25 => store
                        .start(vec![start], now)
                        .await
                        .map(|mut one| one.remove(0).is_ok()),
                    _ => {
                        let accepted = store.enqueue(vec![job()], now).await;
                        Ok(accepted.is_ok_and(|accepted| accepted[0].is_new))
                    }
                }
            }
        };
        let answers = in_one_turn(&store, (0..51).map(ask).collect()).await;
        for (at, answer) in answers.into_iter().enumerate() {
            match at {
                // It has ended as damaged.
                25 => assert!(answer.is_ok_and(|started| !started)),
                _ => assert!(answer.is_ok_and(|done| done), "{at}"),
            }
        }
        let counts = store.counts().await.expect("they are read");
        assert_eq!(
            (counts.queued, counts.processing, counts.failed),
            (49, 1, 1)
        );
        assert_eq!(store.health(), Health::Ready);
        let window = store.next(&job().lane(), None, 100, now).await;
        assert_eq!(window.expect("it is read").jobs.len(), 49);
    });
}

/// Jobs with rows of a tenth of a page, in a store that is closed and opened again.
fn with_rows(runtime: &tokio::runtime::Runtime, count: usize) -> (World, Vec<JobId>) {
    let world = World::new();
    let noted = || {
        let mut noted = job();
        let notes = "n".repeat(300).into();
        noted.details.metadata.insert("notes".to_owned(), notes);
        noted
    };
    let ids = runtime.block_on(async {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(world.accept(noted()).await);
        }
        ids
    });
    (world, ids)
}

fn file_of(store: &Store) -> std::path::PathBuf {
    match store.place() {
        Place::File(path) => path.clone(),
        Place::Memory => unreachable!("it is in a file"),
    }
}

/// Overwrites the page that holds the row of a job, under whoever has the file open.
fn damages(path: &std::path::Path, job: JobId) {
    use std::io::{Seek, SeekFrom, Write};
    let bytes = std::fs::read(path).expect("it is there");
    let leaves = "SELECT pageno FROM dbstat WHERE name = 'jobs' AND pagetype = 'leaf'";
    let looking = rusqlite::Connection::open(path).expect("it is a database");
    let mut leaves = looking
        .prepare(leaves)
        .expect("it says where its pages are");
    let leaves = leaves.query_map([], |row| row.get::<_, u32>(0));
    let mut leaves = leaves
        .expect("they are read")
        .map(|page| page.expect("a number"));
    let id = job.as_uuid();
    let at = |page: u32| (page as usize - 1) * 4096;
    let has_id = |page: &u32| {
        let mut parts = bytes[at(*page)..][..4096].windows(16);
        parts.any(|bytes| bytes == id.as_bytes())
    };
    let at = at(leaves.find(has_id).expect("its row is on one of them"));
    let mut file = std::fs::File::options().write(true).open(path);
    let file = file.as_mut().expect("it can be written");
    file.seek(SeekFrom::Start(at as u64)).expect("it is there");
    file.write_all(&[0xff; 4096]).expect("it is written");
}

/// Whoever only looked at such a page had others of its turn told that theirs had met damage.
#[test]
fn who_looks_at_a_page_that_cannot_be_read_fails_alone_and_but_once() {
    let runtime = threads();
    let (mut world, ids) = with_rows(&runtime, 40);
    runtime.block_on(async {
        for id in &ids[..20] {
            world.store.cancel(*id, world.now).await.expect("it ends");
        }
    });
    let path = file_of(&world.store);
    world.store.clone().close();
    damages(&path, ids[5]);
    // What has ended is not read when a store is opened.
    world.store = Store::open(&Place::File(path), world.now.wall).expect("a store");
    assert_eq!(world.store.opened().findings, [] as [String; 0]);
    let (store, now, lost) = (world.store.clone(), world.now, ids[5]);
    runtime.block_on(async {
        let ask = |at: usize| {
            let store = store.clone();
            async move {
                if at.is_multiple_of(7) {
                    return store.job(lost).await.map(|_| false);
                }
                let accepted = store.enqueue(vec![job()], now).await;
                Ok(accepted.is_ok_and(|accepted| accepted[0].is_new))
            }
        };
        let answers = in_one_turn(&store, (0..30).map(ask).collect()).await;
        for (at, answer) in answers.into_iter().enumerate() {
            if at.is_multiple_of(7) {
                let told = matches!(answer, Err(StoreError::Damaged { .. }));
                assert!(told, "{at}: {answer:?}");
            } else {
                assert!(answer.is_ok_and(|done| done), "{at}");
            }
        }
        assert_eq!(store.health(), Health::Ready);
        // Nobody goes there again, and it is said whose row it is.
        let again = store.desk(Access::Write, move |desk| desk.read_job(lost));
        let again = again.await.expect_err("it cannot be read").to_string();
        assert!(again.contains(&lost.to_string()), "{again}");
        let whole = store.job(ids[39]).await.expect("it is read");
        assert_eq!(whole.map(|job| job.id), Some(ids[39]));
        store
            .tend(now.after(400 * LEASE))
            .await
            .expect("it is tended");
    });
}

/// Once every turn failed from then on, since what waits could not be read.
#[test]
fn a_page_that_comes_to_be_damaged_costs_the_waiting_jobs_on_it() {
    let runtime = threads();
    let (mut world, ids) = with_rows(&runtime, 40);
    let path = file_of(&world.store);
    world.store.clone().close();
    world.store = Store::open(&Place::File(path.clone()), world.now.wall).expect("a store");
    let (store, now) = (world.store.clone(), world.now);
    runtime.block_on(async {
        world.sql("PRAGMA shrink_memory").await;
        damages(&path, ids[20]);
        world.breaks().await;
        assert!(store.enqueue(vec![job()], now).await.is_err());
        world.mends().await;
        let new = world.accept(job()).await;
        let window = store.next(&job().lane(), None, 100, now).await;
        let waits: Vec<JobId> = window
            .expect("it is read")
            .jobs
            .iter()
            .map(|it| it.job)
            .collect();
        let mut kept = Vec::new();
        for id in &ids {
            match store.job(*id).await {
                Ok(_) => kept.push(*id),
                Err(error) => assert!(error.to_string().contains(&id.to_string()), "{error}"),
            }
        }
        assert!((20..39).contains(&kept.len()), "{}", kept.len());
        kept.push(new);
        assert_eq!(waits, kept);
        assert_eq!(store.health(), Health::Ready);
        let counts = store.counts().await.expect("they are read");
        assert_eq!(counts.queued, waits.len() as u64);
    });
}

/// What only the end of a transaction says is nobody's; it is found half by half.
#[test]
fn who_makes_the_commit_fail_is_found_among_the_others() {
    let runtime = threads();
    let world = World::new();
    runtime.block_on(async {
        world.accept(NewJob::new("bad", "t", "{}")).await;
        world
            .sql(
                "CREATE TEMP TRIGGER breaks BEFORE INSERT ON queues WHEN NEW.queue =
                   (SELECT number FROM names WHERE name = 'bad')
                 BEGIN SELECT RAISE(FAIL, 'the test has it fail'); END",
            )
            .await;
        let (store, now) = (world.store.clone(), world.now);
        let ask = |at: usize| {
            let (store, queue) = (store.clone(), if at == 33 { "bad" } else { "good" });
            async move {
                store
                    .enqueue(vec![NewJob::new(queue, "t", "{}")], now)
                    .await
                    .is_ok()
            }
        };
        let answers = in_one_turn(&store, (0..51).map(ask).collect()).await;
        for (at, answer) in answers.into_iter().enumerate() {
            assert_eq!(answer, at != 33, "{at}");
        }
        let counts = store.counts().await.expect("they are read");
        assert_eq!(counts.queued, 51);
        let events = store.events(EventId(0), 100).await.expect("they are read");
        assert!(matches!(events, EventPage::Events(events) if events.len() == 51));
    });
}

/// Everything of it was taken back, and whoever handed it in told so.
#[test]
fn a_large_insert_goes_on_when_somebody_elses_work_fails() {
    let runtime = threads();
    let (world, poison) = poisoned(&runtime);
    let (store, now) = (world.store.clone(), world.now);
    runtime.block_on(async {
        let (busy, holds) = Busy::new();
        let holds = Mutex::new(Some(holds));
        let register = store.write(move |connection| {
            let holds = holds.lock().expect("nobody panicked").take();
            let flags = rusqlite::functions::FunctionFlags::SQLITE_UTF8;
            connection.create_scalar_function("hold", 0, flags, move |_| {
                holds.iter().for_each(|holds| holds());
                Ok(0)
            })?;
            // In the third of its slices.
            connection.execute_batch(
                "CREATE TEMP TRIGGER holds BEFORE INSERT ON blobs WHEN NEW.number = 1200
                 BEGIN SELECT hold(); END",
            )
        });
        register.await.expect("it is carried out");
        let jobs: Vec<_> = (0..3_000).map(|_| job()).collect();
        let bytes: u64 = jobs.iter().map(Capacity::bytes_of).sum();
        let mut inserting = JoinSet::new();
        let to = store.clone();
        inserting.spawn(async move { to.enqueue(jobs, now).await });
        tokio::task::block_in_place(|| busy.begun.recv()).expect("it begins");
        let start = Start {
            job: poison,
            worker: Worker::new("here"),
            lease: LEASE,
            upstream: None,
        };
        let mut starting = pin!(store.start(vec![start], now));
        let asked = poll_fn(|context| Poll::Ready(starting.as_mut().poll(context).is_pending()));
        assert!(asked.await);
        busy.go.send(()).expect("it waits");
        let started = starting.await.expect("it is asked").remove(0);
        assert!(
            matches!(started, Err(StartError::Damaged { .. })),
            "{started:?}"
        );
        let inserted = inserting.join_all().await.remove(0);
        let inserted = inserted.expect("it is accepted");
        let mut places: Vec<_> = inserted.iter().map(|one| one.place).collect();
        places.dedup();
        assert_eq!(places.len(), 3_000);
        assert!(places.is_sorted());
        let counts = store.counts().await.expect("they are read");
        assert_eq!((counts.queued, counts.bytes), (3_000, bytes));
    });
}
