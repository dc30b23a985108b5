//! One command finishes a file: rows are read, sent when the limits allow, and written.
//!
//! Four hands work side by side. The feeder (a thread) reads rows ahead and makes calls of
//! them; this module's loop hands them to tasks, few at a time, so that their order stays open;
//! each row's task waits in the dispatcher's line, sends, and repeats as the retry table says;
//! the writer (a thread) appends results and syncs them. A fourth thread keeps the side file.

mod error;
mod options;

mod control;
mod progress;
mod summary;

mod feed;
mod row;
mod writer;

mod saver;
mod setup;
mod spent;
mod verdict;
mod watch;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use llmq_core::{Clock, LimitKind, Now, Timestamp};
use llmq_dispatch::LimitId;
use llmq_provider::Dialect;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

pub use control::Control;
pub use error::RunError;
pub use options::{CallMaker, Price, RouteOptions, RunOptions};
pub use progress::{Paused, Progress};
pub use summary::Summary;
pub use verdict::Ended;

use crate::bulk::{
    Holder, InputPrint, JournalError, Output, OutputFormat, OutputLock, PromptSettings, Resumed,
    RowReader, Side, SideError, compare, count_rows, forget_failed, refuse_bad_rows, set_aside,
};
use crate::{Hub, SystemClock, Tasks};
use control::View;
use feed::{AHEAD_BYTES, AHEAD_ROWS, Feeder};
use progress::Counters;
use row::{Lane, Places, Prepared};
use saver::{Save, Saver};
use setup::Line;
use spent::Spent;
use summary::least_time;
use watch::Watch;
use writer::{Finished, UNWRITTEN_MAX};

/// Rows that stand in line at once. More would gain nothing: a row that is granted makes room for
/// the next one in microseconds.
const IN_LINE: usize = 64;
/// The most calls in flight on one route; more would exhaust the machine's open files first.
const IN_FLIGHT_MAX: u64 = 65_536;
/// How long background tasks may take to end; each only has to notice that it should.
const TASKS_GRACE: Duration = Duration::from_secs(5);
/// Kept free on the disk for the results of calls in flight.
const RESERVE_BYTES: u64 = 4 << 20;

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
/// is written, unless the disk itself refuses it.
///
/// # Cancel safety
///
/// Dropping the future gives up calls in flight, like [`Control::abort`]; what was written stays.
pub async fn run(options: RunOptions, control: Control) -> Result<RunReport, RunError> {
    let options = Arc::new(options);
    let clock = Arc::new(SystemClock::new());
    let opened = {
        let (options, clock) = (Arc::clone(&options), Arc::clone(&clock));
        blocking(move || Opened::open(&options, &clock)).await??
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
        _locks,
        output,
        resumed,
        side,
        earlier,
        reader,
    } = opened;
    let counters = control.counters();
    note_resumed(&counters, &resumed);
    count_ahead(options, &counters);

    let line = line(options, earlier.as_ref(), clock)?;
    let hub = crate::run(line.dispatcher, (**clock).clone(), tasks);
    let watch = Arc::new(Watch::new(
        Arc::clone(&hub),
        &line.kept.upstreams,
        Arc::clone(&counters),
        options.no_wait,
        line.queue,
    ));
    let saving = watch.listen(line.news);
    let saver = Saver {
        hub: Arc::clone(&hub),
        side,
        output: options.paths.output.clone(),
        kept: line.kept.clone(),
    };
    let saver = begin_saving(saver, saving, control).await?;
    control.begins(View {
        hub: Arc::clone(&hub),
        limits: line.kept.limits.clone(),
        upstreams: line.kept.upstreams.iter().map(|(id, _)| *id).collect(),
        price: options.price,
    });

    let (results, finished) = mpsc::channel::<Finished>(UNWRITTEN_MAX);
    let writer = begin_writing(options, output, finished, &counters, clock, control)?;
    let (rows_in, rows) = mpsc::channel::<Prepared>(AHEAD_ROWS);
    let room = Arc::new(Semaphore::new(AHEAD_BYTES));
    let feeder = Feeder {
        maker: options.calls.clone(),
        model: model_of(options),
        dialect: dialect_of(options),
        done: resumed.done,
        rows: rows_in,
        results: results.clone(),
        counters: Arc::clone(&counters),
        room: Arc::clone(&room),
    };
    let feeder = tokio::task::spawn_blocking(move || feeder.run(reader));
    let routes = line.kept.upstreams.iter().zip(&options.routes);
    let lane = Arc::new(Lane {
        hub: Arc::clone(&hub),
        clock: Arc::clone(clock),
        queue: line.queue,
        tenant: line.tenant,
        upstreams: routes
            .map(|((id, _), route)| (*id, route.provider.clone(), route.model.clone()))
            .collect(),
        counters: Arc::clone(&counters),
        results,
        stop: control.stop_token().clone(),
    });

    let started = clock.now();
    let most = rows_alive_max(options);
    let stopped = send_all(lane, rows, most, &room, &watch, control).await;
    // Every sender of results is gone by now, so these come to their ends.
    let fed = joined(feeder).await;
    let written = joined(writer).await;
    let ended_at = clock.now();
    watch.stop_saving();
    let saved = joined(saver).await;
    let fed = fed??;
    written??;
    saved??;
    let summary = summarize(
        &hub,
        &line.kept.limits,
        &counters,
        options,
        started,
        ended_at,
    );
    let ended = match stopped {
        Some(ended) => ended,
        None if control.stop_token().is_cancelled() => Ended::Interrupted,
        None if summary.failed > 0 => Ended::SomeFailed,
        None => Ended::Done,
    };
    Ok(RunReport {
        summary: Summary {
            rows: fed,
            ..summary
        },
        ended,
    })
}

/// The files of a run, held and read.
struct Opened {
    /// Dropped last, so that nobody else writes before everything here is closed.
    _locks: Vec<OutputLock>,
    output: Output,
    resumed: Resumed,
    side: Side,
    earlier: Option<Side>,
    reader: RowReader,
}

impl Opened {
    fn open(options: &RunOptions, clock: &SystemClock) -> Result<Self, RunError> {
        let now = clock.now();
        let paths = &options.paths;
        // The input is looked at first: a mistyped name must not leave an empty output behind.
        let reader = RowReader::open(&options.source, options.kind, options.read.clone())?;
        if options.strict {
            refuse_bad_rows(&options.source, options.kind, options.read.clone())?;
        }
        paths.check()?;
        let holder = Holder::this_process(now.wall);
        let mut locks = vec![OutputLock::acquire(&paths.output, &holder)?];
        if let Some(errors) = &paths.errors {
            locks.push(OutputLock::acquire(errors, &holder)?);
        }
        let earlier = Side::load(&paths.output)?;
        let before = earlier.as_ref().and_then(|side| side.input);
        let print = InputPrint::of(&options.source, before.as_ref())?;
        let settings = settings(options);
        if options.restart {
            set_aside(&paths.output)?;
            if let Some(errors) = &paths.errors {
                set_aside(errors)?;
            }
        } else if let Some(earlier) = &earlier {
            let changes = compare(earlier, print.as_ref(), &settings);
            if !changes.is_empty() && !options.resume_anyway {
                return Err(RunError::Changed {
                    output: paths.output.display().to_string(),
                    changes: changes.to_string(),
                });
            }
        }
        if options.retry_failed {
            forget_failed(paths)?;
        }
        let (mut output, resumed) = Output::open(paths)?;
        output.set_reserve(&paths.output, RESERVE_BYTES)?;
        let side = match &earlier {
            Some(earlier) => earlier.clone().restarted(print, settings),
            None => Side::new(print, settings),
        };
        Ok(Self {
            _locks: locks,
            output,
            resumed,
            side,
            earlier,
            reader,
        })
    }
}

/// What prompts and answers depend on, beside the input.
fn settings(options: &RunOptions) -> PromptSettings {
    let mut settings = PromptSettings::default();
    let calls = &options.calls;
    if let Some(template) = &options.read.template {
        settings.set("template", &template.to_string());
    }
    settings.set("operation", calls.operation.path());
    settings.set("model", calls.model.as_deref().unwrap_or(""));
    settings.set("system", calls.system.as_deref().unwrap_or(""));
    settings.set(
        "params",
        &serde_json::Value::from(calls.params.clone()).to_string(),
    );
    settings.set("id", options.read.id.as_deref().unwrap_or(""));
    settings.set(
        "format",
        &format!("{:?}", options.kind.format).to_lowercase(),
    );
    settings
}

/// A dispatcher that knows what earlier processes have spent.
fn line(
    options: &RunOptions,
    earlier: Option<&Side>,
    clock: &SystemClock,
) -> Result<Line, RunError> {
    let now = clock.now();
    let spent = earlier.map(|side| serde_json::from_value(side.windows.clone()));
    let spent: Spent = spent.and_then(Result::ok).unwrap_or_default();
    let mut line = setup::line(options, earlier, &spent, now)?;
    if let Some(alive_at) = earlier.and_then(|side| side.alive_at) {
        spent.restore(&mut line.dispatcher, &line.kept.limits, alive_at, now);
    }
    // What this lets be used is on disk before the first call: the saver begins with writing it.
    Spent::allow(&mut line.dispatcher, &line.kept.limits, now);
    Ok(line)
}

async fn begin_saving(
    mut saver: Saver,
    saving: std::sync::mpsc::Receiver<Save>,
    control: &Control,
) -> Result<JoinHandle<Result<(), SideError>>, RunError> {
    let saver = blocking(move || saver.write(false).map(|()| saver)).await??;
    let stop = control.stop_token().clone();
    Ok(tokio::task::spawn_blocking(move || {
        let saved = saver.run(&saving);
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
) -> Result<JoinHandle<Result<(), JournalError>>, RunError> {
    let format = OutputFormat::of(&options.paths.output)?;
    let (counters, clock) = (Arc::clone(counters), Arc::clone(clock));
    let stop = control.stop_token().clone();
    Ok(tokio::task::spawn_blocking(move || {
        writer::write(output, format, finished, &counters, &clock, &|| {
            stop.cancel();
        })
    }))
}

/// Hands rows to their tasks until none is left or the run must stop; then waits for the calls
/// in flight. Tells why it stopped, if the rows were not the reason.
async fn send_all(
    lane: Arc<Lane>,
    mut rows: mpsc::Receiver<Prepared>,
    alive_max: usize,
    room: &Semaphore,
    watch: &Watch,
    control: &Control,
) -> Option<Ended> {
    let in_line = Arc::new(Semaphore::new(IN_LINE));
    let alive = Arc::new(Semaphore::new(alive_max));
    let calls = TaskTracker::new();
    let mut ahead: VecDeque<Prepared> = VecDeque::new();
    let mut open = true;
    let feeding = async {
        loop {
            while open && ahead.len() < AHEAD_ROWS {
                match rows.try_recv() {
                    Ok(row) => ahead.push_back(row),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        open = false;
                        // The last rows: those that may take long go first, so that no single
                        // one is left over at the end.
                        ahead
                            .make_contiguous()
                            .sort_by_key(|row| std::cmp::Reverse(length(row)));
                    }
                }
            }
            let next = match ahead.pop_front() {
                Some(row) => Some(row),
                None if open => rows.recv().await,
                None => None,
            };
            let Some(row) = next else {
                if open {
                    open = false;
                    continue;
                }
                return;
            };
            room.add_permits(row.body.len().min(AHEAD_BYTES));
            // Neither is ever closed.
            let Ok(alive) = Arc::clone(&alive).acquire_owned().await else {
                return;
            };
            let Ok(in_line) = Arc::clone(&in_line).acquire_owned().await else {
                return;
            };
            calls.spawn(Arc::clone(&lane).finish(row, Places { in_line, alive }));
        }
    };
    let stopped = tokio::select! {
        biased;
        () = control.stop_token().cancelled() => None,
        stopped = watch.must_stop() => Some(stopped),
        () = async { feeding.await; calls.close(); calls.wait().await } => None,
    };
    // Nothing new is sent; what waits gives up, what is in flight comes to its end.
    if stopped.is_some() {
        control.stop();
    }
    rows.close();
    room.close();
    drop(lane);
    calls.close();
    tokio::select! {
        () = calls.wait() => {}
        () = control.abort_token().cancelled() => {}
    }
    stopped
}

/// How many rows may be between the feeder and the writer: all that can be in line and in
/// flight, and no more, so that a slow disk holds the calls back instead of filling the memory.
fn rows_alive_max(options: &RunOptions) -> usize {
    let in_flight = options.routes.iter().map(|route| {
        let stated = route
            .limits
            .iter()
            .filter(|limit| limit.kind == LimitKind::Concurrency);
        let stated = stated.map(|limit| limit.count).min();
        let most = stated
            .or_else(|| Some(route.adaptive?.max()))
            .unwrap_or(IN_FLIGHT_MAX);
        usize::try_from(most.min(IN_FLIGHT_MAX)).unwrap_or(usize::MAX)
    });
    IN_LINE + in_flight.sum::<usize>()
}

/// What decides how long a call takes, as far as it is known.
fn length(row: &Prepared) -> u64 {
    u64::from(row.size.input_tokens) + row.size.output_cap(0)
}

fn summarize(
    hub: &Hub,
    limits: &[(LimitId, String)],
    counters: &Counters,
    options: &RunOptions,
    started: Now,
    ended: Now,
) -> Summary {
    let calls = Counters::get(&counters.attempts);
    let latency = counters.mean_latency();
    let last = Timestamp::from_nanos(Counters::get(&counters.last_answer_ns)).max(started.mono);
    let elapsed = last - started.mono;
    let paused = counters.with_pause(|pause| pause.total(ended));
    let bounds = limits.iter().map(|(id, name)| {
        let (spec, charged) = hub.with(|dispatcher| {
            let limit = dispatcher.limit_mut(*id);
            (*limit.spec(), limit.charged())
        });
        (least_time(&spec, charged, calls, latency), name.clone())
    });
    let tightest = bounds
        .max_by_key(|(time, _)| *time)
        .filter(|(time, _)| !time.is_zero());
    let bound = (Counters::get(&counters.answers) > 0)
        .then(|| tightest.as_ref().map_or(Duration::ZERO, |(time, _)| *time) + latency);
    let busy = elapsed.saturating_sub(paused);
    let (input_tokens, output_tokens) = (
        Counters::get(&counters.input_tokens),
        Counters::get(&counters.output_tokens),
    );
    Summary {
        rows: Counters::get(&counters.rows),
        completed: Counters::get(&counters.completed) + Counters::get(&counters.resumed)
            - Counters::get(&counters.resumed_failed),
        failed: Counters::get(&counters.failed) + Counters::get(&counters.resumed_failed),
        attempts: calls,
        ambiguous_attempts: Counters::get(&counters.ambiguous_attempts),
        rate_limited: Counters::get(&counters.rate_limited),
        rate_limited_ours: Counters::get(&counters.rate_limited_ours),
        input_tokens,
        output_tokens,
        cost_usd: options
            .price
            .map(|price| price.of(input_tokens, output_tokens)),
        elapsed_s: elapsed.as_secs_f64(),
        bound_s: bound.map(|bound| bound.as_secs_f64()),
        efficiency: bound
            .map(|bound| (bound.as_secs_f64() / busy.as_secs_f64().max(1e-9)).min(1.0)),
        paused_s: paused.as_secs_f64(),
        resumed: Counters::get(&counters.resumed),
        binding: tightest.map(|(_, name)| name),
    }
}

fn note_resumed(counters: &Counters, resumed: &Resumed) {
    Counters::add(&counters.resumed, resumed.done.len());
    Counters::add(&counters.resumed_failed, resumed.failed.len());
}

/// Counts the rows beside the run, so that progress has a total; a pipe cannot be counted.
fn count_ahead(options: &Arc<RunOptions>, counters: &Arc<Counters>) {
    if !options.source.can_be_read_again() {
        return;
    }
    let (options, counters) = (Arc::clone(options), Arc::clone(counters));
    // Its end is not waited for: it only reads, and only for show.
    drop(tokio::task::spawn_blocking(move || {
        if let Ok(rows) = count_rows(&options.source, options.kind, options.read.limit_rows) {
            counters
                .rows
                .store(rows, std::sync::atomic::Ordering::Relaxed);
        }
    }));
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
