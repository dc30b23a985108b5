//! One HTTP/1.1 call and its answer, as bytes on a connection (RFC 9112).
//!
//! Read [`AnswerReader`] first: it makes an answer of bytes however they are cut, and knows no
//! socket. `head.rs` and `chunks.rs` are its two halves; `outgoing.rs` is the way of a call's
//! bytes out. Who holds the socket is `Link`, beside this directory.
//!
//! A client has little to be lenient about. What two readers could understand in two ways is
//! refused, since whoever stands between us and the provider might understand the other.

mod chunks;
mod head;
mod outgoing;
mod reader;

pub(crate) use outgoing::{Outgoing, RequestHead, lines};
pub use reader::{AnswerHead, AnswerReader, Came, WireFault};
