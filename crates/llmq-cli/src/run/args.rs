use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::ConfigFile;
use crate::limits::LimitArgs;
use crate::log::LogArgs;
use crate::prompt::{InputArgs, PromptArgs};
use crate::quota::QuotaArgs;
use crate::upstream::ProviderArgs;

/// Finish a file of calls: within every limit, resumable, nothing twice. The same command again
/// continues where it was stopped, killed or cut off.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq run places.csv -o out.jsonl --model gpt-4o-mini --rpm 500 --tpm 200k \\
      --template 'Introduce {{name}}, {{country}}.' --param max_tokens=200
  llmq run batch.jsonl -o out.jsonl --provider anthropic --itpm 50k --otpm 10k
  llmq run prompts.txt.gz -o out.jsonl --model llama --base-url http://localhost:8000/v1
  llmq run places.csv -o out.jsonl --provider mock --limit requests=10k/10s --template '{{name}}?'
  llmq run places.csv -o out.jsonl --model m --template '{{name}}?' --server URL --batch
  llmq run places.csv -o out.jsonl --verify")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) input: InputArgs,
    /// Where results go, one JSON line a row (.csv: id, text, tokens, error, line); it is also what a
    /// resumed run continues from
    #[arg(
        short,
        long,
        value_name = "OUTPUT",
        required_unless_present = "dry_run",
        help_heading = "Output"
    )]
    pub(crate) output: Option<PathBuf>,
    /// Failed rows go here instead
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) errors: Option<PathBuf>,
    /// Write the summary to FILE as JSON
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) summary: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) prompt: PromptArgs,
    #[command(flatten)]
    pub(crate) provider: ProviderArgs,
    /// Send the calls through this llmq server, which keeps the limits; its key is LLMQ_API_KEY
    #[arg(
        long,
        value_name = "URL",
        conflicts_with_all = ["base_url", "api_key_env"],
        help_heading = "Provider"
    )]
    pub(crate) server: Option<String>,
    /// Hand the rows to the server as batches: it finishes them while this program is away, and the
    /// same command fetches their results
    #[arg(
        long,
        requires = "server",
        conflicts_with_all = [
            "rpm", "tpm", "itpm", "otpm", "rpd", "tpd", "concurrency", "custom", "daily_limit",
            "quota_threshold", "quota_monitoring", "pause_duration", "no_wait", "max_attempts",
        ],
        help_heading = "Provider"
    )]
    pub(crate) batch: bool,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) quota: QuotaArgs,
    /// Leave (exit code 4) instead of pausing for more than ten minutes
    #[arg(long, help_heading = "Daily quota")]
    pub(crate) no_wait: bool,
    /// Attempts before a row fails; refusals for a limit are not counted [default: 5]
    #[arg(long, value_name = "N", help_heading = "Running")]
    pub(crate) max_attempts: Option<String>,
    /// Refuse a file with bad rows before anything is sent
    #[arg(long, help_heading = "Running")]
    pub(crate) strict: bool,
    /// Send failed rows again
    #[arg(long, help_heading = "Running")]
    pub(crate) retry_failed: bool,
    /// Begin again; the old output is kept beside the new one
    #[arg(long, help_heading = "Running")]
    pub(crate) restart: bool,
    /// Go on although the input or the settings changed, or the server has forgotten batches
    #[arg(long, conflicts_with = "restart", help_heading = "Running")]
    pub(crate) resume_anyway: bool,
    /// Send nothing; prove that every row is in OUTPUT exactly once
    #[arg(long, conflicts_with_all = ["restart", "retry_failed", "dry_run"], help_heading = "Running")]
    pub(crate) verify: bool,
    /// Send nothing; show the first three calls and what there is to do
    #[arg(long, help_heading = "Running")]
    pub(crate) dry_run: bool,
    #[command(flatten, next_help_heading = "Running")]
    pub(crate) config: ConfigFile,
    /// How progress is shown on standard error; auto is a bar on a terminal and plain elsewhere
    #[arg(
        long,
        value_enum,
        default_value_t,
        value_name = "FORM",
        help_heading = "Progress and log"
    )]
    pub(crate) progress: ProgressForm,
    #[command(flatten)]
    pub(crate) log: LogArgs,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ProgressForm {
    /// A bar on a terminal, lines elsewhere
    #[default]
    Auto,
    /// A bar
    Bar,
    /// A line every ten seconds
    Plain,
    /// A JSON object a second
    Json,
    /// Nothing
    None,
}
