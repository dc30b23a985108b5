//! Scenarios drawn from a seed.

use std::time::Duration;

use fastrand::Rng;
use llmq_core::{LimitKind, LimitSpec, Priority};

use crate::scenario::{Account, Arrivals, Scenario, Sizes, Source, Spread, UpstreamPlan};

mod clocks;
mod fallbacks;
mod late;
mod learned;
mod mixed;
mod outages;
mod reserve;
mod tenants;
mod weights;

/// What a drawn scenario is to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// One provider, one line, all work there from the start, every size known.
    Steady,
    /// Several providers, lines, tenants and limits, bursts, faults, outages; sizes known.
    Mixed,
    /// As `Mixed`, sizes up to 15 % off.
    Off15,
    /// As `Mixed`, sizes up to 30 % off.
    Off30,
    /// As `Mixed`, with another client on the account.
    Shared,
    /// Tenants and models with limits of their own, beside the account's.
    Tenants,
    /// A share of every limit kept for urgent calls.
    Reserve,
    /// A model served by several providers, each with a weight, below their capacity.
    Weights,
    /// A model with another one to fall back on, outages and calls too large for its own.
    Fallbacks,
    /// Limits that nobody configured.
    Learned,
    /// Our wall clock is set, forwards and back, and the provider's is off.
    Clocks,
    /// Outages of up to ten minutes, of every kind.
    Outages,
    /// As `Mixed`, and the dispatcher is told late of some of it.
    Late,
}

impl Family {
    /// Every family.
    pub const ALL: [Self; 13] = [
        Self::Steady,
        Self::Mixed,
        Self::Off15,
        Self::Off30,
        Self::Shared,
        Self::Tenants,
        Self::Reserve,
        Self::Weights,
        Self::Fallbacks,
        Self::Learned,
        Self::Clocks,
        Self::Outages,
        Self::Late,
    ];
}

impl Scenario {
    /// The scenario of this family and seed.
    #[must_use]
    pub fn drawn(family: Family, seed: u64) -> Self {
        let draw = match family {
            Family::Steady | Family::Mixed | Family::Off15 | Family::Off30 | Family::Shared => {
                return mixed::drawn(family, seed);
            }
            Family::Tenants => tenants::drawn,
            Family::Reserve => reserve::drawn,
            Family::Weights => weights::drawn,
            Family::Fallbacks => fallbacks::drawn,
            Family::Learned => learned::drawn,
            Family::Clocks => clocks::drawn,
            Family::Outages => outages::drawn,
            Family::Late => late::drawn,
        };
        draw(seed, &mut Rng::with_seed(seed))
    }
}

fn pick<'a, T>(from: &'a [T], rng: &mut Rng) -> &'a T {
    &from[rng.usize(..from.len())]
}

/// What the newer families begin with: how a provider counts, how large calls are, how many of
/// them a window takes.
#[derive(Debug, Clone, Copy)]
struct Ground {
    account: Account,
    sizes: Sizes,
    per_window: u32,
    period: Duration,
}

impl Ground {
    fn drawn(periods_s: &[u64], rng: &mut Rng) -> Self {
        let accounts = [Account::OnArrival, Account::ToUsage, Account::AsItStreams];
        Self {
            account: *pick(&accounts, rng),
            sizes: Sizes {
                input: rng.u32(20..2_000),
                output: rng.u32(10..800),
                cap: *pick(&[None, Some(1.0), Some(2.5)], rng),
                spread: *pick(&[Spread::None, Spread::Even], rng),
            },
            per_window: rng.u32(20..200),
            period: Duration::from_secs(*pick(periods_s, rng)),
        }
    }

    /// A limit of this kind that takes `share` of what a window takes.
    fn limit(&self, kind: LimitKind, share: f64, rng: &mut Rng) -> LimitSpec {
        let Self {
            account,
            sizes,
            per_window,
            period,
        } = *self;
        mixed::limit(account, kind, sizes, per_window, period, share, rng)
    }

    /// The limit that binds, of any kind that is counted.
    fn binding(&self, rng: &mut Rng) -> LimitSpec {
        self.limit(any_kind(rng), 1.0, rng)
    }

    /// A provider with these limits that answers in a hundredth to two windows, three seconds
    /// at most.
    fn upstream(&self, limits: Vec<LimitSpec>, rng: &mut Rng) -> UpstreamPlan {
        let latency = self.period.mul_f64(0.01 + 2.0 * rng.f64().powi(3));
        UpstreamPlan {
            latency: latency.clamp(Duration::from_millis(20), Duration::from_secs(3)),
            latency_spread: rng.f64() * 0.8,
            tells_wait: rng.u32(..4) > 0,
            tells_processing: rng.bool(),
            ..UpstreamPlan::new(self.account, limits)
        }
    }

    /// Calls a second that the binding limit takes.
    fn capacity(&self) -> f64 {
        f64::from(self.per_window) / self.period.as_secs_f64()
    }

    /// As many calls as fill so many windows.
    fn calls(&self, windows: f64) -> u32 {
        whole(f64::from(self.per_window) * windows)
    }

    fn source(&self, arrivals: Arrivals, calls: u32, priority: Priority) -> Source {
        Source {
            priority,
            ..mixed::source(arrivals, calls, self.sizes)
        }
    }

    /// Delays inside the margin of a limit with this period, or of the shortest one.
    fn network(shortest: Duration, rng: &mut Rng) -> Duration {
        let most = Duration::from_millis(2).min(shortest / 100);
        most.mul_f64(rng.f64())
    }
}

fn any_kind(rng: &mut Rng) -> LimitKind {
    let kinds = [
        LimitKind::Requests,
        LimitKind::Tokens,
        LimitKind::InputTokens,
        LimitKind::OutputTokens,
    ];
    *pick(&kinds, rng)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a small count that is not negative"
)]
fn whole(count: f64) -> u32 {
    count.ceil().max(1.0) as u32
}
