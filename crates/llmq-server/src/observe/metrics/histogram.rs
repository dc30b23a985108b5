use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts of values by size, in whole units of its scale. Recording is two additions and no
/// lock; nothing is ever lost to rounding.
#[derive(Debug)]
pub(crate) struct Histogram {
    scale: &'static Scale,
    /// One more than there are bounds: the last one is for what is above them all.
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// The bounds of a histogram's buckets.
#[derive(Debug)]
pub(crate) struct Scale {
    /// Upper bounds, ascending, in units.
    bounds: &'static [u64],
    /// Units in one of what is shown: 10^9 ns are a second.
    unit: u64,
}

const NS: u64 = 1_000_000_000;
const US: u64 = 1_000;
const MS: u64 = 1_000_000;

/// Whole calls. The bounds are those of the OpenTelemetry conventions for GenAI metrics
/// (2025), as are those of the next three.
pub(crate) const CALL_TIME: Scale = Scale {
    bounds: &[
        10 * MS,
        20 * MS,
        40 * MS,
        80 * MS,
        160 * MS,
        320 * MS,
        640 * MS,
        1_280 * MS,
        2_560 * MS,
        5_120 * MS,
        10_240 * MS,
        20_480 * MS,
        40_960 * MS,
        81_920 * MS,
    ],
    unit: NS,
};

/// Times to a first token.
pub(crate) const FIRST_TOKEN: Scale = Scale {
    bounds: &[
        MS,
        5 * MS,
        10 * MS,
        20 * MS,
        40 * MS,
        60 * MS,
        80 * MS,
        100 * MS,
        250 * MS,
        500 * MS,
        750 * MS,
        1_000 * MS,
        2_500 * MS,
        5_000 * MS,
        7_500 * MS,
        10_000 * MS,
    ],
    unit: NS,
};

/// Times from one output token to the next.
pub(crate) const NEXT_TOKEN: Scale = Scale {
    bounds: &[
        10 * MS,
        25 * MS,
        50 * MS,
        75 * MS,
        100 * MS,
        150 * MS,
        200 * MS,
        300 * MS,
        400 * MS,
        500 * MS,
        750 * MS,
        1_000 * MS,
        2_500 * MS,
    ],
    unit: NS,
};

/// Tokens of one call.
pub(crate) const TOKENS: Scale = Scale {
    bounds: &[
        1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216,
        67_108_864,
    ],
    unit: 1,
};

/// Waits in line: from not at all to the hours of a daily quota.
pub(crate) const WAIT: Scale = Scale {
    bounds: &[
        MS,
        10 * MS,
        100 * MS,
        500 * MS,
        1_000 * MS,
        2_000 * MS,
        5_000 * MS,
        10_000 * MS,
        30_000 * MS,
        60_000 * MS,
        300_000 * MS,
        3_600_000 * MS,
    ],
    unit: NS,
};

/// What llmq itself adds to a call.
pub(crate) const ADDED: Scale = Scale {
    bounds: &[
        5 * US,
        10 * US,
        20 * US,
        40 * US,
        60 * US,
        100 * US,
        200 * US,
        500 * US,
        MS,
        2 * MS,
        5 * MS,
        10 * MS,
        50 * MS,
        100 * MS,
        1_000 * MS,
    ],
    unit: NS,
};

impl Histogram {
    pub(crate) fn new(scale: &'static Scale) -> Self {
        Self {
            scale,
            buckets: (0..=scale.bounds.len())
                .map(|_| AtomicU64::new(0))
                .collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts one value, in units.
    pub(crate) fn record(&self, value: u64) {
        let place = self.scale.bounds.partition_point(|bound| *bound < value);
        self.buckets[place].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    pub(crate) fn record_time(&self, time: Duration) {
        self.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds what it has counted to `to`.
    pub(crate) fn add_to(&self, to: &OnceLock<Self>) {
        let to = to.get_or_init(|| Self::new(self.scale));
        add_counts(self.buckets.iter(), to.buckets.iter());
        add_counts([&self.sum], [&to.sum]);
    }

    /// For each bound, how many values were at most that; then how many there were at all.
    pub(crate) fn cumulative(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let bounds = self
            .scale
            .bounds
            .iter()
            .map(|bound| Some(self.scale.show(*bound)))
            .chain([None]);
        let mut total = 0;
        bounds.zip(&self.buckets).map(move |(bound, bucket)| {
            total += bucket.load(Ordering::Relaxed);
            (bound, total)
        })
    }

    /// All values together, as shown.
    pub(crate) fn sum(&self) -> f64 {
        self.scale.show(self.sum.load(Ordering::Relaxed))
    }
}

/// Adds counts to those that stand in the same places.
pub(crate) fn add_counts<'a>(
    from: impl IntoIterator<Item = &'a AtomicU64>,
    to: impl IntoIterator<Item = &'a AtomicU64>,
) {
    for (from, to) in from.into_iter().zip(to) {
        to.fetch_add(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Scale {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people and graphs")]
    fn show(&self, value: u64) -> f64 {
        value as f64 / self.unit as f64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [&Scale; 6] = [
        &CALL_TIME,
        &FIRST_TOKEN,
        &NEXT_TOKEN,
        &TOKENS,
        &WAIT,
        &ADDED,
    ];

    #[test]
    fn bounds_ascend() {
        for scale in ALL {
            assert!(scale.bounds.is_sorted_by(|a, b| a < b), "{scale:?}");
        }
    }

    proptest! {
        /// What Prometheus means by a bucket: every value up to and including its bound.
        #[test]
        fn a_bucket_counts_what_is_at_most_its_bound(
            values in prop::collection::vec(prop_oneof![0..200u64, 0..u64::from(u32::MAX)], 0..50),
        ) {
            let histogram = Histogram::new(&TOKENS);
            for value in &values {
                histogram.record(*value);
            }
            let shown: Vec<(Option<f64>, u64)> = histogram.cumulative().collect();
            for (bound, count) in &shown {
                let expected = values
                    .iter()
                    .filter(|value| bound.is_none_or(|bound| TOKENS.show(**value) <= bound))
                    .count();
                prop_assert_eq!(*count, expected as u64);
            }
            prop_assert_eq!(histogram.sum(), TOKENS.show(values.iter().sum()));
        }
    }
}
