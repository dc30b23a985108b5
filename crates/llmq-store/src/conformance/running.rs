use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Status, Usage};
use tokio::task::JoinSet;

use super::World;
use super::world::{LEASE, answer, completed, lane, new_job};
use crate::{Cancelled, GiveBack, JobError, NewJob, Report, ReportError, StartError, Worker};

fn given_back(why: GiveBack, error: Option<JobError>) -> Report {
    Report::GivenBack {
        why,
        error,
        after: Duration::ZERO,
    }
}

fn retry() -> Report {
    Report::Retry {
        error: JobError::new("busy", "try again"),
        after: Duration::ZERO,
        may_have_been_sent: false,
    }
}

pub async fn a_job_moves_as_the_diagram_says(world: World) {
    let job = world.job().await;
    let first = world.start(job).await;
    let waiting = world.report(first, retry()).await.unwrap();
    assert_eq!((waiting.status, waiting.attempts), (Status::Queued, 1));
    assert_eq!(waiting.error.unwrap().code, "busy");
    let second = world.start(job).await;
    assert!(second.token > first.token);
    let usage = Usage {
        input_tokens: 3,
        output_tokens: 4,
        ..Usage::default()
    };
    let report = Report::Completed {
        answer: answer(),
        usage: Some(usage),
        cost_nano_usd: Some(7),
    };
    let done = world.report(second, report).await.unwrap();
    assert_eq!((done.status, done.attempts), (Status::Completed, 2));
    assert_eq!(
        (done.usage, done.cost_nano_usd, done.error),
        (Some(usage), Some(7), None)
    );
    assert_eq!(done.upstream.as_deref(), Some("openai"));
    assert_eq!(done.finished_at, Some(world.now.wall));
    assert_eq!(
        world.show(job).await,
        world.store.job(job).await.unwrap().unwrap()
    );
    assert_eq!(world.store.answer(job).await.unwrap(), Some(answer()));

    let job = world.job().await;
    let lease = world.start(job).await;
    let report = Report::Failed {
        error: JobError::new("bad", "no such parameter"),
        answer: Some(answer()),
        cost_nano_usd: None,
    };
    let failed = world.report(lease, report).await.unwrap();
    assert_eq!(failed.status, Status::Failed);
    assert_eq!(world.store.answer(job).await.unwrap(), Some(answer()));
    let again = world.try_start(job).await;
    assert!(matches!(
        again,
        Err(StartError::NotQueued {
            status: Status::Failed,
            ..
        })
    ));
}

pub async fn two_workers_never_hold_one_lease(world: World) {
    let jobs: Vec<_> = (0..200).map(|_| new_job()).collect();
    let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
    world.store.enqueue(jobs, world.now).await.unwrap();
    let mut workers = JoinSet::new();
    for node in 0..8 {
        let (store, ids, now) = (Arc::clone(&world.store), ids.clone(), world.now);
        let worker = Worker::new(format!("node-{node}"));
        workers.spawn(async move {
            let mut held = Vec::new();
            for job in ids {
                let start = crate::Start {
                    job,
                    worker: worker.clone(),
                    lease: LEASE,
                    upstream: None,
                };
                if let Ok(started) = store.start(vec![start], now).await.unwrap().remove(0) {
                    held.push(started.lease);
                }
            }
            for lease in &held {
                store.report(*lease, completed(), now).await.unwrap();
            }
            held
        });
    }
    let held: Vec<_> = workers.join_all().await.into_iter().flatten().collect();
    let of: HashSet<_> = held.iter().map(|lease| lease.job).collect();
    assert_eq!((held.len(), of.len()), (200, 200));
    assert_eq!(world.store.counts().await.unwrap().completed, 200);
}

pub async fn late_and_repeated_reports_are_refused(mut world: World) {
    let job = world.job().await;
    let first = world.start(job).await;
    world.advance(LEASE);
    assert_eq!(world.tend().await[0].status, Status::Queued);
    let lost = |result| matches!(result, Err(ReportError::LeaseLost { job: j }) if j == job);
    assert!(
        lost(world.report(first, completed()).await),
        "nobody has it"
    );
    let second = world.start(job).await;
    assert!(
        lost(world.report(first, completed()).await),
        "somebody else has it"
    );
    assert_eq!(
        world
            .store
            .extend(vec![first, second], world.now)
            .await
            .unwrap(),
        [first]
    );
    assert_eq!(world.status(job).await, Status::Processing);
    world.report(second, completed()).await.unwrap();
    assert!(
        lost(world.report(second, completed()).await),
        "it has ended"
    );
    assert!(lost(world.report(second, retry()).await), "it has ended");
    assert_eq!(world.status(job).await, Status::Completed);
}

pub async fn signs_of_life_keep_a_lease_however_long(mut world: World) {
    let (kept, silent) = (world.job().await, world.job().await);
    let lease = world.start(kept).await;
    world.start(silent).await;
    for _ in 0..100 {
        world.advance(LEASE - Duration::from_millis(1));
        assert!(
            world
                .store
                .extend(vec![lease], world.now)
                .await
                .unwrap()
                .is_empty()
        );
        world.tend().await;
    }
    assert_eq!(world.status(silent).await, Status::Queued);
    assert!(world.show(silent).await.may_have_been_sent);
    assert_eq!(world.status(kept).await, Status::Processing);
    // The wall's jumps are no time in which somebody was silent.
    world.now.wall = world.now.wall + 1000 * LEASE;
    assert!(world.tend().await.is_empty());
    world.report(lease, completed()).await.unwrap();
}

pub async fn a_job_that_kills_its_workers_runs_out(mut world: World) {
    let job = world
        .accept(NewJob {
            max_attempts: 2,
            ..new_job()
        })
        .await;
    for status in [Status::Queued, Status::Failed] {
        world.start(job).await;
        world.advance(LEASE);
        let moved = world.tend().await;
        assert_eq!((moved[0].job, moved[0].status), (job, status));
    }
    let failed = world.show(job).await;
    assert_eq!(failed.error.unwrap().code, JobError::LEASE_EXPIRED);
    assert_eq!(failed.attempts, 2);
}

pub async fn a_node_takes_back_what_its_earlier_lives_held(mut world: World) {
    let (mine, theirs, new) = (world.job().await, world.job().await, world.job().await);
    let lost = world.start(mine).await;
    let here = std::mem::replace(&mut world.worker, Worker::new("there"));
    let kept = world.start(theirs).await;
    world.worker = Worker::new(here.node);
    let running = world.start(new).await;
    let moved = world.store.recover(&world.worker, world.now).await.unwrap();
    let moved: Vec<_> = moved
        .iter()
        .map(|moved| (moved.job, moved.status))
        .collect();
    assert_eq!(moved, [(mine, Status::Queued)]);
    let job = world.show(mine).await;
    assert!(job.may_have_been_sent);
    assert_eq!(job.attempts, 1);
    assert!(world.report(lost, completed()).await.is_err());
    world.report(kept, completed()).await.unwrap();
    world.report(running, completed()).await.unwrap();
}

pub async fn what_is_given_back_does_not_count(world: World) {
    let (first, second) = (world.job().await, world.job().await);
    let here = lane("m", "t");
    for throttles in 1..=3 {
        let lease = world.start(first).await;
        let busy = JobError::new("busy", throttles.to_string());
        let report = given_back(GiveBack::Throttled, Some(busy.clone()));
        let job = world.report(lease, report).await.unwrap();
        assert_eq!((job.attempts, job.throttles), (0, throttles));
        assert_eq!(world.show(first).await.error, Some(busy));
        assert_eq!(world.waiting(&here).await, [first, second]);
    }
    let down = JobError::new("down", "still");
    for (why, error) in [
        (GiveBack::FoundDown, Some(down.clone())),
        (GiveBack::NotSent, None),
    ] {
        let lease = world.start(first).await;
        let job = world.report(lease, given_back(why, error)).await.unwrap();
        assert_eq!((job.attempts, job.throttles), (0, 3));
        assert_eq!(job.error.as_ref(), Some(&down));
        assert_eq!(world.waiting(&here).await, [first, second]);
    }
    let lease = world.start(first).await;
    let job = world.report(lease, retry()).await.unwrap();
    assert_eq!((job.attempts, job.throttles), (1, 0));
}

pub async fn a_cancelled_job_takes_no_report(world: World) {
    let (waiting, running) = (world.job().await, world.job().await);
    let lease = world.start(running).await;
    for job in [waiting, running] {
        let cancelled = world.store.cancel(job, world.now).await.unwrap();
        assert!(matches!(cancelled, Cancelled::Now(job) if job.status == Status::Cancelled));
        let again = world.store.cancel(job, world.now).await.unwrap();
        assert!(matches!(again, Cancelled::Ended(_)));
    }
    assert_eq!(
        world.store.extend(vec![lease], world.now).await.unwrap(),
        [lease]
    );
    assert!(world.report(lease, completed()).await.is_err());
    assert_eq!(world.store.answer(running).await.unwrap(), None);
    let never = world
        .store
        .cancel(crate::JobId::new(), world.now)
        .await
        .unwrap();
    assert_eq!(never, Cancelled::NotFound);
    assert!(world.waiting(&lane("m", "t")).await.is_empty());
}
