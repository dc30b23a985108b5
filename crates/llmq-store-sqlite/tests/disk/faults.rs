//! Every write fails in its turn: once, or until somebody mends the disk.

use std::path::Path;
use std::time::Duration;

use llmq_store::{
    Enqueued, Health, Idempotency, Jobs as _, Lease, NewJob, Reads as _, Report, Start, Store as _,
    StoreError, StoredAnswer, Worker,
};
use llmq_store_sqlite::{Options, Place, Store};
use llmq_testkit::disk::{Disk, Trouble};
use llmq_testkit::scratch;

use crate::caller::{Caller, beginning, open};
use crate::runtime;

/// How a fault is made.
#[derive(Debug, Clone, Copy)]
struct Fault {
    trouble: Trouble,
    /// Of all changes of the disk, or all syncs, the first that fails.
    nth: u64,
    lasting: bool,
}

/// What a life with a fault in it came to.
struct Outcome {
    /// Changes of the disk that failed.
    failed: u64,
    /// Changes that there were, and syncs.
    changes: u64,
    syncs: u64,
    /// Calls that were answered with an error.
    errors: usize,
}

/// A life that meets a fault, and what it must not have done.
async fn play(fault: Option<Fault>, bulk: bool) -> Outcome {
    let (disk, directory) = (Disk::new(), scratch());
    let path = directory.path().join("llmq.db");
    let mut caller = Caller::new(&disk, 4);
    if let Some(fault) = fault {
        let end = if fault.lasting {
            u64::MAX
        } else {
            fault.nth + 1
        };
        disk.fail(fault.trouble, fault.nth..end);
    }
    let store = open(&disk, &path, caller.now).or_else(|_| {
        disk.mend();
        open(&disk, &path, caller.now)
    });
    let store = store.unwrap();
    caller.begin(&store).await;
    if bulk {
        caller.bulk(&store).await;
    }
    caller.calls(&store, 18).await;
    let failed = disk.mend();
    recover(&store, &caller).await;
    let errors = std::mem::take(&mut caller.book.borrow_mut().errors);
    for error in &errors {
        assert!(error.contains("Unavailable"), "{fault:?}: {error}");
    }
    caller.calls(&store, 9).await;
    let (changes, syncs) = (disk.changes(), disk.syncs());
    let book = caller.book.take();
    assert_eq!(
        book.errors,
        [] as [String; 0],
        "{fault:?}, when it was mended"
    );
    let at = disk.position();
    let broken = book.broken_in(&store, at).await;
    assert_eq!(broken, [] as [String; 0], "{fault:?}");
    // What was acknowledged is on the disk, whatever a sync that failed has dropped.
    let log = disk.log();
    store.close();
    let image = scratch();
    let mut images = Vec::new();
    let mut random = fastrand::Rng::with_seed(1);
    log.power_cuts(&[at], &mut random, |_, _, found| images = found);
    images.dedup();
    for one in images {
        one.write(image.path());
        let path = image.path().join("llmq.db");
        let broken = book.broken(&path, at, beginning()).await;
        assert_eq!(broken, [] as [String; 0], "{fault:?}, and a power cut");
    }
    let broken = book.broken(&path, at, beginning()).await;
    assert_eq!(broken, [] as [String; 0], "{fault:?}, after a stop");
    Outcome {
        failed,
        changes,
        syncs,
        errors: errors.len(),
    }
}

/// Waits until the store records again: a little is written now and then, as by a runner.
async fn recover(store: &Store, caller: &Caller<'_>) {
    for _ in 0..3 {
        if store.tend(caller.now).await.is_ok() {
            break;
        }
    }
    assert_eq!(store.health(), Health::Ready);
}

/// Every change of a life fails in its turn.
///
/// In the short form of some that many, beginning with another one in each run.
fn each_in_turn(trouble: Trouble, lasting: bool, bulk: bool, stride: u64) {
    let sound = runtime().block_on(play(None, bulk));
    let all = match trouble {
        Trouble::Full | Trouble::Broken => sound.changes,
        Trouble::Syncs => sound.syncs,
    };
    let (mut landed, mut errors) = (0_u64, 0);
    let stride = (stride / llmq_testkit::scale()).max(1);
    let mut count = 0;
    let first = fastrand::u64(..stride);
    for nth in (first..all).step_by(usize::try_from(stride).unwrap()) {
        count += 1;
        let fault = Fault {
            trouble,
            nth,
            lasting,
        };
        let outcome = runtime().block_on(play(Some(fault), bulk));
        landed += u64::from(outcome.failed > 0);
        errors += outcome.errors;
    }
    println!("{trouble:?}, lasting {lasting}: {landed} of {count} landed, {errors} errors told");
    assert!(landed * 3 > count, "{landed} of {count} faults landed");
    assert!(errors > 0, "no call was told of a fault");
}

#[test]
fn a_write_that_fails_once_loses_nothing() {
    each_in_turn(Trouble::Broken, false, false, 5);
}

#[test]
fn a_disk_that_stays_broken_loses_nothing() {
    each_in_turn(Trouble::Broken, true, false, 5);
}

#[test]
fn a_disk_that_is_full_for_a_moment_loses_nothing() {
    each_in_turn(Trouble::Full, false, false, 5);
}

#[test]
fn a_disk_that_stays_full_loses_nothing() {
    each_in_turn(Trouble::Full, true, false, 5);
}

#[test]
fn a_large_insert_that_meets_a_fault_is_there_whole_or_not_at_all() {
    each_in_turn(Trouble::Broken, false, true, 40);
}

/// Linux drops what a failed sync was to sync and says nothing of it the next time. Slices of a
/// large insert are written without a sync: what was acknowledged behind them was lost with the
/// power, since the log could not be followed across the hole.
#[test]
fn what_is_acknowledged_after_a_sync_that_failed_is_on_the_disk() {
    each_in_turn(Trouble::Syncs, false, true, 1);
}

/// What is left of the disk in the next test when the store is open.
const ROOM: u64 = 200 << 10;
const BALLAST: u64 = 256 << 10;

fn limited(disk: &Disk, path: &Path) -> Store {
    let options = Options {
        ballast_bytes: BALLAST,
        log_bytes: 64 << 10,
        vfs: Some(disk.name().to_owned()),
        ..Options::default()
    };
    Store::open_with(&Place::File(path.to_owned()), options, beginning().wall).unwrap()
}

fn length(path: &Path) -> u64 {
    path.metadata().map_or(0, |found| found.len())
}

fn start(job: &NewJob) -> Start {
    Start {
        job: job.id,
        worker: Worker::new("here"),
        lease: Duration::from_secs(600),
        upstream: None,
    }
}

async fn complete(store: &Store, lease: Lease, now: llmq_core::Now) {
    let answer = StoredAnswer {
        status: 200,
        headers: Vec::new(),
        body: vec![b'z'; 2_000].into(),
    };
    let report = Report::Completed {
        answer,
        usage: None,
        cost_nano_usd: None,
    };
    store.report(lease, report, now).await.unwrap();
}

/// A disk fills: what runs can still end, nothing new is taken or started, all that was accepted
/// is there, and it goes on once there is room.
#[tokio::test]
async fn a_full_disk_takes_the_results_of_what_runs_and_nothing_else() {
    let (disk, directory) = (Disk::new(), scratch());
    let path = directory.path().join("llmq.db");
    let store = limited(&disk, &path);
    let mut now = beginning();
    let ballast = directory.path().join("llmq.db.ballast");
    let used = length(&path) + length(&directory.path().join("llmq.db-wal"));
    disk.has_room(used + ROOM + BALLAST, vec![ballast.clone()]);
    let job = || NewJob::new("m", "t", vec![b'a'; 2_000]);
    let mut running: Vec<NewJob> = (0..8).map(|_| job()).collect();
    running[0].idempotency = Some(Idempotency {
        key: "k".to_owned(),
        request_hash: [1; 32],
    });
    store.enqueue(running.clone(), now).await.unwrap();
    let starts = running.iter().map(start).collect();
    let started = store.start(starts, now).await.unwrap();
    let leases: Vec<Lease> = started.into_iter().map(|one| one.unwrap().lease).collect();
    let mut accepted = Vec::new();
    let refused = loop {
        let next = job();
        match store.enqueue(vec![next.clone()], now).await {
            Ok(_) => accepted.push(next),
            Err(error) => break error,
        }
    };
    assert!(accepted.len() > 10, "{}", accepted.len());
    let why = std::error::Error::source(&refused).unwrap().to_string();
    assert!(why.contains("the disk is full"), "{why}");
    let Health::ReserveOnly { reason } = store.health() else {
        panic!("{:?}", store.health());
    };
    assert!(reason.contains("the disk is full"), "{reason}");
    assert_eq!(length(&ballast), 0, "its room is for the results");

    let started = store.start(vec![start(&accepted[0])], now).await;
    assert!(matches!(started, Err(StoreError::Unavailable { .. })));
    assert!(store.enqueue(vec![job()], now).await.is_err());
    let again = NewJob {
        idempotency: running[0].idempotency.clone(),
        ..job()
    };
    let again = store.enqueue(vec![again], now).await.unwrap();
    assert_eq!(again, [Enqueued::existing(running[0].id)]);
    for lease in leases {
        complete(&store, lease, now).await;
    }
    for done in &running {
        let answer = store.answer(done.id).await.unwrap().unwrap();
        assert_eq!(answer.body.len(), 2_000);
    }
    for waits in &accepted {
        assert_eq!(
            store.body(waits.id).await.unwrap(),
            Some(waits.body.clone())
        );
    }
    assert_eq!(store.counts().await.unwrap().queued, accepted.len() as u64);

    // Somebody makes room.
    disk.mend();
    now = now.after(Duration::from_secs(6));
    store.tend(now).await.unwrap();
    assert_eq!(store.health(), Health::Ready);
    assert_eq!(length(&ballast), BALLAST, "it is laid by again");
    let started = store.start(vec![start(&accepted[0])], now).await.unwrap();
    complete(&store, started[0].as_ref().unwrap().lease, now).await;
    store.enqueue(vec![job()], now).await.unwrap();
    store.close();
    assert!(llmq_store_sqlite::check(&path, true).unwrap().is_sound());
}

/// It took new work and started it, on what was left of the reserve.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn after_a_restart_on_a_full_disk_the_rest_of_the_reserve_is_still_for_results() {
    let (disk, directory) = (Disk::new(), scratch());
    let path = directory.path().join("llmq.db");
    let store = limited(&disk, &path);
    let mut now = beginning();
    let ballast = directory.path().join("llmq.db.ballast");
    let job = || NewJob::new("m", "t", vec![b'a'; 2_000]);
    let (runs, waits) = (job(), job());
    for job in [&runs, &waits] {
        store.enqueue(vec![job.clone()], now).await.unwrap();
    }
    let started = store.start(vec![start(&runs)], now).await.unwrap();
    let lease = started[0].as_ref().unwrap().lease;
    disk.has_room(0, Vec::new());
    while store.enqueue(vec![job()], now).await.is_ok() {}
    assert!(matches!(store.health(), Health::ReserveOnly { .. }));
    store.close();
    assert_eq!(length(&ballast), 0, "the next process sees it");

    // The disk under ours is not full, so the reserve goes to one that is.
    std::fs::remove_file(&ballast).unwrap();
    std::os::unix::fs::symlink("/dev/full", &ballast).unwrap();
    disk.mend();
    let store = limited(&disk, &path);
    for _ in 0..2 {
        let Health::ReserveOnly { reason } = store.health() else {
            panic!("{:?}", store.health());
        };
        assert!(reason.contains("the disk is full"), "{reason}");
        assert!(reason.contains("llmq.db.ballast"), "{reason}");
        assert!(store.enqueue(vec![job()], now).await.is_err());
        let started = store.start(vec![start(&waits)], now).await;
        assert!(matches!(started, Err(StoreError::Unavailable { .. })));
        store.tend(now).await.unwrap();
        now = now.after(Duration::from_secs(6));
    }
    complete(&store, lease, now).await;

    // Somebody makes room.
    std::fs::remove_file(&ballast).unwrap();
    now = now.after(Duration::from_secs(6));
    store.tend(now).await.unwrap();
    assert_eq!(store.health(), Health::Ready);
    assert_eq!(length(&ballast), BALLAST);
    let started = store.start(vec![start(&waits)], now).await.unwrap();
    complete(&store, started[0].as_ref().unwrap().lease, now).await;
}

#[tokio::test]
async fn a_volume_that_never_had_room_for_the_reserve_is_used_without() {
    let (disk, directory) = (Disk::new(), scratch());
    let path = directory.path().join("llmq.db");
    // Nothing can be laid by in its place.
    std::fs::create_dir(directory.path().join("llmq.db.ballast")).unwrap();
    for _ in 0..2 {
        let store = limited(&disk, &path);
        let now = beginning();
        assert_eq!(store.health(), Health::Ready);
        let job = NewJob::new("m", "t", "{}");
        store.enqueue(vec![job.clone()], now).await.unwrap();
        let started = store.start(vec![start(&job)], now).await.unwrap();
        complete(&store, started[0].as_ref().unwrap().lease, now).await;
        store.close();
    }
}

/// It waited for a reserve that there never was.
#[tokio::test]
async fn without_a_reserve_it_goes_on_once_there_is_room_again() {
    let (disk, directory) = (Disk::new(), scratch());
    let path = directory.path().join("llmq.db");
    std::fs::create_dir(directory.path().join("llmq.db.ballast")).unwrap();
    let store = limited(&disk, &path);
    let now = beginning();
    let job = || NewJob::new("m", "t", vec![b'a'; 2_000]);
    disk.has_room(0, Vec::new());
    while store.enqueue(vec![job()], now).await.is_ok() {}
    // Whoever tells it adds what this is the reason of.
    let reason = "the disk is full".to_owned();
    assert_eq!(store.health(), Health::Unavailable { reason });

    disk.mend();
    store.tend(now).await.unwrap();
    assert_eq!(store.health(), Health::Ready);
    store.enqueue(vec![job()], now).await.unwrap();
}
