use std::time::Duration;

/// How long each part of a call may take (`timeouts` of an upstream).
///
/// ```
/// use llmq_provider::Timeouts;
/// assert_eq!(Timeouts::default().idle.as_secs(), 30);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Looking up the name, opening the connection and its TLS, together. 10 s.
    pub connect: Duration,
    /// From the last byte of the request to the head of the answer; over HTTP/2 nobody sees a call
    /// without a body leave, which has `connect` on top. 60 s.
    pub first_byte: Duration,
    /// From the head of a stream to its first token; what comes before that, such as pings and
    /// the names of things, does not count. 60 s.
    pub first_token: Duration,
    /// Silence between two pieces of the answer; in a stream, after its first token. 30 s.
    pub idle: Duration,
    /// The whole call, from its start to the last byte of the answer. 10 min.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_secs(60),
            first_token: Duration::from_secs(60),
            idle: Duration::from_secs(30),
            total: Duration::from_secs(600),
        }
    }
}
