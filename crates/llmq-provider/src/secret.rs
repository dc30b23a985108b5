use std::fmt;

use http::HeaderValue;

/// A text that is never shown: an API key, a signing secret.
///
/// `Debug` and `Display` print `***`, so that a configuration, a request or an error can be
/// logged whole. There is no `Serialize`; the text leaves only through [`Secret::expose`].
///
/// ```
/// use llmq_provider::Secret;
/// let key = Secret::new("sk-very-private");
/// assert_eq!(format!("{key} {key:?}"), "*** ***");
/// assert_eq!(key.expose(), "sk-very-private");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// The environment holds no usable key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The variable is not set, or holds only blanks.
    #[error("the environment variable {name} is not set")]
    Missing {
        /// The variable's name.
        name: String,
    },
    /// The variable holds something that cannot stand in an HTTP header.
    #[error("the environment variable {name} holds bytes that cannot stand in a header")]
    Unusable {
        /// The variable's name.
        name: String,
    },
}

impl Secret {
    /// Wraps `text`, without the blanks and line ends that copying leaves around a key.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(text.as_ref().trim().to_owned())
    }

    /// Reads the environment variable `name`.
    ///
    /// # Errors
    ///
    /// [`SecretError`], which names the variable and never shows its content.
    pub fn from_env(name: &str) -> Result<Self, SecretError> {
        let Some(value) = std::env::var_os(name) else {
            return Err(SecretError::Missing {
                name: name.to_owned(),
            });
        };
        let secret = value.to_str().map(Self::new);
        match secret {
            Some(secret) if secret.0.is_empty() => Err(SecretError::Missing {
                name: name.to_owned(),
            }),
            Some(secret) if secret.0.bytes().all(|byte| (0x21..0x7f).contains(&byte)) => Ok(secret),
            _ => Err(SecretError::Unusable {
                name: name.to_owned(),
            }),
        }
    }

    /// Whether it can stand in an HTTP header, as a key must.
    ///
    /// ```
    /// use llmq_provider::Secret;
    /// assert!(Secret::new("sk-1").fits_header());
    /// assert!(!Secret::new("sk-1\nsk-2").fits_header());
    /// ```
    #[must_use]
    pub fn fits_header(&self) -> bool {
        HeaderValue::from_str(&self.0).is_ok()
    }

    /// The text itself, for the one place that puts it into a header.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_variable_is_named() {
        let error = Secret::from_env("LLMQ_TEST_NO_SUCH_KEY").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the environment variable LLMQ_TEST_NO_SUCH_KEY is not set"
        );
    }

    #[test]
    fn a_variable_that_is_set_is_read_trimmed() {
        // PATH is set wherever tests run, and serves as a stand-in for a key.
        let path = std::env::var("PATH").unwrap();
        assert_eq!(Secret::from_env("PATH").unwrap().expose(), path.trim());
        assert_eq!(Secret::new(" sk-1\r\n").expose(), "sk-1");
    }
}
