//! What is drawn: a model's limits, and requests that come, fail and leave.

use std::ops::Range;
use std::time::Duration;

use llmq::{ModelConfig, Priority};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

pub(crate) const MODEL: &str = "m";
/// How long a call of those takes that look whether all places are free.
pub(crate) const PROBE: Duration = Duration::from_millis(7);

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) concurrency: u32,
    pub(crate) per_period: u32,
    pub(crate) period: Duration,
    pub(crate) capacity: u64,
    pub(crate) max_attempts: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// When it is submitted.
    pub(crate) at: Duration,
    /// How long an attempt takes.
    pub(crate) takes: Duration,
    pub(crate) priority: Priority,
    pub(crate) waits: bool,
    pub(crate) key: Option<u8>,
    pub(crate) timeout: Option<Duration>,
    /// Its first attempts that fail.
    pub(crate) failures: u32,
    pub(crate) leave: Leave,
}

/// What its submitter does after a while.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Leave {
    Stays,
    Cancels(Duration),
    /// Drops the submission.
    Drops(Duration),
}

pub(crate) fn config() -> impl Strategy<Value = Config> {
    (1..6_u32, 1..8_u32, millis(20..2_000), 1..30_u64, 1..4_u32).prop_map(
        |(concurrency, per_period, period, capacity, max_attempts)| Config {
            concurrency,
            per_period,
            period,
            capacity,
            max_attempts,
        },
    )
}

impl Config {
    pub(crate) fn model(&self) -> ModelConfig {
        ModelConfig::new(MODEL)
            .concurrent(self.concurrency.into())
            .requests_per(self.per_period.into(), self.period)
            .capacity(self.capacity)
            .max_attempts(self.max_attempts)
            .without_breaker()
    }

    /// How many calls can start at once when nothing else runs.
    pub(crate) fn width(&self) -> usize {
        let width = u64::from(self.concurrency.min(self.per_period));
        usize::try_from(width.min(self.capacity)).unwrap()
    }
}

pub(crate) fn jobs(count: Range<usize>) -> impl Strategy<Value = Vec<Job>> {
    vec(job(), count)
}

fn job() -> impl Strategy<Value = Job> {
    let failures = prop_oneof![4 => Just(0), 1 => 1..4_u32];
    (
        millis(0..300),
        millis(0..200),
        priority(),
        any::<bool>(),
        option::weighted(0.3, 0..3_u8),
        option::weighted(0.2, millis(1..3_000)),
        failures,
        leave(),
    )
        .prop_map(
            |(at, takes, priority, waits, key, timeout, failures, leave)| Job {
                at,
                takes,
                priority,
                waits,
                key,
                timeout,
                failures,
                leave,
            },
        )
}

pub(crate) fn priority() -> impl Strategy<Value = Priority> {
    prop_oneof![
        Just(Priority::LOW),
        Just(Priority::NORMAL),
        Just(Priority::HIGH),
        Just(Priority::CRITICAL),
    ]
}

fn leave() -> impl Strategy<Value = Leave> {
    prop_oneof![
        3 => Just(Leave::Stays),
        1 => millis(0..600).prop_map(Leave::Cancels),
        1 => millis(0..600).prop_map(Leave::Drops),
    ]
}

fn millis(range: Range<u64>) -> impl Strategy<Value = Duration> {
    range.prop_map(Duration::from_millis)
}
