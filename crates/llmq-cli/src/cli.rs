//! What a user types.

use std::path::PathBuf;

use clap::{ArgAction, Args, ColorChoice, Parser, Subcommand, ValueEnum};

use crate::batches::BatchesArgs;
use crate::completions::CompletionsArgs;
use crate::config::ConfigArgs;
use crate::keys::KeysArgs;
use crate::mock::MockArgs;
use crate::plan::PlanArgs;
use crate::probe::ProbeArgs;
use crate::queues::QueuesArgs;
use crate::requests::RequestsArgs;
use crate::run::RunArgs;
use crate::serve::ServeArgs;
use crate::store::StoreArgs;
use crate::webhooks::WebhooksArgs;
use crate::why::WhyArgs;

/// Finishes files of LLM calls inside every limit of the provider: nothing lost, nothing sent
/// twice, no refusal of our own making.
#[derive(Debug, Parser)]
#[command(name = "llmq", version, max_term_width = 100, after_help = EXAMPLES, propagate_version = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

const EXAMPLES: &str = "\
Examples:
  llmq run places.csv -o out.jsonl --provider mock --limit requests=1k/10s \\
      --template 'Introduce {{name}}, {{country}}.'
  llmq run prompts.txt -o out.jsonl --model gpt-4o-mini --rpm 500 --tpm 200k
  llmq plan prompts.txt --model gpt-4o-mini --rpm 500 --tpm 200k --finish-in 1h
  llmq mock --limit requests=200/2s
  llmq config check --config llmq.toml

Exit codes: 0 done; 1 finished, but something failed for good, or the server said no;
2 usage or bad input; 3 cannot reach the server or provider; 4 stopped by the account (quota,
budget, refused key); 130 interrupted, the same command continues.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Finish a file of calls: within every limit, resumable, nothing twice
    Run(Box<RunArgs>),
    /// The same file in virtual time: how long, how many tokens, what cost, which limit binds
    Plan(Box<PlanArgs>),
    Serve(Box<ServeArgs>),
    /// A stand-in provider with real limits, headers and faults
    Mock(MockArgs),
    /// What a waiting call or an accepted request waits for
    Why(WhyArgs),
    /// Queues of a server: list, show, pause, resume, drain
    Queues(QueuesArgs),
    /// Requests that a server keeps and finishes
    Requests(Box<RequestsArgs>),
    /// Batches of a server: many calls in one file, and their answers in another
    Batches(Box<BatchesArgs>),
    /// Webhooks of a server, and a receiver to try them with
    Webhooks(Box<WebhooksArgs>),
    /// Keys of a server: make one, list them, revoke one
    Keys(KeysArgs),
    /// The embedded store's file: check it, back it up, make it small
    Store(StoreArgs),
    /// One tiny call per model: writes a configuration with the limits it learned
    Probe(Box<ProbeArgs>),
    /// The configuration: check it, show it, print the default
    Config(ConfigArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Say more; twice for everything
    #[arg(short, long, action = ArgAction::Count, global = true, help_heading = "Global options")]
    pub(crate) verbose: u8,
    /// Say nothing but errors
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "verbose",
        help_heading = "Global options"
    )]
    pub(crate) quiet: bool,
    /// When to use colors; NO_COLOR in the environment turns them off too
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "auto",
        global = true,
        help_heading = "Global options"
    )]
    pub(crate) color: ColorChoice,
    /// The form of data on standard output
    #[arg(
        long,
        value_enum,
        default_value_t,
        global = true,
        help_heading = "Global options"
    )]
    pub(crate) format: Format,
}

/// The form of data on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// One JSON document
    Json,
    /// One JSON object a line
    Jsonl,
}

/// Where settings that are not flags come from.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigFile {
    /// Read settings from this file; flags and LLMQ_… variables go before it
    #[arg(long = "config", value_name = "FILE")]
    pub(crate) path: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_helps_with_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let mut shown = command.clone().term_width(100);
            let help = shown.render_long_help().to_string();
            // It is one of this command, and none of what it belongs to.
            let examples = help.split_once("Example").map(|(_, examples)| examples);
            assert!(
                examples.is_some_and(|examples| examples.contains(&path)),
                "{path}"
            );
            command.get_subcommands().for_each(|sub| check(sub, &path));
        }
        let cli = Cli::command();
        cli.get_subcommands().for_each(|sub| check(sub, "llmq"));
    }

    /// The public face: what changes here changes for every user.
    #[test]
    fn help_is_what_it_was() {
        let mut cli = Cli::command().term_width(100);
        cli.build();
        insta::assert_snapshot!("help", cli.clone().render_long_help());
        for command in cli
            .get_subcommands()
            .filter(|command| command.get_name() != "help")
        {
            let name = format!("help_{}", command.get_name());
            let mut command = command.clone().term_width(100);
            insta::assert_snapshot!(name, command.render_long_help());
        }
    }
}
