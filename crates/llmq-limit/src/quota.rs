//! The daily quota: how much of it is used, whom to tell, and when to pause.

mod config;
mod day;
mod event;
mod monitor;
mod portion;
mod state;

pub use config::{AlertShares, QuotaConfig, QuotaConfigError, QuotaConfigErrors, QuotaRules};
pub use day::DayZone;
pub use event::{AlertLevel, PauseAdvice, PauseReason, PauseScope, QuotaEvent, QuotaMetrics};
pub use monitor::QuotaMonitor;
pub use portion::Portion;
pub use state::{QuotaState, SavedPause};
