//! Stage 3, webhooks: who is told of a job's end.
//!
//! The store fills the outbox in the transaction that ends a job. A [`Worker`] in the server takes what
//! is due from there and hands it to the [`WebhookClient`], which signs it and brings it to its endpoint, under
//! the [`Policy`] that says where deliveries may go at all.

mod client;
mod policy;
mod schedule;
mod worker;

pub use client::{Parcel, Undelivered, WebhookClient, WebhookClientError};
pub use policy::{Policy, Target, TargetError};
pub use worker::Worker;
