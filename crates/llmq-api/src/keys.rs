use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a key may do. Each one stands for itself: `manage` does not bring the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum KeyScope {
    /// Call models and hand in work.
    Call,
    /// Look at queues, requests and statistics.
    Read,
    /// Make and revoke keys, pause queues, change what others rely on.
    Manage,
}

impl KeyScope {
    /// Every scope.
    pub const ALL: [Self; 3] = [Self::Call, Self::Read, Self::Manage];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Read => "read",
            Self::Manage => "manage",
        }
    }

    /// The scope of that word.
    ///
    /// ```
    /// use llmq_api::KeyScope;
    /// assert_eq!(KeyScope::named("read"), Some(KeyScope::Read));
    /// assert_eq!(KeyScope::named("write"), None);
    /// ```
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == word)
    }
}

/// How much a key may spend; absent or null: no bound.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyBudget {
    /// Input and output tokens a day.
    pub tokens_per_day: Option<u64>,
    /// Input and output tokens a calendar month.
    pub tokens_per_month: Option<u64>,
    /// US dollars a day.
    pub usd_per_day: Option<f64>,
    /// US dollars a calendar month.
    pub usd_per_month: Option<f64>,
}

/// `POST /api/keys`: the key to make.
///
/// ```
/// use llmq_api::{CreateKey, KeyScope};
/// let wanted: CreateKey = serde_json::from_str(r#"{"name":"app","limits":["rpm=60"]}"#).unwrap();
/// assert_eq!(wanted.scopes, [KeyScope::Call, KeyScope::Read]);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateKey {
    /// What people call it, 1 to 100 characters; no other key in use has the same.
    pub name: String,
    /// What it may do; `call` and `read` unless something is said.
    #[serde(default = "usual_scopes")]
    pub scopes: Vec<KeyScope>,
    /// The models it may use; null: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<String>>,
    /// Who its calls are charged to; null: its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// Whether its calls may name another tenant in `X-LLMQ-Tenant`.
    #[serde(default)]
    pub any_tenant: bool,
    /// Its limits, such as `rpm=60`, `tpd=1M`, `concurrency=4` or `requests=200/2s`.
    #[serde(default)]
    pub limits: Vec<String>,
    /// How much it may spend.
    #[serde(default)]
    pub budget: KeyBudget,
}

fn usual_scopes() -> Vec<KeyScope> {
    vec![KeyScope::Call, KeyScope::Read]
}

/// What was used in one day or month.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UsedInPeriod {
    /// Input tokens.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// US dollars, as far as prices are configured.
    pub usd: f64,
}

/// What a key used until now.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyUse {
    /// Today.
    pub day: UsedInPeriod,
    /// This calendar month.
    pub month: UsedInPeriod,
}

/// A key, as every answer but the first shows it: without the key itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyInfo {
    /// What it is revoked by.
    #[cfg_attr(feature = "openapi", schema(value_type = String, format = "uuid"))]
    pub id: Uuid,
    /// What people call it.
    pub name: String,
    /// The key's first characters, to know it by.
    pub prefix: String,
    /// What it may do.
    pub scopes: Vec<KeyScope>,
    /// The models it may use; null: every one.
    pub models: Option<Vec<String>>,
    /// Who its calls are charged to.
    pub tenant: String,
    /// Whether its calls may name another tenant.
    pub any_tenant: bool,
    /// Its limits, as they were written.
    pub limits: Vec<String>,
    /// How much it may spend.
    pub budget: KeyBudget,
    /// What it used; null when it is revoked.
    pub usage: Option<KeyUse>,
    /// When it was made (RFC 3339).
    pub created_at: String,
    /// Since when it is refused; null: it is in use.
    pub revoked_at: Option<String>,
}

/// The answer to `POST /api/keys`: the only one that ever holds the key.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedKey {
    /// The key: 256 random bits behind `llmq_`.
    pub key: String,
    /// All else.
    #[serde(flatten)]
    pub info: KeyInfo,
}

impl std::fmt::Debug for CreatedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreatedKey")
            .field("key", &"***")
            .field("info", &self.info)
            .finish()
    }
}

/// The answer to `GET /api/keys`: newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyList {
    /// One page, revoked ones included.
    pub keys: Vec<KeyInfo>,
    /// What asks for the next page; null after the last one.
    pub next_cursor: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_field_is_refused_and_not_passed_over() {
        let refused = |body| {
            serde_json::from_str::<CreateKey>(body)
                .unwrap_err()
                .to_string()
        };
        let message = refused(r#"{"name":"a","limit":["rpm=1"]}"#);
        assert!(message.contains("unknown field `limit`"), "{message}");
        let message = refused(r#"{"name":"a","budget":{"tokens":1}}"#);
        assert!(message.contains("unknown field `tokens`"), "{message}");
        let message = refused(r#"{"name":"a","scopes":["write"]}"#);
        assert!(message.contains("`call`, `read`, `manage`"), "{message}");
    }
}
