use llmq_core::WallTime;

/// An instant as people and JSON write it, such as `2026-01-01T00:00:09.5Z`.
pub(crate) fn text(at: WallTime) -> String {
    jiff::Timestamp::from_microsecond(at.as_micros())
        .map_or_else(|_| String::new(), |at| at.to_string())
}
