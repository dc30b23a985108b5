use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use llmq_core::{Clock as _, Host, Now};
use llmq_engine::{SystemClock, log_quota, replace_file};
use llmq_limit::{
    PauseAdvice, QuotaConfig, QuotaEvent, QuotaMetrics, QuotaRules, QuotaState, QuotaStatus,
    parse_rate_limit_headers,
};

use crate::error::QueueError;

/// Watches how much of a day's quota is used, and says when to pause: for programs that make
/// their calls themselves. A queue does the same by itself with
/// [`ModelConfig::daily_quota`](crate::ModelConfig::daily_quota).
///
/// It can be shared between threads. What it notices (metrics every 100 requests, alerts at
/// 60, 80 and 95 %, pauses and their end) it logs, one structured event each.
///
/// ```
/// use llmq::{Host, QuotaConfig, QuotaMonitor};
/// # fn main() -> Result<(), llmq::QueueError> {
/// let config = QuotaConfig { daily_request_limit: Some(10), ..QuotaConfig::default() };
/// let monitor = QuotaMonitor::new(&config)?;
/// for _ in 0..8 {
///     monitor.update_from_response(Host::OpenAi, [("x-ratelimit-remaining-requests", "100")]);
/// }
/// assert!(monitor.should_pause().is_some());
/// assert_eq!(monitor.metrics().usage_percentage, Some(80.0));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct QuotaMonitor {
    clock: SystemClock,
    name: String,
    monitor: Mutex<llmq_limit::QuotaMonitor>,
}

/// A state that could not be saved.
#[derive(Debug, thiserror::Error)]
#[error("could not save the quota to {}", path.display())]
pub struct SaveQuotaError {
    path: PathBuf,
    source: io::Error,
}

impl QuotaMonitor {
    /// Starts with nothing used.
    ///
    /// # Errors
    ///
    /// [`QueueError::InvalidConfiguration`] with every mistake.
    pub fn new(config: &QuotaConfig) -> Result<Self, QueueError> {
        Self::restored(config, None)
    }

    /// Goes on from what [`QuotaMonitor::save`] wrote. Limits and thresholds are those of
    /// `config`. A file that is missing or broken starts with nothing used, and says so in the
    /// log if it is broken. It reads a small file, blocking.
    ///
    /// # Errors
    ///
    /// [`QueueError::InvalidConfiguration`] with every mistake.
    pub fn load(config: &QuotaConfig, path: impl AsRef<Path>) -> Result<Self, QueueError> {
        Self::restored(config, saved(path.as_ref()).as_deref())
    }

    fn restored(config: &QuotaConfig, text: Option<&str>) -> Result<Self, QueueError> {
        let rules = config
            .check()
            .map_err(|errors| QueueError::invalid("quota", errors.to_string()))?;
        let clock = SystemClock::new();
        let now = clock.now();
        let (monitor, events) = going_on(rules, text, now);
        let monitor = Self {
            clock,
            name: "quota".to_owned(),
            monitor: Mutex::new(monitor),
        };
        monitor.log(&events);
        Ok(monitor)
    }

    /// The same with a name for its log events, such as the account's.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..self
        }
    }

    /// Counts one request and learns from its answer's headers. Headers that are missing or
    /// garbled mean unknown, never exhausted.
    pub fn update_from_response<'a>(
        &self,
        host: Host,
        headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        let now = self.clock.now();
        let headers = parse_rate_limit_headers(host, headers, now);
        let events = self.lock().update_from_response(&headers, now);
        self.log(&events);
    }

    /// Pauses because the provider or a person demands it: for `wait`, else for the configured
    /// duration.
    pub fn pause(&self, reason: &str, wait: Option<Duration>) {
        let now = self.clock.now();
        let until = wait.map(|wait| now.wall + wait);
        let events = self.lock().pause(reason, until, now);
        self.log(&events);
    }

    /// Ends a pause that was demanded. One at the daily limit stays until the day turns.
    pub fn lift(&self) {
        let events = self.lock().lift(self.clock.now());
        self.log(&events);
    }

    /// Why and how long to pause, if work should.
    #[must_use]
    pub fn should_pause(&self) -> Option<PauseAdvice> {
        self.polled(|monitor, now| monitor.should_pause(now))
    }

    /// Whether work may go on, and why or why not.
    #[must_use]
    pub fn can_resume(&self) -> (bool, String) {
        self.polled(|monitor, now| monitor.can_resume(now))
    }

    /// The state of the day.
    #[must_use]
    pub fn metrics(&self) -> QuotaMetrics {
        self.polled(|monitor, now| monitor.metrics(now))
    }

    /// What the last answers said; none before the first that said anything.
    #[must_use]
    pub fn status(&self) -> Option<QuotaStatus> {
        self.lock().status().cloned()
    }

    /// Writes the day's count to `path`: whole or not at all, and on disk when this returns.
    /// It blocks for a small write.
    ///
    /// # Errors
    ///
    /// [`SaveQuotaError`] when the file cannot be written; the old one is as it was.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), SaveQuotaError> {
        let path = path.as_ref();
        write(path, &self.lock().to_final_state()).map_err(|source| SaveQuotaError {
            path: path.to_owned(),
            source,
        })
    }

    fn lock(&self) -> MutexGuard<'_, llmq_limit::QuotaMonitor> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn polled<V>(&self, look: impl FnOnce(&llmq_limit::QuotaMonitor, Now) -> V) -> V {
        let now = self.clock.now();
        let mut monitor = self.lock();
        let events = monitor.poll(now);
        let seen = look(&monitor, now);
        drop(monitor);
        self.log(&events);
        seen
    }

    fn log(&self, events: &[QuotaEvent]) {
        for event in events {
            log_quota(&self.name, event);
        }
    }
}

/// What was saved; none where nothing was, or nothing can be read, which the log says.
pub(crate) fn saved(path: &Path) -> Option<String> {
    let read = fs::read_to_string(path);
    read.inspect_err(|error| {
        if error.kind() != io::ErrorKind::NotFound {
            tracing::warn!(path = %path.display(), %error, "the quota cannot be read");
        }
    })
    .ok()
}

/// Goes on from what was saved.
pub(crate) fn going_on(
    rules: QuotaRules,
    saved: Option<&str>,
    now: Now,
) -> (llmq_limit::QuotaMonitor, Vec<QuotaEvent>) {
    match saved {
        Some(_) => llmq_limit::QuotaMonitor::restore(rules, saved, now),
        None => (llmq_limit::QuotaMonitor::new(rules, now), Vec::new()),
    }
}

/// Puts a state in the place of the one before. It blocks.
pub(crate) fn write(path: &Path, state: &QuotaState) -> io::Result<()> {
    replace_file(path, (state.to_json() + "\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(limit: u64) -> QuotaConfig {
        QuotaConfig {
            daily_request_limit: Some(limit),
            ..QuotaConfig::default()
        }
    }

    #[test]
    fn a_days_count_survives_a_restart_and_the_configuration_wins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("quota.json");
        let monitor = QuotaMonitor::load(&config(10), &path).unwrap();
        for _ in 0..8 {
            monitor.update_from_response(Host::Unknown, []);
        }
        assert!(monitor.should_pause().is_some());
        monitor.save(&path).unwrap();
        let again = QuotaMonitor::load(&config(10), &path).unwrap();
        assert_eq!(again.metrics().requests_used_today, 8);
        assert!(!again.can_resume().0);
        let wider = QuotaMonitor::load(&config(100), &path).unwrap();
        assert_eq!(wider.metrics().usage_percentage, Some(8.0));
        assert!(wider.can_resume().0);
    }

    #[test]
    fn a_failed_save_leaves_the_old_file_and_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let monitor = QuotaMonitor::new(&config(10)).unwrap();
        // A directory stands where the file should: the rename fails after a whole write.
        let path = directory.path().join("quota.json");
        fs::create_dir(&path).unwrap();
        let error = monitor.save(&path).unwrap_err();
        assert!(error.to_string().contains("quota.json"));
        let left = fs::read_dir(directory.path()).unwrap().count();
        assert_eq!(left, 1);
    }

    #[test]
    fn a_broken_file_starts_from_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("quota.json");
        fs::write(&path, "{\"day\": 7").unwrap();
        let monitor = QuotaMonitor::load(&config(10), &path).unwrap();
        assert_eq!(monitor.metrics().requests_used_today, 0);
    }

    #[test]
    fn bad_settings_are_refused_by_their_key() {
        let error = QuotaMonitor::new(&config(0)).unwrap_err();
        assert!(error.to_string().contains("quota.daily_request_limit"));
    }

    #[test]
    fn a_demanded_pause_is_lifted_by_hand() {
        let monitor = QuotaMonitor::new(&config(10)).unwrap().named("account");
        monitor.pause("maintenance", Some(Duration::from_secs(60)));
        assert_eq!(monitor.can_resume(), (false, "maintenance".to_owned()));
        monitor.lift();
        assert!(monitor.can_resume().0);
    }
}
