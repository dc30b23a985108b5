use std::borrow::Cow;
use std::fmt;

use crate::Operation;

/// A request cannot be said in the other dialect, or not as it stands.
///
/// The message is made for the caller: it names the member by its JSON path, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Untranslatable {
    /// The operation exists in one dialect only.
    #[error("{operation} has no counterpart in the other dialect")]
    Operation {
        /// The operation.
        operation: Operation,
    },
    /// The body is not a JSON object.
    #[error("the request body is not a JSON object")]
    NotAnObject,
    /// The request is wrong by its own dialect.
    #[error("`{path}` must be {expected}")]
    Invalid {
        /// Where, such as `messages[2].content`.
        path: String,
        /// What the dialect wants there.
        expected: &'static str,
    },
    /// The request is right, and the other dialect has no word for it.
    #[error("`{path}` cannot be translated: {reason}")]
    NoCounterpart {
        /// Where, such as `messages[2].name`.
        path: String,
        /// Why not, and what to do instead if there is something.
        reason: Cow<'static, str>,
    },
}

impl Untranslatable {
    pub(super) fn invalid(name: &str, expected: &'static str) -> Self {
        Self::Invalid {
            path: name.to_owned(),
            expected,
        }
    }

    pub(super) fn no_counterpart(name: &str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::NoCounterpart {
            path: name.to_owned(),
            reason: reason.into(),
        }
    }

    /// The JSON path of what is meant; `None` when it is the whole request.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Operation { .. } | Self::NotAnObject => None,
            Self::Invalid { path, .. } | Self::NoCounterpart { path, .. } => Some(path),
        }
    }

    /// The same, seen from outside the member or item where it arose.
    fn inside(mut self, step: impl fmt::Display) -> Self {
        if let Self::Invalid { path, .. } | Self::NoCounterpart { path, .. } = &mut self {
            let dot = if path.is_empty() || path.starts_with('[') {
                ""
            } else {
                "."
            };
            *path = format!("{step}{dot}{path}");
        }
        self
    }
}

/// Puts a step of the path before an error's own.
pub(super) trait At {
    /// Inside the member `name`.
    fn at(self, name: &str) -> Self;
    /// Inside an array's item.
    fn at_item(self, index: usize) -> Self;
}

impl<T> At for Result<T, Untranslatable> {
    fn at(self, name: &str) -> Self {
        self.map_err(|error| error.inside(name))
    }

    fn at_item(self, index: usize) -> Self {
        self.map_err(|error| error.inside(format_args!("[{index}]")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_grows_from_the_inside() {
        let error = Err::<(), _>(Untranslatable::invalid("text", "a text"))
            .at_item(1)
            .at("content")
            .at_item(0)
            .at("messages")
            .unwrap_err();
        assert_eq!(error.path(), Some("messages[0].content[1].text"));
        assert_eq!(
            error.to_string(),
            "`messages[0].content[1].text` must be a text"
        );
    }
}
