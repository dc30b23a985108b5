//! A stand-in provider: real limits, headers, answers and faults over HTTP, without an account.
//!
//! Start with [`MockConfig`] and [`MockServer::start`]. The server speaks OpenAI (chat
//! completions, completions, responses, embeddings, models) and Anthropic (messages,
//! count_tokens), whole and streaming. Its limits are those of [`llmq_strict`]: it enforces them
//! to the letter, and none of its code is shared with the client and the limiter it is there to
//! test. What it saw is told by [`MockServer::report`] and at `GET /mock/report`.
//!
//! An answer's text follows from the prompt and the seed. Input is counted as a quarter of the
//! characters of all message texts, rounded up, and output as configured, cut off at the
//! call's cap. A call that offers tools gets a call of one, and one with a schema an answer that
//! keeps to it, both with sample values.

mod config;
mod server;

mod body;
mod service;
mod state;

mod call;
mod text;
mod tools;

mod answer;
mod anthropic;
mod openai;
mod prose;
mod responses;

mod fault;
mod rate_headers;
mod time_text;

mod record;
mod report;

pub use config::{
    DefaultAlgorithm, Foreign, Hints, MockConfig, Outage, OutageStyle, ParseMockError,
};
pub use report::{AnswerCounts, LimitReport, Report};
pub use server::MockServer;
