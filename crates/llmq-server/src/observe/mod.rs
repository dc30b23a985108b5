//! How one sees what the gateway does: figures, the call log, events, the state of the queues.
//!
//! [`Observed`] holds it all; [`Metrics::call`] and [`CallLog::call`] are told of each call when
//! it is over, [`Observed::notice`] of what the dispatcher has to tell, and [`routes`] show it.
//! `look` reads the dispatcher's books, `notices` makes events of what it tells, `journal` keeps
//! them in the store, and `kept` reads them there for those who listen (`sse`); `openapi` lists
//! every route.

mod record;

mod metrics;

mod call_log;

mod journal;
mod waiting;

mod observed;

mod look;
mod notices;

mod openapi;
mod page;
mod router;
mod routes;
mod sse;
mod stored_events;

mod traces;

pub use call_log::{CallLog, CallLogForm};
pub use metrics::Metrics;
pub use observed::{Observed, Parts};
pub use record::CallRecord;
#[cfg(test)]
pub(crate) use router::router;
pub use router::{Routes, routes};
pub use traces::Traces;
#[cfg(feature = "otel")]
pub use traces::TracesError;
pub(crate) use traces::{Begun, CallSpan};
pub use waiting::{Waiting, WaitingCall, WaitingGuard};

#[cfg(test)]
mod tests;
