//! `llmq serve`.

mod source;
mod traces;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use llmq_core::{Clock, LimitSpec};
use llmq_engine::config::Settings;
use llmq_engine::{SystemClock, Tasks};
use llmq_provider::mock::MockServer;
use llmq_server::observe::{CallLog, CallLogForm};
use llmq_server::{Bounds, Gateway, GatewayOptions, serve as serve_on, store_settings};
use llmq_store_sqlite::{Options, Place, Store};

use crate::cli::{ConfigFile, Global};
use crate::config;
use crate::descriptors;
use crate::exit::{Failure, with_causes};
use crate::log::{self, LogArgs, LogFormat};
use crate::signals::{HangUp, Signals};
use crate::text::{address, grouped};
use source::{Found, Source, stand_in};
use watch::{Watch, as_read, stamps};

/// The gateway: an OpenAI and Anthropic endpoint that waits instead of failing
///
/// Point OPENAI_BASE_URL at http://ADDRESS/v1, or ANTHROPIC_BASE_URL at http://ADDRESS, and
/// change nothing else. Without a configuration it uses OPENAI_API_KEY and ANTHROPIC_API_KEY, and
/// learns the limits from the providers' headers.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq serve --mock
  OPENAI_API_KEY=… llmq serve
  llmq serve --config llmq.toml --listen 0.0.0.0:8080")]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Where to listen; port 0 takes a free one (default: server.listen, 127.0.0.1:8080)
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    listen: Option<SocketAddr>,
    /// Serve from a stand-in provider inside: no key, no cost
    #[arg(long)]
    mock: bool,
    /// A limit of the stand-in, such as requests=200/2s; may be repeated
    #[arg(
        long = "mock-limit",
        value_name = "KIND=COUNT/PERIOD",
        requires = "mock"
    )]
    mock_limits: Vec<LimitSpec>,
    /// Where keys and accepted requests are kept: sqlite:PATH or memory: (default: store.url,
    /// sqlite:llmq.db; memory: with --mock)
    #[arg(long, value_name = "URL")]
    store: Option<Place>,
    /// Write a line about each call to FILE, never prompts or answers
    #[arg(long, value_name = "FILE", help_heading = "Progress and log")]
    call_log: Option<PathBuf>,
    #[command(flatten)]
    log: LogArgs,
}

/// What runs has so long to end once the server is told to stop.
const GRACE: Duration = Duration::from_secs(30);

pub(crate) fn serve(args: &ServeArgs, global: &Global) -> Result<(), Failure> {
    log::start(&args.log, global)?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Failure::wrong(&error))?;
    runtime.block_on(run(args, global))
}

async fn run(args: &ServeArgs, global: &Global) -> Result<(), Failure> {
    let mock = match args.mock {
        true => Some(stand_in(&args.mock_limits).await?),
        false => None,
    };
    let source = Source {
        config: args.config.clone(),
        listen: args.listen,
        mock: mock.as_ref().map(MockServer::addr),
    };
    let before = stamps(&source.config.path);
    let Found {
        settings,
        any_model,
        names_store,
    } = source.read()?;
    // The start takes its time, and what changes meanwhile is to be taken over.
    let files = source.files(&settings);
    let seen = as_read(before, stamps(&files));
    let mut signals = Signals::listen().map_err(|error| Failure::wrong(&error))?;
    let hang_up = HangUp::listen().map_err(|error| Failure::wrong(&error))?;
    let tasks = Tasks::new();
    let clock = SystemClock::new();
    let store = open_store(args, &settings, names_store, &clock)?;
    tell_findings(&store);
    let options = GatewayOptions {
        any_model,
        store: store.clone(),
        log: call_log(args, &clock)?,
        traces: traces::open()?,
        bounds: Bounds {
            connections_max: descriptors::callers(descriptors::raise_limit()),
            ..Bounds::default()
        },
    };
    let gateway = Gateway::new(&settings, options, clock, &tasks)
        .await
        .map_err(|error| Failure::usage(with_causes(&error)))?;
    let listen = settings.server.listen;
    let listener = tokio::net::TcpListener::bind(listen)
        .await
        .map_err(|error| {
            Failure::usage(format!(
                "cannot listen on {listen}: {error}; --listen names another address"
            ))
        })?;
    // Stopped first, so that calls in line still get their turn.
    let accepting = Tasks::new();
    let served = serve_on(Arc::clone(&gateway), listener, &accepting)
        .map_err(|error| Failure::wrong(&error))?;
    if !global.quiet {
        let addr = served.addr();
        let scheme = match settings.server.tls {
            Some(_) => "https",
            None => "http",
        };
        say!("listening: OpenAI {scheme}://{addr}/v1, Anthropic {scheme}://{addr}");
        say!("{}", kept(store.place()));
        if let Some(found) = accepted_before(&store) {
            say!("{found}");
        }
        say!("Ctrl-C lets calls in flight end, and again leaves at once");
    }
    let watch = Watch {
        source,
        files,
        seen,
        gateway: Arc::clone(&gateway),
        hang_up,
        speaks: !global.quiet,
    };
    tasks.spawn(watch.run(accepting.clone()));
    signals.next().await;
    if !global.quiet {
        say!("stopping: calls in flight have 30 s to end");
    }
    accepting.cancel();
    tokio::select! {
        () = ended(served, &gateway) => {}
        () = signals.next() => {}
    }
    tasks.cancel();
    drop(mock);
    if let Err(error) = gateway.close().await {
        tracing::warn!(%error, "what keys have used could not be written");
    }
    // What was being written is written.
    store.close();
    Ok(())
}

/// Callers have their answers, and accepted requests are done or handed back.
async fn ended(served: llmq_server::Served, gateway: &Gateway) {
    tokio::join!(served.stopped(), gateway.stop_requests(GRACE));
}

/// Where what was accepted is found again, for people.
fn kept(place: &Place) -> String {
    match place {
        Place::File(path) => format!("keys and accepted requests: {}", path.display()),
        Place::Memory => "keys and accepted requests: in memory, and gone when this process ends; \
                          --store sqlite:PATH keeps them"
            .to_owned(),
    }
}

/// What is wrong with the file is said whatever was asked for: an accepted request may be lost.
fn tell_findings(store: &Store) {
    for finding in &store.opened().findings {
        tracing::error!(store = %store.place(), finding, "store_damaged");
        say!("store: {finding}");
    }
}

/// What an earlier process has left to do.
fn accepted_before(store: &Store) -> Option<String> {
    let opened = store.opened();
    (opened.queued + opened.processing > 0).then(|| {
        format!(
            "found there: {} requests that wait, {} that were being sent when it last ended",
            grouped(opened.queued),
            grouped(opened.processing)
        )
    })
}

/// Opens where keys and accepted requests are kept. A gateway that is only tried out keeps
/// nothing, unless somebody said where.
fn open_store(
    args: &ServeArgs,
    settings: &Settings,
    is_named: bool,
    clock: &SystemClock,
) -> Result<Store, Failure> {
    let place = match (&settings.store.url, &args.store) {
        (_, Some(place)) => place.clone(),
        (_, None) if args.mock && !is_named => Place::Memory,
        (url, None) => config::embedded(url)?,
    };
    let options = Options {
        settings: store_settings(settings),
        in_place: true,
        ..Options::default()
    };
    let store = Store::open_with(&place, options, clock.now().wall);
    store.map_err(|error| Failure::of_store(&error))
}

/// One line a call, where it was asked for.
fn call_log(args: &ServeArgs, clock: &SystemClock) -> Result<CallLog, Failure> {
    let Some(path) = &args.call_log else {
        return Ok(CallLog::off());
    };
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    let form = match args.log.log_format {
        LogFormat::Text => CallLogForm::Text,
        LogFormat::Json => CallLogForm::Json,
    };
    let log = file.and_then(|file| CallLog::to(file, form, clock.clone()));
    log.map_err(|error| Failure::usage(format!("--call-log {}: {error}", path.display())))
}
