use std::time::Duration;

use llmq_core::LimitKind;

use crate::header_value::header_count;
use crate::observation::{HeaderSource, Observation};
use crate::structured::{self, Member};

/// The policies and windows believed of one answer.
const MEMBERS_MAX: usize = 16;

/// `RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers-10, collected in
/// any order. A malformed field is void (§3 of the draft), and its values are hints.
#[derive(Debug, Default)]
pub(crate) struct IetfFields {
    policies: Vec<Policy>,
    windows: Vec<Window>,
}

/// One member of `RateLimit-Policy`.
#[derive(Debug)]
struct Policy {
    name: String,
    /// `None` for a unit that is not a limit of ours, such as bytes.
    kind: Option<LimitKind>,
    quota: Option<u64>,
    window: Option<Duration>,
}

/// One member of `RateLimit`.
#[derive(Debug)]
struct Window {
    policy: String,
    remaining: Option<u64>,
    reset: Option<Duration>,
}

impl IetfFields {
    /// Takes a `RateLimit-Policy`; `None` when it is malformed.
    pub(crate) fn read_policies(&mut self, value: &str) -> Option<()> {
        for member in structured::list(value)? {
            // Before draft 08 a policy was named by its quota: `100;w=60`.
            let quota = member.param("q").unwrap_or(&member.name);
            self.policies.push(Policy {
                kind: quota_kind(member.param("qu")),
                quota: header_count(quota).filter(|quota| *quota > 0),
                window: window_of(&member),
                name: member.name.into_owned(),
            });
        }
        self.policies.truncate(MEMBERS_MAX);
        Some(())
    }

    /// Takes a `RateLimit`; `None` when it is malformed. The members of draft 07's dictionary
    /// (`limit=100, remaining=50, reset=5`) are handed to `split`.
    pub(crate) fn read_windows(
        &mut self,
        value: &str,
        mut split: impl FnMut(&str, &str),
    ) -> Option<()> {
        for member in structured::list(value)? {
            if let Some(value) = &member.value {
                split(&member.name, value);
                continue;
            }
            self.windows.push(Window {
                remaining: member.param("r").and_then(header_count),
                reset: member
                    .param("t")
                    .and_then(header_count)
                    .map(Duration::from_secs),
                policy: member.name.into_owned(),
            });
        }
        self.windows.truncate(MEMBERS_MAX);
        Some(())
    }

    /// The window of the only policy there is for requests, or of the one whose quota is `limit`.
    pub(crate) fn window_of_limit(&self, limit: Option<u64>) -> Option<Duration> {
        match self.policies.as_slice() {
            [only] => only.window,
            several => several.iter().find(|policy| policy.quota == limit)?.window,
        }
    }

    /// One observation for each window, completed from its policy. A window without a policy
    /// counts requests, the draft's default unit.
    pub(crate) fn observations(&self) -> impl Iterator<Item = Observation> + '_ {
        self.windows.iter().filter_map(|window| {
            let policy = self
                .policies
                .iter()
                .find(|policy| policy.name == window.policy);
            let kind = match policy {
                Some(policy) => policy.kind?,
                None => LimitKind::Requests,
            };
            Some(Observation {
                kind,
                source: HeaderSource::Ietf,
                limit: policy.and_then(|policy| policy.quota),
                remaining: window.remaining,
                reset: window.reset,
                window: policy.and_then(|policy| policy.window),
                rounding: 1,
                query_cost: None,
            })
        })
    }
}

/// What a policy's `qu` counts; the draft registers no unit for tokens.
fn quota_kind(unit: Option<&str>) -> Option<LimitKind> {
    match unit {
        None | Some("requests") => Some(LimitKind::Requests),
        Some("concurrent-requests") => Some(LimitKind::Concurrency),
        Some("llmq-tokens" | "tokens") => Some(LimitKind::Tokens),
        Some(_) => None,
    }
}

fn window_of(member: &Member<'_>) -> Option<Duration> {
    let seconds = header_count(member.param("w")?).filter(|seconds| *seconds > 0)?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(policies: &str, windows: &str) -> Vec<Observation> {
        let mut fields = IetfFields::default();
        fields.read_policies(policies);
        fields.read_windows(windows, |_, _| ());
        fields.observations().collect()
    }

    #[test]
    fn a_window_is_completed_from_the_policy_it_names() {
        let seen = read(
            r#""permin";q=50;w=60,"perhr";q=1000;w=3600"#,
            r#""perhr";r=37;t=12"#,
        );
        assert_eq!(seen.len(), 1);
        assert_eq!(seen[0].limit, Some(1_000));
        assert_eq!(seen[0].remaining, Some(37));
        assert_eq!(seen[0].reset, Some(Duration::from_secs(12)));
        assert_eq!(seen[0].window, Some(Duration::from_secs(3_600)));
    }

    #[test]
    fn units_decide_what_is_counted_and_foreign_ones_are_left_out() {
        let policies = r#""a";q=5;qu="concurrent-requests","b";q=9;w=60;qu="llmq-tokens","c";q=9;qu="content-bytes""#;
        let kinds: Vec<LimitKind> = read(policies, r#""a";r=1,"b";r=2,"c";r=3,"d";r=4"#)
            .iter()
            .map(|seen| seen.kind)
            .collect();
        assert_eq!(
            kinds,
            [
                LimitKind::Concurrency,
                LimitKind::Tokens,
                LimitKind::Requests
            ]
        );
    }

    #[test]
    fn a_malformed_field_is_void_and_a_negative_remainder_unknown() {
        assert_eq!(read("", r#""a";r=1,"#), []);
        assert_eq!(read("x;", r#""a";r=-1;t=-5"#)[0].remaining, None);
    }
}
