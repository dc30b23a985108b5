//! What the HTTP interface says, as types: shared by the server and its clients.
//!
//! With the feature `openapi` each type also knows its schema, from which the server makes
//! `/openapi.json`.

// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod calls;
mod keys;
mod queues;
mod requests;
mod stats;
mod webhooks;

mod problem;

pub use calls::{CallList, CallState, CallStatus};
pub use keys::{
    CreateKey, CreatedKey, KeyBudget, KeyInfo, KeyList, KeyScope, KeyUse, UsedInPeriod,
};
pub use problem::ProblemBody;
pub use queues::{
    AcceptedCounts, BreakerWord, Depth, LimitState, QueueList, QueueMotion, QueueState, QuotaState,
    UpstreamState,
};
pub use requests::{
    Accepted, AcceptedRequests, CreateRequest, CreateRequests, HandedIn, RequestError, RequestList,
    RequestState, RequestUsage,
};
pub use stats::{Health, HealthWord, RequestCounts, Stats};
pub use webhooks::{
    CallbackSecret, CreateWebhook, DeliveryInfo, DeliveryList, DeliveryStatus, UpdateWebhook,
    WebhookInfo, WebhookList, WebhookTest, WebhookWithSecret,
};
