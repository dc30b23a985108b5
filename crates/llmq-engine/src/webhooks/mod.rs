//! Webhooks on their way out (Standard Webhooks, standardwebhooks.com).
//!
//! What is to be told stands in the store, put there in the transaction of the change that it tells
//! of. Read [`Outbox`] first: it takes what is due, sends it and records what came of it, by the
//! schedule in `schedule`. [`Endpoints`] are those who are told, with their secrets;
//! [`DeliveryClient`] makes one try, and [`Reach`] says which addresses it may connect to.

mod reach;

mod client;
mod connect;

mod endpoints;
mod message;
mod schedule;

mod outbox;

pub use client::{DeliveryClient, DeliveryError, EndpointAnswer, Outgoing, TIMEOUT};
pub use endpoints::{EndpointState, Endpoints, OVERLAP, SecretState};
pub use message::{batch_name, message_id};
pub use outbox::{Outbox, Tried};
pub use reach::Reach;
