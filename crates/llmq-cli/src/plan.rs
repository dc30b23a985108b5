//! `llmq plan`.

use std::time::Duration;

use clap::Args;
use llmq_core::{Host, LimitKind, LimitSpec};
use llmq_engine::bulk::{CallMaker, Item, Price, RowReader};
use llmq_engine::config::{ProviderKind, Settings};
use llmq_sim::{PlanNeed, PlanReport, PlanRow, PlanSetup};
use serde_json::{Value, json};

use crate::cli::{ConfigFile, Format, Global};
use crate::exit::{FAILED, Failure};
use crate::limits::LimitArgs;
use crate::output::{self, columns};
use crate::prompt::{Input, InputArgs, PromptArgs};
use crate::quota::QuotaArgs;
use crate::text::{dollars, grouped, span};
use crate::upstream::{Chosen, ProviderArgs};
use crate::{config, prompt, upstream};

/// Work through a file in virtual time: how long it will take, how many tokens, what cost, which
/// limit binds and what doubling it would bring. Sends nothing and needs no key.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  llmq plan places.csv --model gpt-4o-mini --rpm 500 --tpm 200k --price 0.15/0.60 \\
      --template 'Introduce {{name}}, {{country}}.' --param max_tokens=200
  llmq plan prompts.txt --model gpt-4o-mini --tpm 2M --finish-in 1h --format json")]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    provider: ProviderArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    quota: QuotaArgs,
    #[command(flatten, next_help_heading = "Plan")]
    config: ConfigFile,
    /// How long an answer takes; else half a second and a fiftieth for each of its tokens
    #[arg(long, value_name = "TIME", value_parser = crate::text::time, help_heading = "Plan")]
    latency: Option<Duration>,
    /// How long an answer is expected to be, in tokens; at most its cap is taken [default: 200]
    #[arg(long, value_name = "N", help_heading = "Plan")]
    output_tokens: Option<u32>,
    /// Which limits and how many calls at once it takes to finish in this time, such as 7d
    #[arg(long, value_name = "TIME", value_parser = crate::text::time, help_heading = "Plan")]
    finish_in: Option<Duration>,
}

/// What is taken for granted where nobody said otherwise.
struct Assumed {
    latency: Duration,
    output_tokens: u32,
}

/// The rows as a plan needs them.
#[derive(Default)]
struct Rows {
    rows: Vec<PlanRow>,
    bad: u64,
}

/// What a plan says.
struct Answer {
    report: PlanReport,
    bad_rows: u64,
    price: Option<Price>,
    assumed: Assumed,
    /// What the provider's own batch API would cost, and the longest it may take.
    batch: Option<Duration>,
    need: Option<(Duration, Option<PlanNeed>)>,
}

pub(crate) fn plan(args: &PlanArgs, global: &Global) -> Result<(), Failure> {
    let settings = args.quota.over(config::load(&args.config)?).check();
    let settings = settings.map_err(|errors| config::mistakes(&errors))?;
    let input = prompt::input(&args.input, &args.prompt)?;
    let model = args.prompt.model.as_deref();
    let chosen = upstream::choose(&args.provider, &args.limits, model, &settings)?;
    let calls = prompt::calls(&args.prompt, &input, chosen.dialect, chosen.default_model())?;
    let assumed = assumed(args, &chosen);
    let setup = setup(&chosen, &settings, &assumed)?;
    let rows = read(input, &calls, &chosen, &assumed)?;
    let need = args.finish_in.map(|time| {
        let need = llmq_sim::finish_in(&rows.rows, &setup, time);
        (time, need)
    });
    let answer = Answer {
        report: llmq_sim::plan(&rows.rows, &setup),
        bad_rows: rows.bad,
        price: chosen.price,
        assumed,
        batch: batch_api(setup.host),
        need,
    };
    let text = match global.format {
        Format::Table => answer.table(),
        Format::Json | Format::Jsonl => output::json(&answer.json(), global.format)?,
    };
    output::print(&text)?;
    match &answer.need {
        Some((_, None)) => Err(Failure::silent(FAILED)),
        _ => Ok(()),
    }
}

/// The stand-in's own figures for the stand-in, common ones for everybody else.
fn assumed(args: &PlanArgs, chosen: &Chosen) -> Assumed {
    const STAND_IN_TOKENS: u32 = 40;
    const STAND_IN_LATENCY: Duration = Duration::from_millis(20);
    const TOKENS: u32 = 200;
    const FIRST_TOKEN: Duration = Duration::from_millis(500);
    const EACH_TOKEN: Duration = Duration::from_millis(20);
    let is_mock = chosen.default_model().is_some();
    let usual = if is_mock { STAND_IN_TOKENS } else { TOKENS };
    let output_tokens = args.output_tokens.unwrap_or(usual);
    let usual = if is_mock {
        STAND_IN_LATENCY
    } else {
        FIRST_TOKEN + EACH_TOKEN.saturating_mul(output_tokens)
    };
    Assumed {
        latency: args.latency.unwrap_or(usual),
        output_tokens,
    }
}

fn setup(chosen: &Chosen, settings: &Settings, assumed: &Assumed) -> Result<PlanSetup, Failure> {
    let [upstream] = chosen.upstreams.as_slice() else {
        return Err(Failure::usage(
            "the model is served by several upstreams, and a plan is made for one: \
             say --provider and its limits",
        ));
    };
    let shared = upstream.shared.iter().flat_map(|(_, limits)| limits);
    let mut limits: Vec<LimitSpec> = upstream.limits.iter().chain(shared).copied().collect();
    limits.extend(daily_budget(settings));
    let states_concurrency = limits
        .iter()
        .any(|limit| limit.kind == LimitKind::Concurrency);
    let price = chosen.price.unwrap_or(Price {
        input: 0.0,
        output: 0.0,
    });
    Ok(PlanSetup {
        limits,
        adaptive: upstream.settings.adaptive.filter(|_| !states_concurrency),
        host: match upstream.settings.provider {
            ProviderKind::Mock => Host::Mock,
            _ => upstream.settings.host(),
        },
        latency: assumed.latency,
        price_input: price.input,
        price_output: price.output,
    })
}

/// The budget of a day, as far as a run uses it before it pauses until the day turns.
fn daily_budget(settings: &Settings) -> Option<LimitSpec> {
    const DAY: Duration = Duration::from_secs(86_400);
    let quota = &settings.quota;
    let limit = quota.daily_request_limit.filter(|_| quota.monitoring)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a positive count; saturates"
    )]
    let used = (limit as f64 * quota.pause_threshold) as u64;
    Some(LimitSpec::per(
        LimitKind::Requests,
        used.max(1),
        DAY,
        llmq_core::Algorithm::Fixed,
    ))
}

fn read(
    input: Input,
    calls: &CallMaker,
    chosen: &Chosen,
    assumed: &Assumed,
) -> Result<Rows, Failure> {
    let mut rows = Rows::default();
    let reader = RowReader::open(&input.source, input.kind, input.read)
        .map_err(|error| Failure::wrong(&error))?;
    calls
        .check(&input.source, &reader)
        .map_err(|error| Failure::wrong(&error))?;
    for item in reader {
        match item.map_err(|error| Failure::wrong(&error))? {
            Item::Bad(_) => rows.bad += 1,
            Item::Row(row) => match calls.prepare(row, chosen.model(), chosen.dialect) {
                Ok(call) => {
                    let size = call.size;
                    let cap = u64::from(size.choices.max(1)) * u64::from(assumed.output_tokens);
                    let output = cap.min(size.output_cap(assumed.output_tokens));
                    rows.rows.push(PlanRow {
                        size,
                        output_tokens: u32::try_from(output).unwrap_or(u32::MAX),
                    });
                }
                Err(_) => rows.bad += 1,
            },
        }
    }
    Ok(rows)
}

/// The longest that a provider's own batch API may take, where it is known to have one at half
/// the price (the batch guides of OpenAI, Azure and Anthropic, November 2026).
fn batch_api(host: Host) -> Option<Duration> {
    match host {
        Host::OpenAi | Host::Anthropic | Host::Azure => Some(Duration::from_secs(86_400)),
        _ => None,
    }
}

/// Its price, as a share of the plain one.
const BATCH_PRICE: f64 = 0.5;

impl Answer {
    fn cost(&self) -> Option<f64> {
        self.price.map(|_| self.report.cost_usd)
    }

    fn table(&self) -> String {
        let row = |name: &str, value: String| (name.to_owned(), value);
        let report = &self.report;
        let mut rows = vec![row("rows", self.rows_text())];
        rows.push(row(
            "tokens",
            format!(
                "{} in, {} out",
                grouped(report.input_tokens),
                grouped(report.output_tokens)
            ),
        ));
        match self.cost() {
            Some(cost) => rows.push(row("cost", dollars(cost))),
            None => rows.push(row("cost", "unknown: say --price INPUT/OUTPUT".to_owned())),
        }
        rows.push(row("time", span(report.elapsed)));
        let mut in_flight = format!("at most {}", grouped(report.in_flight_max));
        if report.searching >= 0.01 {
            let percent = report.searching * 100.0;
            in_flight.push_str(&format!(
                "; finding the number takes {percent:.0} % of the time, and --concurrency states it"
            ));
        }
        rows.push(row("calls in flight", in_flight));
        for binding in &report.binding {
            let text = format!(
                "binds {:.0} % of the time; twice as much: {}",
                binding.share * 100.0,
                span(binding.if_doubled)
            );
            rows.push(row(&binding.limit.to_string(), text));
        }
        if report.binding.is_empty() {
            rows.push(row("limits", "none of them binds".to_owned()));
        }
        if let Some(longest) = self.batch {
            let price = self.cost().map_or_else(
                || "half the price".to_owned(),
                |cost| dollars(cost * BATCH_PRICE),
            );
            rows.push(row(
                "their batch API",
                format!("{price}, up to {}", span(longest)),
            ));
        }
        rows.push(row(
            "taken for granted",
            format!(
                "{} an answer, {} tokens each",
                span(self.assumed.latency),
                self.assumed.output_tokens
            ),
        ));
        if let Some((time, need)) = &self.need {
            rows.push(row(
                &format!("to finish in {}", span(*time)),
                pace_text(need.as_ref()),
            ));
            if let Some(need) = need {
                rows.push(row("limits for that", self.need_text(need)));
            }
        }
        columns(&rows)
    }

    /// The limits as they are, if they are enough, or as they would have to be.
    fn need_text(&self, need: &PlanNeed) -> String {
        if need.report.elapsed == self.report.elapsed {
            return "these are enough".to_owned();
        }
        format!(
            "{} (then {}, at most {} calls in flight)",
            texts(&need.limits).join(", "),
            span(need.report.elapsed),
            grouped(need.report.in_flight_max)
        )
    }

    fn rows_text(&self) -> String {
        let mut text = grouped(self.report.rows);
        if self.report.too_large > 0 {
            text.push_str(&format!(
                ", and {} larger than a limit",
                grouped(self.report.too_large)
            ));
        }
        if self.bad_rows > 0 {
            text.push_str(&format!(", and {} bad ones", grouped(self.bad_rows)));
        }
        text
    }

    fn json(&self) -> Value {
        let report = &self.report;
        let binding: Vec<Value> = report
            .binding
            .iter()
            .map(|binding| {
                json!({
                    "limit": binding.limit.to_string(),
                    "share": binding.share,
                    "if_doubled_s": binding.if_doubled.as_secs_f64(),
                })
            })
            .collect();
        json!({
            "rows": report.rows,
            "too_large": report.too_large,
            "bad_rows": self.bad_rows,
            "input_tokens": report.input_tokens,
            "output_tokens": report.output_tokens,
            "cost_usd": self.cost(),
            "elapsed_s": report.elapsed.as_secs_f64(),
            "in_flight_max": report.in_flight_max,
            "searching": report.searching,
            "binding": binding,
            "batch_api": self.batch.map(|longest| json!({
                "cost_usd": self.cost().map(|cost| cost * BATCH_PRICE),
                "up_to_s": longest.as_secs_f64(),
            })),
            "assumed": {
                "latency_s": self.assumed.latency.as_secs_f64(),
                "output_tokens": self.assumed.output_tokens,
            },
            "finish_in": self.need.as_ref().map(|(time, need)| json!({
                "time_s": time.as_secs_f64(),
                "limits": need.as_ref().map(|need| texts(&need.limits)),
                "elapsed_s": need.as_ref().map(|need| need.report.elapsed.as_secs_f64()),
                "in_flight_max": need.as_ref().map(|need| need.report.in_flight_max),
                "pace": need.as_ref().map(|need| json!({
                    "requests_per_minute": need.pace.requests_per_minute,
                    "tokens_per_minute": need.pace.tokens_per_minute,
                    "calls_at_once": need.pace.calls_at_once,
                })),
            })),
        })
    }
}

fn pace_text(need: Option<&PlanNeed>) -> String {
    match need {
        Some(PlanNeed { pace, .. }) => format!(
            "{} requests and {} tokens a minute, {} calls at once",
            grouped(pace.requests_per_minute),
            grouped(pace.tokens_per_minute),
            grouped(pace.calls_at_once)
        ),
        None => "no limit is high enough: one answer takes longer".to_owned(),
    }
}

fn texts(limits: &[LimitSpec]) -> Vec<String> {
    limits.iter().map(ToString::to_string).collect()
}
