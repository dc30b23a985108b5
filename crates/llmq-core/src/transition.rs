use crate::Status;

/// What can happen to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// An attempt takes the job; the attempt is counted now.
    Leased,
    /// The attempt brought a result.
    Succeeded,
    /// The attempt failed; the verdict is that of [`crate::FailureClass::rule`] and the budget.
    Failed(Verdict),
    /// Nobody renewed the attempt's lease in time.
    LeaseExpired(Verdict),
    /// The provider was busy. Not the job's fault: the attempt is given back.
    Throttled,
    /// Its time to live passed before an attempt started.
    TtlPassed,
    /// Someone asked for the job to end.
    Cancelled,
}

/// What follows from a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Another attempt may cure it.
    Retry,
    /// Nothing will, or the attempts are used up.
    GiveUp,
}

impl Event {
    /// Every event, for tables and tests.
    pub const ALL: [Self; 9] = [
        Self::Leased,
        Self::Succeeded,
        Self::Failed(Verdict::Retry),
        Self::Failed(Verdict::GiveUp),
        Self::LeaseExpired(Verdict::Retry),
        Self::LeaseExpired(Verdict::GiveUp),
        Self::Throttled,
        Self::TtlPassed,
        Self::Cancelled,
    ];

    /// The word used in logs and errors.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Leased => "leased",
            Self::Succeeded => "succeeded",
            Self::Failed(Verdict::Retry) => "failed, to be retried",
            Self::Failed(Verdict::GiveUp) => "failed for good",
            Self::LeaseExpired(Verdict::Retry) => "lease expired, to be retried",
            Self::LeaseExpired(Verdict::GiveUp) => "lease expired for good",
            Self::Throttled => "throttled",
            Self::TtlPassed => "time to live passed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// An event that cannot happen to a job in that status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a {from} job cannot be {event}")]
pub struct IllegalTransition {
    /// The status the job had.
    pub from: Status,
    /// The event's name.
    pub event: &'static str,
}

/// The status a job moves to when `event` happens.
///
/// Every store calls this; none decides for itself.
///
/// # Errors
///
/// [`IllegalTransition`] when `event` cannot happen in `from`, for example a worker
/// reporting success on a job that was cancelled meanwhile.
///
/// ```
/// use llmq_core::{Event, Status, transition};
/// assert_eq!(transition(Status::Queued, Event::Leased), Ok(Status::Processing));
/// assert!(transition(Status::Cancelled, Event::Succeeded).is_err());
/// ```
pub fn transition(from: Status, event: Event) -> Result<Status, IllegalTransition> {
    use crate::{Event as E, Status as S, Verdict as V};
    match (from, event) {
        (S::Queued, E::Leased) => Ok(S::Processing),
        (S::Processing, E::Succeeded) => Ok(S::Completed),
        // The attempt was counted when leased, so a job that kills its workers runs out.
        (S::Processing, E::Failed(V::Retry) | E::LeaseExpired(V::Retry)) => Ok(S::Queued),
        (S::Processing, E::Failed(V::GiveUp) | E::LeaseExpired(V::GiveUp)) => Ok(S::Failed),
        // The provider was busy; the job did nothing wrong, and its attempt is given back.
        (S::Processing, E::Throttled) => Ok(S::Queued),
        (S::Queued, E::TtlPassed) => Ok(S::Expired),
        (S::Queued | S::Processing, E::Cancelled) => Ok(S::Cancelled),
        // Spelled out rather than `_`: a new status or event stops the build here.
        (
            S::Queued | S::Processing | S::Completed | S::Failed | S::Expired | S::Cancelled,
            E::Leased
            | E::Succeeded
            | E::Failed(_)
            | E::LeaseExpired(_)
            | E::Throttled
            | E::TtlPassed
            | E::Cancelled,
        ) => Err(IllegalTransition {
            from,
            event: event.name(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_status_never_changes() {
        for from in Status::ALL.into_iter().filter(|status| status.is_final()) {
            for event in Event::ALL {
                assert!(
                    transition(from, event).is_err(),
                    "{from} moved on {event:?}"
                );
            }
        }
    }

    #[test]
    fn only_a_lease_starts_an_attempt_and_only_an_attempt_ends_in_a_result() {
        for from in Status::ALL {
            for event in Event::ALL {
                match transition(from, event) {
                    Ok(Status::Processing) => {
                        assert_eq!((from, event), (Status::Queued, Event::Leased));
                    }
                    Ok(Status::Completed | Status::Failed) => assert_eq!(from, Status::Processing),
                    Ok(Status::Expired) => assert_eq!(from, Status::Queued),
                    Ok(Status::Queued) => assert_eq!(from, Status::Processing),
                    Ok(Status::Cancelled) => assert!(!from.is_final()),
                    Err(_) => {}
                }
            }
        }
    }

    #[test]
    fn the_diagram_in_the_architecture_shows_every_edge() {
        let text = include_str!("../../../ARCHITECTURE.md");
        for from in Status::ALL {
            for event in Event::ALL {
                if let Ok(to) = transition(from, event) {
                    let edge = format!("{from} --> {to}");
                    assert!(text.contains(&edge), "ARCHITECTURE.md lacks `{edge}`");
                }
            }
        }
    }
}
