use std::time::Duration;

use llmq_core::{Now, Timestamp};

/// Lets one warning a minute through, however often its cause comes back.
///
/// ```
/// use llmq_core::Now;
/// use llmq_limit::MinuteGate;
/// use std::time::Duration;
/// let mut gate = MinuteGate::default();
/// let now = Now::default();
/// assert!(gate.allow(now));
/// assert!(!gate.allow(now.after(Duration::from_secs(59))));
/// assert!(gate.allow(now.after(Duration::from_secs(60))));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MinuteGate {
    last: Option<Timestamp>,
}

impl MinuteGate {
    /// Whether to warn now; if so, the next minute is silent.
    pub fn allow(&mut self, now: Now) -> bool {
        let silent = self
            .last
            .is_some_and(|last| now.mono.since(last) < Duration::from_secs(60));
        if !silent {
            self.last = Some(now.mono);
        }
        !silent
    }
}
