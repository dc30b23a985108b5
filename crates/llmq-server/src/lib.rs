//! The gateway: OpenAI's and Anthropic's endpoints in front of a dispatcher that waits instead of
//! failing.
//!
//! Read [`Gateway`] first: what a running gateway is made of. [`serve`] accepts connections,
//! `guest` is one of them, and `front` hands each request to `call` (a model is to answer) or to the small routes beside
//! it. In `call`, `incoming` reads the request, `line` waits for leave to send, `attempt` sends and
//! judges the answer, `stream` passes a stream on as it comes, and `reply` speaks to the caller
//! in the dialect of the API that it called. Then [`keys`]: who calls, and what they may spend;
//! `jobs`: calls that are accepted and finished later; `openai`: responses in the background,
//! files and batches, which are made of those; and [`observe`]: what can be seen of it all.

// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod gateway;
mod made;
mod models;
mod reload;
mod shelf;
mod tenants;

mod bounds;
mod guest;
mod serve;
mod taken;
mod tls;
mod watched;
mod written;

mod cors;
mod front;
mod model_list;
mod pages;
mod rebinding;
mod site;
mod timed;

mod call;

mod jobs;

mod openai;

mod dialect;
mod shown;

pub mod keys;

pub mod observe;
mod problem;

pub use bounds::Bounds;
pub use gateway::{Gateway, GatewayError, GatewayOptions, store_settings};
pub use problem::Problem;
pub use reload::{ReloadError, Reloaded};
pub use serve::{Served, serve};
pub use tls::{TlsError, check_tls};
