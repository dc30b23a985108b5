//! The store in memory keeps the laws of stores.

use std::sync::Arc;

use llmq_store::{MemoryStore, Settings, Store};

llmq_store::conformance!(|settings: Settings| async move {
    Arc::new(MemoryStore::new(settings)) as Arc<dyn Store>
});
