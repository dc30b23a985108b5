use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::WebhookSecret;

/// The header with a message's id, the same over all tries of it.
pub const HEADER_ID: &str = "webhook-id";
/// The header with the time of this try, in whole seconds since 1970.
pub const HEADER_TIMESTAMP: &str = "webhook-timestamp";
/// The header with the signatures, one for each secret in force.
pub const HEADER_SIGNATURE: &str = "webhook-signature";

/// What stands before a signature of the symmetric kind.
pub(super) const VERSION: &str = "v1,";

/// The value of `webhook-signature`: one signature for each secret, since while secrets are
/// changed two are in force.
///
/// ```
/// use llmq_client::webhooks::{WebhookSecret, sign};
/// // The specification's own example.
/// let secret: WebhookSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap();
/// let signed = sign(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, br#"{"test": 2432232314}"#);
/// assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
/// ```
#[must_use]
pub fn sign(secrets: &[WebhookSecret], id: &str, timestamp_s: i64, body: &[u8]) -> String {
    let signatures = secrets.iter().map(|secret| {
        let digest = digest(secret, id, timestamp_s, body);
        format!("{VERSION}{}", STANDARD.encode(digest))
    });
    signatures.collect::<Vec<_>>().join(" ")
}

/// HMAC-SHA256 over `{id}.{timestamp}.{body}`.
pub(super) fn digest(secret: &WebhookSecret, id: &str, timestamp_s: i64, body: &[u8]) -> [u8; 32] {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.bytes()).expect("HMAC takes keys of every length");
    mac.update(id.as_bytes());
    mac.update(b".");
    mac.update(timestamp_s.to_string().as_bytes());
    mac.update(b".");
    mac.update(body);
    mac.finalize().into_bytes().into()
}
