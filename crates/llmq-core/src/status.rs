use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a job stands.
///
/// `Queued` and `Processing` move on; the other four are final and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Accepted and waiting: for its turn, for a limit, for its `not_before`, or for a retry.
    /// The dispatcher moves it on when its limits allow. `pending` is accepted for it on input.
    #[serde(alias = "pending")]
    Queued,
    /// An attempt holds it. The attempt's end moves it on, or the end of its lease.
    Processing,
    /// Final: the result is recorded. Kept for `keep_results`.
    Completed,
    /// Final: the last attempt failed for good, and its error is recorded.
    Failed,
    /// Final: its time to live passed before any attempt could start.
    Expired,
    /// Final: someone asked for it to end before it did.
    Cancelled,
}

impl Status {
    /// Another word for [`Status::Queued`].
    pub const PENDING: Self = Self::Queued;

    /// Every status, in the order of a job's life.
    pub const ALL: [Self; 6] = [
        Self::Queued,
        Self::Processing,
        Self::Completed,
        Self::Failed,
        Self::Expired,
        Self::Cancelled,
    ];

    /// Whether nothing can change it any more.
    ///
    /// ```
    /// use llmq_core::Status;
    /// assert!(Status::Expired.is_final());
    /// assert!(!Status::Processing.is_final());
    /// ```
    #[must_use]
    pub fn is_final(self) -> bool {
        match self {
            Self::Queued | Self::Processing => false,
            Self::Completed | Self::Failed | Self::Expired | Self::Cancelled => true,
        }
    }

    /// The word used in JSON and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text is no status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a status: use queued, processing, completed, failed, expired or cancelled")]
pub struct ParseStatusError(String);

impl FromStr for Status {
    type Err = ParseStatusError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "pending" {
            return Ok(Self::PENDING);
        }
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| ParseStatusError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_reads_back_from_its_own_word() {
        for status in Status::ALL {
            assert_eq!(status.to_string().parse(), Ok(status));
            let json = serde_json::to_string(&status).unwrap();
            assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
        }
    }

    #[test]
    fn pending_means_queued_on_input_only() {
        assert_eq!("pending".parse(), Ok(Status::Queued));
        assert_eq!(
            serde_json::from_str::<Status>("\"pending\"").unwrap(),
            Status::PENDING
        );
        assert_eq!(Status::PENDING.to_string(), "queued");
    }

    #[test]
    fn an_unknown_word_is_refused_by_name() {
        assert!(
            "done"
                .parse::<Status>()
                .unwrap_err()
                .to_string()
                .contains("`done`")
        );
    }
}
