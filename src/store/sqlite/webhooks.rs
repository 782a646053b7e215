//! SQL of webhooks: endpoints and deliveries.

use async_trait::async_trait;
use sqlx::SqliteConnection;

use super::{SqliteStore, cursor, rows};
use crate::domain::project::Project;
use crate::domain::webhook::{
    DeliveryAttempt, DeliveryStatus, EndpointChange, MAX_ENDPOINTS, SigningSecret, WebhookDelivery,
    WebhookEndpoint,
};
use crate::store::{DueDeliveries, Page, PageRequest, StoreError, WebhookStore};

/// The reason on deliveries of events that their endpoint has ceased to ask for.
const NO_LONGER_WANTED: &str = "the endpoint was changed and no longer asks for this event";

#[async_trait]
impl WebhookStore for SqliteStore {
    async fn insert_webhook_endpoint(
        &self,
        endpoint: &WebhookEndpoint,
    ) -> Result<bool, StoreError> {
        self.write(async |tx, _now| insert_endpoint(tx, endpoint).await).await
    }

    async fn webhook_endpoint(
        &self,
        project: &Project,
        id: &str,
    ) -> Result<Option<WebhookEndpoint>, StoreError> {
        endpoint(&mut *self.readers.acquire().await?, project, id).await
    }

    async fn list_webhook_endpoints(
        &self,
        project: &Project,
        page: &PageRequest,
    ) -> Result<Page<WebhookEndpoint>, StoreError> {
        let reader = &mut *self.readers.acquire().await?;
        let before = match &page.after {
            None => i64::MAX,
            Some(id) => {
                let query = "SELECT position FROM webhook_endpoints WHERE id = $1 AND project = $2
                     UNION ALL SELECT position FROM deleted_items
                     WHERE list = 'webhook_endpoints' AND id = $1 AND owner = $2";
                cursor::position(reader, query, id, project.as_str()).await?
            }
        };
        let found = sqlx::query(
            "SELECT * FROM webhook_endpoints WHERE project = $1 AND position < $2
             ORDER BY position DESC LIMIT $3",
        )
        .bind(project.as_str())
        .bind(before)
        .bind(i64::from(page.limit) + 1)
        .fetch_all(reader)
        .await?;
        rows::page(&found, page.limit, rows::webhook_endpoint)
    }

    async fn update_webhook_endpoint(
        &self,
        project: &Project,
        id: &str,
        change: &EndpointChange,
    ) -> Result<Option<WebhookEndpoint>, StoreError> {
        self.write(async |tx, now| update_endpoint(tx, project, id, change, now).await).await
    }

    async fn rotate_webhook_secret(
        &self,
        project: &Project,
        id: &str,
        secret: &SigningSecret,
        overlap_seconds: i64,
    ) -> Result<Option<WebhookEndpoint>, StoreError> {
        self.write(async |tx, now| {
            let until = (overlap_seconds > 0).then(|| now.saturating_add(overlap_seconds));
            sqlx::query(
                "UPDATE webhook_endpoints
                 SET updated_at = $1, secret = $2, previous_secret_until = $3,
                     previous_secret = CASE WHEN $3 IS NULL THEN NULL ELSE secret END
                 WHERE id = $4 AND project = $5",
            )
            .bind(now)
            .bind(secret.expose())
            .bind(until)
            .bind(id)
            .bind(project.as_str())
            .execute(&mut *tx)
            .await?;
            endpoint(tx, project, id).await
        })
        .await
    }

    async fn delete_webhook_endpoint(
        &self,
        project: &Project,
        id: &str,
    ) -> Result<bool, StoreError> {
        self.write_from_reserve(async |tx, _now| {
            let deleted =
                sqlx::query("DELETE FROM webhook_endpoints WHERE id = $1 AND project = $2")
                    .bind(id)
                    .bind(project.as_str())
                    .execute(&mut *tx)
                    .await?;
            Ok(deleted.rows_affected() > 0)
        })
        .await
    }

    async fn list_webhook_deliveries(
        &self,
        endpoint_id: &str,
        page: &PageRequest,
    ) -> Result<Page<WebhookDelivery>, StoreError> {
        let reader = &mut *self.readers.acquire().await?;
        let before = match &page.after {
            None => i64::MAX,
            Some(id) => {
                let query =
                    "SELECT position FROM webhook_deliveries WHERE id = $1 AND endpoint_id = $2";
                cursor::position(reader, query, id, endpoint_id).await?
            }
        };
        let found = sqlx::query(
            "SELECT * FROM webhook_deliveries WHERE endpoint_id = $1 AND position < $2
             ORDER BY position DESC LIMIT $3",
        )
        .bind(endpoint_id)
        .bind(before)
        .bind(i64::from(page.limit) + 1)
        .fetch_all(reader)
        .await?;
        rows::page(&found, page.limit, rows::webhook_delivery)
    }

    async fn due_webhook_deliveries(
        &self,
        wanted: &DueDeliveries,
    ) -> Result<Vec<(WebhookDelivery, WebhookEndpoint)>, StoreError> {
        let reader = &mut *self.readers.acquire().await?;
        let due = sqlx::query(
            "SELECT * FROM (
                 SELECT *, row_number() OVER (PARTITION BY project
                                              ORDER BY turn, next_attempt_at, position) AS project_turn
                 FROM (
                     SELECT deliveries.*, endpoints.project,
                            row_number() OVER (PARTITION BY endpoint_id
                                               ORDER BY next_attempt_at, deliveries.position) AS turn
                     FROM webhook_deliveries AS deliveries
                     JOIN webhook_endpoints AS endpoints ON endpoints.id = endpoint_id
                     WHERE next_attempt_at <= $1
                       AND deliveries.id NOT IN (SELECT value FROM json_each($5))
                       AND endpoint_id NOT IN (SELECT value FROM json_each($6))
                       AND endpoints.project NOT IN (SELECT value FROM json_each($7)))
                 WHERE turn <= $2)
             WHERE project_turn <= $3
             ORDER BY project_turn, next_attempt_at, position LIMIT $4",
        )
        .bind(self.clock.now())
        .bind(wanted.for_each_endpoint)
        .bind(wanted.for_each_project)
        .bind(wanted.limit)
        .bind(rows::to_json("webhook_deliveries.id", &wanted.in_progress)?)
        .bind(rows::to_json("webhook_endpoints.id", &wanted.busy_endpoints)?)
        .bind(rows::to_json("webhook_endpoints.project", &wanted.busy_projects)?)
        .fetch_all(&mut *reader)
        .await?;
        let mut deliveries = Vec::with_capacity(due.len());
        for row in &due {
            let delivery = rows::webhook_delivery(row)?;
            let endpoint = sqlx::query("SELECT * FROM webhook_endpoints WHERE id = $1")
                .bind(&delivery.endpoint_id)
                .fetch_optional(&mut *reader)
                .await?;
            // Without one it was deleted since the list was read.
            if let Some(endpoint) = endpoint {
                deliveries.push((delivery, rows::webhook_endpoint(&endpoint)?));
            }
        }
        Ok(deliveries)
    }

    async fn record_webhook_attempt(
        &self,
        delivery_id: &str,
        attempt: &DeliveryAttempt,
        status: DeliveryStatus,
        next_attempt_at: Option<i64>,
    ) -> Result<(), StoreError> {
        self.write(async |tx, _now| {
            sqlx::query(
                "UPDATE webhook_deliveries
                 SET status = $1, next_attempt_at = $2,
                     attempts = json_insert(attempts, '$[#]', json($3))
                 WHERE id = $4 AND (status = $5 OR $1 = $6)",
            )
            .bind(status.as_str())
            .bind(next_attempt_at)
            .bind(rows::to_json("webhook_deliveries.attempts", attempt)?)
            .bind(delivery_id)
            .bind(DeliveryStatus::Pending.as_str())
            .bind(DeliveryStatus::Delivered.as_str())
            .execute(&mut *tx)
            .await?;
            Ok(())
        })
        .await
    }

    async fn remove_old_webhook_deliveries(&self, age_seconds: i64) -> Result<u64, StoreError> {
        self.write(async |tx, now| {
            let removed = sqlx::query(
                "DELETE FROM webhook_deliveries WHERE next_attempt_at IS NULL AND created_at < $1",
            )
            .bind(now.saturating_sub(age_seconds))
            .execute(&mut *tx)
            .await?;
            Ok(removed.rows_affected())
        })
        .await
    }
}

/// A project's endpoint.
async fn endpoint(
    connection: &mut SqliteConnection,
    project: &Project,
    id: &str,
) -> Result<Option<WebhookEndpoint>, StoreError> {
    let row = sqlx::query("SELECT * FROM webhook_endpoints WHERE id = $1 AND project = $2")
        .bind(id)
        .bind(project.as_str())
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(rows::webhook_endpoint).transpose()
}

/// Adds an endpoint, unless the project has too many.
async fn insert_endpoint(
    connection: &mut SqliteConnection,
    endpoint: &WebhookEndpoint,
) -> Result<bool, StoreError> {
    let count: i64 =
        sqlx::query_scalar("SELECT count(*) FROM webhook_endpoints WHERE project = $1")
            .bind(endpoint.project.as_str())
            .fetch_one(&mut *connection)
            .await?;
    if count >= MAX_ENDPOINTS {
        return Ok(false);
    }
    let previous = endpoint.previous_secret.as_ref();
    sqlx::query(
        "INSERT INTO webhook_endpoints (id, project, created_at, updated_at, name, url,
                                    event_types, secret, previous_secret,
                                    previous_secret_until)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(&endpoint.id)
    .bind(endpoint.project.as_str())
    .bind(endpoint.created_at)
    .bind(endpoint.updated_at)
    .bind(&endpoint.name)
    .bind(&endpoint.url)
    .bind(rows::to_json("webhook_endpoints.event_types", &endpoint.event_types)?)
    .bind(endpoint.secret.expose())
    .bind(previous.map(|previous| previous.secret.expose()))
    .bind(previous.map(|previous| previous.until))
    .execute(&mut *connection)
    .await?;
    Ok(true)
}

/// Changes an endpoint. Pending deliveries of events that it no longer asks for end.
async fn update_endpoint(
    connection: &mut SqliteConnection,
    project: &Project,
    id: &str,
    change: &EndpointChange,
    now: i64,
) -> Result<Option<WebhookEndpoint>, StoreError> {
    let Some(before) = endpoint(connection, project, id).await? else {
        return Ok(None);
    };
    let mut after = before.clone();
    if let Some(name) = &change.name {
        after.name.clone_from(name);
    }
    if let Some(url) = &change.url {
        after.url.clone_from(url);
    }
    if let Some(event_types) = &change.event_types {
        after.event_types.clone_from(event_types);
    }
    if after == before {
        return Ok(Some(before));
    }
    after.updated_at = now;
    let event_types = rows::to_json("webhook_endpoints.event_types", &after.event_types)?;
    sqlx::query(
        "UPDATE webhook_endpoints SET updated_at = $1, name = $2, url = $3, event_types = $4
     WHERE id = $5",
    )
    .bind(after.updated_at)
    .bind(&after.name)
    .bind(&after.url)
    .bind(&event_types)
    .bind(id)
    .execute(&mut *connection)
    .await?;
    let reason = DeliveryAttempt {
        at: after.updated_at,
        status_code: None,
        error: Some(NO_LONGER_WANTED.to_owned()),
    };
    sqlx::query(
        "UPDATE webhook_deliveries
     SET status = $1, next_attempt_at = NULL,
         attempts = json_insert(attempts, '$[#]', json($2))
     WHERE endpoint_id = $3 AND status = $4
       AND event_type NOT IN (SELECT value FROM json_each($5))",
    )
    .bind(DeliveryStatus::Failed.as_str())
    .bind(rows::to_json("webhook_deliveries.attempts", &reason)?)
    .bind(id)
    .bind(DeliveryStatus::Pending.as_str())
    .bind(&event_types)
    .execute(&mut *connection)
    .await?;
    Ok(Some(after))
}
