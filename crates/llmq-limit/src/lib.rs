//! May this call start now, and if not, when?

// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod denied;

mod bucket;
mod fixed;
mod sliding;

mod charge;

mod doubts;
mod factor;
mod foreign;
mod learner;
mod margin;
mod sent_log;
mod survey;
mod tail;

mod limit;

mod header_value;
mod headers;
mod ietf;
mod minute_gate;
mod observation;
mod structured;
mod text;
mod window;

mod adaptive;
mod breaker;
mod ramp;
mod slow_start;

mod quota;

pub use adaptive::{
    Adaptive, AdaptiveConfig, Answer, AnswerOutcome, ChangeReason, ConcurrencyChange,
    LatencyPolicy, PlainPolicy,
};
pub use breaker::{Admit, Breaker, BreakerChange, BreakerConfig, BreakerState, CallRole};
pub use charge::{ChargeRule, InputCharge, OutputCharge, Refund, charge_rule, default_algorithm};
pub use denied::Denied;
pub use factor::Factor;
pub use header_value::{HeaderTime, WAIT_MAX, answered_at, header_count, retry_after};
pub use headers::parse_rate_limit_headers;
pub use limit::{Cost, Entry, FirstWord, Limit, Settled, UnderWay, Verdict};
pub use margin::Margin;
pub use minute_gate::MinuteGate;
pub use observation::{HeaderSource, Observation, QuotaStatus, RateLimitHeaders};
pub use quota::{
    AlertLevel, AlertShares, DayZone, PauseAdvice, PauseReason, PauseScope, Portion, QuotaConfig,
    QuotaConfigError, QuotaConfigErrors, QuotaEvent, QuotaMetrics, QuotaMonitor, QuotaRules,
    QuotaState, SavedPause,
};
pub use ramp::RampGuard;
pub use slow_start::SlowStart;
pub use text::{LimitText, parse_limit_text};
pub use window::infer_window;
