use std::any::Any;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use llmq_core::FailureClass;
use llmq_dispatch::{Ended, Outcome};

use crate::error::SharedCause;
use crate::request::QueueRequest;

/// What a processor says when it has no result, as far as what to do next depends on it.
///
/// Every [`std::error::Error`] turns into [`ProcessorError::Permanent`], so a processor can use
/// `?` on anything; what is worth another attempt is said with [`ProcessorError::transient`] or
/// [`ProcessorError::rate_limited`]. An error type of your own that is not a
/// `std::error::Error` can implement `Into<ProcessorError>` and choose for itself.
///
/// ```
/// use llmq::ProcessorError;
/// fn read(text: &str) -> Result<u32, ProcessorError> {
///     if text == "busy" {
///         return Err(ProcessorError::transient("the server is busy"));
///     }
///     Ok(text.parse()?)
/// }
/// assert!(matches!(read("busy"), Err(ProcessorError::Transient(_))));
/// assert!(matches!(read("x"), Err(ProcessorError::Permanent(_))));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum ProcessorError {
    /// The provider refused for its rate: the whole queue waits until it said, and the request
    /// goes back to its place. It is not counted as an attempt.
    RateLimited {
        /// How long to wait, by the provider's word; else a minute, doubled up to five.
        retry_after: Option<Duration>,
        /// What it said.
        source: Option<Box<dyn Error + Send + Sync>>,
    },
    /// A fault that passes: the request is tried again, up to its model's `max_attempts`.
    Transient(Box<dyn Error + Send + Sync>),
    /// Another attempt would fail the same way.
    Permanent(Box<dyn Error + Send + Sync>),
    /// For processors that know more: the class decides by the retry table
    /// ([`FailureClass::rule`]) whether, when and where it is tried again.
    Classified {
        /// What kind of failure it was.
        class: FailureClass,
        /// How long to wait, by the provider's word.
        retry_after: Option<Duration>,
        /// What it said.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl ProcessorError {
    /// The provider refused for its rate and asks to wait that long, if it said so.
    #[must_use]
    pub fn rate_limited(retry_after: Option<Duration>) -> Self {
        Self::RateLimited {
            retry_after,
            source: None,
        }
    }

    /// A fault that passes.
    pub fn transient(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Transient(error.into())
    }

    /// A fault that stays.
    pub fn permanent(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Permanent(error.into())
    }

    /// A failure of a known class.
    pub fn classified(
        class: FailureClass,
        retry_after: Option<Duration>,
        error: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Classified {
            class,
            retry_after,
            source: error.into(),
        }
    }

    /// Whether the provider refused for the rate.
    pub(crate) fn is_rate_limit(&self) -> bool {
        match self {
            Self::RateLimited { .. } => true,
            Self::Classified { class, .. } => class.is_rate_limit(),
            Self::Transient(_) | Self::Permanent(_) => false,
        }
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } | Self::Classified { retry_after, .. } => {
                *retry_after
            }
            Self::Transient(_) | Self::Permanent(_) => None,
        }
    }

    /// The same for the dispatcher. Where the error names no wait, what the headers said holds.
    pub(crate) fn ended(&self, headers_said: Option<Duration>) -> Ended {
        let class = match self {
            Self::RateLimited { .. } => FailureClass::QuotaWindow,
            Self::Transient(_) => FailureClass::Transient,
            Self::Permanent(_) => FailureClass::RowFault,
            Self::Classified { class, .. } => *class,
        };
        let told = self.retry_after().or(headers_said);
        Ended {
            outcome: Outcome::Failed {
                class,
                told,
                text: None,
            },
            ..Ended::default()
        }
    }

    pub(crate) fn into_cause(self) -> Option<SharedCause> {
        match self {
            Self::RateLimited { source, .. } => source.map(Arc::from),
            Self::Transient(source) | Self::Permanent(source) | Self::Classified { source, .. } => {
                Some(Arc::from(source))
            }
        }
    }
}

impl fmt::Display for ProcessorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RateLimited {
                source: Some(source),
                ..
            } => source.fmt(f),
            Self::RateLimited { .. } => f.write_str("refused for its rate"),
            Self::Transient(source) | Self::Permanent(source) | Self::Classified { source, .. } => {
                source.fmt(f)
            }
        }
    }
}

// It is no `std::error::Error` itself: only so can every other one turn into it.
impl<E: Error + Send + Sync + 'static> From<E> for ProcessorError {
    fn from(error: E) -> Self {
        Self::Permanent(Box::new(error))
    }
}

/// The processor panicked; the cause of a [`QueueError::ProcessingError`](crate::QueueError).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the processor panicked: {0}")]
pub struct ProcessorPanic(String);

impl ProcessorPanic {
    fn new(panic: &(dyn Any + Send)) -> Self {
        let words = panic
            .downcast_ref::<&str>()
            .map(|words| (*words).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        Self(words.unwrap_or_else(|| "without a message".to_owned()))
    }
}

pub(crate) type Processing<T> = Pin<Box<dyn Future<Output = Result<T, ProcessorError>> + Send>>;

/// A processor of which only the types of its parameters and results are known.
pub(crate) type Processor<P, T> = Box<dyn Fn(QueueRequest<P>) -> Processing<T> + Send + Sync>;

pub(crate) fn boxed<P, T, E, F, R>(processor: F) -> Processor<P, T>
where
    F: Fn(QueueRequest<P>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<T, E>> + Send + 'static,
    E: Into<ProcessorError>,
{
    Box::new(move |request| {
        let processing = processor(request);
        Box::pin(async move { processing.await.map_err(Into::into) })
    })
}

/// Runs a processor once. A panic in it is its own failure and nobody else's.
pub(crate) async fn process<P, T>(
    processor: &Processor<P, T>,
    request: QueueRequest<P>,
) -> Result<T, ProcessorError> {
    let panicked = |panic: Box<dyn Any + Send>| ProcessorError::from(ProcessorPanic::new(&*panic));
    // The processor is called and polled by one request only, so nobody sees what it left torn.
    let processing = catch_unwind(AssertUnwindSafe(|| processor(request))).map_err(panicked)?;
    AssertUnwindSafe(processing)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| Err(panicked(panic)))
}
