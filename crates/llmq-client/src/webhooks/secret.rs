use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Before every secret's text.
const PREFIX: &str = "whsec_";
/// Fewer bytes could be guessed, more make nothing safer (specification, "Signature scheme").
const BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// Bytes of a new secret.
const NEW_BYTES: usize = 32;

/// What the sender and the receiver of webhooks share: 24 to 64 random bytes, written as
/// `whsec_` and their base64.
///
/// ```
/// use llmq_client::webhooks::WebhookSecret;
/// let secret: WebhookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap();
/// assert_eq!(format!("{secret:?}"), "WebhookSecret(***)");
/// assert!("whsec_c2hvcnQ=".parse::<WebhookSecret>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookSecret(Vec<u8>);

/// The text is no secret of webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// Something else than base64 stands behind the prefix.
    #[error("not a webhook secret: behind `whsec_` stands base64")]
    NotBase64,
    /// Too short to be safe, or too long.
    #[error("a webhook secret has 24 to 64 bytes, this one {bytes}")]
    Length {
        /// The bytes it has.
        bytes: usize,
    },
    /// The system has no random numbers.
    #[error("no random numbers to make a secret of")]
    NoRandomness,
}

impl WebhookSecret {
    /// A new secret of 32 random bytes.
    ///
    /// # Errors
    ///
    /// [`SecretError::NoRandomness`].
    pub fn generate() -> Result<Self, SecretError> {
        let mut bytes = vec![0; NEW_BYTES];
        getrandom::fill(&mut bytes).map_err(|_| SecretError::NoRandomness)?;
        Ok(Self(bytes))
    }

    /// The secret of these bytes.
    ///
    /// # Errors
    ///
    /// [`SecretError::Length`].
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Self, SecretError> {
        let bytes = bytes.into();
        if !BYTES.contains(&bytes.len()) {
            return Err(SecretError::Length { bytes: bytes.len() });
        }
        Ok(Self(bytes))
    }

    /// Its text, `whsec_` and base64. Whoever reads it can forge messages.
    #[must_use]
    pub fn expose(&self) -> String {
        format!("{PREFIX}{}", STANDARD.encode(&self.0))
    }

    /// Its bytes. Whoever reads them can forge messages.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for WebhookSecret {
    type Err = SecretError;

    /// The prefix may be left out.
    fn from_str(text: &str) -> Result<Self, SecretError> {
        let text = text.trim();
        let encoded = text.strip_prefix(PREFIX).unwrap_or(text);
        let bytes = STANDARD
            .decode(encoded)
            .map_err(|_| SecretError::NotBase64)?;
        Self::from_bytes(bytes)
    }
}

impl fmt::Debug for WebhookSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WebhookSecret(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_secret_reads_back_and_differs_from_the_next() {
        let secret = WebhookSecret::generate().unwrap();
        assert_eq!(secret.expose().parse(), Ok(secret.clone()));
        assert_ne!(WebhookSecret::generate().unwrap(), secret);
    }

    #[test]
    fn what_is_no_secret_is_refused_without_being_told() {
        let parse = |text: &str| text.parse::<WebhookSecret>().unwrap_err();
        assert_eq!(parse("whsec_not base64"), SecretError::NotBase64);
        assert_eq!(parse("whsec_"), SecretError::Length { bytes: 0 });
        let long = STANDARD.encode([7; 65]);
        assert_eq!(parse(&long), SecretError::Length { bytes: 65 });
    }
}
