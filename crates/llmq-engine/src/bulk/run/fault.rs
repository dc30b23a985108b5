use std::sync::{Mutex, MutexGuard, PoisonError};

use llmq_dispatch::UpstreamId;
use llmq_provider::{CallError, Cause, Verdict};

/// What last went wrong at an upstream, as a person is told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// What went wrong.
    pub(super) said: String,
    /// What can be done about it.
    pub(super) remedy: Option<&'static str>,
    /// Whether it stays so until a person acts.
    pub(super) lasting: bool,
}

impl Fault {
    /// What went wrong, and what can be done about it.
    pub(super) fn told(&self) -> String {
        match self.remedy {
            Some(remedy) => format!("{}; {remedy}", self.said),
            None => self.said.clone(),
        }
    }
}

impl From<&CallError> for Fault {
    fn from(error: &CallError) -> Self {
        Self {
            said: error.to_string(),
            remedy: error.cause().and_then(Cause::remedy),
            lasting: error.cause().is_some_and(Cause::is_lasting),
        }
    }
}

impl From<&Verdict> for Fault {
    fn from(verdict: &Verdict) -> Self {
        let nothing_there = verdict.status == Some(404) && verdict.code.is_none();
        Self {
            said: verdict.to_string(),
            remedy: nothing_there.then_some("check the path of the base URL; most end in /v1"),
            lasting: false,
        }
    }
}

/// The last fault of each upstream, and of the rows that have no result for one.
#[derive(Debug, Default)]
pub(super) struct Faults {
    last: Mutex<Vec<(UpstreamId, Fault)>>,
    left: Mutex<Option<Left>>,
}

/// Rows that are left to the next run, since the account refused them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) rows: u64,
    /// How the last of them was refused, and by whom.
    pub(super) said: String,
}

impl Faults {
    pub(super) fn note(&self, upstream: UpstreamId, fault: Fault) {
        let mut faults = self.all();
        faults.retain(|(other, _)| *other != upstream);
        faults.push((upstream, fault));
    }

    pub(super) fn last(&self, upstream: UpstreamId) -> Option<Fault> {
        let faults = self.all();
        let last = faults.iter().find(|(other, _)| *other == upstream);
        last.map(|(_, fault)| fault.clone())
    }

    /// A row is left to the next run.
    pub(super) fn leave(&self, said: String) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = left.take().map_or(0, |left| left.rows) + 1;
        *left = Some(Left { rows, said });
    }

    /// The rows that are left to the next run.
    pub(super) fn left(&self) -> Option<Left> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.clone()
    }

    fn all(&self) -> MutexGuard<'_, Vec<(UpstreamId, Fault)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
