//! The flags that state limits.

use std::time::Duration;

use clap::Args;
use llmq_core::{Host, LimitKind, LimitSpec, parse_count};
use llmq_limit::default_algorithm;

/// The account's limits; as many as there are.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Limits (counts take k and M)")]
pub(crate) struct LimitArgs {
    /// Requests a minute
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) rpm: Option<u64>,
    /// Tokens a minute, input and output together
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) tpm: Option<u64>,
    /// Input tokens a minute
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) itpm: Option<u64>,
    /// Output tokens a minute
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) otpm: Option<u64>,
    /// Requests a day
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) rpd: Option<u64>,
    /// Tokens a day
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) tpd: Option<u64>,
    /// Calls in flight; found by itself if it is not given
    #[arg(long, value_name = "N", value_parser = parse_count)]
    pub(crate) concurrency: Option<u64>,
    /// Any other limit, such as requests=200/2s or tokens=1M/1h:bucket; may be repeated
    #[arg(long = "limit", value_name = "KIND=COUNT/PERIOD")]
    pub(crate) custom: Vec<LimitSpec>,
}

const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(86_400);

impl LimitArgs {
    /// The limits; those in short form age as `host` is known to do it.
    pub(crate) fn specs(&self, host: Host) -> Vec<LimitSpec> {
        use LimitKind as K;
        let short = [
            (self.rpm, K::Requests, MINUTE),
            (self.tpm, K::Tokens, MINUTE),
            (self.itpm, K::InputTokens, MINUTE),
            (self.otpm, K::OutputTokens, MINUTE),
            (self.rpd, K::Requests, DAY),
            (self.tpd, K::Tokens, DAY),
        ];
        let per = |(count, kind, period): (Option<u64>, _, _)| {
            Some(LimitSpec::per(
                kind,
                count?,
                period,
                default_algorithm(host, period),
            ))
        };
        short
            .into_iter()
            .filter_map(per)
            .chain(self.concurrency.map(LimitSpec::concurrency))
            .chain(self.custom.iter().copied())
            .collect()
    }

    /// `configured`, where a flag replaces the limit of the same kind and period.
    pub(crate) fn over(&self, configured: Vec<LimitSpec>, host: Host) -> Vec<LimitSpec> {
        let mut limits = self.specs(host);
        let given = limits.len();
        for limit in configured {
            let same = |own: &LimitSpec| (own.kind, own.period) == (limit.kind, limit.period);
            if !limits[..given].iter().any(same) {
                limits.push(limit);
            }
        }
        limits
    }

    /// Whether any is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.specs(Host::Unknown).is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(limits: &[LimitSpec]) -> Vec<String> {
        limits.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn short_forms_age_as_the_host_does_and_full_ones_as_they_say() {
        let args = LimitArgs {
            rpm: Some(500),
            tpd: Some(1_000_000),
            concurrency: Some(8),
            custom: vec!["requests=20/2s".parse().unwrap()],
            ..LimitArgs::default()
        };
        let full = ["concurrency=8", "requests=20/2s"];
        let at = |host| texts(&args.specs(host));
        assert_eq!(
            at(Host::OpenAi)[..2],
            ["requests=500/1m:bucket", "tokens=1M/1d:bucket"]
        );
        assert_eq!(at(Host::Unknown)[..2], ["requests=500/1m", "tokens=1M/1d"]);
        assert_eq!(at(Host::OpenAi)[2..], full);
        assert_eq!(at(Host::Unknown)[2..], full);
    }

    #[test]
    fn a_flag_replaces_what_is_configured_for_the_same_thing() {
        let args = LimitArgs {
            rpm: Some(5),
            ..LimitArgs::default()
        };
        let configured = vec![
            "requests=9/1m".parse().unwrap(),
            "tokens=9/1m".parse().unwrap(),
        ];
        let limits = args.over(configured, Host::Unknown);
        assert_eq!(texts(&limits), ["requests=5/1m", "tokens=9/1m"]);
    }
}
