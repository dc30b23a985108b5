//! What follows when a transaction fails: nothing of it stays, in the file or in memory, and what
//! was true before is true after it.

mod turns;

use std::time::Duration;

use llmq_core::{Now, Status};
use llmq_store::{
    Batch, BatchStatus, BatchUpdate, Batches, EventId, EventPage, Events, JobId, Jobs, Lease,
    Lines, Member, NewJob, QueueState, Reads, Report, ReportError, Start, StoredAnswer, Worker,
};

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
