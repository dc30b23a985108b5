use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::manager::QueueManager;

/// The managers of the process, one for each pair of types.
type Managers = Mutex<HashMap<TypeId, Box<dyn Any + Send>>>;

static MANAGERS: OnceLock<Managers> = OnceLock::new();

impl<P, T> QueueManager<P, T>
where
    P: Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// The manager of the process for these types, for those who do not want to hand one
    /// around. It is made when it is first asked for and never dropped; its timer runs on the
    /// runtime on which its first queue was registered, and it takes nothing more when that has
    /// ended.
    ///
    /// ```
    /// use llmq::QueueManager;
    /// let manager = QueueManager::<String, String>::global();
    /// assert!(manager.models().is_empty());
    /// ```
    #[must_use]
    pub fn global() -> Self {
        let managers = MANAGERS.get_or_init(Managers::default);
        let mut managers = managers.lock().unwrap_or_else(PoisonError::into_inner);
        let manager = managers
            .entry(TypeId::of::<Self>())
            .or_insert_with(|| Box::new(Self::new()));
        manager
            .downcast_ref::<Self>()
            .expect("it stands under its own type")
            .clone()
    }
}
