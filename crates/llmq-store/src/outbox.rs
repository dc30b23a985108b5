//! Who is told of what, and who waits for whom: one rule for all stores.

use crate::{Endpoint, EndpointId, EventKind, Job, NewEvent, Target};

/// Who is to be told of `event`, which is about `job` if it is about one.
pub fn targets<'a>(
    event: &NewEvent,
    job: Option<&Job>,
    endpoints: impl Iterator<Item = &'a Endpoint>,
) -> Vec<Target> {
    // Fifty thousand lines of a batch are told as one: their batch.
    if job.is_some_and(|job| job.member.is_some()) {
        return Vec::new();
    }
    let wanting = endpoints.filter(|endpoint| endpoint.wants(event));
    let mut targets: Vec<_> = wanting
        .map(|endpoint| Target::Endpoint(endpoint.id))
        .collect();
    let ended = job.filter(|job| EventKind::of_end(job.status) == Some(event.kind.as_str()));
    let callback = ended.and_then(|job| job.details.callback.clone());
    targets.extend(callback.map(Target::Callback));
    targets
}

/// In whose line a delivery waits. What is to go to one never waits for another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Addressee {
    /// An endpoint.
    Endpoint(EndpointId),
    /// The callbacks of a tenant's jobs to one host: their paths may differ for each job.
    Host {
        /// Whose jobs.
        tenant: Option<String>,
        /// The host, with its port where the URL names one.
        host: String,
    },
}

impl Addressee {
    /// In whose line a delivery of `event` to `target` waits.
    #[must_use]
    pub fn of(target: &Target, event: &NewEvent) -> Self {
        match target {
            Target::Endpoint(id) => Self::Endpoint(*id),
            Target::Callback(callback) => Self::Host {
                tenant: event.tenant.clone(),
                host: host(&callback.url).to_ascii_lowercase(),
            },
        }
    }
}

/// The host of a URL with its port, without a user; all of what is no URL.
fn host(url: &str) -> &str {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn a_host_is_told_from_the_rest_of_a_url() {
        for (url, expected) in [
            ("https://example.com", "example.com"),
            ("https://example.com:8443/a?b=c@d", "example.com:8443"),
            ("http://me:secret@example.com/a", "example.com"),
            ("https://example.com?x=1", "example.com"),
            ("https://[::1]:80/a", "[::1]:80"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(host(url), expected, "{url}");
        }
    }
}
