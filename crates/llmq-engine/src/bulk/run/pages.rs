use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// So many calls after one another that are refused with pages are no longer the fault of their
/// rows: nothing gets through.
const PAGES_MAX: u32 = 16;

/// Pages that came instead of refusals in JSON, at one upstream: a firewall's for a prompt that it
/// does not like, or that of a place where nothing is answered at all.
#[derive(Debug)]
pub(super) struct Pages {
    has_answered: AtomicBool,
    in_a_row: AtomicU32,
}

impl Pages {
    /// `has_answered`: whether calls were answered before this run.
    pub(super) fn new(has_answered: bool) -> Self {
        Self {
            has_answered: AtomicBool::new(has_answered),
            in_a_row: AtomicU32::new(0),
        }
    }

    /// A call was answered.
    pub(super) fn answered(&self) {
        self.has_answered.store(true, Ordering::Relaxed);
        self.in_a_row.store(0, Ordering::Relaxed);
    }

    /// A call was refused with a page: whether that is its row's fault.
    pub(super) fn is_the_rows(&self) -> bool {
        let before = self.in_a_row.fetch_add(1, Ordering::Relaxed);
        self.has_answered.load(Ordering::Relaxed) && before < PAGES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_its_rows_fault_while_others_are_answered() {
        let pages = Pages::new(false);
        assert!(!pages.is_the_rows());
        pages.answered();
        for _ in 0..PAGES_MAX {
            assert!(pages.is_the_rows());
        }
        assert!(!pages.is_the_rows(), "a firewall that lets nothing through");
        pages.answered();
        assert!(pages.is_the_rows());
    }
}
