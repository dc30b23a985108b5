//! `llmq probe`.

mod ask;
mod write;

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use llmq_core::{Clock, FailureClass};
use llmq_engine::SystemClock;

use crate::cli::{ConfigFile, Global};
use crate::config;
use crate::exit::{ACCOUNT, FAILED, Failure, UNREACHABLE};
use crate::limits::LimitArgs;
use crate::output;
use crate::upstream::{ProviderArgs, choose, open};
use ask::{Told, ask};

/// One tiny call per model: writes a commented configuration with the limits that it learned
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq probe gpt-4o-mini gpt-4o -o llmq.toml
  llmq probe claude-haiku-4-5 --provider anthropic
  llmq probe --config llmq.toml

Each model is asked for one word. A provider may show only some of its limits, and limits of the
whole account are shown as those of each model: look through the file before you use it.")]
pub(crate) struct ProbeArgs {
    /// The models to ask, as the provider names them (default: those of the configuration)
    #[arg(value_name = "MODEL")]
    models: Vec<String>,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    provider: ProviderArgs,
    /// Write to FILE, which must not exist yet, and not to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Does it.
pub(crate) fn probe(args: &ProbeArgs, global: &Global) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Failure::wrong(&error))?;
    // Before anything is paid for.
    let file = args.output.as_ref().map(create).transpose()?;
    let told = runtime.block_on(ask_all(args, global))?;
    let text = write::configuration(&told);
    match file {
        None => output::print(&text)?,
        Some((mut file, path)) => {
            let written = file
                .write_all(text.as_bytes())
                .and_then(|()| file.sync_all());
            written.map_err(|error| Failure {
                code: FAILED,
                message: format!("cannot write {}: {error}", path.display()),
            })?;
            if !global.quiet {
                say!("wrote {}", path.display());
            }
        }
    }
    verdict(&told)
}

fn create(path: &PathBuf) -> Result<(File, PathBuf), Failure> {
    let file = File::options().write(true).create_new(true).open(path);
    let file = file.map_err(|error| {
        Failure::usage(format!("--output: cannot make {}: {error}", path.display()))
    })?;
    Ok((file, path.clone()))
}

async fn ask_all(args: &ProbeArgs, global: &Global) -> Result<Vec<Told>, Failure> {
    let settings = config::load(&args.config)?;
    let settings = settings
        .check()
        .map_err(|errors| config::mistakes(&errors))?;
    let models: Vec<String> = match args.models.is_empty() {
        true => settings.models.keys().cloned().collect(),
        false => args.models.clone(),
    };
    if models.is_empty() {
        return Err(Failure::usage(
            "no model is named: say which ones, or --config FILE with some",
        ));
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let limits = LimitArgs::default();
    let mut told = Vec::new();
    for model in models {
        let chosen = choose(&args.provider, &limits, Some(&model), &settings)?;
        let opened = open(&chosen, &clock).await?;
        for (route, upstream) in opened.routes.iter().zip(&chosen.upstreams) {
            if !global.quiet {
                say!("asking {}", route.name);
            }
            told.push(ask(&model, route, upstream, &clock).await);
        }
    }
    Ok(told)
}

/// The exit code by what came.
fn verdict(told: &[Told]) -> Result<(), Failure> {
    let failures: Vec<FailureClass> = told
        .iter()
        .filter_map(|told| told.failure.as_ref().map(|(class, _)| *class))
        .collect();
    let all = |wanted: fn(&FailureClass) -> bool| failures.iter().all(wanted);
    let code = match failures.len() {
        0 => return Ok(()),
        some if some < told.len() => FAILED,
        _ if all(|class| matches!(class, FailureClass::NoAccess | FailureClass::Money)) => ACCOUNT,
        _ if all(|class| class.rule().trips_breaker) => UNREACHABLE,
        _ => FAILED,
    };
    Err(Failure {
        code,
        message: format!("{} of {} models gave no answer", failures.len(), told.len()),
    })
}
