use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use llmq_core::{CallSize, Priority};
use uuid::Uuid;

/// One call to a model, with parameters of your own type.
///
/// ```
/// use llmq::{Priority, QueueRequest};
/// use std::time::Duration;
/// let request = QueueRequest::new("gpt-4o-mini", "Hello".to_owned())
///     .priority(Priority::HIGH)
///     .timeout(Duration::from_secs(30))
///     .tokens(12, 200)
///     .metadata("user", "42");
/// assert!(request.wait_for_completion);
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct QueueRequest<P> {
    /// Its name in this process; a new UUIDv7 unless you set it.
    pub id: Uuid,
    /// Which registered model it is for.
    pub model_id: Arc<str>,
    /// What the processor gets.
    pub params: P,
    /// How urgent it is; higher goes first. Normal unless set.
    pub priority: Priority,
    /// Whether submitting waits for the result. If not, it returns at once with the status
    /// `queued`, and the result is fetched later. True unless set.
    pub wait_for_completion: bool,
    /// From the submission to the result; none: the model's, else as long as it takes.
    pub timeout: Option<Duration>,
    /// How large it is, for limits that count tokens; none: what the queue's estimator says,
    /// else a single answer of unknown length.
    pub size: Option<CallSize>,
    /// For whom it is made, of those made with
    /// [`QueueManager::add_tenant`](crate::QueueManager::add_tenant); none: for nobody in
    /// particular.
    pub tenant: Option<Arc<str>>,
    /// Requests to one model with the same key, whoever's they are, are one while the first of them is in flight:
    /// the others get its result.
    pub dedup_key: Option<String>,
    /// Words of your own, for hooks and logs. No limit or order depends on them.
    pub metadata: BTreeMap<String, String>,
}

impl<P> QueueRequest<P> {
    /// A request of normal priority that waits for its result.
    #[must_use]
    pub fn new(model_id: impl Into<Arc<str>>, params: P) -> Self {
        Self {
            id: Uuid::now_v7(),
            model_id: model_id.into(),
            params,
            priority: Priority::NORMAL,
            wait_for_completion: true,
            timeout: None,
            size: None,
            tenant: None,
            dedup_key: None,
            metadata: BTreeMap::new(),
        }
    }

    /// The same under another id. It must not be one that is in flight.
    #[must_use]
    pub fn id(self, id: Uuid) -> Self {
        Self { id, ..self }
    }

    /// The same with another urgency.
    #[must_use]
    pub fn priority(self, priority: Priority) -> Self {
        Self { priority, ..self }
    }

    /// The same without waiting for the result.
    #[must_use]
    pub fn without_waiting(self) -> Self {
        Self {
            wait_for_completion: false,
            ..self
        }
    }

    /// The same with at most this long from its submission to its result.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self {
            timeout: Some(timeout),
            ..self
        }
    }

    /// The same with an estimate of its tokens: input, and at most so much output.
    #[must_use]
    pub fn tokens(self, input: u32, output: u32) -> Self {
        let size = CallSize {
            input_tokens: input,
            max_output_tokens: Some(output),
            choices: 1,
        };
        Self {
            size: Some(size),
            ..self
        }
    }

    /// The same for somebody in particular.
    #[must_use]
    pub fn tenant(self, name: impl Into<Arc<str>>) -> Self {
        Self {
            tenant: Some(name.into()),
            ..self
        }
    }

    /// The same as any other in flight with this key.
    #[must_use]
    pub fn dedup_key(self, key: impl Into<String>) -> Self {
        Self {
            dedup_key: Some(key.into()),
            ..self
        }
    }

    /// The same with one more word of your own.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }
}
