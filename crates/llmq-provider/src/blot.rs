//! Keys that servers repeat, taken out of what is kept and told.

use bytes::Bytes;
use memchr::memchr2;

use crate::Secret;

/// Keys shorter than this are found in ordinary words: of them only what stands for itself is
/// taken out.
const KEY_MIN: usize = 6;
/// So many stars or dots in a row stand for the middle of a key.
const MASK_MIN: usize = 3;
/// So many letters beside them are no chance.
const SHOWN_MIN: usize = 3;
const BLOT: &str = "***";

/// A text without a key, wherever a server has repeated it: whole, or masked as OpenAI does it
/// (`sk-proj-********wxyz`).
pub(crate) fn without_key(text: &str, key: &str) -> String {
    let clean = without_whole(text, key);
    if key.len() < KEY_MIN {
        return clean;
    }
    without_masked(&clean, key.as_bytes())
}

/// The same for a body. One that does not hold the key is as it came.
pub(crate) fn body_without_key(body: Bytes, key: &Secret) -> Bytes {
    let text = String::from_utf8_lossy(&body);
    let clean = without_key(&text, key.expose());
    if clean == text {
        return body;
    }
    clean.into()
}

fn without_whole(text: &str, key: &str) -> String {
    let is_inside = |letter: Option<char>| letter.is_some_and(char::is_alphanumeric);
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(key).filter(|_| !key.is_empty()) {
        let (before, after) = (&rest[..at], &rest[at + key.len()..]);
        let in_a_word = key.len() < KEY_MIN
            && (is_inside(before.chars().next_back()) || is_inside(after.chars().next()));
        clean.push_str(before);
        clean.push_str(if in_a_word { key } else { BLOT });
        rest = after;
    }
    clean.push_str(rest);
    clean
}

fn without_masked(text: &str, key: &[u8]) -> String {
    let mut clean = String::with_capacity(text.len());
    let (mut from, mut at) = (0, 0);
    while let Some(found) = memchr2(b'*', b'.', &text.as_bytes()[at..]) {
        let start = at + found;
        let is_mask = |byte: &&u8| **byte == text.as_bytes()[start];
        let length = text.as_bytes()[start..].iter().take_while(is_mask).count();
        at = start + length;
        if length < MASK_MIN {
            continue;
        }
        let (before, after) = (&text.as_bytes()[from..start], &text.as_bytes()[at..]);
        let lengths = || (1..=key.len()).rev();
        let head = lengths().find(|length| before.ends_with(&key[..*length]));
        let tail = lengths().find(|length| after.starts_with(&key[key.len() - length..]));
        let (head, tail) = (head.unwrap_or(0), tail.unwrap_or(0));
        if head + tail < SHOWN_MIN {
            continue;
        }
        // A key can stand in a header, so it is ASCII, and no letter is cut in two.
        clean.push_str(&text[from..start - head]);
        clean.push_str(BLOT);
        at += tail;
        from = at;
    }
    clean.push_str(&text[from..]);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A key of a few letters stayed in what a server had echoed of it.
    #[test]
    fn keys_are_taken_out_however_short_they_are() {
        let said = r#"{"authorization":"Bearer abc","note":"abcdef, abc"}"#;
        let clean = r#"{"authorization":"Bearer ***","note":"abcdef, ***"}"#;
        assert_eq!(without_key(said, "abc"), clean);
        assert_eq!(without_key("xsk-private-key", "sk-private-key"), "x***");
        assert_eq!(without_key(said, ""), said);
    }

    #[test]
    fn what_a_mask_leaves_of_a_key_is_taken_out() {
        let key = "sk-proj-abcdefghwxyz";
        for (said, clean) in [
            ("key sk-proj-********wxyz.", "key ***."),
            ("sk-proj-abc...xyz, sk-***", "***, ***"),
            ("****wxyz", "***"),
            ("a ****** b... **c** é...é", "a ****** b... **c** é...é"),
            ("wait...s...z", "wait...s...z"),
            ("é***sk-proj-abcdefghwxyz é", "é****** é"),
        ] {
            assert_eq!(without_key(said, key), clean);
        }
        assert_eq!(without_key("band...", "and"), "band...");
    }

    #[test]
    fn a_body_without_the_key_is_not_touched() {
        let body = Bytes::from_static(b"no \xff key...");
        let kept = body_without_key(body.clone(), &Secret::new("sk-private-key"));
        assert_eq!(kept.as_ptr(), body.as_ptr());
    }
}
