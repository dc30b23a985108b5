//! `llmq run`.

mod args;

mod dry_run;
mod proof;

mod batch;
mod continuing;
mod execute;
mod files;
mod progress;
mod summary;

use std::sync::Arc;

use llmq_core::{Clock, LimitKind};
use llmq_dispatch::Rules;
use llmq_engine::SystemClock;
use llmq_engine::bulk::{OutputPaths, RunOptions};
use llmq_engine::config::{Ambiguous, Settings};

pub(crate) use args::RunArgs;

use crate::cli::Global;
use crate::exit::Failure;
use crate::text::grouped;
use crate::upstream::Chosen;
use crate::{config, descriptors, log, prompt, upstream};

pub(crate) fn run(args: RunArgs, global: &Global) -> Result<(), Failure> {
    let settings = settings(&args)?;
    let input = prompt::input(&args.input, &args.prompt)?;
    if args.verify {
        return proof::verify(&input, &paths(&args)?, global);
    }
    let model = args.prompt.model.as_deref();
    let chosen = match &args.server {
        Some(server) => upstream::through(server, &args.provider, &args.limits, model)?,
        None => upstream::choose(&args.provider, &args.limits, model, &settings)?,
    };
    let calls = prompt::calls(&args.prompt, &input, chosen.dialect, chosen.default_model())?;
    if args.dry_run {
        return dry_run::dry_run(input, &calls, &chosen, global);
    }
    let paths = paths(&args)?;
    files::are_distinct(&args, &input.source, &paths)?;
    log::start(&args.log, global)?;
    if let Some(path) = &args.summary {
        summary::can_be_written(path)?;
    }
    if args.restart && !global.quiet {
        batch::tell_what_is_left(&paths.output);
    }
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Failure::wrong(&error))?;
    let ended = runtime.block_on(async {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let opened = upstream::open(&chosen, &clock).await?;
        let options = RunOptions {
            source: input.source,
            kind: input.kind,
            read: input.read,
            paths,
            calls,
            routes: opened.routes,
            quota: settings.quota,
            rules: Rules {
                backoffs: settings.retry.backoffs,
                ..Rules::default()
            },
            max_attempts: settings.retry.max_attempts,
            retry_ambiguous: settings.retry.ambiguous == Ambiguous::Retry,
            no_wait: args.no_wait,
            strict: args.strict,
            retry_failed: args.retry_failed,
            restart: args.restart,
            resume_anyway: args.resume_anyway,
            price: chosen.price,
            ask_before_betting: chosen.ask_before_betting(),
            in_flight_max: in_flight_max(&chosen, !opened.mocks.is_empty()),
        };
        let ended = match &args.server {
            Some(server) if args.batch => {
                Box::pin(batch::finish(options, server, &args, global)).await
            }
            _ => Box::pin(execute::execute(options, &args, global)).await,
        };
        drop(opened.mocks);
        ended
    });
    // A thread that waits for standard input must not hold up the end.
    runtime.shutdown_background();
    ended
}

/// How many calls at once the system lets a run have, said where that is less than was asked for.
fn in_flight_max(chosen: &Chosen, with_stand_in: bool) -> usize {
    let files = descriptors::raise_limit();
    let calls = descriptors::calls(files, with_stand_in);
    let limits = chosen
        .upstreams
        .iter()
        .flat_map(|upstream| &upstream.limits);
    let stated = limits.filter(|limit| limit.kind == LimitKind::Concurrency);
    if let Some(stated) = stated.map(|limit| limit.count).max()
        && usize::try_from(stated).unwrap_or(usize::MAX) > calls
    {
        say!(
            "--concurrency: of {} calls at once {} are made, since the system allows {} open \
             files (`ulimit -n`)",
            grouped(stated),
            calls,
            grouped(files)
        );
    }
    calls
}

/// The configuration under the flags that stand for its settings.
fn settings(args: &RunArgs) -> Result<Settings, Failure> {
    let mut config = args.quota.over(config::load(&args.config)?);
    if let Some(attempts) = &args.max_attempts {
        config = config.with_flag("retry.max_attempts", "--max-attempts", attempts);
    }
    config.check().map_err(|errors| config::mistakes(&errors))
}

fn paths(args: &RunArgs) -> Result<OutputPaths, Failure> {
    let output = args.output.clone();
    let output = output.ok_or_else(|| Failure::usage("no output is named: say -o OUTPUT"))?;
    Ok(OutputPaths {
        output,
        errors: args.errors.clone(),
    })
}
