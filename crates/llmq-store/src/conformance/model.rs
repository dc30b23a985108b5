//! A store against a model of it: some maps and no more. What is done is drawn from a seed.

use std::collections::BTreeMap;
use std::time::Duration;

use llmq_core::{Priority, Status};

use super::World;
use super::world::{LEASE, completed, new_job};
use crate::{
    Cancelled, GiveBack, JobError, JobId, Lane, Lease, LeaseToken, NewJob, QueueState, Report,
    Worker,
};

/// How much is done in one case.
const STEPS: usize = 60;

const QUEUES: [&str; 2] = ["m", "n"];
const TENANTS: [&str; 2] = ["t", "u"];
const PRIORITIES: [Priority; 2] = [Priority::LOW, Priority::HIGH];
const NODES: [&str; 2] = ["here", "there"];

/// Plays the case of `seed` on a store and on the model, and compares what they say.
///
/// # Panics
///
/// When they differ; the message holds the seed.
pub async fn agrees(world: World, seed: u64) {
    let mut case = Case {
        chance: Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
        seed,
        model: Model::default(),
        workers: NODES.map(Worker::new),
        leases: Vec::new(),
        world,
    };
    for step in 0..STEPS {
        case.step().await;
        if step % 8 == 7 {
            case.compare().await;
        }
    }
    case.compare().await;
}

/// A xorshift generator: the same seed draws the same case everywhere.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or_default() % n
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

struct Case {
    chance: Chance,
    seed: u64,
    model: Model,
    workers: [Worker; 2],
    /// All leases that were ever out, so that late reports are drawn too.
    leases: Vec<Lease>,
    world: World,
}

/// Times are seconds since the case began.
#[derive(Default)]
struct Model {
    now: u64,
    jobs: BTreeMap<JobId, ModelJob>,
    queues: BTreeMap<&'static str, ModelQueue>,
    places: u64,
}

#[derive(Default)]
struct ModelQueue {
    stands: bool,
    stood: u64,
}

struct ModelJob {
    queue: &'static str,
    lane: Lane,
    status: Status,
    place: u64,
    attempts: u32,
    max_attempts: u32,
    throttles: u32,
    due: u64,
    /// In seconds of its queue's own time.
    deadline: Option<u64>,
    /// Token, node and life of the holder, and its last sign of life.
    lease: Option<(LeaseToken, Worker, u64)>,
}

impl Model {
    fn queue_time(&self, queue: &str) -> u64 {
        self.now - self.queues.get(queue).map_or(0, |queue| queue.stood)
    }

    fn is_late(&self, job: &ModelJob) -> bool {
        job.deadline
            .is_some_and(|end| self.queue_time(job.queue) >= end)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += seconds;
        for queue in self.queues.values_mut().filter(|queue| queue.stands) {
            queue.stood += seconds;
        }
    }

    /// Whether the lease is the job's, and the job if it is.
    fn held(&mut self, lease: Lease) -> Option<&mut ModelJob> {
        let job = self.jobs.get_mut(&lease.job)?;
        let is_held = job
            .lease
            .as_ref()
            .is_some_and(|(token, ..)| *token == lease.token);
        is_held.then_some(job)
    }

    fn lose(job: &mut ModelJob) {
        job.lease = None;
        job.throttles = 0;
        job.due = 0;
        job.status = if job.attempts >= job.max_attempts {
            Status::Failed
        } else {
            Status::Queued
        };
    }

    fn waiting(&self, lane: &Lane) -> Vec<JobId> {
        let due = self.jobs.iter().filter(|(_, job)| {
            job.lane == *lane && job.status == Status::Queued && job.due <= self.now
        });
        let mut due: Vec<_> = due.map(|(id, job)| (job.place, *id)).collect();
        due.sort_unstable();
        due.into_iter().map(|(_, id)| id).collect()
    }
}

impl Case {
    async fn step(&mut self) {
        match self.chance.below(20) {
            0..=4 => self.enqueue().await,
            5..=9 => self.start().await,
            10..=13 => self.report().await,
            14 => self.cancel().await,
            15 => self.extend().await,
            16 => self.set_queue().await,
            17 => self.recover().await,
            18 => self.tend().await,
            _ => {
                let seconds = self.chance.of(&[1, 7, 29, 30, 31]);
                self.model.pass(seconds);
                self.world.advance(Duration::from_secs(seconds));
            }
        }
    }

    fn any_job(&mut self) -> Option<JobId> {
        let count = self.model.jobs.len();
        (count > 0).then(|| {
            let nth = self.chance.below(count);
            *self.model.jobs.keys().nth(nth).unwrap()
        })
    }

    async fn enqueue(&mut self) {
        let queue = self.chance.of(&QUEUES);
        let job = NewJob {
            queue: queue.to_owned(),
            tenant: self.chance.of(&TENANTS).to_owned(),
            priority: self.chance.of(&PRIORITIES),
            ttl: self
                .chance
                .of(&[None, Some(20), Some(90)])
                .map(Duration::from_secs),
            max_attempts: self.chance.of(&[1, 2, 5]),
            ..new_job()
        };
        let ttl = job.ttl.map(|ttl| ttl.as_secs());
        self.model.places += 1;
        let modelled = ModelJob {
            queue,
            lane: job.lane(),
            status: Status::Queued,
            place: self.model.places,
            attempts: 0,
            max_attempts: job.max_attempts,
            throttles: 0,
            due: 0,
            deadline: ttl.map(|ttl| self.model.queue_time(queue) + ttl),
            lease: None,
        };
        self.model.jobs.insert(job.id, modelled);
        self.world.accept(job).await;
    }

    async fn start(&mut self) {
        let Some(id) = self.any_job() else {
            return;
        };
        let worker = self.workers[self.chance.below(2)].clone();
        self.world.worker = worker.clone();
        let started = self.world.try_start(id).await;
        let now = self.model.now;
        let is_late = self.model.is_late(&self.model.jobs[&id]);
        let job = self.model.jobs.get_mut(&id).unwrap();
        let may = job.status == Status::Queued && !is_late && job.due <= now;
        assert_eq!(
            started.is_ok(),
            may,
            "seed {}: start of {id}: {started:?}",
            self.seed
        );
        if let Ok(started) = started {
            job.status = Status::Processing;
            job.attempts += 1;
            job.lease = Some((started.lease.token, worker, now));
            self.leases.push(started.lease);
        } else if job.status == Status::Queued && is_late {
            job.status = Status::Expired;
        }
    }

    async fn report(&mut self) {
        if self.leases.is_empty() {
            return;
        }
        let lease = self.leases[self.chance.below(self.leases.len())];
        let wait = self.chance.of(&[0, 5]);
        let after = Duration::from_secs(wait);
        let (which, error) = (self.chance.below(6), JobError::new("x", "y"));
        let report = match which {
            0 => completed(),
            1 => Report::Failed {
                error,
                answer: None,
                cost_nano_usd: None,
            },
            2 => Report::Retry {
                error,
                after,
                may_have_been_sent: false,
            },
            3 => Report::GivenBack {
                why: GiveBack::Throttled,
                error: Some(error),
                after,
            },
            4 => Report::GivenBack {
                why: GiveBack::FoundDown,
                error: Some(error),
                after,
            },
            _ => Report::GivenBack {
                why: GiveBack::NotSent,
                error: None,
                after,
            },
        };
        let told = self.world.report(lease, report).await;
        let now = self.model.now;
        let job = self.model.held(lease);
        assert_eq!(told.is_ok(), job.is_some(), "seed {}: {told:?}", self.seed);
        let Some(job) = job else {
            return;
        };
        job.lease = None;
        job.due = if wait == 0 { 0 } else { now + wait };
        job.status = match which {
            0 => Status::Completed,
            1 => Status::Failed,
            _ => Status::Queued,
        };
        match which {
            2 => job.throttles = 0,
            3 => (job.attempts, job.throttles) = (job.attempts - 1, job.throttles + 1),
            4 | 5 => job.attempts -= 1,
            _ => {}
        }
    }

    async fn cancel(&mut self) {
        let Some(id) = self.any_job() else {
            return;
        };
        let told = self.world.store.cancel(id, self.world.now).await.unwrap();
        let job = self.model.jobs.get_mut(&id).unwrap();
        let is_open = !job.status.is_final();
        assert_eq!(
            matches!(told, Cancelled::Now(_)),
            is_open,
            "seed {}",
            self.seed
        );
        if is_open {
            job.status = Status::Cancelled;
            job.lease = None;
        }
    }

    async fn extend(&mut self) {
        let leases = self.leases.clone();
        let lost = self
            .world
            .store
            .extend(leases.clone(), self.world.now)
            .await
            .unwrap();
        let now = self.model.now;
        let mut wanted = Vec::new();
        for lease in leases {
            match self.model.held(lease).and_then(|job| job.lease.as_mut()) {
                Some((.., alive_at)) => *alive_at = now,
                None => wanted.push(lease),
            }
        }
        assert_eq!(lost, wanted, "seed {}", self.seed);
    }

    async fn set_queue(&mut self) {
        let queue = self.chance.of(&QUEUES);
        let state = QueueState {
            paused: self.chance.below(2) == 0,
            ..QueueState::default()
        };
        self.world
            .store
            .set_queue(queue, state, self.world.now)
            .await
            .unwrap();
        self.model.queues.entry(queue).or_default().stands = state.paused;
    }

    async fn recover(&mut self) {
        let node = self.chance.below(2);
        self.workers[node] = Worker::new(NODES[node]);
        let worker = self.workers[node].clone();
        let moved = self
            .world
            .store
            .recover(&worker, self.world.now)
            .await
            .unwrap();
        let mut lost = 0;
        for job in self.model.jobs.values_mut() {
            let is_lost = |(_, holder, _): &(LeaseToken, Worker, u64)| {
                holder.node == worker.node && holder.incarnation != worker.incarnation
            };
            if job.lease.as_ref().is_some_and(is_lost) {
                Model::lose(job);
                lost += 1;
            }
        }
        assert_eq!(moved.len(), lost, "seed {}", self.seed);
    }

    async fn tend(&mut self) {
        self.world.tend().await;
        let now = self.model.now;
        let lease = LEASE.as_secs();
        for job in self.model.jobs.values_mut() {
            if job
                .lease
                .as_ref()
                .is_some_and(|(.., alive_at)| now - alive_at >= lease)
            {
                Model::lose(job);
            }
        }
        let jobs = self.model.jobs.iter();
        let late = jobs.filter(|(_, job)| job.status == Status::Queued && self.model.is_late(job));
        for id in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            if let Some(job) = self.model.jobs.get_mut(&id) {
                job.status = Status::Expired;
            }
        }
    }

    /// All that can be seen of all jobs.
    async fn compare(&mut self) {
        let seed = self.seed;
        let mut counts = BTreeMap::<Status, u64>::new();
        for (id, job) in &self.model.jobs {
            let found = self.world.show(*id).await;
            let found = (found.status, found.attempts, found.throttles);
            let wanted = (job.status, job.attempts, job.throttles);
            assert_eq!(found, wanted, "seed {seed}: {id}");
            *counts.entry(job.status).or_default() += 1;
        }
        let counted = self.world.store.counts().await.unwrap();
        for (status, found) in [
            (Status::Queued, counted.queued),
            (Status::Processing, counted.processing),
            (Status::Completed, counted.completed),
            (Status::Failed, counted.failed),
            (Status::Expired, counted.expired),
            (Status::Cancelled, counted.cancelled),
        ] {
            let wanted = counts.get(&status).copied().unwrap_or_default();
            assert_eq!(found, wanted, "seed {seed}: {status}");
        }
        for queue in QUEUES {
            for tenant in TENANTS {
                for priority in PRIORITIES {
                    let lane = Lane {
                        queue: queue.to_owned(),
                        priority,
                        tenant: tenant.to_owned(),
                        key: None,
                    };
                    let found = self.world.waiting(&lane).await;
                    assert_eq!(found, self.model.waiting(&lane), "seed {seed}: {lane:?}");
                }
            }
        }
    }
}
