//! `llmq run --server URL --batch`: the rows go to a server as batches, which it finishes while
//! nobody waits.
//!
//! OUTPUT is the journal here too. Beside it `OUTPUT.llmq` names the batches whose results are not
//! in it yet. Each step is recorded before the next one begins, so that a run that is killed
//! anywhere hands nothing in twice: a file is named there before a batch is made of it, and for one
//! file the server makes one batch.

mod gather;
mod hand_in;

mod waiting;

mod answers;
mod results;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use llmq_core::Clock;
use llmq_engine::SystemClock;
use llmq_engine::bulk::{
    Bitmap, Ended, HandedIn, Opened, Output, OutputLock, RunOptions, RunReport, Side, Summary,
    count_rows,
};
use llmq_provider::Source;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::args::{ProgressForm, RunArgs};
use super::execute;
use crate::cli::Global;
use crate::client::ServerArgs;
use crate::exit::{FAILED, Failure, INTERRUPTED};
use crate::signals::Signals;
use crate::text::rows;
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
    let leave = CancellationToken::new();
    let server = ServerArgs::of(url, ANSWER_WITHIN, leave.clone());
    let says = !global.quiet && args.progress != ProgressForm::None;
    let mut signals = Signals::listen().map_err(|error| Failure::wrong(&error))?;
    let wish = leave.clone();
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
                leave.cancel();
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
    /// The account does not let rows be sent: its words.
    Account(String),
    Failed(Failure),
}

impl From<Failure> for Halt {
    fn from(failure: Failure) -> Self {
        match failure.code {
            INTERRUPTED => Self::Left,
            _ => Self::Failed(failure),
        }
    }
}

/// A run by batches.
struct Handing {
    options: RunOptions,
    server: ServerArgs,
    /// Whose API is spoken there.
    source: Source,
    /// Cancelled when it is to leave.
    leave: CancellationToken,
    clock: SystemClock,
    output: Output,
    side: Side,
    /// Rows that have a result.
    done: Bitmap,
    left_out: LeftOut,
    /// Kinds of batches of which the server has taken one.
    proven: HashSet<Kind>,
    /// The files of batches that the server knows no more.
    lost: HashSet<String>,
    /// A batch of this server has no more rows.
    rows_max: u64,
    figures: Figures,
    /// Whether it says where the batches stand.
    says: bool,
    said_at: Instant,
    /// Dropped last.
    _locks: Vec<OutputLock>,
}

/// Where the calls of a batch go, and for which model: such batches end in their order.
type Kind = (String, String);

/// Rows of batches that ended without a result for them. Nothing more is handed in then; the next
/// call of the command does.
#[derive(Default)]
struct LeftOut {
    /// Cancelled at the server, too late to start, or refused by the account.
    rows: Bitmap,
    /// How many were in batches that were cancelled before they were read.
    unread: u64,
    /// What the account said.
    refused: Option<String>,
}

impl LeftOut {
    fn count(&self) -> u64 {
        self.rows.len() + self.unread
    }

    fn is_some(&self) -> bool {
        self.count() > 0
    }
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
        leave: CancellationToken,
        says: bool,
    ) -> Result<Self, Failure> {
        let route = options.routes.first();
        let route = route.ok_or_else(|| Failure::usage("--batch: there is no server"))?;
        let source = Source {
            host: route.provider.host(),
            dialect: route.provider.dialect(),
        };
        let clock = SystemClock::new();
        let opened = Opened::open_to_hand_in(&options, clock.now());
        let Opened {
            locks,
            output,
            resumed,
            side,
            ..
        } = opened.map_err(|error| execute::failed(&error))?;
        // A server that cannot be reached, or has no batches, is told at once.
        let _: Value = server.get("/v1/batches?limit=1")?;
        // It is told of while they are handed in, which may take as long as the run.
        let rows = count_rows(&options.source, options.kind, options.read.limit_rows);
        let figures = Figures {
            rows: rows.map_err(|error| Failure::wrong(&error))?,
            resumed: resumed.done.len(),
            completed: resumed.completed(),
            failed: resumed.failed.len(),
            ..Figures::default()
        };
        Ok(Self {
            options,
            server,
            source,
            leave,
            clock,
            output,
            side,
            done: resumed.done,
            left_out: LeftOut::default(),
            proven: HashSet::new(),
            lost: HashSet::new(),
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
            Ok(()) if self.left_out.is_some() => {
                let count = rows(self.left_out.count());
                say!("{count} did not start: cancelled at the server, or too late");
                Ended::Interrupted
            }
            Ok(()) if self.figures.failed > 0 => Ended::SomeFailed,
            Ok(()) => Ended::Done,
            Err(Halt::Left) => {
                self.tell_what_goes_on();
                Ended::Interrupted
            }
            Err(Halt::Account(reason)) => {
                self.tell_what_goes_on();
                Ended::StoppedByAccount { reason }
            }
            Err(Halt::Failed(failure)) => {
                // What was fetched is worth keeping whatever else is wrong.
                let _ = self.output.sync();
                return Err(failure);
            }
        };
        self.output.sync().map_err(|error| Failure::wrong(&error))?;
        let stopped = ended.reason().map(str::to_owned);
        Ok(RunReport {
            summary: Summary {
                stopped,
                ..self.summary(begun.elapsed())
            },
            ended,
        })
    }

    fn tell_what_goes_on(&self) {
        let at_server = match self.side.handed_in.len() {
            0 => return,
            1 => "1 batch goes on at the server; `llmq batches` lists and cancels it".to_owned(),
            count => {
                format!(
                    "{count} batches go on at the server; `llmq batches` lists and cancels them"
                )
            }
        };
        if self.says {
            say!("\n{at_server}");
        }
    }

    /// Rows that fell out of a batch, such as one with a faulty line among them, are found by
    /// looking through all rows again.
    fn pass_until_done(&mut self) -> Result<(), Halt> {
        self.begin_again()?;
        // What has ended meanwhile gives room, and another server is known by what it does not know.
        while self.collect_ended()? {}
        loop {
            let before = (self.done.len(), self.rows_max);
            let some_are_there = !self.side.handed_in.is_empty();
            let found = self.hand_in_rows()?;
            while !self.side.handed_in.is_empty() {
                self.collect_or_wait()?;
            }
            self.stop_if_refused()?;
            if self.left_out.is_some() || !found && !some_are_there {
                return Ok(());
            }
            if found && (self.done.len(), self.rows_max) == before {
                return Err(Halt::Failed(Failure {
                    code: FAILED,
                    message: "the server ends batches without a result of any row".to_owned(),
                }));
            }
        }
    }

    /// What is recorded is on the disk when this returns.
    fn save(&self) -> Result<(), Failure> {
        let saved = self.side.save(&self.options.paths.output);
        saved.map_err(|error| Failure::wrong(&error))
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

fn kind_of(part: &HandedIn) -> Kind {
    (part.endpoint.clone(), part.model.clone())
}

/// Says which batches of an earlier run go on at its server although it is begun again.
pub(super) fn tell_what_is_left(output: &Path) {
    let Ok(Some(side)) = Side::load(output) else {
        // Whoever opens it tells what is wrong with it.
        return;
    };
    let batches = side
        .handed_in
        .iter()
        .filter_map(|part| part.batch.as_deref());
    let ids: Vec<&str> = batches.collect();
    if !ids.is_empty() {
        say!(
            "batches of the run before go on at the server; `llmq batches cancel` ends them: {}",
            ids.join(" ")
        );
    }
}

/// Where the output lies, as it is told to the server.
fn output_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().chars().take(200).collect()
}
