//! `llmq completions`.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::exit::Failure;
use crate::output;

/// Print completions for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq completions bash > /etc/bash_completion.d/llmq
  llmq completions zsh > ~/.zfunc/_llmq
  llmq completions fish > ~/.config/fish/completions/llmq.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "llmq", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
