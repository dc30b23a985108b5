use std::path::PathBuf;
use std::time::Duration;

use console::style;
use llmq_engine::bulk::{self, Control, Ended, RunError, RunOptions, RunReport};
use tokio::time::{MissedTickBehavior, interval};

use super::args::RunArgs;
use super::continuing::continuing;
use super::progress::Show;
use super::summary;
use crate::cli::{Format, Global};
use crate::exit::{self, Failure};
use crate::output;
use crate::signals::Signals;
use crate::text::rows;

/// How often it is looked at where a run stands; its rates are made for this.
const LOOK: Duration = Duration::from_secs(1);

/// Carries out a run, shows how it goes and says how it ended.
pub(super) async fn execute(
    options: RunOptions,
    args: &RunArgs,
    global: &Global,
) -> Result<(), Failure> {
    let control = Control::new();
    let mut signals = Signals::listen().map_err(|error| Failure::wrong(&error))?;
    let mut show = Show::new(args.progress, global.quiet);
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut running = Box::pin(bulk::run(options, control.clone()));
    let mut wishes = 0;
    let outcome = loop {
        tokio::select! {
            outcome = &mut running => break outcome,
            () = signals.next() => {
                wishes += 1;
                end_sooner(wishes, &control, global);
            }
            _ = looks.tick() => {
                if let Some(progress) = control.progress() {
                    show.look(&progress);
                }
            }
        }
    };
    show.end();
    match outcome {
        Ok(report) => tell(&report, args, global),
        Err(RunError::Left) => {
            say!("{}", interrupted());
            Err(Failure::silent(exit::INTERRUPTED))
        }
        Err(error) => Err(failed(&error)),
    }
}

/// What the first, the second and every further Ctrl-C does.
fn end_sooner(wishes: u32, control: &Control, global: &Global) {
    match wishes {
        1 => {
            // Before it has begun, nothing is in flight.
            let has_begun = control.progress().is_some();
            control.stop();
            if has_begun && !global.quiet {
                say!("\nstopping: calls in flight come to their end; Ctrl-C again leaves at once");
            }
        }
        _ => control.abort(),
    }
}

pub(super) fn failed(error: &RunError) -> Failure {
    let message = exit::with_causes(error);
    match error {
        RunError::Task(_) => Failure {
            code: exit::FAILED,
            message,
        },
        _ => Failure::usage(message),
    }
}

/// How the run ended counts; a summary that cannot be written only where nothing else is wrong.
pub(super) fn tell(report: &RunReport, args: &RunArgs, global: &Global) -> Result<(), Failure> {
    let write = |path: &PathBuf| summary::write(path, &report.summary);
    let written = args.summary.as_ref().map_or(Ok(()), write);
    match (tell_end(report, args, global), written) {
        (Err(own), Err(unwritten)) => {
            say!("{}", unwritten.message);
            Err(own)
        }
        (ended, written) => ended.and(written),
    }
}

fn tell_end(report: &RunReport, args: &RunArgs, global: &Global) -> Result<(), Failure> {
    match global.format {
        Format::Table if !global.quiet => say!("{}", summary::table(&report.summary).trim_end()),
        Format::Table => {}
        Format::Json | Format::Jsonl => {
            output::print(&output::json(&report.summary, global.format)?)?;
        }
    }
    let (code, words) = match &report.ended {
        Ended::Done => return Ok(()),
        Ended::SomeFailed => {
            let file = args.errors.as_ref().or(args.output.as_ref());
            let file = file
                .map(|file| file.display().to_string())
                .unwrap_or_default();
            let words = format!(
                "{} failed for good; {file} says why. This sends what failed again:\n  {} --retry-failed",
                rows(report.summary.failed),
                command()
            );
            (exit::FAILED, words)
        }
        Ended::StoppedByAccount { reason } => {
            let words = format!(
                "stopped by the account: {reason}. This continues:\n  {}",
                command()
            );
            (exit::ACCOUNT, words)
        }
        Ended::ProviderLost { reason } => {
            let words = format!(
                "the provider cannot be reached: {reason}. This continues:\n  {}",
                command()
            );
            (exit::UNREACHABLE, words)
        }
        Ended::Interrupted => (exit::INTERRUPTED, interrupted()),
    };
    // Why a run ended is worth a word even to those who want none.
    say!("{words}");
    Err(Failure::silent(code))
}

fn interrupted() -> String {
    format!("interrupted. This continues:\n  {}", command())
}

/// The command that continues.
fn command() -> impl std::fmt::Display {
    style(continuing(std::env::args_os())).bold().for_stderr()
}
