//! One call to one provider: the request as bytes, the way there and back, what the answer
//! means.
//!
//! Read [`Provider::call`] first: it sends a [`Request`] and gives back an [`Answer`] whose bytes
//! nobody has touched. [`check_answer`] then tells an answer from a failure, [`StreamReader`] and
//! [`check_stream`] do it for streams as they pass, and [`Verdict`] is what a failure means, whoever the provider is.
//! Before a call, [`scan_request`] reads from its body what limits need to know; [`prompt_body`]
//! and [`with_model`] write bodies.
//!
//! Everything here knows URLs, headers and JSON, and nothing of queues, waiting or retries.

// A library says what it has to say to its caller, not to the terminal.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod secret;

mod endpoint;
mod host;
mod timeouts;

mod config;

mod client;
mod headers;
mod http1;
mod http2;
mod reply_headers;
mod response;
mod sent;

mod call_error;
mod cause;

mod alarm;
mod connect;
mod link;
mod pool;
mod resolve;
mod socket;
mod wire;

mod classify;
mod codes;

mod answer;
mod ended;
mod error_body;
mod event_shape;
mod lenient;
mod opening;
mod plain;
mod usage;

mod event_ends;
mod sse;
mod stream;
mod stream_facts;
mod usage_chunk;
mod whole_events;

mod scan;
mod tokens;

mod body_edit;
mod request;

mod blot;
mod recorder;

pub mod mock;
pub mod translate;

pub use answer::{AnswerFacts, answer_text};
pub use body_edit::{NotAnObject, with_member, with_model, with_stream_usage, without_members};
pub use call_error::CallError;
pub use cause::{Cause, TlsFault};
pub use classify::{
    Refused, Source, Verdict, check_answer, check_stream, classify, failed_status, redirected,
};
pub use client::{Item, Provider, Request};
pub use config::{ANSWER_BYTES_MAX, ConfigError, ProviderConfig, check_base_url};
pub use endpoint::{Dialect, Operation};
pub use host::{host_of, is_own_server};
pub use recorder::Recorder;
pub use reply_headers::{processing_time, request_id};
pub use request::{ANTHROPIC_MAX_TOKENS, Prompt, PromptError, check_params, prompt_body};
pub use response::{Answer, Times, WholeAnswer};
pub use scan::{Kept, RequestScan, ScanError, scan_request};
pub use secret::{Secret, SecretError};
pub use sent::SentHook;
pub use sse::{EVENT_BYTES_MAX, EventTooLarge, SseEvent, SseSplitter};
pub use stream::{StreamEnd, StreamReader};
pub use timeouts::Timeouts;
pub use tokens::{TokenCounter, TokenTally};
pub use usage_chunk::UsageChunkFilter;
pub use whole_events::WholeEvents;
pub use wire::{AnswerHead, AnswerReader, Came, WireFault};
