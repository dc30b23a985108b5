//! How one sees what the gateway does: figures, the call log, events, the state of the queues.
//!
//! [`Observed`] holds it all; [`Metrics::call`] and [`CallLog::call`] are told of each call when
//! it is over, and [`router`] shows it.

mod call_log;
mod events;
mod metrics;
mod record;
mod time;
mod waiting;

mod observed;

pub use call_log::CallLog;
pub use events::Events;
pub use metrics::Metrics;
pub use observed::{Observed, Parts, router};
pub use record::CallRecord;
pub use waiting::{Waiting, WaitingCall, WaitingGuard};
