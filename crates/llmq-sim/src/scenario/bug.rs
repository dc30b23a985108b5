/// A fault put in on purpose, to see that the laws catch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeededBug {
    /// What was used beyond the estimate is never charged.
    ForgetsDebt,
    /// Limits per day are kept as if they were per minute.
    TakesDayForMinute,
    /// A lane that waits for ever never rises.
    Starves,
    /// Tenants have no limits of their own.
    ForgetsTenantLimits,
    /// Models have no limits of their own.
    ForgetsModelLimits,
    /// Every tenant has the same weight.
    IgnoresTenantWeights,
    /// Nothing is kept for urgent calls.
    SpendsReserve,
    /// What is kept for urgent calls is kept from them as well.
    HoardsReserve,
    /// Every upstream of a model has the same weight.
    IgnoresRouteWeights,
    /// A fallback's upstreams are used like the model's own.
    FallsBackForWaiting,
    /// No fallback is ever used.
    NeverFallsBack,
    /// Limits that nobody configured are not learned.
    NeverLearns,
    /// When the wall clock is set, time is taken to have passed.
    FollowsTheWall,
    /// Instants of the provider's clock are read by our own.
    ReadsDatesByOwnClock,
    /// An upstream that was down is tried again after an hour only.
    SleepsOn,
    /// Calls that find an upstream broken fail for good at once.
    GivesUpInOutages,
}
