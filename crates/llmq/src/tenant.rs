use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use llmq_core::{LimitKind, LimitSpec};
use llmq_dispatch::TenantId;
use rustc_hash::FxHashMap;

use crate::config::{check_limit, same_slot};
use crate::error::QueueError;

/// Somebody for whom requests are made: a customer, a team, a part of the program.
///
/// Requests of one priority that wait for the same limit go by turns of their tenants, in
/// proportion to their weights and to what they cost of that limit. Requests without a tenant
/// are those of one more, of weight 1.
///
/// ```
/// use llmq::TenantConfig;
/// let tenant = TenantConfig::new("alice").weight(2.0).limit("requests=100/1m".parse()?);
/// assert_eq!(tenant.limits.len(), 1);
/// # Ok::<(), llmq::ParseLimitError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TenantConfig {
    /// The name by which requests find it.
    pub name: Arc<str>,
    /// Its share beside the others', above 0. 1 unless set.
    pub weight: f64,
    /// Limits of its own, over all models. Over one period a kind can have one limit.
    pub limits: Vec<LimitSpec>,
}

impl TenantConfig {
    /// A tenant of weight 1 without limits of its own.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            weight: 1.0,
            limits: Vec::new(),
        }
    }

    /// The same with another share.
    #[must_use]
    pub fn weight(self, weight: f64) -> Self {
        Self { weight, ..self }
    }

    /// The same with one more limit of its own. Requests that wait for it delay no other
    /// tenant.
    #[must_use]
    pub fn limit(mut self, limit: LimitSpec) -> Self {
        self.limits.push(limit);
        self
    }

    /// Finds every setting that cannot be meant.
    ///
    /// # Errors
    ///
    /// [`QueueError::InvalidConfiguration`] with all of them.
    pub fn check(&self) -> Result<(), QueueError> {
        let mut mistakes = Vec::new();
        if self.name.trim().is_empty() {
            mistakes.push("name: it is empty".to_owned());
        }
        if !(self.weight.is_finite() && self.weight > 0.0) {
            mistakes.push("weight: use more than 0".to_owned());
        }
        for (index, limit) in self.limits.iter().enumerate() {
            if let Err(words) = check_limit(limit) {
                mistakes.push(format!("{limit}: {words}"));
            }
            let twin = |other: &LimitSpec| same_slot(other, limit);
            if self.limits[..index].iter().any(twin) {
                mistakes.push(format!("{limit}: there is another limit {}", limit.name()));
            }
        }
        if mistakes.is_empty() {
            return Ok(());
        }
        Err(QueueError::invalid(
            Arc::clone(&self.name),
            mistakes.join("; "),
        ))
    }

    fn dates(&self) -> bool {
        let dates = |limit: &LimitSpec| limit.kind != LimitKind::Concurrency;
        self.limits.iter().any(dates)
    }
}

/// The tenants of one manager.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    by_name: RwLock<FxHashMap<Arc<str>, TenantId>>,
    date: AtomicBool,
}

impl Tenants {
    pub(crate) fn find(&self, name: &str) -> Option<TenantId> {
        let by_name = self.by_name.read().unwrap_or_else(PoisonError::into_inner);
        by_name.get(name).copied()
    }

    /// Whether it matters to one of their limits when a call was sent.
    pub(crate) fn date(&self) -> bool {
        self.date.load(Ordering::Relaxed)
    }

    /// Adds a tenant that was checked; `add` makes it known to the dispatcher.
    pub(crate) fn insert(
        &self,
        tenant: &TenantConfig,
        add: impl FnOnce() -> TenantId,
    ) -> Result<(), QueueError> {
        let mut by_name = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        if by_name.contains_key(&tenant.name) {
            return Err(QueueError::invalid(
                Arc::clone(&tenant.name),
                "there is a tenant of this name",
            ));
        }
        by_name.insert(Arc::clone(&tenant.name), add());
        self.date.fetch_or(tenant.dates(), Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_mistakes_of_a_tenant_are_told_at_once() {
        let tenant = TenantConfig::new("")
            .weight(f64::NAN)
            .limit(LimitSpec::concurrency(0))
            .limit(LimitSpec::concurrency(2));
        let text = tenant.check().unwrap_err().to_string();
        for word in ["name", "weight", "a limit of 0", "another limit"] {
            assert!(text.contains(word), "{word} in {text}");
        }
    }
}
