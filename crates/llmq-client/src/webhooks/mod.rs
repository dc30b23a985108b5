//! Standard Webhooks (standardwebhooks.com): messages that prove who sent them.
//!
//! Read [`Verifier`] first: it takes a message's headers and bytes and says whether to believe
//! them. [`WebhookSecret`] is what sender and receiver share, [`sign`] is the sender's half, and
//! `Receiver` (feature `receiver`) is a server that verifies and hands over.
//!
//! A message may come more than once. Its [`id`](Message::id) stays the same over all tries of
//! it: keep the ids you have seen, and pass over those that come again.

mod secret;

mod sign;
mod verify;

#[cfg(feature = "receiver")]
mod receiver;

#[cfg(feature = "receiver")]
pub use receiver::{Handling, Receiver, ReceiverError};
pub use secret::{SecretError, WebhookSecret};
pub use sign::{HEADER_ID, HEADER_SIGNATURE, HEADER_TIMESTAMP, sign};
pub use verify::{Message, TOLERANCE, Verifier, VerifyError};
