use serde::{Deserialize, Serialize};

/// `POST /api/webhooks`: an endpoint that is to be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateWebhook {
    /// Where: `https://…` or `http://…`.
    pub url: String,
    /// The events it is told of, such as `request.completed` or `batch.*`; empty: all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<String>,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Its secret, `whsec_` and base64 of 24 to 64 bytes; a new one is made unless said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
}

/// `PATCH /api/webhooks/{id}`: what is to be changed.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UpdateWebhook {
    /// Where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The events it is told of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<String>>,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Whether it is told at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// An endpoint that is told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookInfo {
    /// Its id.
    pub id: String,
    /// Where.
    pub url: String,
    /// The events it is told of; empty: all of them.
    pub events: Vec<String>,
    /// What people call it.
    pub description: Option<String>,
    /// Whose events it is told of; null: everybody's.
    pub tenant: Option<String>,
    /// Whether it is told.
    pub enabled: bool,
    /// Why it is not, if the server decided so.
    pub disabled_because: Option<String>,
    /// Since when it has taken nothing.
    pub failing_since: Option<String>,
    /// When it was made.
    pub created_at: String,
    /// How many secrets sign at present: two for a day after one was replaced.
    pub secrets: u32,
}

/// The answer that makes an endpoint or replaces its secret: the only ones that hold it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookWithSecret {
    /// The secret that is in force from now on.
    pub secret: String,
    /// All else.
    #[serde(flatten)]
    pub info: WebhookInfo,
}

impl std::fmt::Debug for WebhookWithSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebhookWithSecret")
            .field("secret", &"***")
            .field("info", &self.info)
            .finish()
    }
}

/// The answer to `GET /api/webhooks`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookList {
    /// All of them, oldest first.
    pub webhooks: Vec<WebhookInfo>,
    /// What asks for the next page; null when there is none, which is always so.
    #[serde(default)]
    pub next_cursor: Option<String>,
}

/// The answer to `POST /api/webhooks/{id}/test`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookTest {
    /// Whether the endpoint took the message.
    pub delivered: bool,
    /// Its status, if it answered.
    pub status: Option<u16>,
    /// What came of it, for people.
    pub outcome: String,
}

/// The answer to `GET /api/webhooks/secret`: what signs the callbacks of single requests.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CallbackSecret {
    /// `whsec_…`.
    pub secret: String,
}

impl std::fmt::Debug for CallbackSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallbackSecret").finish_non_exhaustive()
    }
}

/// One message to one endpoint, and how far it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeliveryInfo {
    /// Its number.
    pub id: u64,
    /// The `webhook-id` of its message: the same over all tries, and at all endpoints.
    pub message_id: String,
    /// The endpoint; null for the callback of a single request.
    pub webhook_id: Option<String>,
    /// The callback, if it is one.
    pub callback_url: Option<String>,
    /// What happened, such as `request.completed`.
    pub event: String,
    /// The request that it is about.
    pub queue_id: Option<String>,
    /// How far it is.
    pub status: DeliveryStatus,
    /// Tries so far.
    pub attempts: u32,
    /// When the next one is due.
    pub next_attempt_at: Option<String>,
    /// When the newest one was.
    pub last_attempt_at: Option<String>,
    /// What came of that, for people.
    pub last_outcome: Option<String>,
    /// When it happened.
    pub created_at: String,
}

/// How far a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum DeliveryStatus {
    /// It is sent, or sent again, when its time comes.
    Pending,
    /// The endpoint took it.
    Delivered,
    /// Nobody tries any more.
    Failed,
}

/// A page of deliveries, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeliveryList {
    /// One page.
    pub deliveries: Vec<DeliveryInfo>,
    /// What asks for the next page; null after the last one.
    #[serde(default)]
    pub next_cursor: Option<String>,
}
