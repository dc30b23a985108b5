//! The configuration: read, overridden, checked.
//!
//! Read [`Config`] first: the values as written, in their layers (a flag beats the environment,
//! which beats the file, which beats the default). [`Config::check`] turns them into
//! [`Settings`], or tells every [`Mistake`] at once. [`DEFAULT_TOML`] documents each setting and
//! is itself the lowest layer, so the documentation is the default.
//!
//! No environment is read here: variables are handed in with [`Config::with_env`].

mod error;
mod source;

mod settings;

mod check;
mod upstreams;

mod path;
mod reader;
mod values;

pub use error::{ConfigErrors, LoadError, Mistake};
pub use settings::{
    Ambiguous, Auth, Copies, Environment, Fallback, KeySource, LimitTable, ModelSettings, Network,
    OnStoreLoss, OnUnavailable, ProviderKind, RetrySettings, RouteSettings, ServerSettings,
    Settings, StoreSettings, StoreUrl, StreamRecovery, StreamUsage, Tls, UpstreamSettings,
    WebhookSettings, stated_routes,
};
pub use source::{Config, Entry, Origin};
pub use values::parse_address;

/// Every setting with its default and a sentence about it; `llmq config default` prints it.
pub const DEFAULT_TOML: &str = include_str!("../../../../llmq.default.toml");

#[cfg(test)]
mod tests;
