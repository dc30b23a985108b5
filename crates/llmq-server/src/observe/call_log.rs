use super::record::{CallRecord, ErrorType};

/// Says one line for each call that is over: never its prompt or its answer.
#[derive(Debug, Default)]
pub struct CallLog {}

impl CallLog {
    /// A log by way of `tracing`: an event of level info and target `llmq::call`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says what became of a call.
    pub fn call(&self, call: &CallRecord<'_>) {
        let usage = call.usage.unwrap_or_default();
        tracing::info!(
            target: "llmq::call",
            id = %call.id,
            tenant = call.tenant,
            model = call.model,
            upstream = call.upstream.unwrap_or(""),
            status = call.status,
            attempts = call.attempts,
            queued_ms = millis(call.queued),
            took_ms = millis(call.took),
            input_tokens = usage.input_tokens,
            output_tokens = usage.output_tokens,
            error = ErrorType::of(call).as_str(),
        );
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
