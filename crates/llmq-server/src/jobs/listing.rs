//! `GET /api/requests`: which ones.

use llmq_core::{Priority, Status, WallTime};
use llmq_store::{Filter, JobId, PAGE_MAX};
use serde::Deserialize;

use super::guard::sees;
use crate::Problem;
use crate::keys::Caller;

/// A page has so many unless something is asked.
const PAGE: usize = 100;

/// What a query asks for.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Asked {
    /// Only in this status.
    status: Option<String>,
    /// Only of this public model name.
    model: Option<String>,
    /// Only of this tenant, where the key may see it.
    tenant: Option<String>,
    /// Only of this priority: a name or 0 to 100.
    priority: Option<String>,
    /// Only accepted at or after this (RFC 3339).
    created_after: Option<String>,
    /// Only accepted before this.
    created_before: Option<String>,
    /// At most so many, 1 to 1000; 100 unless said.
    limit: Option<usize>,
    /// The `next_cursor` of the page before.
    cursor: Option<String>,
}

/// What is asked of the store; none: it can only be empty.
pub(super) struct Listing {
    pub(super) filter: Filter,
    pub(super) after: Option<JobId>,
    pub(super) limit: usize,
}

impl Asked {
    /// The same, checked; none where the caller may see nothing of it.
    pub(super) fn check(self, caller: &Caller) -> Result<Option<Listing>, Problem> {
        let limit = self.limit.unwrap_or(PAGE);
        if !(1..=PAGE_MAX).contains(&limit) {
            return Err(Problem::invalid(format!("`limit` must be 1 to {PAGE_MAX}")));
        }
        let after = match self.cursor.as_deref().map(str::parse::<JobId>) {
            None => None,
            // Requests are numbered by time, and nothing else is a place between them.
            Some(Ok(id)) if id.as_uuid().get_version_num() == 7 => Some(id),
            Some(_) => {
                return Err(Problem::invalid(
                    "`cursor` is not one of a list of requests",
                ));
            }
        };
        let tenant = match self.tenant {
            Some(tenant) if !sees(caller, &tenant) => return Ok(None),
            Some(tenant) => Some(tenant),
            None if caller.sees_all() => None,
            None => Some(caller.tenant().to_owned()),
        };
        let filter = Filter {
            status: read::<Status>("status", self.status.as_deref())?,
            queue: self.model,
            tenant,
            priority: read::<Priority>("priority", self.priority.as_deref())?,
            batch: None,
            created_after: instant("created_after", self.created_after.as_deref())?,
            created_before: instant("created_before", self.created_before.as_deref())?,
        };
        Ok(Some(Listing {
            filter,
            after,
            limit,
        }))
    }
}

fn read<T: std::str::FromStr<Err: std::fmt::Display>>(
    name: &str,
    text: Option<&str>,
) -> Result<Option<T>, Problem> {
    let read = text.map(str::parse).transpose();
    read.map_err(|error: T::Err| Problem::invalid(format!("`{name}`: {error}")))
}

fn instant(name: &str, text: Option<&str>) -> Result<Option<WallTime>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let at: jiff::Timestamp = text.parse().map_err(|_| {
        Problem::invalid(format!(
            "`{name}`: use RFC 3339, such as 2026-01-31T12:00:00Z"
        ))
    })?;
    Ok(Some(WallTime::from_micros(at.as_microsecond())))
}
