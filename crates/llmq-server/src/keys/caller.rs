use std::fmt;
use std::sync::Arc;

use llmq_api::KeyScope;
use llmq_core::LimitSpec;
use uuid::Uuid;

use super::ring::Key;

/// The tenant of calls without a key.
const DEFAULT_TENANT: &str = "default";

/// Who sent a request, and what they may do. Cheap to clone.
///
/// A caller stays what it was when its request came: a key that is revoked meanwhile lets the
/// request end.
#[derive(Clone)]
pub struct Caller {
    /// None: nobody in particular, on a server that asks for no key.
    pub(super) key: Option<Arc<Key>>,
}

/// What a key may not do. Always 403.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Forbidden {
    /// The key lacks a scope.
    #[error("this key may not do that: it lacks the scope `{}`", .0.as_str())]
    Scope(KeyScope),
    /// The key may not use the model.
    #[error("this key may not use the model `{0}`")]
    Model(String),
    /// The key's calls are charged to its own tenant alone.
    #[error("this key may not call for the tenant `{0}`")]
    Tenant(String),
}

impl Caller {
    /// Nobody in particular: every scope, every model, any tenant, no budget.
    #[must_use]
    pub fn anonymous() -> Self {
        Self { key: None }
    }

    /// The key's id, for logs and for limits of its own; none without a key.
    #[must_use]
    pub fn key_id(&self) -> Option<Uuid> {
        self.key.as_ref().map(|key| key.record.id)
    }

    /// The key's name.
    #[must_use]
    pub fn key_name(&self) -> Option<&str> {
        self.key.as_ref().map(|key| key.record.name.as_str())
    }

    /// Who the caller's requests are charged to, unless they name another.
    #[must_use]
    pub fn tenant(&self) -> &str {
        self.key.as_ref().map_or(DEFAULT_TENANT, |key| key.tenant())
    }

    /// Who a request is charged to that names `asked` (`X-LLMQ-Tenant`).
    ///
    /// # Errors
    ///
    /// [`Forbidden::Tenant`] when it is not the caller's own and the key may name no other.
    pub fn tenant_for<'a>(&'a self, asked: Option<&'a str>) -> Result<&'a str, Forbidden> {
        let own = self.tenant();
        let any = self.key.as_ref().is_none_or(|key| key.record.any_tenant);
        match asked {
            None => Ok(own),
            Some(asked) if any || asked == own => Ok(asked),
            Some(asked) => Err(Forbidden::Tenant(asked.to_owned())),
        }
    }

    /// Whether the caller may see what belongs to any tenant.
    #[must_use]
    pub fn sees_all(&self) -> bool {
        self.key.as_ref().is_none_or(|key| key.record.any_tenant)
    }

    /// Whether the caller may do what needs `scope`.
    ///
    /// # Errors
    ///
    /// [`Forbidden::Scope`].
    pub fn may(&self, scope: KeyScope) -> Result<(), Forbidden> {
        match &self.key {
            Some(key) if !key.scopes.contains(&scope) => Err(Forbidden::Scope(scope)),
            _ => Ok(()),
        }
    }

    /// Whether the caller may use `model`, a public model name.
    ///
    /// # Errors
    ///
    /// [`Forbidden::Model`].
    pub fn may_use(&self, model: &str) -> Result<(), Forbidden> {
        match self.models() {
            Some(models) if !models.iter().any(|allowed| allowed == model) => {
                Err(Forbidden::Model(model.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// The models the caller may use; none: every one.
    #[must_use]
    pub fn models(&self) -> Option<&[String]> {
        self.key.as_ref()?.record.models.as_deref()
    }

    /// The limits of its key, which all its calls share.
    #[must_use]
    pub fn limits(&self) -> &[LimitSpec] {
        self.key.as_ref().map_or(&[], |key| &key.limits)
    }

    /// Whether it has a budget, in tokens or money, so that its answers must be counted.
    #[must_use]
    pub fn has_budget(&self) -> bool {
        self.key.as_ref().is_some_and(|key| key.has_budget())
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller")
            .field("key", &self.key_name())
            .field("tenant", &self.tenant())
            .finish()
    }
}
