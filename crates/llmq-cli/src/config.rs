//! `llmq config`.

use clap::{Args, Subcommand};
use llmq_engine::config::{Config, ConfigErrors, DEFAULT_TOML, KeySource, Settings, StoreUrl};
use llmq_store_sqlite::Place;
use serde_json::json;

use crate::cli::{ConfigFile, Format, Global};
use crate::exit::Failure;
use crate::output;

/// The configuration: check it, show it, print the default
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq config default > llmq.toml
  llmq config check --config llmq.toml
  LLMQ_RETRY_MAX_ATTEMPTS=8 llmq config show --format json")]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    action: ConfigAction,
}

#[derive(Debug, Subcommand)]
enum ConfigAction {
    /// Tell every mistake at once, each with its path
    #[command(after_help = "Example:\n  llmq config check --config llmq.toml")]
    Check(ConfigFile),
    /// Every setting in force and where it comes from; keys are not shown
    #[command(after_help = "Example:\n  llmq config show --config llmq.toml")]
    Show(ConfigFile),
    /// Every setting with its default and a sentence about it
    #[command(after_help = "Example:\n  llmq config default > llmq.toml")]
    Default,
}

pub(crate) fn config(args: &ConfigArgs, global: &Global) -> Result<(), Failure> {
    match &args.action {
        ConfigAction::Check(file) => check(file, global),
        ConfigAction::Show(file) => show(file, global),
        ConfigAction::Default => output::print(DEFAULT_TOML),
    }
}

/// The defaults, under the file, under the environment.
pub(crate) fn load(file: &ConfigFile) -> Result<Config, Failure> {
    let config = match &file.path {
        Some(path) => Config::load(path).map_err(|error| Failure::wrong(&error))?,
        None => Config::default(),
    };
    // A variable that is not text stands for no setting.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    Ok(config.with_env(variables))
}

/// What is said about mistakes.
pub(crate) fn mistakes(errors: &ConfigErrors) -> Failure {
    match errors.0.as_slice() {
        [only] => Failure::usage(only.to_string()),
        all => {
            let lines: String = all.iter().map(|mistake| format!("\n  {mistake}")).collect();
            Failure::usage(format!("{} settings are wrong:{lines}", all.len()))
        }
    }
}

/// Where a gateway of these settings keeps what must outlive it.
pub(crate) fn embedded(url: &StoreUrl) -> Result<Place, Failure> {
    match url {
        StoreUrl::Sqlite(path) => Ok(Place::File(path.clone())),
        StoreUrl::Memory => Ok(Place::Memory),
        StoreUrl::Redis(_) | StoreUrl::RedisCluster(_) => Err(Failure::usage(
            "store.url: there is no store in Redis yet: use sqlite:PATH or memory:",
        )),
    }
}

/// What may be so where the gateway runs: keys from variables that hold none here, and upstreams
/// that only `--mock` serves.
fn provisos(settings: &Settings) -> Vec<String> {
    let mut provisos = Vec::new();
    for (name, upstream) in &settings.upstreams {
        if upstream.base_url.is_empty() {
            provisos.push(format!(
                "upstreams.{name}.base_url: there is none, so it is served with --mock only"
            ));
        }
        let key = upstream.api_key.as_ref().map(KeySource::resolve);
        if let Some(Err(error)) = key {
            provisos.push(format!("upstreams.{name}.api_key: {error} here"));
        }
    }
    provisos
}

fn check(file: &ConfigFile, global: &Global) -> Result<(), Failure> {
    let settings = load(file)?.check().map_err(|errors| mistakes(&errors))?;
    let tls = settings.server.tls.as_ref().map(llmq_server::check_tls);
    tls.transpose().map_err(|error| Failure::wrong(&error))?;
    embedded(&settings.store.url)?;
    if !global.quiet {
        match &file.path {
            Some(path) => say!("{} is right", path.display()),
            None => say!("the environment is right; say --config FILE to check a file"),
        }
        for proviso in provisos(&settings) {
            say!("{proviso}");
        }
    }
    Ok(())
}

fn show(file: &ConfigFile, global: &Global) -> Result<(), Failure> {
    let config = load(file)?;
    config.check().map_err(|errors| mistakes(&errors))?;
    let entries = config.entries();
    let text = match global.format {
        Format::Table => {
            let row = |entry: &llmq_engine::config::Entry| {
                (
                    format!("{} = {}", entry.path, entry.value),
                    entry.origin.to_string(),
                )
            };
            output::columns(&entries.iter().map(row).collect::<Vec<_>>())
        }
        Format::Json | Format::Jsonl => {
            let rows: Vec<_> = entries
                .iter()
                .map(|entry| {
                    json!({"path": entry.path, "value": entry.value, "origin": entry.origin.to_string()})
                })
                .collect();
            match global.format {
                Format::Jsonl => rows.iter().map(|row| format!("{row}\n")).collect(),
                _ => output::json(&rows, global.format)?,
            }
        }
    };
    output::print(&text)
}
