use http::HeaderMap;
use llmq_core::WallTime;
use llmq_provider::{AnswerFacts, Provider};
use llmq_store::Job;

use super::Begun;
use crate::observe::CallRecord;

/// Where spans go: nowhere, since this program was built without the feature `otel`.
#[derive(Debug)]
pub enum Traces {}

/// The span of a call.
#[derive(Debug)]
pub(crate) enum CallSpan {}

impl Traces {
    pub(crate) fn begin(&self, _: Begun<'_>, _: &HeaderMap) -> CallSpan {
        match *self {}
    }

    pub(crate) fn job(&self, _: &Job, _: Option<Provider>, _: bool, _: Option<&AnswerFacts>) {
        match *self {}
    }

    /// Sends what has not been sent.
    pub fn close(&self) {
        match *self {}
    }
}

impl CallSpan {
    pub(crate) fn asks(&mut self, _: &Provider, _: &mut HeaderMap) {
        match *self {}
    }

    pub(crate) fn answered(&mut self, _: AnswerFacts) {
        match *self {}
    }

    pub(crate) fn end(self, _: &CallRecord<'_>, _: WallTime) {
        match self {}
    }
}
