use std::time::Duration;

use llmq_core::{LimitKind, Timestamp};
use llmq_limit::FirstWord;

/// The counts that an upstream's answers state, in headers and refusals, each until another one is
/// stated.
///
/// What an answer states is as old as its call: a long stream states at its end what was so when
/// it began.
#[derive(Debug, Default)]
pub(crate) struct HeardOf {
    /// The newest come last.
    counts: Vec<Heard>,
}

#[derive(Debug)]
struct Heard {
    kind: LimitKind,
    window: Duration,
    count: u64,
    times: u32,
    /// When the last call was sent whose answer stated it.
    as_of: Timestamp,
    /// What was used by then.
    word: Option<FirstWord>,
}

/// What a statement is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Worth {
    /// The answer to a later call has stated another count.
    Outdated,
    /// One answer can mislead.
    Single,
    /// Three that agree are believed.
    Agreed,
}

const AGREE: u32 = 3;
/// So many are heard of and not believed yet.
const HEARD_MAX: usize = 64;

impl HeardOf {
    /// The answer to a call that was sent at `sent_at` states a count, and perhaps what is used.
    pub(crate) fn states(
        &mut self,
        kind: LimitKind,
        count: u64,
        window: Duration,
        sent_at: Timestamp,
        word: Option<FirstWord>,
    ) -> Worth {
        let is_same = |heard: &Heard| (heard.kind, heard.window) == (kind, window);
        if let Some(index) = self.counts.iter().position(is_same) {
            let heard = &mut self.counts[index];
            if heard.count == count {
                heard.times = heard.times.saturating_add(1);
                heard.as_of = heard.as_of.max(sent_at);
                heard.word = later(heard.word, word, window);
                return match heard.times {
                    AGREE.. => Worth::Agreed,
                    _ => Worth::Single,
                };
            }
            if sent_at < heard.as_of {
                return Worth::Outdated;
            }
            self.counts.remove(index);
        } else if self.counts.len() >= HEARD_MAX {
            self.counts.remove(0);
        }
        self.counts.push(Heard {
            kind,
            window,
            count,
            times: 1,
            as_of: sent_at,
            word,
        });
        Worth::Single
    }

    /// What was used by the last call whose answer stated a limit that is in force still.
    pub(crate) fn word(&self, kind: LimitKind, window: Duration) -> Option<FirstWord> {
        let is_same = |heard: &&Heard| (heard.kind, heard.window) == (kind, window);
        self.counts
            .iter()
            .find(is_same)
            .and_then(|heard| heard.word)
    }
}

/// The word on the later call. Calls that were sent close together may have arrived in any order,
/// so of two such words it is the one by which more is used.
fn later(a: Option<FirstWord>, b: Option<FirstWord>, window: Duration) -> Option<FirstWord> {
    let (Some(a), Some(b)) = (a, b) else {
        return a.or(b);
    };
    let (first, last) = if a.sent_at <= b.sent_at {
        (a, b)
    } else {
        (b, a)
    };
    if last.sent_at - first.told_at > window / 100 {
        return Some(last);
    }
    Some(FirstWord {
        used: first.used.max(last.used),
        ..last
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_call_met_does_not_contradict_what_a_later_one_did() {
        let mut heard = HeardOf::default();
        let mut states = |count, secs| {
            let at = Timestamp::ZERO + Duration::from_secs(secs);
            heard.states(
                LimitKind::Requests,
                count,
                Duration::from_secs(60),
                at,
                None,
            )
        };
        assert_eq!(states(500, 10), Worth::Single);
        for _ in 0..5 {
            assert_eq!(states(1_000, 9), Worth::Outdated);
        }
        assert_eq!(states(500, 8), Worth::Single);
        assert_eq!(states(500, 11), Worth::Agreed);
        assert_eq!(states(1_000, 12), Worth::Single);
        assert_eq!(states(500, 11), Worth::Outdated);
    }

    #[test]
    fn its_size_is_bounded() {
        let mut heard = HeardOf::default();
        for secs in 0..1_000 {
            let window = Duration::from_secs(secs);
            let _ = heard.states(LimitKind::Requests, 1, window, Timestamp::ZERO, None);
        }
        assert_eq!(heard.counts.len(), HEARD_MAX);
    }
}
