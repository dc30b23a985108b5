//! Where spans of calls are sent, if anywhere.

use llmq_server::observe::Traces;

use crate::exit::Failure;

/// What makes OpenTelemetry send somewhere (opentelemetry.io, "OTLP Exporter Configuration").
const ASKS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];

/// Sends spans where the environment names a collector.
pub(super) fn open() -> Result<Option<Traces>, Failure> {
    let is_set = |name: &&str| std::env::var_os(*name).is_some_and(|value| !value.is_empty());
    let off = std::env::var_os("OTEL_SDK_DISABLED").is_some_and(|value| value == "true");
    match ASKS.into_iter().find(|name| is_set(name)) {
        Some(asked) if !off => traces(asked),
        _ => Ok(None),
    }
}

#[cfg(feature = "otel")]
fn traces(_: &str) -> Result<Option<Traces>, Failure> {
    let traces = Traces::open();
    let traces = traces.map_err(|error| Failure::usage(crate::exit::with_causes(&error)))?;
    Ok(Some(traces))
}

#[cfg(not(feature = "otel"))]
#[expect(clippy::unnecessary_wraps, reason = "with the feature it can fail")]
fn traces(asked: &str) -> Result<Option<Traces>, Failure> {
    tracing::warn!("{asked} is set, but this llmq was built without the feature `otel`: no spans");
    Ok(None)
}
