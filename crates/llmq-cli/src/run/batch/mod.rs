//! `llmq run --server URL --batch`: the rows go to a server as batches, which it finishes while
//! nobody waits.
//!
//! OUTPUT is the journal here too. Beside it `OUTPUT.llmq` names the batches whose results are not
//! in it yet. Each step is recorded before the next one begins, so that a run that is killed
//! anywhere hands nothing in twice: a file is named there before a batch is made of it, and a batch
//! is known by its file.

mod gather;
mod hand_in;
mod results;

use std::collections::HashSet;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use llmq_core::Clock;
use llmq_engine::SystemClock;
use llmq_engine::bulk::{
    Bitmap, Ended, HandedIn, Opened, Output, OutputLock, RunOptions, RunReport, Side, Summary,
};
use serde_json::Value;
use tokio::time::Instant;

use super::args::{ProgressForm, RunArgs};
use super::execute;
use crate::batches;
use crate::cli::Global;
use crate::client::{Asked, ServerArgs};
use crate::exit::{FAILED, Failure, INTERRUPTED};
use crate::signals::Signals;
use crate::text::{grouped, rows};
use gather::ROWS_MAX;

/// How often the batches are asked after.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often it is said where they stand.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// A full queue empties at the pace of its limits.
const FULL: Duration = Duration::from_secs(10);
/// A large part takes its time on a slow line.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// Finishes a file by batches of the server at `url`, or as much of it as can be done now.
pub(super) async fn finish(
    options: RunOptions,
    url: &str,
    args: &RunArgs,
    global: &Global,
) -> Result<(), Failure> {
    if !options.source.can_be_read_again() {
        return Err(Failure::usage(
            "--batch: the rows are looked through again when it goes on, so INPUT must be a file",
        ));
    }
    let server = ServerArgs::of(url, ANSWER_WITHIN);
    let says = !global.quiet && args.progress != ProgressForm::None;
    let mut signals = Signals::listen().map_err(|error| Failure::wrong(&error))?;
    let (leave, wish) = mpsc::channel();
    let mut working =
        tokio::task::spawn_blocking(move || Handing::open(options, server, wish, says)?.finish());
    let mut is_leaving = false;
    let outcome = loop {
        tokio::select! {
            outcome = &mut working => break outcome,
            () = signals.next() => {
                if std::mem::replace(&mut is_leaving, true) {
                    return Err(Failure::silent(INTERRUPTED));
                }
                // It may be at its end already.
                let _ = leave.send(());
            }
        }
    };
    let report = outcome.map_err(|error| Failure {
        code: FAILED,
        message: error.to_string(),
    })??;
    execute::tell(&report, args, global)
}

/// Why a step does not go on.
enum Halt {
    /// It was told to leave: what is at the server goes on there.
    Left,
    Failed(Failure),
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// A run by batches.
struct Handing {
    options: RunOptions,
    server: ServerArgs,
    wish: mpsc::Receiver<()>,
    clock: SystemClock,
    output: Output,
    side: Side,
    /// Rows that have a result.
    done: Bitmap,
    /// Rows that were cancelled at the server, or did not start in their time.
    not_started: Bitmap,
    /// A batch of this server has no more rows.
    rows_max: u64,
    figures: Figures,
    /// Whether it says where the batches stand.
    says: bool,
    said_at: Instant,
    /// Dropped last.
    _locks: Vec<OutputLock>,
}

/// What was done.
#[derive(Default)]
struct Figures {
    /// Rows of the input.
    rows: u64,
    resumed: u64,
    completed: u64,
    failed: u64,
    /// Answers of providers that this run has fetched.
    answers: u64,
    input_tokens: u64,
    output_tokens: u64,
}

impl Handing {
    fn open(
        options: RunOptions,
        server: ServerArgs,
        wish: mpsc::Receiver<()>,
        says: bool,
    ) -> Result<Self, Failure> {
        let clock = SystemClock::new();
        let opened =
            Opened::open(&options, clock.now()).map_err(|error| execute::failed(&error))?;
        let Opened {
            locks,
            output,
            resumed,
            side,
            let_go,
            ..
        } = opened;
        if !let_go.is_empty() && says {
            let ids: Vec<&str> = let_go
                .iter()
                .filter_map(|one| one.batch.as_deref())
                .collect();
            say!(
                "batches of the run before go on at the server; `llmq batches cancel` ends them: {}",
                ids.join(" ")
            );
        }
        // A server that cannot be reached, or has no batches, is told at once.
        let _: Value = server.get("/v1/batches?limit=1")?;
        let figures = Figures {
            resumed: resumed.done.len(),
            completed: resumed.completed(),
            failed: resumed.failed.len(),
            ..Figures::default()
        };
        Ok(Self {
            options,
            server,
            wish,
            clock,
            output,
            side,
            done: resumed.done,
            not_started: Bitmap::default(),
            rows_max: ROWS_MAX,
            figures,
            says,
            said_at: Instant::now(),
            _locks: locks,
        })
    }

    fn finish(mut self) -> Result<RunReport, Failure> {
        let begun = Instant::now();
        let ended = match self.pass_until_done() {
            Ok(()) if !self.not_started.is_empty() => {
                let count = rows(self.not_started.len());
                say!("{count} did not start: cancelled at the server, or too late");
                Ended::Interrupted
            }
            Ok(()) if self.figures.failed > 0 => Ended::SomeFailed,
            Ok(()) => Ended::Done,
            Err(Halt::Left) => {
                let count = self.side.handed_in.len();
                if self.says && count > 0 {
                    say!(
                        "\n{count} batches go on at the server; `llmq batches` lists and cancels them"
                    );
                }
                Ended::Interrupted
            }
            Err(Halt::Failed(failure)) => {
                // What was fetched is worth keeping whatever else is wrong.
                let _ = self.output.sync();
                return Err(failure);
            }
        };
        self.output.sync().map_err(|error| Failure::wrong(&error))?;
        Ok(RunReport {
            summary: self.summary(begun.elapsed()),
            ended,
        })
    }

    /// Rows that fell out of a batch, such as one with a faulty line among them, are found by
    /// looking through all rows again.
    fn pass_until_done(&mut self) -> Result<(), Halt> {
        self.begin_again()?;
        loop {
            let before = (self.done.len(), self.rows_max);
            let found = self.hand_in_rows()?;
            while !self.side.handed_in.is_empty() {
                if !self.collect_ended()? {
                    self.pause(ASK_EVERY)?;
                }
            }
            if !found || !self.not_started.is_empty() {
                return Ok(());
            }
            if (self.done.len(), self.rows_max) == before {
                return Err(Halt::Failed(Failure {
                    code: FAILED,
                    message: "the server ends batches without a result of any row".to_owned(),
                }));
            }
        }
    }

    /// Asks after the first batch of each kind: they end in their order. Whether one had ended.
    fn collect_ended(&mut self) -> Result<bool, Halt> {
        let mut asked = HashSet::new();
        let mut index = 0;
        while let Some(part) = self.side.handed_in.get(index).cloned() {
            if asked.insert((part.endpoint.clone(), part.model.clone())) {
                let ended = match &part.batch {
                    Some(id) => self.ended(id)?,
                    None => {
                        self.begin(index)?;
                        None
                    }
                };
                if let Some(batch) = ended {
                    self.collect(index, &part, &batch)?;
                    return Ok(true);
                }
            }
            index += 1;
        }
        self.tell();
        Ok(false)
    }

    /// A batch that has ended.
    fn ended(&mut self, id: &str) -> Result<Option<Value>, Halt> {
        let path = format!("/v1/batches/{id}");
        let batch: Value = match self.server.ask_after(&path)? {
            Asked::Found(batch) => batch,
            Asked::Away(why) => {
                self.wait_for_server(&why)?;
                return Ok(None);
            }
            Asked::Unknown(why) => {
                let message = format!(
                    "{why}: was it another server? With --restart all rows are handed in again"
                );
                return Err(Halt::Failed(Failure::usage(message)));
            }
        };
        Ok(batches::is_final(&batch).then_some(batch))
    }

    /// What is recorded is on the disk when this returns.
    fn save(&self) -> Result<(), Failure> {
        let saved = self.side.save(&self.options.paths.output);
        saved.map_err(|error| Failure::wrong(&error))
    }

    /// What the server answers once it is there and has room.
    fn until_there<T>(
        &mut self,
        ask: impl Fn(&ServerArgs) -> Result<Result<T, String>, Failure>,
    ) -> Result<T, Halt> {
        loop {
            match ask(&self.server)? {
                Ok(answer) => return Ok(answer),
                Err(why) => self.wait_for_server(&why)?,
            }
        }
    }

    fn wait_for_server(&mut self, why: &str) -> Result<(), Halt> {
        if self.says && self.said_at.elapsed() >= SAY_EVERY {
            self.said_at = Instant::now();
            say!("{why}; waiting for it");
        }
        self.pause(ASK_EVERY)
    }

    fn pause(&self, time: Duration) -> Result<(), Halt> {
        match self.wish.recv_timeout(time) {
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(()),
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => Err(Halt::Left),
        }
    }

    fn tell(&mut self) {
        if self.says && self.said_at.elapsed() >= SAY_EVERY {
            self.said_at = Instant::now();
            say!(
                "{} of {} rows have a result; {} batches are at the server",
                grouped(self.done.len()),
                grouped(self.figures.rows),
                self.side.handed_in.len()
            );
        }
    }

    fn summary(&self, elapsed: Duration) -> Summary {
        let figures = &self.figures;
        let price = self.options.price;
        Summary {
            rows: figures.rows,
            to_do: (figures.rows > 0).then(|| figures.rows.saturating_sub(self.done.len())),
            completed: figures.completed,
            failed: figures.failed,
            attempts: figures.answers,
            ambiguous_attempts: 0,
            rate_limited: 0,
            rate_limited_ours: 0,
            input_tokens: figures.input_tokens,
            output_tokens: figures.output_tokens,
            cost_usd: price.map(|price| price.of(figures.input_tokens, figures.output_tokens)),
            elapsed_s: elapsed.as_secs_f64(),
            bound_s: None,
            efficiency: None,
            paused_s: 0.0,
            resumed: figures.resumed,
            binding: None,
            stopped: None,
        }
    }
}

/// Whether a batch that is at the server has this row.
fn has(part: &HandedIn, line: u64, endpoint: &str, model: &str) -> bool {
    (part.first..=part.last).contains(&line) && part.endpoint == endpoint && part.model == model
}

/// Where the output lies, as it is told to the server.
fn output_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().chars().take(200).collect()
}
