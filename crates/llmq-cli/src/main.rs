//! The `llmq` command. Data goes to stdout, words to stderr; [`exit`] holds the exit codes.
//!
//! [`cli`] is what a user types; each command has a module of its own name.

/// Says something to people, on standard error. That nobody listens any more is no failure.
macro_rules! say {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

mod cli;
mod descriptors;
mod exit;

mod run;

mod batches;
mod completions;
mod config;
mod keys;
mod mock;
mod plan;
mod probe;
mod queues;
mod requests;
mod serve;
mod store;
mod webhooks;

mod why;

mod client;
mod limits;
mod prompt;
mod quota;
mod upstream;

mod log;
mod output;
mod signals;
mod text;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use cli::{Cli, Command};
use exit::Failure;

/// A call costs what it does with glibc's, and 10,000 callers in line a quarter less memory: the
/// books are kept beside the pieces, so that a buffer nobody has written to takes none, and each
/// connection has two of 8 kB. Its settings stand in `.cargo/config.toml`; threads of its own give
/// back what a burst left.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static MEMORY: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // Help and errors are written before a flag could be looked at, so its value is found first.
    let color = output::color_choice(&arguments);
    output::set_color(color);
    let parsed = Cli::command()
        .color(color)
        .try_get_matches_from(&arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help that nobody reads any more is no failure.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(exit::USAGE));
        }
    };
    match carry_out(cli) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code)
        }
    }
}

fn carry_out(cli: Cli) -> Result<(), Failure> {
    let global = cli.global;
    match cli.command {
        Command::Run(args) => run::run(*args, &global),
        Command::Plan(args) => plan::plan(&args, &global),
        Command::Serve(args) => serve::serve(&args, &global),
        Command::Mock(args) => mock::mock(&args, &global),
        Command::Why(args) => why::why(&args, &global),
        Command::Store(args) => store::store(args, &global),
        Command::Queues(args) => queues::queues(&args, &global),
        Command::Requests(args) => requests::requests(*args, &global),
        Command::Batches(args) => batches::batches(*args, &global),
        Command::Webhooks(args) => webhooks::webhooks(*args, &global),
        Command::Keys(args) => keys::keys(args, &global),
        Command::Probe(args) => probe::probe(&args, &global),
        Command::Config(args) => config::config(&args, &global),
        Command::Completions(args) => completions::completions(&args),
    }
}
