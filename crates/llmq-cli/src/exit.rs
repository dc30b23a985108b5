//! Exit codes, and what is said with them.

use std::error::Error;

use console::style;
use llmq_store_sqlite::OpenError;

/// Everything is done.
pub(crate) const DONE: u8 = 0;
/// Finished, but something failed for good, or the server said no.
pub(crate) const FAILED: u8 = 1;
/// A flag, the input or a setting is wrong, or a file, a store or an address cannot be used.
pub(crate) const USAGE: u8 = 2;
/// The server or provider cannot be reached.
pub(crate) const UNREACHABLE: u8 = 3;
/// Stopped before the end by the account: quota, budget or a refused key.
pub(crate) const ACCOUNT: u8 = 4;
/// Interrupted; the same command continues.
pub(crate) const INTERRUPTED: u8 = 130;

/// Why a command ends with another code than [`DONE`].
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit code.
    pub(crate) code: u8,
    /// What to say; empty when everything is said.
    pub(crate) message: String,
}

impl Failure {
    /// A flag, the input or a setting is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self {
            code: USAGE,
            message: message.into(),
        }
    }

    /// The same from an error, with its causes.
    pub(crate) fn wrong(error: &dyn Error) -> Self {
        Self::usage(with_causes(error))
    }

    /// A store cannot be opened: the wrong one was named, or it cannot be used here, or what is in
    /// it is damaged.
    pub(crate) fn of_store(error: &OpenError) -> Self {
        Self {
            code: if error.is_damage() { FAILED } else { USAGE },
            message: with_causes(error),
        }
    }

    /// Ends with `code` without another word.
    pub(crate) fn silent(code: u8) -> Self {
        Self {
            code,
            message: String::new(),
        }
    }

    pub(crate) fn print(&self) {
        if !self.message.is_empty() {
            say!(
                "{} {}",
                style("error:").red().bold().for_stderr(),
                self.message
            );
        }
    }
}

/// An error and what caused it, on one line.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut last = text.clone();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some messages already hold their cause, and some causes say the same once more.
        if !text.contains(&cause_text) && !cause_text.ends_with(&last) {
            text.push_str(": ");
            text.push_str(&cause_text);
            last = cause_text;
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let inner = std::io::Error::other("no such thing");
        let outer = std::io::Error::other(inner);
        assert_eq!(with_causes(&outer), "no such thing");
        let check = |text, cause, expected: &str| {
            let error = Caused(text, Some(Box::new(Caused(cause, None))));
            assert_eq!(with_causes(&error), expected);
        };
        check("no database", "error 26: no database", "no database");
        check("cannot open it", "no room", "cannot open it: no room");
    }

    /// A text, and what caused it.
    #[derive(Debug)]
    struct Caused(&'static str, Option<Box<Self>>);

    impl std::fmt::Display for Caused {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Caused {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }
}
