//! Which upstream made a response, and for whom, for calls that name it later.
//!
//! A response, with the conversation it belongs to, is kept by the account that made it, and by
//! no other. Its name tells nothing of that, nor whose it is, so both are remembered here, as long
//! as there is room. Where one account serves one caller, all is theirs and nothing is remembered.

use std::borrow::Cow;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use llmq_dispatch::UpstreamId;
use llmq_provider::SseSplitter;
use rustc_hash::{FxBuildHasher, FxHashMap};
use serde::Deserialize;

/// So many names of each of two generations: together some 5 MB, and a day's work for most.
const GENERATION: usize = 50_000;

/// The names of responses and conversations that upstreams have answered with.
#[derive(Debug)]
pub(crate) struct Made {
    /// There are several accounts.
    several: AtomicBool,
    names: Mutex<Names>,
}

#[derive(Debug, Default)]
struct Names {
    young: FxHashMap<u64, Maker>,
    old: FxHashMap<u64, Maker>,
}

/// Who made something, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Maker {
    pub(crate) upstream: UpstreamId,
    tenant: u64,
}

impl Maker {
    pub(crate) fn new(upstream: UpstreamId, tenant: &str) -> Self {
        let tenant = hash(tenant);
        Self { upstream, tenant }
    }

    /// Whether it was made for this tenant.
    pub(crate) fn is_for(self, tenant: &str) -> bool {
        self.tenant == hash(tenant)
    }
}

impl Made {
    pub(crate) fn new(accounts: usize) -> Self {
        Self {
            several: AtomicBool::new(accounts > 1),
            names: Mutex::default(),
        }
    }

    /// There are so many accounts from now on.
    pub(crate) fn has_accounts(&self, accounts: usize) {
        self.several.store(accounts > 1, Ordering::Relaxed);
    }

    /// Whether names are worth remembering where nobody `is_known`, since no key was shown.
    pub(crate) fn matters(&self, is_known: bool) -> bool {
        is_known || self.several.load(Ordering::Relaxed)
    }

    /// Who made what is called `name`.
    pub(crate) fn by(&self, name: &str) -> Option<Maker> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = hash(name);
        names.young.get(&hash).or(names.old.get(&hash)).copied()
    }

    /// Takes note of a whole answer of the Responses API.
    pub(crate) fn note_whole(&self, body: &[u8], by: Maker) {
        if let Ok(response) = serde_json::from_slice::<Named<'_>>(body) {
            self.note(&response, by);
        }
    }

    /// Takes note of the head of its stream, whose first event names the response.
    pub(crate) fn note_stream(&self, head: &[u8], by: Maker) {
        // An event that is too large is the reader's to refuse.
        let _ = SseSplitter::new().push(head, |event| {
            if let Ok(Begun { response }) = serde_json::from_slice(event.data) {
                self.note(&response, by);
            }
        });
    }

    fn note(&self, response: &Named<'_>, by: Maker) {
        let conversation = response.conversation.as_ref();
        let named = [
            response.id.as_deref(),
            conversation.and_then(|own| own.id.as_deref()),
        ];
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        for name in named.into_iter().flatten() {
            names.young.insert(hash(name), by);
        }
        if names.young.len() >= GENERATION {
            names.old = std::mem::take(&mut names.young);
        }
    }
}

fn hash(name: &str) -> u64 {
    FxBuildHasher.hash_one(name)
}

#[derive(Deserialize)]
struct Begun<'a> {
    #[serde(borrow)]
    response: Named<'a>,
}

#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    conversation: Option<Conversation<'a>>,
}

#[derive(Deserialize)]
struct Conversation<'a> {
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maker() -> Maker {
        use llmq_core::Now;
        use llmq_dispatch::{Dispatcher, Rules, UpstreamSetup};
        let mut dispatcher = Dispatcher::new(Rules::default(), 1);
        let upstream = dispatcher.add_upstream(UpstreamSetup::default(), Now::default());
        Maker::new(upstream, "a")
    }

    #[test]
    fn names_are_found_in_whole_answers_and_at_the_head_of_streams() {
        let (made, by) = (Made::new(2), maker());
        made.note_whole(
            br#"{"id":"resp_1","conversation":{"id":"conv_1"},"x":[]}"#,
            by,
        );
        let head = "event: response.created\ndata: {\"response\":{\"id\":\"resp_2\",\"conversation\":null}}\n\n";
        made.note_stream(head.as_bytes(), by);
        for name in ["resp_1", "conv_1", "resp_2"] {
            assert_eq!(made.by(name), Some(by), "{name}");
        }
        assert_eq!(made.by("resp_3"), None);
        assert!(by.is_for("a") && !by.is_for("b"));
    }

    #[test]
    fn the_latest_are_remembered_and_memory_is_bounded() {
        let (made, by) = (Made::new(2), maker());
        for number in 0..3 * GENERATION {
            made.note_whole(format!(r#"{{"id":"resp_{number}"}}"#).as_bytes(), by);
        }
        let latest = 3 * GENERATION - 1;
        assert_eq!(made.by(&format!("resp_{latest}")), Some(by));
        assert_eq!(made.by("resp_0"), None);
        let names = made.names.into_inner().unwrap();
        assert!(names.young.len() + names.old.len() <= 2 * GENERATION);
    }
}
