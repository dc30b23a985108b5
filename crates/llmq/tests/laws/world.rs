//! Plays a load in paused time and notes what happens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use llmq::{
    HookEvent, Hooks, ProcessorError, QueueError, QueueManager, QueueMetrics, QueueRequest,
    QueueResponse, Status, Uuid,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::load::{Config, Job, Leave, MODEL, PROBE};

type Manager = QueueManager<usize, usize>;

pub(crate) type Answer = Result<QueueResponse<usize>, QueueError>;

/// Far longer than any load takes, in paused time.
const DAY: Duration = Duration::from_secs(86_400);

/// What happened.
pub(crate) struct Run {
    /// By the order of the load.
    pub(crate) jobs: Vec<Told>,
    /// Accepted requests.
    pub(crate) lives: BTreeMap<Uuid, Life>,
    pub(crate) statuses: BTreeMap<Uuid, Status>,
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) metrics: QueueMetrics,
    pub(crate) most_in_flight: u64,
    pub(crate) left_waiting: u64,
    pub(crate) left_running: u64,
    /// From the start to the end of as many calls as can run at once.
    pub(crate) probes_took: Duration,
}

/// What the submitter of a request heard; nothing, if it left before.
pub(crate) struct Told {
    pub(crate) index: usize,
    pub(crate) id: Uuid,
    pub(crate) submitted: Instant,
    pub(crate) answer: Option<Answer>,
}

/// An accepted request, as hooks saw it.
pub(crate) struct Life {
    pub(crate) queued: u32,
    pub(crate) ended: u32,
    pub(crate) accepted: Instant,
    pub(crate) over: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    pub(crate) index: usize,
    pub(crate) start: Instant,
    pub(crate) end: Instant,
}

impl Run {
    /// Whose place in the load this request has.
    pub(crate) fn index_of(&self, id: Uuid) -> usize {
        self.jobs.iter().position(|job| job.id == id).unwrap()
    }
}

pub(crate) fn play(config: &Config, jobs: &[Job]) -> Run {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(async { timeout(DAY, played(config, jobs.into())).await })
        .expect("a request never ends")
}

async fn played(config: &Config, jobs: Arc<[Job]>) -> Run {
    let notes = Notes::default();
    let manager: Manager = QueueManager::builder().hooks(notes.clone()).build();
    register(&manager, config, &jobs, &notes);
    let mut submitters = JoinSet::new();
    for index in 0..jobs.len() {
        submitters.spawn(submit(manager.clone(), index, jobs[index].clone()));
    }
    let mut told = submitters.join_all().await;
    told.sort_unstable_by_key(|told| told.index);
    while is_busy(&manager) {
        sleep(config.period).await;
    }
    let info = manager.get_queue_info(MODEL).unwrap();
    let status = |told: &Told| {
        let response = manager.get_status(MODEL, told.id).unwrap()?;
        Some((told.id, response.status))
    };
    let statuses = told.iter().filter_map(status).collect();
    let (attempts, lives, most_in_flight) = notes.read();
    Run {
        jobs: told,
        lives,
        statuses,
        attempts,
        metrics: info.metrics,
        most_in_flight,
        left_waiting: info.queue_size,
        left_running: info.processing,
        probes_took: probe(&manager, config, jobs.len()).await,
    }
}

fn is_busy(manager: &Manager) -> bool {
    let done = manager.metrics();
    done.completed + done.failed + done.timed_out + done.cancelled < done.accepted
}

/// Calls without a job of the load look whether all places are free.
async fn probe(manager: &Manager, config: &Config, first: usize) -> Duration {
    // Long enough for what was sent last, and for the margin of its way.
    sleep(config.period * 2).await;
    let start = Instant::now();
    let requests = (0..config.width()).map(|n| QueueRequest::new(MODEL, first + n));
    for answer in manager.submit_all(requests).await {
        answer.unwrap();
    }
    start.elapsed()
}

fn register(manager: &Manager, config: &Config, jobs: &Arc<[Job]>, notes: &Notes) {
    let (jobs, notes) = (Arc::clone(jobs), notes.clone());
    let processor = move |request: QueueRequest<usize>| {
        let index = request.params;
        let job = jobs.get(index);
        let takes = job.map_or(PROBE, |job| job.takes);
        let running = notes.starts(index);
        let fails = job.is_some_and(|job| running.attempt < job.failures);
        async move {
            let _running = running;
            sleep(takes).await;
            if fails {
                return Err(ProcessorError::transient("busy"));
            }
            Ok(index)
        }
    };
    manager.register_queue(config.model(), processor).unwrap();
}

async fn submit(manager: Manager, index: usize, job: Job) -> Told {
    sleep(job.at).await;
    let mut request = QueueRequest::new(MODEL, index).priority(job.priority);
    request.wait_for_completion = job.waits;
    request.timeout = job.timeout;
    request.dedup_key = job.key.map(|key| key.to_string());
    let (id, submitted) = (request.id, Instant::now());
    let submission = manager.submit_request(request);
    let answer = match job.leave {
        Leave::Stays => Some(submission.await),
        Leave::Drops(after) => timeout(after, submission).await.ok(),
        Leave::Cancels(after) => {
            let cancel = async {
                sleep(after).await;
                manager.cancel(MODEL, id).unwrap();
            };
            Some(tokio::join!(submission, cancel).0)
        }
    };
    Told {
        index,
        id,
        submitted,
        answer,
    }
}

/// What hooks and processors saw.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    attempts: Vec<Attempt>,
    lives: BTreeMap<Uuid, Life>,
    in_flight: u64,
    most_in_flight: u64,
}

/// An attempt that runs; dropped when it ends, however it does.
struct Running {
    notes: Notes,
    index: usize,
    attempt: u32,
    start: Instant,
}

impl Notes {
    fn starts(&self, index: usize) -> Running {
        let seen = self.0.lock().unwrap();
        let before = seen
            .attempts
            .iter()
            .filter(|attempt| attempt.index == index);
        Running {
            notes: self.clone(),
            index,
            attempt: u32::try_from(before.count()).unwrap(),
            start: Instant::now(),
        }
    }

    fn read(&self) -> (Vec<Attempt>, BTreeMap<Uuid, Life>, u64) {
        let mut seen = self.0.lock().unwrap();
        let lives = std::mem::take(&mut seen.lives);
        (seen.attempts.clone(), lives, seen.most_in_flight)
    }

    fn ends(&self, event: &HookEvent<'_>) {
        let mut seen = self.0.lock().unwrap();
        seen.in_flight -= 1;
        // The probes are not of interest: their lives were taken out.
        if let Some(life) = seen.lives.get_mut(&event.request_id) {
            life.ended += 1;
            life.over = Some(Instant::now());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let attempt = Attempt {
            index: self.index,
            start: self.start,
            end: Instant::now(),
        };
        self.notes.0.lock().unwrap().attempts.push(attempt);
    }
}

impl Hooks for Notes {
    fn queued(&self, event: &HookEvent<'_>) {
        let mut seen = self.0.lock().unwrap();
        seen.in_flight += 1;
        seen.most_in_flight = seen.most_in_flight.max(seen.in_flight);
        let life = seen.lives.entry(event.request_id).or_insert(Life {
            queued: 0,
            ended: 0,
            accepted: Instant::now(),
            over: None,
        });
        life.queued += 1;
    }

    fn completed(&self, event: &HookEvent<'_>) {
        self.ends(event);
    }

    fn failed(&self, event: &HookEvent<'_>, _error: &QueueError) {
        self.ends(event);
    }
}
