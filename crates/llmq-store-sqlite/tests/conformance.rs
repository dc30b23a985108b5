//! The embedded store keeps the laws of stores, in a file and without one.
#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::sync::Arc;

use llmq_core::WallTime;
use llmq_store::Settings;
use llmq_store_sqlite::{Options, Place, Store};

fn open(place: &Place, settings: Settings) -> Arc<dyn llmq_store::Store> {
    let options = Options {
        settings,
        ballast_bytes: 0,
        in_place: matches!(place, Place::File(_)),
        ..Options::default()
    };
    Arc::new(Store::open_with(place, options, WallTime::default()).unwrap())
}

mod in_a_file {
    use super::*;

    llmq_store::conformance!(|settings: Settings| async move {
        // The directory is removed by name while the file is in use, so nothing is left of it.
        let directory = llmq_testkit::scratch();
        open(&Place::File(directory.path().join("llmq.db")), settings)
    });
}

mod in_memory {
    use super::*;

    llmq_store::conformance!(|settings: Settings| async move { open(&Place::Memory, settings) });
}
