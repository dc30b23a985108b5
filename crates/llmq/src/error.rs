use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

/// A cause that several answers can share.
pub type SharedCause = Arc<dyn Error + Send + Sync>;

/// Why a request has no result, or a queue could not be set up.
///
/// It is cheap to clone, since everybody who waits for the same request gets the same error.
/// [`QueueError::cause`] gives the processor's own error back.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum QueueError {
    /// The provider went on refusing the call for its rate, as often as a request bears.
    RateLimitExceeded {
        /// The model.
        model: Arc<str>,
        /// When to try again, by the provider's word.
        retry_after: Option<Duration>,
        /// What the processor said, if it said more.
        source: Option<SharedCause>,
    },
    /// The request is larger than the whole of a limit, so it could never start.
    RequestTooLarge {
        /// The model.
        model: Arc<str>,
        /// The limit's name, such as `tpm gpt-4o-mini`.
        limit: String,
        /// The limit's count.
        count: u64,
    },
    /// The request's `timeout` passed before it had a result.
    QueueTimeout {
        /// The model.
        model: Arc<str>,
        /// The timeout that passed.
        timeout: Duration,
        /// How many attempts had been made.
        attempts: u32,
    },
    /// The queue holds as much as it may. Nothing of it is dropped to make room.
    QueueFull {
        /// The model.
        model: Arc<str>,
        /// Requests accepted and not finished.
        requests: u64,
    },
    /// No queue is registered for the model.
    ModelNotRegistered {
        /// The model that was asked for.
        model: Arc<str>,
    },
    /// A queue is registered for the model already.
    AlreadyRegistered {
        /// The model.
        model: Arc<str>,
    },
    /// A setting cannot be meant. All mistakes of one configuration are told at once.
    InvalidConfiguration {
        /// What it is about: a model's name, or the part that is being set up.
        what: Arc<str>,
        /// What is wrong, each mistake a sentence.
        reason: String,
    },
    /// The processor failed for good.
    ProcessingError {
        /// The model.
        model: Arc<str>,
        /// The request.
        request: Uuid,
        /// Attempts that were made.
        attempts: u32,
        /// The processor's own error.
        source: SharedCause,
    },
    /// Somebody cancelled the request, or dropped the future that ran it.
    Cancelled {
        /// The model.
        model: Arc<str>,
        /// The request.
        request: Uuid,
    },
    /// A request with this id has not finished yet.
    DuplicateRequest {
        /// The model.
        model: Arc<str>,
        /// The id.
        request: Uuid,
    },
    /// The queue knows no such request, or no longer.
    UnknownRequest {
        /// The model.
        model: Arc<str>,
        /// The id.
        request: Uuid,
    },
    /// No tenant of this name was made.
    UnknownTenant {
        /// The tenant that was asked for.
        tenant: Arc<str>,
    },
    /// The queue is shutting down, or has.
    ShuttingDown {
        /// The model.
        model: Arc<str>,
    },
}

impl QueueError {
    /// The processor's own error, if it was of type `E`.
    ///
    /// ```
    /// # use llmq::{ModelConfig, QueueError, QueueManager, QueueRequest};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), QueueError> {
    /// let manager = QueueManager::<String, u32>::new();
    /// manager.register_queue(ModelConfig::new("m"), |request| async move {
    ///     request.params.parse::<u32>()
    /// })?;
    /// let error = manager.submit_request(QueueRequest::new("m", "x".to_owned())).await.unwrap_err();
    /// assert!(error.cause::<std::num::ParseIntError>().is_some());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn cause<E: Error + 'static>(&self) -> Option<&E> {
        self.source()?.downcast_ref()
    }

    /// Whether the same request could succeed later without being changed.
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::RateLimitExceeded { .. } | Self::QueueTimeout { .. } | Self::QueueFull { .. }
        )
    }

    pub(crate) fn invalid(what: impl Into<Arc<str>>, reason: impl Into<String>) -> Self {
        Self::InvalidConfiguration {
            what: what.into(),
            reason: reason.into(),
        }
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RateLimitExceeded {
                model, retry_after, ..
            } => {
                write!(f, "the provider of `{model}` kept refusing for its rate")?;
                match retry_after {
                    Some(after) => write!(f, "; it asks to wait {after:?}"),
                    None => Ok(()),
                }
            }
            Self::RequestTooLarge {
                model,
                limit,
                count,
            } => write!(
                f,
                "the request to `{model}` is above the whole limit of {count} ({limit})"
            ),
            Self::QueueTimeout {
                model,
                timeout,
                attempts: 0,
            } => write!(
                f,
                "the request to `{model}` was not started within {timeout:?}"
            ),
            Self::QueueTimeout { model, timeout, .. } => {
                write!(
                    f,
                    "the request to `{model}` was not finished within {timeout:?}"
                )
            }
            Self::QueueFull { model, requests } => {
                write!(f, "the queue of `{model}` is full with {requests} requests")
            }
            Self::ModelNotRegistered { model } => write!(f, "no queue is registered for `{model}`"),
            Self::AlreadyRegistered { model } => {
                write!(f, "a queue is registered for `{model}` already")
            }
            Self::InvalidConfiguration { what, reason } => write!(f, "`{what}`: {reason}"),
            Self::ProcessingError {
                model,
                request,
                attempts,
                ..
            } => write!(
                f,
                "request {request} to `{model}` failed in attempt {attempts}"
            ),
            Self::Cancelled { model, request } => {
                write!(f, "request {request} to `{model}` was cancelled")
            }
            Self::DuplicateRequest { model, request } => {
                write!(f, "request {request} to `{model}` has not finished yet")
            }
            Self::UnknownRequest { model, request } => {
                write!(f, "the queue of `{model}` knows no request {request}")
            }
            Self::UnknownTenant { tenant } => write!(f, "there is no tenant `{tenant}`"),
            Self::ShuttingDown { model } => write!(f, "the queue of `{model}` is shutting down"),
        }
    }
}

impl Error for QueueError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // By hand, so that the cause itself is found and not the pointer that shares it.
        match self {
            Self::ProcessingError { source, .. }
            | Self::RateLimitExceeded {
                source: Some(source),
                ..
            } => Some(&**source),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_the_processors_own_error_and_not_a_pointer_to_it() {
        let source: SharedCause = Arc::new("x".parse::<u32>().unwrap_err());
        let error = QueueError::ProcessingError {
            model: "m".into(),
            request: Uuid::nil(),
            attempts: 1,
            source,
        };
        assert!(error.cause::<std::num::ParseIntError>().is_some());
        assert!(error.cause::<fmt::Error>().is_none());
        assert!(!error.is_temporary());
    }

    #[test]
    fn an_error_is_small_enough_to_be_returned_everywhere() {
        assert!(size_of::<QueueError>() <= 80, "{}", size_of::<QueueError>());
    }
}
