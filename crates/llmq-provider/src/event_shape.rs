//! Whether an event is the JSON object that each of them is.

use serde::de::IgnoredAny;

use crate::plain::Plain;

/// Whether an event is an object, as far as its brackets and quotes tell. Reading each of them
/// costs ten times as much (1 µs for 300 bytes), and nearly all are whole; so one is read only
/// where they do not add up, as with a bracket in a text, or a piece that is missing.
pub(crate) fn is_object(data: &[u8]) -> bool {
    let data = data.trim_ascii();
    if data.is_empty() {
        return true;
    }
    data.starts_with(b"{") && data.ends_with(b"}") && (adds_up(data) || is_json(data))
}

/// Whether as many brackets of each kind close as open, and quotes come in pairs.
fn adds_up(data: &[u8]) -> bool {
    /// Sums of so many bytes fit into one, and are taken side by side.
    const AT_ONCE: usize = 64;
    let (mut braces, mut brackets, mut quotes) = (0_i64, 0_i64, 0_i64);
    for some in data.chunks(AT_ONCE) {
        let sums = some.iter().fold([0_i8; 3], |sums, byte| {
            [
                sums[0] + i8::from(*byte == b'{') - i8::from(*byte == b'}'),
                sums[1] + i8::from(*byte == b'[') - i8::from(*byte == b']'),
                sums[2] + i8::from(*byte == b'"'),
            ]
        });
        braces += i64::from(sums[0]);
        brackets += i64::from(sums[1]);
        quotes += i64::from(sums[2]);
    }
    braces == 0 && brackets == 0 && quotes % 2 == 0
}

fn is_json(data: &[u8]) -> bool {
    let mut json = Plain::new(data);
    let is_plain = json.skip().and_then(|()| json.end()).is_some();
    is_plain || serde_json::from_slice::<IgnoredAny>(data).is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bracket_in_a_text_is_none_and_one_that_is_missing_is_missed() {
        for whole in [
            "",
            " \n",
            "{}",
            r#"{"delta":{"content":"if (a) {"}}"#,
            r#"{"delta":{"content":"a \" b ]"}}"#,
            r#"{"n\u0061me":"]"}"#,
        ] {
            assert!(is_object(whole.as_bytes()), "{whole}");
        }
        for broken in [
            "[]",
            r#"{"choices":[{"delta":{"content":"a"}]}"#,
            r#"{"delta":{"content":"a}}"#,
            r#"{"choices":[{"delta":{"content":"bro"#,
            r#"{"a":1}}"#,
        ] {
            assert!(!is_object(broken.as_bytes()), "{broken}");
        }
    }

    proptest! {
        #[test]
        fn a_whole_event_passes_whatever_its_text_holds(text in ".*") {
            let event = serde_json::json!({"choices": [{"delta": {"content": text}}]}).to_string();
            prop_assert!(is_object(event.as_bytes()));
        }

        /// But for one whose text closes by chance what the cut left open.
        #[test]
        fn a_cut_event_does_not_pass(text in "[^}\\]]*", cut in 0.0..1.0_f64) {
            let event = serde_json::json!({"choices": [{"delta": {"content": text}}]}).to_string();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a share of a short text"
            )]
            let at = 1 + ((event.len() - 2) as f64 * cut) as usize;
            prop_assert!(!is_object(&event.as_bytes()[..at]));
        }
    }
}
