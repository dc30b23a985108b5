//! One command finishes a file: rows are read, sent when the limits allow, and written.
//!
//! Four hands work side by side. The feeder (a thread) reads rows ahead and makes calls of
//! them; a loop (`sending`) hands them to tasks, few at a time, so that their order stays open;
//! each row's task waits in the dispatcher's line, sends, and repeats as the retry table says;
//! the writer (a thread) appends results and syncs them. A third thread keeps the side file, and a
//! fourth counts the rows, so that progress has a total.

mod call;
mod error;
mod options;

mod control;
mod fault;
mod progress;
mod summary;

mod opened;

mod feed;
mod pages;
mod row;
mod sending;
mod writer;

mod setup;
mod shelf;
mod verdict;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use llmq_core::Clock;
use llmq_dispatch::{LimitId, UpstreamId};
use llmq_provider::Dialect;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

pub use call::{CallMaker, Prepared};
pub use control::Control;
pub use error::RunError;
pub use opened::Opened;
pub use options::{Price, RouteOptions, RunOptions};
pub use progress::{Paused, Progress};
pub use summary::Summary;
pub use verdict::Ended;

use crate::books::{Keeper, Save};
use crate::bulk::{
    InputError, JournalError, Output, OutputFormat, OutputLock, Resumed, Side, SideError,
    count_rows,
};
use crate::{Hub, SystemClock, Tasks};
use control::View;
use fault::Faults;
use feed::{AHEAD_BYTES, AHEAD_ROWS, Feeder};
use pages::Pages;
use progress::Counters;
use row::{Lane, Way};
use sending::{rows_alive_max, send_all};
use setup::Line;
use shelf::SideShelf;
use summary::summarize;
use watch::Watch;
use writer::{Finished, UNWRITTEN_MAX};

/// How long background tasks may take to end; each only has to notice that it should.
const TASKS_GRACE: Duration = Duration::from_secs(5);
/// After its end a run waits so long to hear how many rows there are.
const COUNTED_WITHIN: Duration = Duration::from_secs(5);

/// How a run ended, with its figures.
#[derive(Debug, Clone, PartialEq)]
pub struct RunReport {
    /// The figures.
    pub summary: Summary,
    /// How it ended.
    pub ended: Ended,
}

/// Finishes a file of calls inside every limit, or as much of it as can be done now.
///
/// The output is the journal: the same call of this function goes on where an earlier one was
/// stopped, killed or cut off, and sends nothing twice that has a result.
///
/// # Errors
///
/// [`RunError`] when it cannot begin, or when files fail on the way. What had a result by then
/// is written, unless the disk itself refuses it. After [`RunError::Left`] a thread may still wait
/// for the input.
///
/// # Cancel safety
///
/// Dropping the future gives up calls in flight, like [`Control::abort`]; what was written stays.
pub async fn run(options: RunOptions, control: Control) -> Result<RunReport, RunError> {
    run_by(options, control, SystemClock::new()).await
}

/// The same by a clock of the caller's: for tests in which the wall is set.
///
/// # Errors
///
/// As [`run`].
pub async fn run_by(
    options: RunOptions,
    control: Control,
    clock: SystemClock,
) -> Result<RunReport, RunError> {
    let options = Arc::new(options);
    let clock = Arc::new(clock);
    let opened = {
        let (options, now) = (Arc::clone(&options), clock.now());
        let opening = blocking(move || Opened::open(&options, now));
        tokio::select! {
            biased;
            opened = opening => opened??,
            // A pipe may bring nothing for ever, and a large file is read for long.
            () = control.stop_token().cancelled() => return Err(RunError::Left),
        }
    };
    let tasks = Tasks::new();
    let outcome = finish(&options, opened, &clock, &tasks, &control).await;
    tasks.cancel();
    tasks.ended(TASKS_GRACE).await;
    outcome
}

/// Everything after the files are open.
async fn finish(
    options: &Arc<RunOptions>,
    opened: Opened,
    clock: &Arc<SystemClock>,
    tasks: &Tasks,
    control: &Control,
) -> Result<RunReport, RunError> {
    let Opened {
        locks,
        output,
        resumed,
        side,
        earlier,
        reader,
    } = opened;
    // Held by whoever writes, too: it may still do so when nobody waits for it any more.
    let locks: Locks = Arc::new(locks);
    let counters = control.counters();
    let faults = Arc::new(Faults::default());
    note_resumed(&counters, &resumed);
    let has_answered = resumed.done.len() > resumed.failed.len();
    let counting = count_ahead(options, &counters);

    let line = line(options, earlier.as_ref(), clock)?;
    let hub = crate::run(line.dispatcher, (**clock).clone(), tasks);
    let watch = Arc::new(Watch::new(
        Arc::clone(&hub),
        &line.upstreams,
        Arc::clone(&counters),
        Arc::clone(&faults),
        options.no_wait,
        line.queue,
    ));
    let saving = watch.listen(line.news);
    let shelf = SideShelf {
        side,
        output: options.paths.output.clone(),
        learners: line.learners,
    };
    let keeper = Keeper::new(Arc::clone(&hub), shelf);
    let keeper = begin_saving(keeper, saving, control, &locks).await?;
    control.begins(View {
        hub: Arc::clone(&hub),
        limits: line.limits.clone(),
        upstreams: line.upstreams.iter().map(|(id, _)| *id).collect(),
        price: options.price,
    });

    let (results, finished) = mpsc::channel::<Finished>(UNWRITTEN_MAX);
    let writer = begin_writing(options, output, finished, &counters, clock, control, &locks)?;
    let (rows_in, rows) = mpsc::channel::<Prepared>(AHEAD_ROWS);
    let room = Arc::new(Semaphore::new(AHEAD_BYTES));
    let feeder = Feeder {
        maker: options.calls.clone(),
        model: model_of(options),
        dialect: dialect_of(options),
        done: resumed.done,
        rows: rows_in,
        // Not its own: a pipe that stays quiet must not hold up the writer's end.
        results: results.downgrade(),
        counters: Arc::clone(&counters),
        room: Arc::clone(&room),
    };
    let given_up = GivenUp {
        control: Some(control.clone()),
        room: Arc::clone(&room),
        watch: Arc::clone(&watch),
    };
    let feeder = tokio::task::spawn_blocking(move || feeder.run(reader));
    let routes = line.upstreams.iter().zip(&options.routes);
    let lane = Arc::new(Lane {
        hub: Arc::clone(&hub),
        clock: Arc::clone(clock),
        queue: line.queue,
        tenant: line.tenant,
        ways: routes
            .map(|((id, _), route)| way(*id, route, has_answered))
            .collect(),
        counters: Arc::clone(&counters),
        faults: Arc::clone(&faults),
        results,
        interrupt: control.interrupt_token().clone(),
        stop: control.stop_token().clone(),
        abort: control.abort_token().clone(),
    });

    let started = clock.now();
    let most = rows_alive_max(options);
    let stopped = send_all(lane, rows, most, &room, &watch, control).await;
    let fed = fed(feeder, options, &counters, control).await;
    // Every row has let go of its sender of results, so this comes to its end.
    let written = joined(writer).await;
    watch.stop_saving();
    let saved = joined(keeper).await;
    given_up.came_to_its_end();
    let fed = fed?;
    written??;
    saved??;
    if let Some(counting) = counting {
        // It only reads, and mostly is soon done; after a stop it tells what is left to do.
        tokio::select! {
            biased;
            _ = counting => {}
            () = tokio::time::sleep(COUNTED_WITHIN) => {}
            () = control.abort_token().cancelled() => {}
        }
    }
    let limits = kept(&hub, line.limits, &line.upstreams);
    let summary = summarize(&hub, &limits, &counters, options, started);
    let ended = match stopped {
        Some(ended) => ended,
        None if control.stop_token().is_cancelled() => Ended::Interrupted,
        None => match faults.left() {
            Some(left) => left.into(),
            None if summary.failed > 0 => Ended::SomeFailed,
            None => Ended::Done,
        },
    };
    Ok(RunReport {
        summary: Summary {
            rows: fed.max(summary.rows),
            stopped: ended.reason().map(str::to_owned),
            ..summary
        },
        ended,
    })
}

/// The right to write the output.
type Locks = Arc<Vec<OutputLock>>;

/// Dropped before the run has come to its end, it lets everything go that works for it.
struct GivenUp {
    control: Option<Control>,
    room: Arc<Semaphore>,
    watch: Arc<Watch>,
}

impl GivenUp {
    fn came_to_its_end(mut self) {
        self.control = None;
    }
}

impl Drop for GivenUp {
    fn drop(&mut self) {
        if let Some(control) = self.control.take() {
            control.abort();
            self.room.close();
            self.watch.stop_saving();
        }
    }
}

/// The limits that were kept: those that were stated, and what was learned on the way.
fn kept(hub: &Hub, mut limits: Vec<LimitId>, upstreams: &[(UpstreamId, String)]) -> Vec<LimitId> {
    hub.with(|dispatcher| {
        for (upstream, _) in upstreams {
            limits.extend(dispatcher.learned_limits(*upstream));
        }
    });
    limits.sort_unstable();
    limits.dedup();
    limits
}

/// How many rows were read. After a stop nobody waits for a pipe's next row, which may never
/// come.
async fn fed(
    feeder: JoinHandle<Result<u64, InputError>>,
    options: &RunOptions,
    counters: &Counters,
    control: &Control,
) -> Result<u64, RunError> {
    let waits = options.source.can_be_read_again();
    tokio::select! {
        biased;
        fed = joined(feeder) => Ok(fed??),
        () = control.stop_token().cancelled(), if !waits => Ok(Counters::get(&counters.read)),
    }
}

/// A dispatcher that knows what earlier processes have spent.
fn line(
    options: &RunOptions,
    earlier: Option<&Side>,
    clock: &SystemClock,
) -> Result<Line, RunError> {
    let earlier = earlier.map(shelf::read).unwrap_or_default();
    // What this lets be used is on disk before the first call: the keeper begins with writing it.
    Ok(setup::line(options, &earlier, clock.now())?)
}

async fn begin_saving(
    mut keeper: Keeper<SideShelf>,
    saving: std::sync::mpsc::Receiver<Save>,
    control: &Control,
    locks: &Locks,
) -> Result<JoinHandle<Result<(), SideError>>, RunError> {
    let keeper = blocking(move || keeper.write(false).map(|()| keeper)).await??;
    let stop = control.stop_token().clone();
    let locks = Arc::clone(locks);
    Ok(tokio::task::spawn_blocking(move || {
        let saved = keeper.run(&saving, Err);
        drop(locks);
        if saved.is_err() {
            // What cannot be recorded must not be used.
            stop.cancel();
        }
        saved
    }))
}

fn begin_writing(
    options: &RunOptions,
    output: Output,
    finished: mpsc::Receiver<Finished>,
    counters: &Arc<Counters>,
    clock: &Arc<SystemClock>,
    control: &Control,
    locks: &Locks,
) -> Result<JoinHandle<Result<(), JournalError>>, RunError> {
    let format = OutputFormat::of(&options.paths.output)?;
    let (counters, clock) = (Arc::clone(counters), Arc::clone(clock));
    let stop = control.stop_token().clone();
    let locks = Arc::clone(locks);
    Ok(tokio::task::spawn_blocking(move || {
        let written = writer::write(output, format, finished, &counters, &clock, &|| {
            stop.cancel();
        });
        drop(locks);
        written
    }))
}

fn way(upstream: UpstreamId, route: &RouteOptions, has_answered: bool) -> Way {
    Way {
        upstream,
        name: route.name.clone(),
        provider: route.provider.clone(),
        model: route.model.clone(),
        headers: route.headers.clone(),
        pages: Pages::new(has_answered),
    }
}

fn note_resumed(counters: &Counters, resumed: &Resumed) {
    Counters::add(&counters.resumed, resumed.done.len());
    Counters::add(&counters.resumed_failed, resumed.failed.len());
}

/// Counts the rows beside the run, so that progress has a total; a pipe cannot be counted.
fn count_ahead(options: &Arc<RunOptions>, counters: &Arc<Counters>) -> Option<JoinHandle<()>> {
    if !options.source.can_be_read_again() {
        return None;
    }
    let (options, counters) = (Arc::clone(options), Arc::clone(counters));
    Some(tokio::task::spawn_blocking(move || {
        if let Ok(rows) = count_rows(&options.source, options.kind, options.read.limit_rows) {
            counters
                .rows
                .store(rows, std::sync::atomic::Ordering::Relaxed);
        }
    }))
}

fn model_of(options: &RunOptions) -> String {
    let route = || options.routes.first().and_then(|route| route.model.clone());
    options
        .calls
        .model
        .clone()
        .or_else(route)
        .unwrap_or_default()
}

fn dialect_of(options: &RunOptions) -> Dialect {
    options
        .routes
        .first()
        .map_or(Dialect::OpenAi, |route| route.provider.dialect())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RunError> {
    joined(tokio::task::spawn_blocking(work)).await
}

async fn joined<T>(handle: JoinHandle<T>) -> Result<T, RunError> {
    handle
        .await
        .map_err(|error| RunError::Task(error.to_string()))
}
