use std::path::PathBuf;

use llmq_dispatch::UpstreamId;

use crate::books::{Earlier, Page, Shelf};
use crate::bulk::{Side, SideError};

/// The books of a run, in the side file of its output.
pub(super) struct SideShelf {
    pub(super) side: Side,
    pub(super) output: PathBuf,
    pub(super) learners: Vec<(UpstreamId, String)>,
}

impl Shelf for SideShelf {
    type Error = SideError;

    fn learners(&self) -> Vec<(UpstreamId, String)> {
        self.learners.clone()
    }

    fn put(&mut self, page: Page) -> Result<(), SideError> {
        let json = |text: &String| serde_json::from_str(text).unwrap_or_default();
        let quota = page
            .quota
            .iter()
            .map(|(name, state)| (name.clone(), json(state)));
        self.side.windows = serde_json::to_value(&page.spent).unwrap_or_default();
        self.side.quota = serde_json::Map::from_iter(quota).into();
        self.side.alive_at = Some(page.alive_at);
        self.side.save(&self.output)
    }
}

/// The books that an earlier process left in the side file. What cannot be read is passed over.
pub(super) fn read(side: &Side) -> Earlier {
    let quota = side.quota.as_object().into_iter().flatten();
    Earlier {
        spent: serde_json::from_value(side.windows.clone()).unwrap_or_default(),
        quota: quota
            .map(|(name, state)| (name.clone(), state.to_string()))
            .collect(),
        alive_at: side.alive_at,
        // A run ends with the first of its books that cannot be written.
        touched_at: None,
    }
}
