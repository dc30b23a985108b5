use std::time::Duration;

/// How much patience and room the gateway has for those who connect to it.
///
/// The defaults suit a server that anybody may reach; tests set them short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Connections that may be open at once. More wait in the system's backlog until one ends.
    pub connections_max: usize,
    /// A connection that has brought no request for so long, its TLS handshake included, is
    /// closed.
    pub first_request_within: Duration,
    /// A connection on which nothing happens between two requests is closed after this, and
    /// before twice this. Longer than proxies and clients keep theirs, so that none sends into a
    /// closing one.
    pub idle_max: Duration,
    /// All header fields of a request together, in bytes; more gets 431 (RFC 6585 §5).
    pub header_bytes_max: usize,
    /// A body must have come within this time and what its bytes take at `body_rate_min`.
    pub body_within: Duration,
    /// The least bytes a second that a body must come with, after `body_within`.
    pub body_rate_min: u32,
    /// A caller that takes nothing of its answer for so long is left. What it holds, such as a
    /// place at its upstream, is free then. So is one that goes on sending for so long after its
    /// connection's last answer.
    pub written_within: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            first_request_within: Duration::from_secs(30),
            idle_max: Duration::from_secs(90),
            header_bytes_max: 64 << 10,
            body_within: Duration::from_secs(30),
            // A phone on a bad line is faster.
            body_rate_min: 1 << 10,
            written_within: Duration::from_secs(30),
        }
    }
}

impl Bounds {
    /// How long a body of which `received` bytes have come may take in all.
    pub(crate) fn body_time(&self, received: usize) -> Duration {
        let rate = u64::from(self.body_rate_min.max(1));
        let received = u64::try_from(received).unwrap_or(u64::MAX);
        let millis = received.saturating_mul(1_000) / rate;
        self.body_within
            .saturating_add(Duration::from_millis(millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_keeps_coming_may_take_as_long_as_its_size_does() {
        let bounds = Bounds {
            body_within: Duration::from_secs(30),
            body_rate_min: 1_000,
            ..Bounds::default()
        };
        assert_eq!(bounds.body_time(0), Duration::from_secs(30));
        assert_eq!(bounds.body_time(10_000), Duration::from_secs(40));
        assert!(bounds.body_time(usize::MAX) > Duration::from_secs(1 << 40));
    }
}
