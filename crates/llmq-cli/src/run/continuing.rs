use std::ffi::OsString;

/// The command that continues what `arguments` began: the same without the flags that would
/// begin something again.
pub(super) fn continuing(arguments: impl IntoIterator<Item = OsString>) -> String {
    let words = arguments
        .into_iter()
        .map(|word| word.to_string_lossy().into_owned());
    let again = |word: &String| !matches!(word.as_str(), "--restart" | "--retry-failed");
    words
        .filter(again)
        .map(|word| quoted(&word))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A word as a POSIX shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(words: &[&str], expected: &str) {
        assert_eq!(continuing(words.iter().map(OsString::from)), expected);
    }

    #[test]
    fn the_command_is_the_same_and_reads_back() {
        check(
            &[
                "llmq",
                "run",
                "a b.csv",
                "-o",
                "out.jsonl",
                "--template",
                "it's {{name}}",
            ],
            r"llmq run 'a b.csv' -o out.jsonl --template 'it'\''s {{name}}'",
        );
        check(&["llmq", "--system", ""], "llmq --system ''");
    }

    #[test]
    fn it_does_not_begin_again() {
        check(
            &["llmq", "run", "--restart", "x", "--retry-failed"],
            "llmq run x",
        );
    }
}
