//! The flags of a daily budget.

use clap::Args;
use llmq_engine::config::Config;

/// A budget of one's own for each day. The values are checked with the configuration.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Daily quota")]
pub(crate) struct QuotaArgs {
    /// Requests a day that this run may use [env: LLMQ_DAILY_REQUEST_LIMIT]
    #[arg(long, value_name = "N")]
    pub(crate) daily_limit: Option<String>,
    /// The share of it at which to pause, 0.1 to 1 [env: LLMQ_QUOTA_PAUSE_THRESHOLD] [default: 0.8]
    #[arg(long, value_name = "SHARE")]
    pub(crate) quota_threshold: Option<String>,
    /// Whether it is watched at all [env: LLMQ_QUOTA_MONITORING] [default: true]
    #[arg(long, value_name = "true|false")]
    pub(crate) quota_monitoring: Option<String>,
    /// Hours that a pause lasts whose end nobody named, 1 to 72 [env: LLMQ_PAUSE_DURATION_HOURS]
    /// [default: 24]
    #[arg(long, value_name = "HOURS")]
    pub(crate) pause_duration: Option<String>,
    /// One line of figures in the log every N requests [env: LLMQ_QUOTA_LOG_INTERVAL]
    /// [default: 100]
    #[arg(long, value_name = "N")]
    pub(crate) quota_log_interval: Option<String>,
}

impl QuotaArgs {
    /// `config` under these flags.
    pub(crate) fn over(&self, config: Config) -> Config {
        let flags = [
            (
                "quota.pause_threshold",
                "--quota-threshold",
                &self.quota_threshold,
            ),
            (
                "quota.monitoring",
                "--quota-monitoring",
                &self.quota_monitoring,
            ),
            (
                "quota.daily_request_limit",
                "--daily-limit",
                &self.daily_limit,
            ),
            (
                "quota.pause_duration_hours",
                "--pause-duration",
                &self.pause_duration,
            ),
            (
                "quota.log_interval",
                "--quota-log-interval",
                &self.quota_log_interval,
            ),
        ];
        flags
            .into_iter()
            .fold(config, |config, (path, name, value)| match value {
                Some(value) => config.with_flag(path, name, value),
                None => config,
            })
    }
}
