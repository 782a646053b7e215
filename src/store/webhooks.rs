//! What the store promises of webhooks. The store itself fills the outbox, in the transaction that ends
//! a job; this trait is for deliveries and for clients that manage endpoints.

use async_trait::async_trait;

use super::error::StoreError;
use super::page::{Page, PageRequest};
use crate::domain::project::Project;
use crate::domain::webhook::{
    DeliveryAttempt, DeliveryStatus, EndpointChange, SigningSecret, WebhookDelivery,
    WebhookEndpoint,
};

/// How many due deliveries are looked for, and which are left out.
#[derive(Debug, Clone, Default)]
pub struct DueDeliveries {
    /// How many at most.
    pub limit: u32,
    /// How many of an endpoint at most.
    pub for_each_endpoint: u32,
    /// How many of a project at most.
    pub for_each_project: u32,
    /// Ids of deliveries that are attempted just now.
    pub in_progress: Vec<String>,
    /// Ids of endpoints that take no more at the moment.
    pub busy_endpoints: Vec<String>,
    /// Projects that take no more at the moment.
    pub busy_projects: Vec<Project>,
}

/// Endpoints and deliveries. Every method is one transaction.
#[async_trait]
pub trait WebhookStore: Send + Sync {
    /// Adds an endpoint; `false`, and no endpoint, when its project has
    /// [`crate::domain::webhook::MAX_ENDPOINTS`] already.
    async fn insert_webhook_endpoint(&self, endpoint: &WebhookEndpoint)
    -> Result<bool, StoreError>;
    /// A project's endpoint by id.
    async fn webhook_endpoint(
        &self,
        project: &Project,
        id: &str,
    ) -> Result<Option<WebhookEndpoint>, StoreError>;
    /// A project's endpoints, newest first.
    async fn list_webhook_endpoints(
        &self,
        project: &Project,
        page: &PageRequest,
    ) -> Result<Page<WebhookEndpoint>, StoreError>;
    /// Changes an endpoint; `None` when there is no such endpoint. Pending deliveries go to the new
    /// address; those of events that it no longer asks for are given up.
    async fn update_webhook_endpoint(
        &self,
        project: &Project,
        id: &str,
        change: &EndpointChange,
    ) -> Result<Option<WebhookEndpoint>, StoreError>;
    /// Gives an endpoint a new secret; `None` when there is no such endpoint. The one before signs
    /// beside it for `overlap_seconds`; one that was still retiring signs no more.
    async fn rotate_webhook_secret(
        &self,
        project: &Project,
        id: &str,
        secret: &SigningSecret,
        overlap_seconds: i64,
    ) -> Result<Option<WebhookEndpoint>, StoreError>;
    /// Removes an endpoint with its deliveries; whether it was there.
    async fn delete_webhook_endpoint(
        &self,
        project: &Project,
        id: &str,
    ) -> Result<bool, StoreError>;
    /// An endpoint's deliveries, newest first.
    async fn list_webhook_deliveries(
        &self,
        endpoint_id: &str,
        page: &PageRequest,
    ) -> Result<Page<WebhookDelivery>, StoreError>;
    /// Deliveries whose time has come, with their endpoints. Projects take turns, and endpoints within
    /// a project; of each the longest overdue comes first. They stay due until an attempt is recorded.
    async fn due_webhook_deliveries(
        &self,
        wanted: &DueDeliveries,
    ) -> Result<Vec<(WebhookDelivery, WebhookEndpoint)>, StoreError>;
    /// Adds an attempt to a pending delivery, and its new status. Nothing happens to one whose
    /// endpoint is deleted by now, or that was given up meanwhile and was not delivered all the same.
    async fn record_webhook_attempt(
        &self,
        delivery_id: &str,
        attempt: &DeliveryAttempt,
        status: DeliveryStatus,
        next_attempt_at: Option<i64>,
    ) -> Result<(), StoreError>;
    /// Removes deliveries that are finished and were made more than `age_seconds` ago; how many.
    async fn remove_old_webhook_deliveries(&self, age_seconds: i64) -> Result<u64, StoreError>;
}
