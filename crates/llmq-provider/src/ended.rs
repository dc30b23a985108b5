//! Which answers of a stream of chunks have ended.

use memchr::memmem;

use crate::opening::{Choice, choices};

/// The answers of a chat or completion that have said why they ended.
///
/// A reason holds for as long as nothing of its answer comes after it: some gateways write one
/// into every chunk (BerriAI/litellm#2195, 2024), and a stream of theirs would look whole wherever
/// it is cut. Others write an empty one (mudler/LocalAI#1886, 2024), which says nothing.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// By the index of each answer, the lowest first.
    answers: Vec<(u64, Standing)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Ended,
    /// It went on after its reason: what it says of its end is not believed any more.
    WentOn,
}

/// So many answers are told apart, which is more than any provider gives to one call; where there
/// are others, only the last event of a stream tells that they have ended.
const ANSWERS_MAX: usize = 1_024;

impl Ended {
    /// Takes an event; whether it gives an answer's reason to end.
    pub(crate) fn take(&mut self, data: &[u8]) -> bool {
        let gives_reason = gives_reason(data);
        // Most events are pieces of text of answers that have not ended, and are not looked into.
        if gives_reason || !self.answers.is_empty() {
            for choice in choices(data) {
                self.note(&choice);
            }
        }
        gives_reason
    }

    fn note(&mut self, choice: &Choice) {
        let index = choice.index();
        match self
            .answers
            .binary_search_by_key(&index, |(index, _)| *index)
        {
            Ok(at) if choice.says_something() => self.answers[at].1 = Standing::WentOn,
            Err(at) if choice.ends() && self.answers.len() < ANSWERS_MAX => {
                self.answers.insert(at, (index, Standing::Ended));
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        let ended = |(_, standing): &&(u64, Standing)| *standing == Standing::Ended;
        self.answers.iter().filter(ended).count()
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

    /// How many answers have ended after these events.
    fn ended(events: &[&str]) -> usize {
        let mut ended = Ended::default();
        for event in events {
            ended.take(event.as_bytes());
        }
        ended.count()
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
        let mut all = Ended::default();
        for index in 0..2 * ANSWERS_MAX {
            let event = format!(r#"{{"choices":[{{"index":{index},"finish_reason":"stop"}}]}}"#);
            all.take(event.as_bytes());
        }
        assert_eq!(all.count(), ANSWERS_MAX);
    }
}
