//! Calls and accepted requests as spans of OpenTelemetry, for a collector (OTLP).
//!
//! Without the feature `otel` there is no way to make [`Traces`], so nothing is traced and
//! nothing is paid for it.

#[cfg(not(feature = "otel"))]
mod off;
#[cfg(feature = "otel")]
mod otlp;
#[cfg(feature = "otel")]
mod post;

#[cfg(not(feature = "otel"))]
pub(crate) use off::CallSpan;
#[cfg(not(feature = "otel"))]
pub use off::Traces;
#[cfg(feature = "otel")]
pub(crate) use otlp::CallSpan;
#[cfg(feature = "otel")]
pub use otlp::{Traces, TracesError};

use llmq_core::{CallSize, WallTime};
use llmq_provider::Operation;

/// What a span of a call begins with.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(
    not(feature = "otel"),
    expect(dead_code, reason = "nobody reads it where nothing is traced")
)]
pub(crate) struct Begun<'a> {
    pub(crate) operation: Operation,
    pub(crate) model: &'a str,
    pub(crate) size: CallSize,
    pub(crate) stream: bool,
    pub(crate) at: WallTime,
}
