use std::fmt;

use serde::{Deserialize, Serialize};

/// Why an attempt failed, as far as what to do next depends on it.
///
/// A provider's answer is put into one of these once, in `llmq-provider`; from there on
/// only the class counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureClass {
    /// 429: a limit per second, minute or hour is used up.
    QuotaWindow,
    /// 429: a limit per day is used up.
    QuotaDay,
    /// The call is above the whole limit and can never fit.
    TooLarge,
    /// Traffic rose faster than the provider likes, though inside its limits.
    Ramp,
    /// The provider lacks capacity: 503, 529, 498.
    Overload,
    /// Credit or a spending cap is used up.
    Money,
    /// The key or the model is refused: 401, 403, no such model.
    NoAccess,
    /// The call itself is wrong: every other 4xx.
    RowFault,
    /// A fault that passes: 5xx, refused connections, answers that are cut off or not JSON.
    Transient,
    /// The body was sent and no answer was seen; it may have been billed.
    Ambiguous,
}

/// How long to wait before the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// There is no next attempt.
    Never,
    /// The provider's own time, else the rate-limit backoff (60 s to 300 s).
    RateLimit,
    /// The provider's own time, else the quota backoff (300 s to 3600 s).
    Quota,
    /// The provider's own time, else the server backoff (0.5 s to 4 s).
    Server,
}

/// What stands still meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Nothing: only this job waits.
    Nothing,
    /// The upstream that answered.
    Upstream,
    /// Everything that uses the same credential.
    Credential,
}

/// One row of the retry table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryRule {
    /// Whether the same upstream is tried again.
    pub retry: bool,
    /// How long before that.
    pub wait: Wait,
    /// Whether it uses up one of the job's `max_attempts`. What does not, counts as a throttle.
    pub counts_attempt: bool,
    /// Whether the breaker takes it as a sign that the upstream is down.
    pub trips_breaker: bool,
    /// Whether another upstream may be tried instead.
    pub other_upstream: bool,
    /// What stands still until the wait is over.
    pub pause: Pause,
}

impl FailureClass {
    /// Every class, in the table's order.
    pub const ALL: [Self; 10] = [
        Self::QuotaWindow,
        Self::QuotaDay,
        Self::TooLarge,
        Self::Ramp,
        Self::Overload,
        Self::Money,
        Self::NoAccess,
        Self::RowFault,
        Self::Transient,
        Self::Ambiguous,
    ];

    /// The retry table: what follows from a failure of this class.
    ///
    /// Whether an [`FailureClass::Ambiguous`] attempt is really repeated is the user's choice
    /// (`[retry] ambiguous`); the table holds the default.
    ///
    /// ```
    /// use llmq_core::FailureClass;
    /// // A 429 is our mistake, not the job's.
    /// assert!(!FailureClass::QuotaWindow.rule().counts_attempt);
    /// assert!(!FailureClass::TooLarge.rule().retry);
    /// ```
    #[must_use]
    pub fn rule(self) -> RetryRule {
        let row = |retry, wait, counts_attempt, trips_breaker, other_upstream, pause| RetryRule {
            retry,
            wait,
            counts_attempt,
            trips_breaker,
            other_upstream,
            pause,
        };
        #[rustfmt::skip]
        let rule = match self {
            //                        retry  wait             attempt breaker other  pause
            Self::QuotaWindow => row(true,  Wait::RateLimit, false,  false,  true,  Pause::Upstream),
            Self::QuotaDay    => row(true,  Wait::Quota,     false,  false,  true,  Pause::Upstream),
            Self::TooLarge    => row(false, Wait::Never,     true,   false,  true,  Pause::Nothing),
            Self::Ramp        => row(true,  Wait::RateLimit, false,  false,  true,  Pause::Upstream),
            Self::Overload    => row(true,  Wait::Server,    false,  true,   true,  Pause::Nothing),
            Self::Money       => row(true,  Wait::Quota,     false,  false,  true,  Pause::Credential),
            Self::NoAccess    => row(false, Wait::Never,     false,  false,  true,  Pause::Credential),
            Self::RowFault    => row(false, Wait::Never,     true,   false,  false, Pause::Nothing),
            Self::Transient   => row(true,  Wait::Server,    true,   true,   true,  Pause::Nothing),
            Self::Ambiguous   => row(true,  Wait::Server,    true,   true,   true,  Pause::Nothing),
        };
        rule
    }

    /// Whether the failure is a 429 of the account's limits, which our own books should
    /// have foreseen.
    #[must_use]
    pub fn is_rate_limit(self) -> bool {
        matches!(self, Self::QuotaWindow | Self::QuotaDay)
    }

    /// The word used in JSON, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QuotaWindow => "quota-window",
            Self::QuotaDay => "quota-day",
            Self::TooLarge => "too-large",
            Self::Ramp => "ramp",
            Self::Overload => "overload",
            Self::Money => "money",
            Self::NoAccess => "no-access",
            Self::RowFault => "row-fault",
            Self::Transient => "transient",
            Self::Ambiguous => "ambiguous",
        }
    }
}

impl fmt::Display for FailureClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_transient_and_ambiguous_retries_use_up_attempts() {
        for class in FailureClass::ALL {
            let rule = class.rule();
            if rule.retry {
                let expected = matches!(class, FailureClass::Transient | FailureClass::Ambiguous);
                assert_eq!(rule.counts_attempt, expected, "{class}");
            }
        }
    }

    #[test]
    fn what_is_not_retried_does_not_wait_and_what_is_does() {
        for class in FailureClass::ALL {
            let rule = class.rule();
            assert_eq!(rule.retry, rule.wait != Wait::Never, "{class}");
        }
    }

    #[test]
    fn a_busy_account_never_looks_like_a_broken_provider() {
        for class in FailureClass::ALL
            .into_iter()
            .filter(|class| class.is_rate_limit())
        {
            assert!(!class.rule().trips_breaker, "{class}");
        }
    }

    #[test]
    fn the_word_is_the_json() {
        for class in FailureClass::ALL {
            assert_eq!(
                serde_json::to_string(&class).unwrap(),
                format!("\"{class}\"")
            );
        }
    }
}
