//! What follows when a transaction fails: nothing of it stays, in the file or in memory, and what
//! was true before is true after it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;
use std::time::Duration;

use llmq_core::{Now, Status};
use llmq_store::{
    Batch, BatchStatus, BatchUpdate, Batches, Capacity, EventId, EventPage, Events, Health, JobId,
    Jobs, Lease, Lines, Member, NewJob, QueueState, Reads, Report, ReportError, Start, Store as _,
    StoredAnswer, Worker,
};
use tokio::task::JoinSet;

use crate::jobs::Fault;
use crate::writer::Access;
use crate::{Place, Store, StoreError};

const SECOND: Duration = Duration::from_secs(1);
/// Longer than what is assumed of a lease that is only known from the file.
const LEASE: Duration = Duration::from_secs(600);

struct World {
    store: Store,
    now: Now,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("llmq.db");
        let now = Now::default().after(77 * SECOND);
        Self {
            store: Store::open(&Place::File(path), now.wall).expect("a store"),
            now,
            _directory: directory,
        }
    }

    /// Each commit that tells of something fails, with an error after which SQLite keeps the
    /// transaction open.
    async fn breaks(&self) {
        self.sql(
            "CREATE TEMP TRIGGER breaks BEFORE INSERT ON event_log
             BEGIN SELECT RAISE(FAIL, 'the test has it fail'); END",
        )
        .await;
    }

    async fn mends(&self) {
        self.sql("DROP TRIGGER breaks").await;
    }

    async fn sql(&self, text: &'static str) {
        let done = self
            .store
            .write(|connection| connection.execute_batch(text));
        done.await.expect("it is carried out");
    }

    async fn accept(&self, job: NewJob) -> JobId {
        let accepted = self.store.enqueue(vec![job], self.now).await;
        accepted.expect("it is accepted")[0].job
    }

    async fn start(&self, job: JobId) -> Lease {
        let start = Start {
            job,
            worker: Worker::new("here"),
            lease: LEASE,
            upstream: None,
        };
        let started = self.store.start(vec![start], self.now).await;
        let started = started.expect("it is asked").remove(0);
        started.expect("it starts").lease
    }

    async fn status(&self, job: JobId) -> Status {
        let job = self.store.job(job).await.expect("it is read");
        job.expect("it is there").status
    }
}

fn job() -> NewJob {
    NewJob::new("m", "t", "{}")
}

fn completed() -> Report {
    Report::Completed {
        answer: StoredAnswer {
            status: 200,
            headers: Vec::new(),
            body: "{}".into(),
        },
        usage: None,
        cost_nano_usd: None,
    }
}

/// The lease of a report that could not be recorded counted as silent since the clock began.
#[tokio::test]
async fn a_lease_whose_report_failed_stands_and_the_report_can_be_made_again() {
    let mut world = World::new();
    let id = world.accept(job()).await;
    let lease = world.start(id).await;
    world.now = world.now.after(20 * SECOND);
    let extended = world.store.extend(vec![lease], world.now).await;
    assert_eq!(extended.expect("it is asked"), []);
    world.breaks().await;
    let failed = world.store.report(lease, completed(), world.now).await;
    assert!(
        matches!(failed, Err(ReportError::Store { .. })),
        "{failed:?}"
    );
    world.mends().await;
    world.now = world.now.after(LEASE - SECOND);
    let tended = world.store.tend(world.now).await.expect("it is tended");
    assert_eq!(tended.moved, []);
    let report = world.store.report(lease, completed(), world.now).await;
    assert_eq!(report.expect("it counts").status, Status::Completed);
}

/// A queue that waits for its quota went again, for its jobs' time, after any failure.
#[tokio::test]
async fn the_time_of_a_parked_queue_stands_through_a_failure() {
    let mut world = World::new();
    let id = world
        .accept(NewJob {
            ttl: Some(10 * SECOND),
            ..job()
        })
        .await;
    let parked = QueueState {
        parked: true,
        ..QueueState::default()
    };
    let set = world.store.set_queue("m", parked, world.now).await;
    set.expect("it is recorded");
    world.breaks().await;
    let failed = world.store.enqueue(vec![job()], world.now).await;
    assert!(failed.is_err());
    world.mends().await;
    world.now = world.now.after(60 * SECOND);
    world.store.tend(world.now).await.expect("it is tended");
    assert_eq!(world.status(id).await, Status::Queued);
}

/// After a slice of a large insert that failed nothing was synced any more.
#[tokio::test]
async fn commits_are_synced_after_a_slice_that_was_not() {
    let world = World::new();
    world
        .sql(
            "CREATE TEMP TRIGGER breaks BEFORE INSERT ON blobs WHEN NEW.number > 700
             BEGIN SELECT RAISE(FAIL, 'the test has it fail'); END",
        )
        .await;
    let jobs = (0..2_000).map(|_| job()).collect();
    let failed = world.store.enqueue(jobs, world.now).await;
    assert!(failed.is_err());
    let ask = |connection: &rusqlite::Connection| {
        connection.query_row("PRAGMA synchronous", [], |row| row.get::<_, i64>(0))
    };
    assert_eq!(world.store.read(ask).await.expect("it is read"), 2);
}

/// A listener that came then passed over as many events as the failure had told of.
#[tokio::test]
async fn nobody_hears_of_events_that_were_taken_back() {
    let world = World::new();
    world.accept(job()).await;
    let mut newest = world.store.newest_event();
    // Whoever asked hears of the commit first.
    let told = newest.wait_for(|newest| *newest == EventId(1));
    let before = *told.await.expect("the store is open");
    world.breaks().await;
    assert!(
        world
            .store
            .enqueue(vec![job(), job()], world.now)
            .await
            .is_err()
    );
    // The next turn ends behind the one that failed.
    world.store.counts().await.expect("they are read");
    assert!(!newest.has_changed().expect("the store is open"));
    world.mends().await;
    world.accept(job()).await;
    let events = world.store.events(before, 10).await.expect("they are read");
    assert!(matches!(events, EventPage::Events(events) if events.len() == 1));
}

#[tokio::test]
async fn nothing_stays_of_what_met_damage_after_it_had_written() {
    let world = World::new();
    let now = world.now;
    let paused = QueueState {
        paused: true,
        ..QueueState::default()
    };
    let done = world
        .store
        .desk::<(), std::convert::Infallible>(Access::Write, move |desk| {
            desk.set_queue("m", paused, now)?;
            Err(Fault::Store(StoreError::damaged("a row")))
        });
    assert!(matches!(done.await, Err(StoreError::Damaged { .. })));
    let queues = world.store.queues().await.expect("they are read");
    assert!(queues.iter().all(|queue| !queue.state.paused), "{queues:?}");
}

/// Its answer was recorded and its reporter told that it was not.
#[tokio::test]
async fn the_end_of_a_job_counts_though_its_batch_cannot_be_read() {
    let world = World::new();
    let batch = Batch::new("t", serde_json::Value::Null, world.now.wall);
    let id = batch.id;
    world.store.create_batch(batch).await.expect("it is made");
    let member = NewJob {
        member: Some(Member {
            batch: id,
            line: 1,
            custom_id: "one".to_owned(),
        }),
        ..job()
    };
    let job = member.id;
    let staged = world.store.stage(vec![member], world.now).await;
    staged.expect("it is staged");
    let begins = BatchUpdate {
        from: BatchStatus::Validating,
        to: BatchStatus::InProgress,
        details: serde_json::Value::Null,
        files: Vec::new(),
        event: None,
    };
    let published = world.store.publish_batch(id, begins, world.now).await;
    published.expect("it is published");
    let lease = world.start(job).await;
    world.sql("UPDATE batches SET data = 'x'").await;
    // What is known of it is read again after a failure.
    world.breaks().await;
    assert!(
        world
            .store
            .enqueue(vec![self::job()], world.now)
            .await
            .is_err()
    );
    world.mends().await;
    let report = world.store.report(lease, completed(), world.now).await;
    assert_eq!(report.expect("it counts").status, Status::Completed);
    assert_eq!(world.status(job).await, Status::Completed);
}

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
                25 => assert!(
                    matches!(answer, Err(StoreError::Damaged { .. })),
                    "{answer:?}"
                ),
                _ => assert!(answer.is_ok_and(|done| done), "{at}"),
            }
        }
        let counts = store.counts().await.expect("they are read");
        assert_eq!((counts.queued, counts.processing), (50, 1));
        assert_eq!(store.health(), Health::Ready);
        let window = store.next(&job().lane(), None, 100, now).await;
        assert_eq!(window.expect("it is read").jobs.len(), 50);
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
        let started = starting.await;
        assert!(
            matches!(started, Err(StoreError::Damaged { .. })),
            "{started:?}"
        );
        let inserted = inserting.join_all().await.remove(0);
        let inserted = inserted.expect("it is accepted");
        let mut places: Vec<_> = inserted.iter().map(|one| one.place).collect();
        places.dedup();
        assert_eq!(places.len(), 3_000);
        assert!(places.is_sorted());
        let counts = store.counts().await.expect("they are read");
        let before = Capacity::bytes_of(&NewJob::new("m", "t", vec![b'Z'; 20_000]));
        assert_eq!((counts.queued, counts.bytes), (3_001, bytes + before));
    });
}
