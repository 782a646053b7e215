//! Stage 3, webhooks: endpoints are told when a job ends.
//!
//! The store fills the outbox in the transaction that ends a job. The [`DeliveryWorker`] in the server takes
//! the due deliveries from the outbox. The [`WebhookClient`] signs them and sends them to their endpoints, as
//! far as the [`Policy`] permits.

mod address_policy;
mod client;
mod retry_schedule;
mod worker;

pub use address_policy::{DeliveryTarget, Policy, TargetError, UrlScheme};
pub use client::{DeliveryError, OutgoingDelivery, WebhookClient, WebhookClientError};
pub use worker::DeliveryWorker;
