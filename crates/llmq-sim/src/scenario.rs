use std::time::Duration;

use llmq_core::{Host, LimitKind, LimitSpec, Priority};
use llmq_dispatch::Reserve;
use llmq_strict::Charge;

mod bug;
mod parties;

pub use bug::SeededBug;
pub use parties::{QueuePlan, TenantPlan, WallJump};

/// A world to be played: providers with their limits and faults, and who calls them. All that
/// is random in a run follows from `seed`.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Where everything random comes from.
    pub seed: u64,
    /// The providers.
    pub upstreams: Vec<UpstreamPlan>,
    /// The queues that sources name by position. One that is not here has no limits of its own
    /// and may use every provider.
    pub queues: Vec<QueuePlan>,
    /// Who sends calls.
    pub sources: Vec<Source>,
    /// The tenants that sources name by position.
    pub tenants: Vec<TenantPlan>,
    /// The share of every limit that is kept for urgent calls, if any is.
    pub reserve: Option<Reserve>,
    /// How much later than it was written a call may arrive, at most; each way. Keep it within
    /// 2 ms and one per cent of the shortest window to stay inside the margin.
    pub network_max: Duration,
    /// How late the dispatcher may be told of what has happened.
    pub telling: Telling,
    /// How well the size of calls is known before they are sent.
    pub estimates: Estimates,
    /// The share of calls whose caller gives up while they wait or run.
    pub leavers: f64,
    /// After how long a waiting lane rises.
    pub aging: Duration,
    /// A queue pauses this long, at the middle of the run.
    pub pause: Option<Duration>,
    /// When and how our own wall clock is set.
    pub wall_jumps: Vec<WallJump>,
    /// Attempts before a call fails for good.
    pub max_attempts: u32,
    /// What has been broken on purpose.
    pub bug: Option<SeededBug>,
}

impl Scenario {
    /// A world without mishaps: one queue to these providers, one tenant, every size known.
    #[must_use]
    pub fn new(seed: u64, upstreams: Vec<UpstreamPlan>, sources: Vec<Source>) -> Self {
        Self {
            seed,
            upstreams,
            queues: Vec::new(),
            sources,
            tenants: vec![TenantPlan::default()],
            reserve: None,
            network_max: Duration::from_millis(1),
            telling: Telling::default(),
            estimates: Estimates::default(),
            leavers: 0.0,
            aging: Duration::from_secs(600),
            pause: None,
            wall_jumps: Vec::new(),
            max_attempts: 20,
            bug: None,
        }
    }

    /// The plan of a queue: every provider, at equal weight, where none is given.
    pub(crate) fn queue(&self, index: usize) -> QueuePlan {
        let any = || QueuePlan::to((0..self.upstreams.len()).map(|upstream| (upstream, 1.0)));
        self.queues.get(index).cloned().unwrap_or_else(any)
    }

    /// Whether all calls stand in one line: no limits but those of the providers, which every
    /// queue may use.
    pub(crate) fn is_plain(&self) -> bool {
        self.queues.is_empty() && self.tenants.iter().all(|tenant| tenant.limits.is_empty())
    }

    /// How many queues there are.
    pub(crate) fn queue_count(&self) -> usize {
        let named = self.sources.iter().map(|source| source.queue + 1).max();
        named.unwrap_or(0).max(self.queues.len())
    }
}

/// One provider.
#[derive(Debug, Clone)]
pub struct UpstreamPlan {
    /// Whose charge rules the dispatcher is to use.
    pub account: Account,
    /// What it enforces.
    pub limits: Vec<LimitSpec>,
    /// Whether the dispatcher is told of them, or has to learn them from headers.
    pub knowledge: Knowledge,
    /// The mean time from arrival to the answer's end.
    pub latency: Duration,
    /// Latencies are spread evenly over the mean times 1 ± this, 0 to 1.
    pub latency_spread: f64,
    /// The share of calls that fail with a fault that passes.
    pub failures: f64,
    /// What its answers tell of its limits.
    pub headers: HeaderStyle,
    /// Whether a 429 says how long to wait.
    pub tells_wait: bool,
    /// Whether answers say how long they were worked on.
    pub tells_processing: bool,
    /// Who else uses the account.
    pub foreign: Option<Foreign>,
    /// When it is down.
    pub outages: Vec<Outage>,
    /// How far its wall clock is ahead of ours, in milliseconds: it moves fixed windows.
    pub skew_ms: i32,
    /// Whether the dispatcher holds back until it knows the charges.
    pub asks_first: bool,
}

impl UpstreamPlan {
    /// A provider without faults and headers that answers in half a second.
    #[must_use]
    pub fn new(account: Account, limits: Vec<LimitSpec>) -> Self {
        Self {
            account,
            limits,
            knowledge: Knowledge::Told,
            latency: Duration::from_millis(500),
            latency_spread: 0.5,
            failures: 0.0,
            headers: HeaderStyle::None,
            tells_wait: true,
            tells_processing: false,
            foreign: None,
            outages: Vec::new(),
            skew_ms: 0,
            asks_first: false,
        }
    }
}

/// How a provider counts tokens, which both sides agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// Estimate and cap, on arrival.
    OnArrival,
    /// Input on arrival, output when the call ends.
    ToUsage,
    /// Input on arrival, output as it streams.
    AsItStreams,
}

impl Account {
    /// The host whose rules the dispatcher is told.
    #[must_use]
    pub fn host(self) -> Host {
        match self {
            Self::OnArrival => Host::Mock,
            Self::ToUsage => Host::Unknown,
            Self::AsItStreams => Host::Anthropic,
        }
    }

    /// How the strict provider counts.
    #[must_use]
    pub fn charge(self) -> Charge {
        match self {
            Self::OnArrival => Charge::Arrival,
            Self::ToUsage => Charge::Usage,
            Self::AsItStreams => Charge::Stream,
        }
    }
}

/// Whether limits are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knowledge {
    /// The dispatcher is told of them at the start.
    Told,
    /// Nobody has configured them: only the provider's headers tell.
    Learned,
}

/// What answers tell of limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderStyle {
    /// Nothing.
    None,
    /// Everything, with the window.
    Full,
    /// Limit, remaining and reset; the window has to be inferred.
    Bare,
    /// As `Full`, tokens rounded to thousands.
    Rounded,
    /// Written out as text, with the provider's own `Date` and with instants by its clock.
    Dated,
}

/// Another client of the same account.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Foreign {
    /// What it uses.
    pub kind: LimitKind,
    /// How much at a time.
    pub amount: u64,
    /// The mean time between two uses.
    pub every: Duration,
}

/// A time in which a provider is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// From the start of the run.
    pub after: Duration,
    /// How long.
    pub lasts: Duration,
    /// How it shows.
    pub kind: OutageKind,
}

/// After so long without an answer a client gives a call up.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(30);

/// How an outage shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutageKind {
    /// Connections are refused: nothing is sent.
    Refused,
    /// Calls are answered with an overload.
    Overload,
    /// Calls are taken in and counted, and no answer ever comes: the client gives up after
    /// half a minute.
    Silent,
}

/// Calls of one kind to one queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Source {
    /// Its queue, by position; queues are made as sources name them.
    pub queue: usize,
    /// Its tenant, by position.
    pub tenant: usize,
    /// How urgent its calls are.
    pub priority: Priority,
    /// When they come.
    pub arrivals: Arrivals,
    /// How many in all.
    pub calls: u32,
    /// How large they are.
    pub sizes: Sizes,
    /// They must have started within this time.
    pub ttl: Option<Duration>,
}

/// When calls come.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arrivals {
    /// All at the start: a file.
    AtOnce,
    /// One by one, at random, this many a second.
    Random {
        /// The mean rate.
        per_second: f64,
    },
    /// So many at a time.
    Bursts {
        /// Calls in one burst.
        size: u32,
        /// From one burst to the next.
        every: Duration,
    },
}

/// How large calls are, in tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    /// The mean input.
    pub input: u32,
    /// The mean output.
    pub output: u32,
    /// The cap over the output, where one is set: this many times the mean output, and never
    /// below what is produced.
    pub cap: Option<f64>,
    /// How sizes spread.
    pub spread: Spread,
}

/// How sizes spread round their mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Spread {
    /// Not at all.
    None,
    /// Evenly over half to one and a half.
    Even,
    /// Heavy-tailed: a Pareto distribution with this shape, above 1, cut at 20 times the mean.
    Pareto(f64),
}

/// How late the dispatcher is told that a call was written and of its answer: on a busy machine
/// the thread that is to tell may be held up.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Telling {
    /// The share of what is told that is told late …
    pub late: f64,
    /// … and by how much at most.
    pub late_max: Duration,
}

/// How far estimates of input tokens are off.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Estimates {
    /// All by this share: 0.15 means that 15 % too much is estimated.
    pub bias: f64,
    /// Each by up to this share, either way.
    pub noise: f64,
}
