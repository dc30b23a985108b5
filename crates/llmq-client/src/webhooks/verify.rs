use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use subtle::{Choice, ConstantTimeEq};

use super::sign::{HEADER_ID, HEADER_SIGNATURE, HEADER_TIMESTAMP, VERSION, digest};
use super::{SecretError, WebhookSecret};

/// A message that is older, or from further ahead, may be a copy that somebody kept.
pub const TOLERANCE: Duration = Duration::from_secs(300);
/// More signatures than this are not looked at: a sender has one or two secrets.
const SIGNATURES_MAX: usize = 16;

/// Says whether a message is from whom it claims to be, and new.
///
/// ```
/// use llmq_client::webhooks::{Verifier, sign};
/// use http::HeaderMap;
///
/// let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// let verifier = Verifier::new([secret]).unwrap();
/// let body = br#"{"type":"request.completed"}"#;
/// let mut headers = HeaderMap::new();
/// headers.insert("webhook-id", "msg_1".parse().unwrap());
/// headers.insert("webhook-timestamp", "1700000000".parse().unwrap());
/// let signature = sign(&[secret.parse().unwrap()], "msg_1", 1_700_000_000, body);
/// headers.insert("webhook-signature", signature.parse().unwrap());
///
/// let message = verifier.verify(&headers, body, 1_700_000_010).unwrap();
/// assert_eq!(message.id, "msg_1");
/// assert!(verifier.verify(&headers, b"{}", 1_700_000_010).is_err());
/// ```
#[derive(Debug, Clone)]
pub struct Verifier {
    secrets: Vec<WebhookSecret>,
    tolerance: Duration,
}

/// A message that is to be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    /// The same over all tries of one message.
    pub id: &'a str,
    /// When this try was made, in seconds since 1970.
    pub timestamp_s: i64,
}

/// Why a message is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A header is missing or is no text.
    #[error("the header `{0}` is missing")]
    NoHeader(&'static str),
    /// The time is no whole number of seconds.
    #[error("`webhook-timestamp` is no whole number of seconds")]
    NoTime,
    /// It was sent too long ago.
    #[error("the message is {0} s old: it may be a copy")]
    TooOld(i64),
    /// It was sent too far ahead of this clock.
    #[error("the message is from {0} s ahead: one of the clocks is wrong")]
    TooNew(i64),
    /// No signature is by one of the secrets.
    #[error("no signature fits the message and a known secret")]
    NoSignature,
}

impl Verifier {
    /// Believes messages that were signed with one of these secrets, within [`TOLERANCE`].
    ///
    /// # Errors
    ///
    /// [`SecretError`] for a text that is no secret.
    pub fn new<S: AsRef<str>>(secrets: impl IntoIterator<Item = S>) -> Result<Self, SecretError> {
        let secrets = secrets.into_iter().map(|text| text.as_ref().parse());
        Ok(Self {
            secrets: secrets.collect::<Result<_, _>>()?,
            tolerance: TOLERANCE,
        })
    }

    /// The same with another tolerance for the clocks of both sides.
    #[must_use]
    pub fn with_tolerance(mut self, tolerance: Duration) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Checks a message against the time `now_s`, in seconds since 1970. `body` are the bytes as
    /// they came: JSON that was read and written again is another message.
    ///
    /// # Errors
    ///
    /// [`VerifyError`]. What is wrong first is told; the time before the signature.
    pub fn verify<'a>(
        &self,
        headers: &'a HeaderMap,
        body: &[u8],
        now_s: i64,
    ) -> Result<Message<'a>, VerifyError> {
        let id = header(headers, HEADER_ID)?;
        let timestamp_s = header(headers, HEADER_TIMESTAMP)?;
        let timestamp_s: i64 = timestamp_s
            .trim()
            .parse()
            .map_err(|_| VerifyError::NoTime)?;
        let tolerance = i64::try_from(self.tolerance.as_secs()).unwrap_or(i64::MAX);
        let age = now_s.saturating_sub(timestamp_s);
        if age > tolerance {
            return Err(VerifyError::TooOld(age));
        }
        if age < -tolerance {
            return Err(VerifyError::TooNew(-age));
        }
        let signatures = header(headers, HEADER_SIGNATURE)?;
        if !self.signed(signatures, id, timestamp_s, body) {
            return Err(VerifyError::NoSignature);
        }
        Ok(Message { id, timestamp_s })
    }

    /// Whether one of the signatures is by one of the secrets. How long that takes says nothing
    /// about how much of a signature was right.
    fn signed(&self, signatures: &str, id: &str, timestamp_s: i64, body: &[u8]) -> bool {
        let known: Vec<[u8; 32]> = self
            .secrets
            .iter()
            .map(|secret| digest(secret, id, timestamp_s, body))
            .collect();
        let given = signatures
            .split_ascii_whitespace()
            .take(SIGNATURES_MAX)
            .filter_map(|one| one.strip_prefix(VERSION))
            .filter_map(|encoded| STANDARD.decode(encoded).ok());
        let mut any = Choice::from(0);
        for signature in given {
            for digest in &known {
                any |= signature.as_slice().ct_eq(digest);
            }
        }
        any.into()
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, VerifyError> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.ok_or(VerifyError::NoHeader(name))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::super::sign;
    use super::*;

    // The vector of the specification.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const AT: i64 = 1_614_265_330;
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const SIGNATURE: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";

    fn headers(signature: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (HEADER_ID, ID),
            (HEADER_TIMESTAMP, "1614265330"),
            (HEADER_SIGNATURE, signature),
        ] {
            headers.insert(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn check(signature: &str, body: &[u8], now_s: i64) -> Result<(), VerifyError> {
        let verifier = Verifier::new([SECRET]).unwrap();
        verifier
            .verify(&headers(signature), body, now_s)
            .map(|_| ())
    }

    #[test]
    fn the_specifications_vector_is_believed_and_made() {
        assert_eq!(check(SIGNATURE, BODY, AT), Ok(()));
        assert_eq!(sign(&[SECRET.parse().unwrap()], ID, AT, BODY), SIGNATURE);
    }

    #[test]
    fn five_minutes_either_way_are_tolerated_and_not_a_second_more() {
        assert_eq!(check(SIGNATURE, BODY, AT + 300), Ok(()));
        assert_eq!(check(SIGNATURE, BODY, AT - 300), Ok(()));
        assert_eq!(
            check(SIGNATURE, BODY, AT + 301),
            Err(VerifyError::TooOld(301))
        );
        assert_eq!(
            check(SIGNATURE, BODY, AT - 301),
            Err(VerifyError::TooNew(301))
        );
    }

    #[test]
    fn any_of_several_signatures_is_enough_and_other_versions_are_passed_over() {
        let several = format!("v1a,AAAA v1,AAAA {SIGNATURE}");
        assert_eq!(check(&several, BODY, AT), Ok(()));
        for none in [
            "v1,AAAA",
            "",
            "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        ] {
            assert_eq!(
                check(none, BODY, AT),
                Err(VerifyError::NoSignature),
                "{none}"
            );
        }
    }

    #[test]
    fn both_secrets_count_while_they_are_changed() {
        let old: WebhookSecret = SECRET.parse().unwrap();
        let new = WebhookSecret::generate().unwrap();
        let signed = sign(&[new.clone(), old], ID, AT, BODY);
        for secret in [SECRET.to_owned(), new.expose()] {
            let verifier = Verifier::new([secret]).unwrap();
            assert!(verifier.verify(&headers(&signed), BODY, AT).is_ok());
        }
    }

    #[test]
    fn a_missing_header_is_named() {
        let verifier = Verifier::new([SECRET]).unwrap();
        for name in [HEADER_ID, HEADER_TIMESTAMP, HEADER_SIGNATURE] {
            let mut headers = headers(SIGNATURE);
            headers.remove(name);
            let refused = verifier.verify(&headers, BODY, AT).unwrap_err();
            assert_eq!(refused, VerifyError::NoHeader(name));
        }
    }

    proptest! {
        #[test]
        fn nothing_that_was_changed_on_the_way_is_believed(
            body in proptest::collection::vec(any::<u8>(), 0..64),
            at in 0..200usize,
            bit in 0..8u8,
        ) {
            let secret: WebhookSecret = SECRET.parse().unwrap();
            let signature = sign(&[secret], ID, AT, &body);
            prop_assert_eq!(check(&signature, &body, AT), Ok(()));
            if !body.is_empty() {
                let mut changed = body;
                let at = at % changed.len();
                changed[at] ^= 1 << bit;
                prop_assert_eq!(check(&signature, &changed, AT), Err(VerifyError::NoSignature));
            }
        }

        #[test]
        fn no_text_breaks_the_reader(signature in "\\PC{0,80}") {
            if HeaderValue::from_str(&signature).is_ok() {
                let _ = check(&signature, BODY, AT);
            }
        }
    }
}
