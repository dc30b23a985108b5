use std::fmt;
use std::time::Duration;

use super::day::DayZone;
use super::event::AlertLevel;

const HOUR: Duration = Duration::from_secs(3_600);
/// A pause must outlast a window, and three days without a look at the account are enough.
const PAUSE_MIN: Duration = HOUR;
const PAUSE_MAX: Duration = Duration::from_secs(72 * 3_600);
/// Below it a quota would be nearly unused.
const THRESHOLD_MIN: f64 = 0.1;

/// The settings `[quota]`, as written. [`check`](Self::check) turns them into [`QuotaRules`].
#[derive(Debug, Clone, PartialEq)]
pub struct QuotaConfig {
    /// Whether the daily limit is watched at all. Pauses that a provider demands hold anyway.
    pub monitoring: bool,
    /// The share of the daily limit at which work below `high` pauses, 0.1 to 1.
    pub pause_threshold: f64,
    /// Requests a day, at least 1; `None` for no limit of our own.
    pub daily_request_limit: Option<u64>,
    /// The IANA name of the zone whose midnight the daily limit follows.
    pub time_zone: String,
    /// How long a pause lasts whose end nobody named, 1 to 72 hours.
    pub pause_duration: Duration,
    /// One metrics event every so many requests, at least 1.
    pub log_interval: u64,
    /// The shares of the day's limit at which to warn.
    pub alerts: AlertShares,
}

impl Default for QuotaConfig {
    fn default() -> Self {
        Self {
            monitoring: true,
            pause_threshold: 0.8,
            daily_request_limit: None,
            time_zone: "UTC".to_owned(),
            pause_duration: 24 * HOUR,
            log_interval: 100,
            alerts: AlertShares::default(),
        }
    }
}

/// The shares of a day's limit at which to warn: above 0, at most 1, and rising.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AlertShares {
    /// [`AlertLevel::Warning`].
    pub warning: f64,
    /// [`AlertLevel::Critical`].
    pub critical: f64,
    /// [`AlertLevel::Emergency`].
    pub emergency: f64,
}

impl Default for AlertShares {
    fn default() -> Self {
        Self {
            warning: 0.6,
            critical: 0.8,
            emergency: 0.95,
        }
    }
}

impl AlertShares {
    /// The highest level that `used_percent` reaches.
    pub(super) fn level(&self, used_percent: f64) -> Option<AlertLevel> {
        let reaches = |share: f64| used_percent >= share * 100.0;
        match () {
            () if reaches(self.emergency) => Some(AlertLevel::Emergency),
            () if reaches(self.critical) => Some(AlertLevel::Critical),
            () if reaches(self.warning) => Some(AlertLevel::Warning),
            () => None,
        }
    }
}

/// A setting that is refused; the message starts with its key.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuotaConfigError {
    /// Out of range, or no number.
    #[error("quota.pause_threshold: {0} is out of range, use 0.1 to 1")]
    PauseThreshold(f64),
    /// Zero, written on purpose.
    #[error("quota.daily_request_limit: 0 allows nothing, use at least 1 or leave it out")]
    DailyRequestLimit,
    /// No such zone.
    #[error("quota.time_zone: `{0}` is not a time zone, use a name such as UTC or Europe/Berlin")]
    TimeZone(String),
    /// Out of range.
    #[error("quota.pause_duration_hours: {hours} is out of range, use 1 to 72", hours = .0.as_secs_f64() / 3600.0)]
    PauseDuration(Duration),
    /// Zero.
    #[error("quota.log_interval: 0 is out of range, use at least 1")]
    LogInterval,
    /// Out of range or out of order.
    #[error(
        "quota.alerts: {warning}, {critical}, {emergency} must rise, above 0 and at most 1",
        warning = .0.warning, critical = .0.critical, emergency = .0.emergency
    )]
    Alerts(AlertShares),
}

/// Every mistake in the settings, in the order of the keys; at least one.
#[derive(Debug, Clone, PartialEq)]
pub struct QuotaConfigErrors(pub Vec<QuotaConfigError>);

impl fmt::Display for QuotaConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for QuotaConfigErrors {}

/// Settings that were checked.
#[derive(Debug, Clone)]
pub struct QuotaRules {
    pub(super) monitoring: bool,
    pub(super) pause_threshold: f64,
    pub(super) daily_request_limit: Option<u64>,
    pub(super) zone: DayZone,
    pub(super) pause_duration: Duration,
    pub(super) log_interval: u64,
    pub(super) alerts: AlertShares,
}

impl QuotaConfig {
    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// All mistakes at once, each with its key.
    pub fn check(&self) -> Result<QuotaRules, QuotaConfigErrors> {
        use QuotaConfigError as E;
        let mut errors = Vec::new();
        if !(THRESHOLD_MIN..=1.0).contains(&self.pause_threshold) {
            errors.push(E::PauseThreshold(self.pause_threshold));
        }
        if self.daily_request_limit == Some(0) {
            errors.push(E::DailyRequestLimit);
        }
        let zone = DayZone::named(&self.time_zone);
        if zone.is_none() {
            errors.push(E::TimeZone(self.time_zone.clone()));
        }
        if !(PAUSE_MIN..=PAUSE_MAX).contains(&self.pause_duration) {
            errors.push(E::PauseDuration(self.pause_duration));
        }
        if self.log_interval == 0 {
            errors.push(E::LogInterval);
        }
        let AlertShares {
            warning,
            critical,
            emergency,
        } = self.alerts;
        if !(0.0 < warning && warning < critical && critical < emergency && emergency <= 1.0) {
            errors.push(E::Alerts(self.alerts));
        }
        match zone {
            Some(zone) if errors.is_empty() => Ok(QuotaRules {
                monitoring: self.monitoring,
                pause_threshold: self.pause_threshold,
                daily_request_limit: self.daily_request_limit,
                zone,
                pause_duration: self.pause_duration,
                log_interval: self.log_interval,
                alerts: self.alerts,
            }),
            _ => Err(QuotaConfigErrors(errors)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut QuotaConfig)) -> String {
        let mut config = QuotaConfig::default();
        change(&mut config);
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn the_defaults_are_accepted() {
        assert!(QuotaConfig::default().check().is_ok());
    }

    #[test]
    fn every_bad_setting_is_refused_by_its_key() {
        for threshold in [0.0, 0.05, 1.5, -1.0, f64::NAN] {
            let message = refused(|config| config.pause_threshold = threshold);
            assert!(message.starts_with("quota.pause_threshold: "), "{message}");
        }
        for hours in [0, 100] {
            let message = refused(|config| config.pause_duration = hours * HOUR);
            let expected =
                format!("quota.pause_duration_hours: {hours} is out of range, use 1 to 72");
            assert_eq!(message, expected);
        }
        assert_eq!(
            refused(|config| config.daily_request_limit = Some(0)),
            "quota.daily_request_limit: 0 allows nothing, use at least 1 or leave it out"
        );
        assert_eq!(
            refused(|config| config.log_interval = 0),
            "quota.log_interval: 0 is out of range, use at least 1"
        );
        let message = refused(|config| config.time_zone = "Mars/Olympus".to_owned());
        assert!(
            message.starts_with("quota.time_zone: `Mars/Olympus`"),
            "{message}"
        );
        let message = refused(|config| config.alerts.critical = 0.5);
        assert!(
            message.starts_with("quota.alerts: 0.6, 0.5, 0.95 must rise"),
            "{message}"
        );
    }

    #[test]
    fn alert_shares_are_above_none_and_at_most_all() {
        for (warning, emergency) in [(0.0, 0.95), (0.6, 1.01), (f64::NAN, 0.95)] {
            let message = refused(|config| {
                config.alerts.warning = warning;
                config.alerts.emergency = emergency;
            });
            assert!(message.starts_with("quota.alerts: "), "{message}");
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_inside() {
        for (threshold, hours) in [(0.1, 1), (1.0, 72)] {
            let config = QuotaConfig {
                pause_threshold: threshold,
                pause_duration: hours * HOUR,
                ..QuotaConfig::default()
            };
            assert!(config.check().is_ok());
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let message = refused(|config| {
            config.pause_threshold = 0.0;
            config.log_interval = 0;
        });
        assert_eq!(message.matches("quota.").count(), 2, "{message}");
    }
}
