//! `llmq mock`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use llmq_provider::mock::{
    DefaultAlgorithm, Foreign, Hints, MockConfig, MockServer, Outage, Report,
};
use llmq_strict::Charge;

use crate::cli::{Format, Global};
use crate::descriptors;
use crate::exit::Failure;
use crate::output;
use crate::signals::Signals;
use crate::text::{address, grouped, span, time};

/// A stand-in provider with real limits, headers and faults. Speaks OpenAI and Anthropic,
/// streaming too; GET /mock/report shows its books, and it prints them when it ends.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq mock --limit requests=200/2s --limit tokens=400k/10s
  llmq mock --algorithm bucket --limit requests=500/1m --latency 800ms --output-tokens 300
  llmq mock --fail 0.05 --outage 10s-20s --foreign requests=10/s")]
pub(crate) struct MockArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8099", value_parser = address)]
    listen: SocketAddr,
    /// A limit to enforce, such as requests=2k/10s; may be repeated
    #[arg(long = "limit", value_name = "KIND=COUNT/PERIOD")]
    limits: Vec<String>,
    /// How limits count that do not say it themselves; a bucket is full at the start
    #[arg(long, value_enum, default_value_t)]
    algorithm: Algorithm,
    /// When output tokens are counted
    #[arg(long, value_enum, default_value_t)]
    charge: ChargeAt,
    /// The mean time that an answer takes
    #[arg(long, value_name = "TIME", default_value = "20ms", value_parser = time)]
    latency: Duration,
    /// By what share of itself that time varies: 0 to 1
    #[arg(long, value_name = "SHARE", default_value = "0.5", value_parser = share)]
    jitter: f64,
    /// The length of answers, before the call's own cap
    #[arg(long, value_name = "N", default_value_t = 40)]
    output_tokens: u32,
    /// The share of calls that fail with status 500
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    fail: f64,
    /// The share of calls whose connection is closed without an answer
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share)]
    drop: f64,
    /// When nothing is served, from the start, such as 10s-20s; may be repeated
    #[arg(long = "outage", value_name = "FROM-TO")]
    outages: Vec<Outage>,
    /// Calls after which the money is gone
    #[arg(long, value_name = "N")]
    quota: Option<u64>,
    /// Send no rate-limit headers
    #[arg(long)]
    no_headers: bool,
    /// Send no Retry-After
    #[arg(long)]
    no_retry_after: bool,
    /// What others use of the account, such as requests=10/s; may be repeated
    #[arg(long, value_name = "KIND=COUNT/PERIOD")]
    foreign: Vec<Foreign>,
    /// Write every answered call to this directory, without keys
    #[arg(long, value_name = "DIR", conflicts_with = "replay")]
    record: Option<PathBuf>,
    /// Answer from recorded calls, and from nothing else
    #[arg(long, value_name = "DIR")]
    replay: Option<PathBuf>,
    /// Fixes the texts, the times and which calls meet a fault
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Algorithm {
    /// Never more than the count in any window of that length
    #[default]
    Sliding,
    /// A bucket that refills continuously
    Bucket,
    /// Windows at multiples of the period
    Fixed,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum ChargeAt {
    /// The call's cap when it arrives, nothing given back, as OpenAI does
    #[default]
    Arrival,
    /// What it really was, at the end
    Usage,
    /// As it is produced, as Anthropic does
    Stream,
}

pub(crate) fn mock(args: &MockArgs, global: &Global) -> Result<(), Failure> {
    let config = config(args)?;
    if let Some(directory) = config.replay.as_ref().filter(|path| !path.is_dir()) {
        let message = format!("--replay: there is no directory {}", directory.display());
        return Err(Failure::usage(message));
    }
    if let Some(directory) = &config.record {
        std::fs::create_dir_all(directory).map_err(|error| {
            let directory = directory.display();
            Failure::usage(format!("--record: cannot make {directory}: {error}"))
        })?;
    }
    descriptors::raise_limit();
    let runtime = tokio::runtime::Runtime::new().map_err(|error| Failure::wrong(&error))?;
    let report = runtime.block_on(serve(config, global))?;
    let text = match global.format {
        Format::Table => table(&report),
        Format::Json | Format::Jsonl => output::json(&report, global.format)?,
    };
    output::print(&text)
}

fn config(args: &MockArgs) -> Result<MockConfig, Failure> {
    let algorithm = match args.algorithm {
        Algorithm::Sliding => DefaultAlgorithm::Sliding,
        Algorithm::Bucket => DefaultAlgorithm::Bucket,
        Algorithm::Fixed => DefaultAlgorithm::Fixed,
    };
    let limits = args.limits.iter().map(|text| {
        let limit = algorithm.read_limit(text);
        limit.map_err(|error| Failure::usage(format!("--limit: {error}")))
    });
    let hints = |withheld| {
        if withheld {
            Hints::Withheld
        } else {
            Hints::Sent
        }
    };
    Ok(MockConfig {
        listen: args.listen,
        limits: limits.collect::<Result<_, _>>()?,
        charge: match args.charge {
            ChargeAt::Arrival => Charge::Arrival,
            ChargeAt::Usage => Charge::Usage,
            ChargeAt::Stream => Charge::Stream,
        },
        latency: args.latency,
        jitter: args.jitter,
        output_tokens: args.output_tokens,
        fail: args.fail,
        drop: args.drop,
        outages: args.outages.clone(),
        quota: args.quota,
        rate_headers: hints(args.no_headers),
        retry_after: hints(args.no_retry_after),
        foreign: args.foreign.clone(),
        record: args.record.clone(),
        replay: args.replay.clone(),
        seed: args.seed,
        ..MockConfig::default()
    })
}

async fn serve(config: MockConfig, global: &Global) -> Result<Report, Failure> {
    let listen = config.listen;
    let mut signals = Signals::listen().map_err(|error| Failure::wrong(&error))?;
    let server = MockServer::start(config).await.map_err(|error| {
        Failure::usage(format!(
            "cannot listen on {listen}: {error}; --listen names another address"
        ))
    })?;
    if !global.quiet {
        let addr = server.addr();
        say!(
            "listening: OpenAI http://{addr}/v1, Anthropic http://{addr}, books http://{addr}/mock/report"
        );
        say!("Ctrl-C ends it");
    }
    signals.next().await;
    // The second one does not wait for calls in flight.
    let report = server.report();
    tokio::select! {
        last = server.shutdown() => Ok(last),
        () = signals.next() => Ok(report),
    }
}

fn table(report: &Report) -> String {
    let row = |name: &str, value: String| (name.to_owned(), value);
    let mut rows = vec![
        row("calls", grouped(report.calls)),
        row("accepted", grouped(report.accepted)),
        row("refused", grouped(report.refused)),
        row("input tokens", grouped(report.input_tokens)),
        row("output tokens", grouped(report.output_tokens)),
        row("in flight at most", grouped(report.in_flight_max)),
        row("answered twice", grouped(report.answers.repeated)),
        row("uptime", span(Duration::from_micros(report.uptime_us))),
    ];
    for (status, count) in &report.status {
        rows.push(row(&format!("status {status}"), grouped(*count)));
    }
    for limit in &report.limits {
        let books = format!(
            "{} used, {} refused, {} by others",
            grouped(limit.used),
            grouped(limit.refused),
            grouped(limit.foreign)
        );
        rows.push(row(&limit.limit, books));
    }
    output::columns(&rows)
}

fn share(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share))
        .ok_or_else(|| format!("`{text}` is not a share: use 0 to 1"))
}
