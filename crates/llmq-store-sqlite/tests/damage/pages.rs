//! Whole pages of the table of jobs that are not what was written: each costs the rows on it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use llmq_core::{Now, Status};
use llmq_store::{
    Batch, BatchStatus, BatchUpdate, Batches as _, EnqueueError, Filter, Idempotency, JobError,
    JobId, Jobs as _, Lines as _, Member, NewJob, Reads as _, Report, Start, StoreError,
    StoredAnswer, Worker,
};
use llmq_store_sqlite::{Store, check};

use crate::filled::open;

/// The page size of SQLite.
const PAGE: usize = 4096;
/// Members of the batch, ended, running and waiting jobs: in this order in the table.
const MEMBERS: usize = 20;
const ENDED: usize = 30;
const RUNNING: usize = 20;
const WAITING: usize = 80;

/// On a page and the two beside it are no more rows than these.
const BESIDE: usize = 24;

/// A job with a row and a body of a tenth of a page each, so that all on a page are told word for
/// word.
fn job() -> NewJob {
    let notes = "n".repeat(300);
    let mut job = NewJob::new("m", "t", format!("{{\"notes\":\"{notes}\"}}"));
    job.details
        .metadata
        .insert("notes".to_owned(), notes.into());
    job
}

/// A closed store, the jobs that are in it, and its batch.
struct Whole {
    file: Vec<u8>,
    jobs: Vec<JobId>,
    batch: Batch,
}

impl Whole {
    async fn new(path: &Path) -> Self {
        let (store, now) = (open(path).unwrap(), Now::default());
        let batch = Batch::new("t", serde_json::Value::Null, now.wall);
        store.create_batch(batch.clone()).await.unwrap();
        let member = |line: u32| NewJob {
            member: Some(Member {
                batch: batch.id,
                line,
                custom_id: line.to_string(),
            }),
            ..job()
        };
        let members: Vec<NewJob> = (1..).take(MEMBERS).map(member).collect();
        let mut jobs: Vec<JobId> = members.iter().map(|job| job.id).collect();
        store.stage(members, now).await.unwrap();
        publish(&store, &batch, now).await;
        for n in 0..ENDED + RUNNING + WAITING {
            let job = NewJob {
                idempotency: Some(Idempotency {
                    key: n.to_string(),
                    request_hash: [0; 32],
                }),
                ..job()
            };
            jobs.push(job.id);
            store.enqueue(vec![job.clone()], now).await.unwrap();
            if n < ENDED {
                store.cancel(job.id, now).await.unwrap();
            } else if n < ENDED + RUNNING {
                start(&store, job.id).await.unwrap();
            }
        }
        store.close();
        let file = std::fs::read(path).unwrap();
        Self { file, jobs, batch }
    }

    /// A copy in which this page is not what was written.
    fn damaged(&self, page: usize, to: &Path) {
        let mut copy = self.file.clone();
        copy[(page - 1) * PAGE..][..PAGE].fill(0xff);
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(PathBuf::from(format!("{}{end}", to.display())));
        }
        std::fs::write(to, copy).unwrap();
    }
}

/// The pages of a kind that a table has, in the order of their rows.
fn pages_of(table: &str, path: &Path, kind: &str) -> Vec<usize> {
    let connection = rusqlite::Connection::open(path).unwrap();
    let mut query = connection
        .prepare("SELECT pageno FROM dbstat WHERE name = ?1 AND pagetype = ?2 ORDER BY path")
        .unwrap();
    let pages = query.query_map([table, kind], |row| row.get::<_, u32>(0));
    pages.unwrap().map(|page| page.unwrap() as usize).collect()
}

fn pages(path: &Path, kind: &str) -> Vec<usize> {
    pages_of("jobs", path, kind)
}

async fn start(store: &Store, job: JobId) -> Option<llmq_store::Lease> {
    let start = Start {
        job,
        worker: Worker::new("here"),
        lease: Duration::from_secs(30),
        upstream: None,
    };
    let started = store.start(vec![start], Now::default()).await.unwrap();
    started.into_iter().next().unwrap().ok().map(|it| it.lease)
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

/// Which jobs cannot be read; the others are there.
async fn lost(store: &Store, jobs: &[JobId]) -> BTreeSet<JobId> {
    let mut lost = BTreeSet::new();
    for job in jobs {
        match store.job(*job).await {
            Ok(found) => assert_eq!(found.map(|found| found.id), Some(*job)),
            Err(StoreError::Damaged { what }) => {
                assert!(what.contains(&job.to_string()), "{what}");
                lost.insert(*job);
            }
            Err(error) => panic!("{error}"),
        }
    }
    lost
}

/// What waits, in its order.
async fn waits(store: &Store) -> Vec<JobId> {
    let lane = job().lane();
    let window = store.next(&lane, None, 1_000, Now::default()).await;
    window.unwrap().jobs.iter().map(|it| it.job).collect()
}

/// Once a store with such a page could not be opened, and a running one failed every turn.
#[tokio::test]
async fn a_damaged_page_of_jobs_costs_the_rows_on_it_and_each_is_named() {
    let directory = llmq_testkit::scratch();
    let path = directory.path().join("whole.db");
    let whole = Whole::new(&path).await;
    let leaves = pages(&path, "leaf");
    assert!(leaves.len() > 10, "{leaves:?}");
    let mut seen: BTreeMap<JobId, usize> = BTreeMap::new();
    let copy = directory.path().join("damaged.db");
    for page in &leaves {
        whole.damaged(*page, &copy);
        let checked = check(&copy, true).unwrap();
        let store = open(&copy).unwrap();
        let lost = lost(&store, &whole.jobs).await;
        assert!((1..=20).contains(&lost.len()), "page {page}: {lost:?}");
        for job in &whole.jobs {
            let id = job.to_string();
            let is_named = |words: &[String]| words.iter().any(|word| word.contains(&id));
            assert_eq!(
                is_named(&checked.findings),
                lost.contains(job),
                "{checked:?}"
            );
            let ended = &whole.jobs[MEMBERS..][..ENDED];
            let is_open = lost.contains(job) && !ended.contains(job);
            let opened = &store.opened().findings;
            assert_eq!(is_named(opened), is_open, "{opened:?}");
        }
        for job in &lost {
            assert_eq!(seen.insert(*job, *page), None, "it is on one page");
        }
        goes_on(&store, &whole, &lost).await;
        // Whoever hands one in whose row would lie on that page is told.
        let taken = store.enqueue(vec![job()], Now::default()).await;
        if page == leaves.last().unwrap() {
            let refused = taken.unwrap_err();
            assert!(
                matches!(refused, EnqueueError::Store(StoreError::Damaged { .. })),
                "{refused}"
            );
            assert_eq!(
                waits(&store).await,
                [],
                "nor does that cost the others anything"
            );
        } else {
            assert_eq!(waits(&store).await, [taken.unwrap()[0].job]);
        }
        store.close();
    }
    assert_eq!(seen.len(), whole.jobs.len(), "each page had its turn");
}

/// A request whose body lay there was tried for ever, each time at the cost of everybody.
#[tokio::test]
async fn a_damaged_page_of_bodies_costs_the_requests_on_it() {
    let directory = llmq_testkit::scratch();
    let path = directory.path().join("whole.db");
    let whole = Whole::new(&path).await;
    let mut leaves = pages_of("blobs", &path, "leaf");
    assert!(leaves.len() > 10, "{leaves:?}");
    // A store is not opened that could not be written to.
    leaves.pop();
    let copy = directory.path().join("damaged.db");
    let waiting = &whole.jobs[MEMBERS + ENDED + RUNNING..];
    let mut failed = 0;
    for page in leaves {
        whole.damaged(page, &copy);
        let store = open(&copy).unwrap();
        for job in waiting {
            if start(&store, *job).await.is_some() {
                continue;
            }
            failed += 1;
            let job = store.job(*job).await.unwrap().unwrap();
            assert_eq!(job.status, Status::Failed);
            assert_eq!(job.error.unwrap().code, JobError::DAMAGED);
            let body = store.body(job.id).await;
            assert!(matches!(body, Err(StoreError::Damaged { .. })), "{body:?}");
        }
        store.close();
    }
    let on_the_last = waiting.len() - failed;
    assert!(on_the_last <= BESIDE, "each other page had its turn");
}

/// All of housekeeping was taken back, each time: no time to live passed any more.
#[tokio::test]
async fn a_damaged_page_of_another_table_keeps_no_housekeeping_from_being_done() {
    let directory = llmq_testkit::scratch();
    let path = directory.path().join("whole.db");
    let whole = Whole::new(&path).await;
    let copy = directory.path().join("damaged.db");
    let later = Now::default().after(Duration::from_secs(400 * 24 * 3600));
    for table in ["event_log", "idempotency"] {
        let mut opened = 0;
        for page in pages_of(table, &path, "leaf") {
            whole.damaged(page, &copy);
            // The ends of the log of events are read before anything else.
            let Ok(store) = open(&copy) else {
                continue;
            };
            opened += 1;
            let mut purged = 0;
            for _ in 0..3 {
                purged += store.tend(later).await.expect(table).purged;
            }
            assert!(purged >= ENDED, "{table}: {purged}");
            store.close();
        }
        assert!(opened > 0, "{table}");
    }
}

/// Batches of [`Crowd`], and its jobs with keys.
const BATCHES: usize = 40;
const KEYED: usize = 60;
const TTL: Duration = Duration::from_secs(60);

/// A closed store with many batches: a member of each runs and may not be sent again, one waits, and
/// one does so for its time to live. As many jobs with keys as one page of them has wait so too.
struct Crowd {
    whole: Whole,
    waiting: Vec<JobId>,
}

impl Crowd {
    async fn new(path: &Path) -> Self {
        let (store, now) = (open(path).unwrap(), Now::default());
        let notes = serde_json::Value::from("n".repeat(300));
        let new = || Batch::new("t", notes.clone(), now.wall);
        let mut waiting = Vec::new();
        for _ in 0..BATCHES {
            let batch = new();
            store.create_batch(batch.clone()).await.unwrap();
            let member = |line: u32, ttl| NewJob {
                member: Some(Member {
                    batch: batch.id,
                    line,
                    custom_id: line.to_string(),
                }),
                max_attempts: 1,
                ttl,
                ..job()
            };
            let members = vec![member(1, None), member(2, None), member(3, Some(TTL))];
            let (runs, waits) = (members[0].id, members[1].id);
            store.stage(members, now).await.unwrap();
            publish(&store, &batch, now).await;
            start(&store, runs).await.unwrap();
            waiting.push(waits);
        }
        // One that is still being read, when the process ends.
        store.create_batch(new()).await.unwrap();
        for n in 0..KEYED {
            let job = NewJob {
                idempotency: Some(Idempotency {
                    key: format!("{n:>120}"),
                    request_hash: [0; 32],
                }),
                ttl: Some(TTL),
                ..job()
            };
            store.enqueue(vec![job], now).await.unwrap();
        }
        store.close();
        let whole = Whole {
            file: std::fs::read(path).unwrap(),
            jobs: Vec::new(),
            batch: new(),
        };
        Self { whole, waiting }
    }
}

async fn publish(store: &Store, batch: &Batch, now: Now) {
    let update = BatchUpdate {
        from: BatchStatus::Validating,
        to: BatchStatus::InProgress,
        details: batch.details.clone(),
        files: Vec::new(),
        event: None,
    };
    store.publish_batch(batch.id, update, now).await.unwrap();
}

/// The answer of a member was thrown away and paid for again, no time to live passed any more, the
/// next process did not start, and nobody's batch was led on.
#[tokio::test]
async fn a_damaged_page_of_batches_or_keys_costs_no_end_of_a_job() {
    let directory = llmq_testkit::scratch();
    let path = directory.path().join("whole.db");
    let crowd = Crowd::new(&path).await;
    let copy = directory.path().join("damaged.db");
    let now = Now::default();
    for table in ["batches", "idempotency"] {
        let pages = pages_of(table, &path, "leaf");
        assert!(pages.len() > 2, "{table}: {pages:?}");
        let mut seen = 0;
        for page in pages {
            crowd.whole.damaged(page, &copy);
            let store = open(&copy).unwrap();
            let moved = store.recover(&Worker::new("here"), now).await.unwrap();
            let failed = moved.iter().filter(|it| it.status == Status::Failed);
            assert_eq!(failed.count(), BATCHES, "{table}");
            for job in &crowd.waiting {
                let lease = start(&store, *job).await.unwrap();
                let job = store.report(lease, completed(), now).await.unwrap();
                assert_eq!(job.status, Status::Completed);
            }
            let late = now.after(TTL);
            let mut expired = 0;
            for _ in 0..3 {
                expired += store.tend(late).await.unwrap().moved.len();
            }
            assert_eq!(expired, BATCHES + KEYED, "{table}");
            // Of those that can be read nothing is missing.
            let listed = store.batches(None, None, 1_000).await.unwrap();
            let begun = listed
                .iter()
                .filter(|it| it.status == BatchStatus::InProgress);
            let mut read = 0;
            for batch in begun {
                assert!(batch.counts.all_ended(), "{table}: {batch:?}");
                read += 1;
            }
            seen += BATCHES + 1 - listed.len();
            let later = now.after(Duration::from_secs(400 * 24 * 3600));
            let mut purged = 0;
            for _ in 0..3 {
                purged += store.tend(later).await.unwrap().purged;
            }
            // What is still to be written into an output is kept.
            assert_eq!(purged, KEYED + 3 * (BATCHES - read), "{table}");
            store.close();
        }
        let of_batches = if table == "batches" { BATCHES + 1 } else { 0 };
        assert_eq!(seen, of_batches, "each page had its turn");
    }
}

/// All that is on whole pages is listed, told of as a member, taken back, started in its order and
/// completed, and removed when its time is over.
async fn goes_on(store: &Store, whole: &Whole, lost: &BTreeSet<JobId>) {
    let now = Now::default();
    let kept = |jobs: &[JobId]| -> Vec<JobId> {
        jobs.iter()
            .filter(|job| !lost.contains(job))
            .copied()
            .collect()
    };
    let mut listed = BTreeSet::new();
    let mut after = None;
    loop {
        let page = store.list(&Filter::default(), after, 17).await.unwrap();
        listed.extend(page.items.iter().map(|job| job.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(listed, kept(&whole.jobs).into_iter().collect());
    let members = store.members(whole.batch.id, 0, 100).await.unwrap();
    let members: Vec<JobId> = members.iter().map(|job| job.id).collect();
    assert_eq!(members, kept(&whole.jobs[..MEMBERS]));
    // What does not fit any more on its page, which lies beside the damaged one, stays as it is.
    let at = |job: &JobId| whole.jobs.iter().position(|other| other == job).unwrap();
    let (first, last) = (at(lost.first().unwrap()), at(lost.last().unwrap()));
    let is_beside = |job: &JobId| at(job) + BESIDE > first && at(job) < last + BESIDE;
    let mut stuck = kept(&whole.jobs[MEMBERS + ENDED..][..RUNNING]);
    let moved = store.recover(&Worker::new("anywhere"), now).await.unwrap();
    stuck.retain(|job| moved.iter().all(|moved| moved.job != *job));
    let mut wanted = kept(&whole.jobs[..MEMBERS]);
    wanted.extend(kept(&whole.jobs[MEMBERS + ENDED..]));
    wanted.retain(|job| !stuck.contains(job));
    let waiting = waits(store).await;
    assert_eq!(waiting, wanted);
    for job in waiting {
        let done = match start(store, job).await {
            Some(lease) => store.report(lease, completed(), now).await.is_ok(),
            None => false,
        };
        stuck.extend((!done).then_some(job));
    }
    assert!(
        stuck.iter().all(is_beside),
        "{:?} are not beside {first}..={last}",
        stuck.iter().map(at).collect::<Vec<_>>()
    );
    let counts = store.counts().await.unwrap();
    assert_eq!((counts.queued, counts.processing), (0, 0));
    let later = now.after(Duration::from_secs(400 * 24 * 3600));
    let mut purged = 0;
    for _ in 0..10 {
        purged += store.tend(later).await.unwrap().purged;
    }
    // Members are kept while their batch is not at its end. Of the others the last ones come to lie
    // beside the damaged page.
    let own = kept(&whole.jobs[MEMBERS..]);
    assert!(
        (own.len() - 2 * BESIDE..=own.len()).contains(&purged),
        "{purged}"
    );
}

/// An inner page costs all that lies behind it, and no more.
#[tokio::test]
async fn a_damaged_inner_page_of_jobs_costs_what_is_behind_it() {
    let directory = llmq_testkit::scratch();
    let path = directory.path().join("whole.db");
    let (store, now) = (open(&path).unwrap(), Now::default());
    let new: Vec<NewJob> = (0..6_000).map(|_| job()).collect();
    let jobs: Vec<JobId> = new.iter().map(|job| job.id).collect();
    store.enqueue(new, now).await.unwrap();
    store.close();
    let whole = Whole {
        file: std::fs::read(&path).unwrap(),
        jobs,
        batch: Batch::new("t", serde_json::Value::Null, now.wall),
    };
    let inner = pages(&path, "internal");
    assert!(inner.len() > 2, "the root and some below it: {inner:?}");
    let copy = directory.path().join("damaged.db");
    whole.damaged(inner[1], &copy);
    let store = open(&copy).unwrap();
    let lost = lost(&store, &whole.jobs).await;
    assert!(lost.len() > 1_000 && lost.len() < 5_000, "{}", lost.len());
    let kept = whole.jobs.iter().filter(|job| !lost.contains(job));
    let wanted: Vec<JobId> = kept.copied().collect();
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let window = store.next(&job().lane(), after, 1_000, now).await.unwrap();
        found.extend(window.jobs.iter().map(|it| it.job));
        match window.jobs.last() {
            Some(last) => after = Some(last.place),
            None => break,
        }
    }
    assert_eq!(found, wanted);
    let findings = &store.opened().findings;
    assert!(
        findings.iter().any(|it| it.contains("more")),
        "{findings:?}"
    );
    store.close();
    let checked = check(&copy, false).unwrap();
    assert_eq!(checked.jobs, wanted.len() as u64);
    assert!(!checked.is_sound());
}
