//! `llmq webhooks listen`.

use std::net::SocketAddr;

use clap::Args;
use llmq_client::webhooks::{Handling, Receiver, Verifier};

use crate::cli::Global;
use crate::exit::{Failure, with_causes};
use crate::output;
use crate::signals::Signals;
use crate::text::address;

#[derive(Debug, Args)]
pub(super) struct ListenArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9000", value_parser = address)]
    listen: SocketAddr,
    /// A secret that signs the messages, whsec_…; may be repeated
    #[arg(
        long = "secret",
        value_name = "SECRET",
        env = "LLMQ_WEBHOOK_SECRET",
        hide_env_values = true,
        value_delimiter = ' ',
        required = true
    )]
    secrets: Vec<String>,
    /// Answer 503 to every message, to see it come again
    #[arg(long)]
    refuse: bool,
}

pub(super) fn listen(args: &ListenArgs, global: &Global) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Failure::wrong(&error))?;
    runtime.block_on(run(args, global))
}

async fn run(args: &ListenArgs, global: &Global) -> Result<(), Failure> {
    let verifier = Verifier::new(&args.secrets)
        .map_err(|error| Failure::usage(format!("--secret: {error}")))?;
    let mut signals = Signals::listen().map_err(|error| Failure::wrong(&error))?;
    let receiver = Receiver::bind(args.listen, verifier).await;
    let receiver = receiver.map_err(|error| {
        let why = with_causes(&error);
        Failure::usage(format!("{why}; --listen names another address"))
    })?;
    if !global.quiet {
        say!("listening: http://{}; Ctrl-C ends it", receiver.addr());
    }
    let refuse = args.refuse;
    let serving = receiver.serve(move |message, body| match message {
        Ok(message) => {
            say!("{}: verified", message.id);
            let text = String::from_utf8_lossy(body);
            // Whoever reads the output may have gone: then the message is for another time.
            match output::print(&format!("{}\n", text.trim_end())) {
                Ok(()) if !refuse => Handling::Done,
                _ => Handling::Later,
            }
        }
        Err(error) => {
            say!("refused: {error}");
            Handling::Later
        }
    });
    tokio::select! {
        _ = serving => {}
        () = signals.next() => {}
    }
    Ok(())
}
