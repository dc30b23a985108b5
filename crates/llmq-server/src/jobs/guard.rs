//! Who may hand in requests and ask for them.

use llmq_store::{Job, JobId};

use crate::keys::Caller;
use crate::{Gateway, Problem};

/// Whether a caller may see what belongs to a tenant.
pub(crate) fn sees(caller: &Caller, tenant: &str) -> bool {
    caller.tenant_for(Some(tenant)).is_ok()
}

/// A job that the caller may see. One of another tenant is told like one that is not there.
pub(super) async fn job(gateway: &Gateway, caller: &Caller, id: &str) -> Result<Job, Problem> {
    let unknown = || {
        let shown: String = id.chars().take(100).collect();
        Problem::not_found(
            "request_not_found",
            format!("there is no request `{shown}`"),
        )
    };
    let id: JobId = id.parse().map_err(|_| unknown())?;
    let job = gateway.desk.job(id).await?;
    let job = job.filter(|job| sees(caller, &job.tenant));
    job.ok_or_else(unknown)
}
