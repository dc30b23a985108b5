//! Which answers of a stream of chunks have ended.

use memchr::memmem;

use crate::opening::{Choice, Look};

/// The answers of a chat or completion that have said why they ended.
///
/// Some gateways write a reason into every chunk (BerriAI/litellm#2195, 2024), and a stream of
/// theirs would look whole wherever it is cut. So a reason holds for as long as nothing of its
/// answer comes after it, and one that comes with the first that its answer says is in doubt.
/// Others write an empty one (mudler/LocalAI#1886, 2024), which says nothing.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// By the index of each answer, the lowest first.
    answers: Vec<(u64, Standing)>,
    has_reason: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nothing of it has come.
    New,
    /// A chunk of it came without a reason, and said nothing: that with its role.
    Named,
    /// It has said something without a reason.
    Open,
    /// It has ended; nobody knows yet whether it goes on, since all that it said so far came with
    /// a reason.
    InDoubt,
    Ended,
    /// It went on after its reason: what it says of its end is not believed any more.
    WentOn,
}

impl Standing {
    fn after(self, choice: &Choice) -> Self {
        let (says, ends) = (choice.says_something(), choice.ends());
        match (self, says, ends) {
            (Self::New | Self::Named, false, false) => Self::Named,
            (Self::New | Self::Named | Self::Open, _, false) => Self::Open,
            (Self::New, _, true) | (Self::Named, true, true) => Self::InDoubt,
            (Self::Named, false, true) | (Self::Open, _, true) => Self::Ended,
            (Self::InDoubt | Self::Ended, true, _) | (Self::WentOn, ..) => Self::WentOn,
            (Self::InDoubt | Self::Ended, false, _) => self,
        }
    }
}

/// So many answers are told apart, which is more than any provider gives to one call; where there
/// are others, only the last event of a stream tells that they have ended.
const ANSWERS_MAX: u32 = 1_024;

impl Ended {
    /// Takes an event of a stream of so many `answers`; whether it gives one of them its reason to
    /// end.
    pub(crate) fn take(&mut self, event: &Look<'_>, answers: u32) -> bool {
        let gives_reason = gives_reason(event.data());
        self.has_reason |= gives_reason;
        // Most events are pieces of text of answers that have begun and not ended, and are not
        // looked into.
        if self.has_reason || self.begun() < answers.min(ANSWERS_MAX) {
            for choice in event.choices() {
                self.note(choice);
            }
        }
        gives_reason
    }

    fn note(&mut self, choice: &Choice) {
        let index = choice.index();
        let place = self
            .answers
            .binary_search_by_key(&index, |(index, _)| *index);
        let at = match place {
            Ok(at) => at,
            Err(_) if self.those(|_| true) >= ANSWERS_MAX => return,
            Err(at) => {
                self.answers.insert(at, (index, Standing::New));
                at
            }
        };
        let standing = &mut self.answers[at].1;
        *standing = standing.after(choice);
    }

    /// How many have ended, those included that only seem so.
    pub(crate) fn count(&self) -> u32 {
        self.those(|standing| matches!(standing, Standing::Ended | Standing::InDoubt))
    }

    /// How many have ended beyond doubt.
    pub(crate) fn proven(&self) -> u32 {
        self.those(|standing| standing == Standing::Ended)
    }

    /// How many have said something, or why they ended.
    fn begun(&self) -> u32 {
        self.those(|standing| !matches!(standing, Standing::New | Standing::Named))
    }

    fn those(&self, are: impl Fn(Standing) -> bool) -> u32 {
        let those = self.answers.iter().filter(|(_, standing)| are(*standing));
        u32::try_from(those.count()).unwrap_or(u32::MAX)
    }
}

fn gives_reason(data: &[u8]) -> bool {
    const NAME: &[u8] = b"\"finish_reason\"";
    memmem::find_iter(data, NAME).any(|at| {
        let rest = data[at + NAME.len()..].trim_ascii_start();
        let value = rest.strip_prefix(b":").unwrap_or(rest).trim_ascii_start();
        value.starts_with(b"\"") && !value.starts_with(b"\"\"")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SseEvent;

    fn after(events: &[&str], answers: u32) -> Ended {
        let mut ended = Ended::default();
        for event in events {
            let event = SseEvent {
                name: b"",
                data: event.as_bytes(),
            };
            ended.take(&Look::at(event), answers);
        }
        ended
    }

    /// How many answers have ended after these events.
    fn ended(events: &[&str]) -> u32 {
        after(events, 1).count()
    }

    const WORD: &str = r#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}"#;
    const STOP: &str = r#"{"choices":[{"index":0,"delta":{},"finish_reason": "stop"}]}"#;
    const BOTH: &str =
        r#"{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}"#;
    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":1}}"#;

    #[test]
    fn an_answer_ends_with_its_reason() {
        assert_eq!(ended(&[WORD]), 0);
        for last in [STOP, BOTH] {
            assert_eq!(ended(&[WORD, last]), 1, "{last}");
            assert_eq!(ended(&[WORD, last, USAGE]), 1, "{last}");
        }
        let without_delta = r#"{"choices":[{"delta":null,"finish_reason":"stop"}]}"#;
        assert_eq!(ended(&[without_delta]), 1);
        let completion = r#"{"choices":[{"text":"","finish_reason":"length"}]}"#;
        assert_eq!(ended(&[completion]), 1);
    }

    /// LocalAI and others write it into every chunk: each prefix of their streams looked whole.
    #[test]
    fn an_empty_reason_is_none() {
        let word = WORD.replace("null", "\"\"");
        assert_eq!(ended(&[&word, &word]), 0);
        assert_eq!(ended(&[&word, STOP]), 1);
    }

    /// The same of gateways that write `stop` into every chunk.
    #[test]
    fn a_reason_holds_while_nothing_of_its_answer_comes_after_it() {
        assert_eq!(ended(&[BOTH, BOTH]), 0);
        assert_eq!(ended(&[BOTH, BOTH, STOP]), 0);
        assert_eq!(ended(&[STOP, WORD]), 0);
        let role = r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
        assert_eq!(ended(&[STOP, role, USAGE]), 1);
    }

    /// The first of such chunks looked like a whole answer while the second was waited for.
    #[test]
    fn a_reason_with_the_first_that_an_answer_says_is_in_doubt() {
        let check = |events: &[&str], counted: u32, proven: u32| {
            let ended = after(events, 1);
            let found = (ended.count(), ended.proven());
            assert_eq!(found, (counted, proven), "{events:?}");
        };
        let role = r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
        let role_stop =
            r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":"stop"}]}"#;
        for first in [STOP, BOTH, role_stop] {
            check(&[first], 1, 0);
            check(&[first, USAGE], 1, 0);
            check(&[first, STOP], 1, 0);
            check(&[first, BOTH], 0, 0);
        }
        check(&[role, BOTH], 1, 0);
        check(&[role, BOTH, BOTH], 0, 0);
        check(&[role, STOP], 1, 1);
        for last in [STOP, BOTH] {
            check(&[WORD, last], 1, 1);
            check(&[role, WORD, last, USAGE], 1, 1);
        }
    }

    #[test]
    fn each_of_several_answers_is_looked_at_until_it_has_begun() {
        let second = |event: &str| event.replace("\"index\":0", "\"index\":1");
        let (word, stop) = (second(WORD), second(STOP));
        let events = [WORD, WORD, &word, STOP, &stop];
        assert_eq!(after(&events, 2).proven(), 2);
        assert_eq!(after(&events[3..], 2).proven(), 0);
    }

    #[test]
    fn answers_are_told_apart_by_their_index() {
        let second = |event: &str| event.replace("\"index\":0", "\"index\":1");
        assert_eq!(ended(&[STOP, &second(WORD)]), 1);
        assert_eq!(ended(&[STOP, STOP, &second(WORD)]), 1);
        assert_eq!(ended(&[STOP, &second(BOTH)]), 2);
        assert_eq!(ended(&[STOP, &second(BOTH), &second(WORD)]), 1);
    }

    #[test]
    fn no_more_than_a_bound_is_kept() {
        let events: Vec<String> = (0..2 * ANSWERS_MAX)
            .map(|index| format!(r#"{{"choices":[{{"index":{index},"finish_reason":"stop"}}]}}"#))
            .collect();
        let events: Vec<&str> = events.iter().map(String::as_str).collect();
        assert_eq!(ended(&events), ANSWERS_MAX);
    }
}
