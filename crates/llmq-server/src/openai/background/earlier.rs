//! Going on from a response that was made in the background.

use std::borrow::Cow;

use http::StatusCode;
use llmq_core::Status;
use serde::Deserialize;

use super::super::ids;
use super::routes::is_response;
use crate::Gateway;
use crate::call::Unplaced;
use crate::dialect::Refusal;
use crate::jobs::sees;
use crate::keys::Caller;

/// A finished response, as its provider knows it.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) id: String,
    /// Who made it.
    pub(crate) upstream: Option<String>,
}

/// The response of the caller's that has this name; none where the name is not of our making.
///
/// # Errors
///
/// It is not finished, or has no answer that could be continued; or the store could not say.
pub(crate) async fn providers_own(
    gateway: &Gateway,
    caller: &Caller,
    name: &str,
) -> Result<Option<Own>, Unplaced> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        id: Cow<'a, str>,
    }
    let Some(id) = ids::job_of(name) else {
        return Ok(None);
    };
    let store = gateway.desk.store();
    let job = store.job(id).await?;
    let Some(job) = job.filter(|job| is_response(job) && sees(caller, &job.tenant)) else {
        return Ok(None);
    };
    let cannot = |why: &str| {
        let message = format!("`{name}` {why}");
        let code = "previous_response_not_found";
        let refusal = Refusal::new(StatusCode::BAD_REQUEST, code, message);
        Unplaced::from(refusal.about("previous_response_id"))
    };
    if !job.status.is_final() {
        return Err(cannot("is not finished: ask for it until it is"));
    }
    let answer = match job.status {
        Status::Completed => store.answer(id).await?,
        _ => return Err(cannot("was not completed, so nothing can follow it")),
    };
    let own = answer.and_then(|answer| {
        let named: Named<'_> = serde_json::from_slice(&answer.body).ok()?;
        Some(named.id.into_owned())
    });
    match own {
        Some(id) => Ok(Some(Own {
            id,
            upstream: job.upstream,
        })),
        None => Err(cannot("is not kept any more")),
    }
}
