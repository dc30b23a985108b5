//! Who is told of what: one rule for all stores.

use crate::{Endpoint, EventKind, Job, NewEvent, Target};

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
