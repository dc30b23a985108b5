//! How long a file of calls will take, found by playing it with the real dispatcher.

use std::time::Duration;

use llmq_core::{CallSize, Host, LimitKind, LimitSpec};
use llmq_limit::AdaptiveConfig;

mod need;
mod play;

pub use need::{Pace, PlanNeed, finish_in};

use play::Play;

/// One row of a file, as far as a plan needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanRow {
    /// The call, as it will be estimated.
    pub size: CallSize,
    /// The output it is expected to produce, in tokens, over all its answers.
    pub output_tokens: u32,
}

/// What a file will be sent to.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanSetup {
    /// The limits that hold, concurrency among them.
    pub limits: Vec<LimitSpec>,
    /// How the number of calls at once is found, where no limit states it.
    pub adaptive: Option<AdaptiveConfig>,
    /// How they charge.
    pub host: Host,
    /// The mean time from sending a call to the end of its answer.
    pub latency: Duration,
    /// US dollars per million input tokens.
    pub price_input: f64,
    /// US dollars per million output tokens.
    pub price_output: f64,
}

/// What a file will take.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanReport {
    /// Rows that get an answer.
    pub rows: u64,
    /// Rows above the whole of a limit, which fail at once.
    pub too_large: u64,
    /// From the first call to the end of the last, with every limit unused at the start.
    pub elapsed: Duration,
    /// Input tokens of all rows that are sent.
    pub input_tokens: u64,
    /// Output tokens of all rows that are sent.
    pub output_tokens: u64,
    /// US dollars.
    pub cost_usd: f64,
    /// The most calls in flight at one time.
    pub in_flight_max: u64,
    /// The limits that held the file up, the one that did so longest first.
    pub binding: Vec<Binding>,
    /// The share of the whole time in which the next row waited for the number of calls at once
    /// that was found so far, 0 to 1.
    pub searching: f64,
}

/// A limit that holds a file up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Binding {
    /// The limit.
    pub limit: LimitSpec,
    /// The share of the whole time in which the next row waited for it, 0 to 1. Where it waited
    /// for several at once, each has an equal part.
    pub share: f64,
    /// How long the file would take if this limit alone were twice as high.
    pub if_doubled: Duration,
}

/// Plays `rows` on virtual time: with the limits, the charge rules and the order that a run
/// has, every call taking the mean latency and using what is expected.
///
/// ```
/// use llmq_core::{CallSize, Host};
/// use llmq_sim::{PlanRow, PlanSetup, plan};
/// use std::time::Duration;
///
/// let row = PlanRow { size: CallSize::of_input(100), output_tokens: 50 };
/// let setup = PlanSetup {
///     limits: vec!["requests=10/1m".parse().unwrap()],
///     adaptive: None,
///     host: Host::Unknown,
///     latency: Duration::from_secs(1),
///     price_input: 0.15,
///     price_output: 0.60,
/// };
/// let report = plan(&[row; 25], &setup);
/// assert_eq!(report.elapsed.as_secs(), 121);
/// assert_eq!(report.binding[0].limit, setup.limits[0]);
/// assert_eq!(report.binding[0].if_doubled.as_secs(), 61);
/// ```
#[must_use]
pub fn plan(rows: &[PlanRow], setup: &PlanSetup) -> PlanReport {
    let mut report = Play::new(rows, setup).run();
    for binding in &mut report.binding {
        let doubled = PlanSetup {
            limits: raised(&setup.limits, |limit| {
                if *limit == binding.limit { 2.0 } else { 1.0 }
            }),
            ..setup.clone()
        };
        binding.if_doubled = Play::new(rows, &doubled).run().elapsed;
    }
    report
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a positive count times a factor; saturates"
)]
fn raised(limits: &[LimitSpec], mut factor: impl FnMut(&LimitSpec) -> f64) -> Vec<LimitSpec> {
    let raise = |limit: &LimitSpec| LimitSpec {
        count: (limit.count as f64 * factor(limit)).ceil() as u64,
        ..*limit
    };
    limits.iter().map(raise).collect()
}

impl PlanSetup {
    /// The limit of calls in flight, if there is one.
    #[must_use]
    pub fn concurrency(&self) -> Option<u64> {
        let places = |limit: &&LimitSpec| limit.kind == LimitKind::Concurrency;
        self.limits
            .iter()
            .filter(places)
            .map(|limit| limit.count)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(limits: &[&str]) -> PlanSetup {
        PlanSetup {
            limits: limits.iter().map(|text| text.parse().unwrap()).collect(),
            adaptive: None,
            host: Host::Unknown,
            latency: Duration::from_secs(1),
            price_input: 1.0,
            price_output: 2.0,
        }
    }

    fn rows(count: usize) -> Vec<PlanRow> {
        let row = PlanRow {
            size: CallSize::of_input(100),
            output_tokens: 50,
        };
        vec![row; count]
    }

    #[test]
    fn without_limits_all_rows_take_one_latency() {
        let report = plan(&rows(3_000), &setup(&[]));
        assert_eq!(report.elapsed, Duration::from_secs(1));
        assert_eq!((report.rows, report.in_flight_max), (3_000, 3_000));
        assert_eq!(
            (report.input_tokens, report.output_tokens),
            (300_000, 150_000)
        );
        assert!((report.cost_usd - 0.6).abs() < 1e-9);
        assert!(report.binding.is_empty());
    }

    #[test]
    fn concurrency_alone_gives_rounds_of_one_latency_each() {
        let report = plan(&rows(1_000), &setup(&["concurrency=10", "requests=1M/1m"]));
        assert_eq!(report.elapsed, Duration::from_secs(100));
        assert_eq!(report.binding.len(), 1);
        assert_eq!(report.binding[0].limit.kind, LimitKind::Concurrency);
        assert_eq!(report.binding[0].if_doubled, Duration::from_secs(50));
    }

    /// A plan took the highest number for granted from the first call on, and promised a third of
    /// the time.
    #[test]
    fn the_number_of_calls_at_once_is_found_in_rounds_as_a_run_does() {
        let found = PlanSetup {
            adaptive: Some(AdaptiveConfig::default()),
            ..setup(&[])
        };
        // 16 and 16 again, since a round has 32 answers; then 32, 64, … 1,024, and the last 952.
        let report = plan(&rows(3_000), &found);
        assert_eq!(report.elapsed, Duration::from_secs(9));
        assert_eq!(report.in_flight_max, 1_024);
        assert!(report.searching > 0.8, "{}", report.searching);
        // What is found too late must be stated.
        let time = Duration::from_secs(3);
        let need = finish_in(&rows(3_000), &found, time).unwrap();
        assert!(need.report.elapsed <= time);
        assert_eq!(need.limits.len(), 1);
        assert!((1_000..1_100).contains(&need.limits[0].count), "{need:?}");
        let enough = finish_in(&rows(3_000), &found, Duration::from_secs(9)).unwrap();
        assert_eq!(enough.limits, []);
    }

    #[test]
    fn a_limit_of_a_day_takes_days_and_no_time_to_compute() {
        let report = plan(
            &rows(10_000),
            &setup(&["requests=1000/1d", "requests=500/1m"]),
        );
        let days = report.elapsed.as_secs_f64() / 86_400.0;
        assert!((days - 9.0).abs() < 0.01, "{days}");
        assert_eq!(report.binding[0].limit.count, 1_000);
    }

    #[test]
    fn a_row_above_a_whole_limit_is_counted_apart() {
        let mut rows = rows(3);
        rows[1].size.input_tokens = 5_000;
        let report = plan(&rows, &setup(&["tokens=1000/1m"]));
        assert_eq!((report.rows, report.too_large), (2, 1));
    }

    #[test]
    fn what_is_needed_is_enough_and_little_more_than_that() {
        let setup = setup(&["requests=100/1m", "tokens=10k/1m", "concurrency=1"]);
        let rows = rows(2_000);
        let time = Duration::from_secs(300);
        let need = finish_in(&rows, &setup, time).unwrap();
        assert!(need.report.elapsed <= time);
        for (now, then) in setup.limits.iter().zip(&need.limits) {
            assert!(then.count >= now.count);
        }
        let less = PlanSetup {
            limits: raised(&need.limits, |_| 0.9),
            ..setup
        };
        assert!(plan(&rows, &less).elapsed > time);
        assert_eq!(finish_in(&rows, &setup, Duration::from_millis(10)), None);
    }

    /// It panicked where the time was shorter than one answer.
    #[test]
    fn no_rows_are_finished_in_no_time() {
        let need = finish_in(&[], &setup(&["requests=1/1m"]), Duration::from_nanos(1)).unwrap();
        assert_eq!(need.pace.requests_per_minute, 0);
        assert_eq!(need.pace.calls_at_once, 0);
    }

    #[test]
    fn the_pace_is_what_must_be_allowed_whatever_is_allowed_now() {
        let generous = setup(&["requests=1M/1m", "concurrency=2048"]);
        let need = finish_in(&rows(3_600), &generous, Duration::from_secs(601)).unwrap();
        assert_eq!(need.limits, generous.limits);
        assert_eq!(need.pace.requests_per_minute, 360);
        assert_eq!(need.pace.calls_at_once, 6);
        // With nothing else than the pace, the time is kept.
        let paced = setup(&["requests=360/1m", "concurrency=6"]);
        let report = plan(&rows(3_600), &paced);
        assert!(
            report.elapsed <= Duration::from_secs(601),
            "{:?}",
            report.elapsed
        );
    }
}
