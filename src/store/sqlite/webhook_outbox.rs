//! SQL of the webhook outbox, which the end of a job fills.

use sqlx::SqliteConnection;

use crate::domain::ids;
use crate::domain::job::JobStatus;
use crate::domain::webhook::{DeliveryStatus, EventType};
use crate::store::StoreError;

/// Fills the outbox when a job has come to `status`, in the transaction that brings it there: a
/// delivery, due at once, for each endpoint of the job's project that asks for the event.
pub(super) async fn job_ended(
    connection: &mut SqliteConnection,
    job_id: &str,
    status: JobStatus,
    now: i64,
) -> Result<(), StoreError> {
    let Some(kind) = EventType::of(status) else {
        return Ok(());
    };
    let endpoints: Vec<String> = sqlx::query_scalar(
        "SELECT id FROM webhook_endpoints
         WHERE project = (SELECT project FROM jobs WHERE id = $1)
           AND EXISTS (SELECT 1 FROM json_each(event_types) WHERE value = $2)
         ORDER BY position",
    )
    .bind(job_id)
    .bind(kind.as_str())
    .fetch_all(&mut *connection)
    .await?;
    let event_id = ids::new_webhook_event_id();
    for endpoint_id in endpoints {
        sqlx::query(
            "INSERT INTO webhook_deliveries (id, endpoint_id, event_id, event_type, subject_id,
                                             created_at, status, attempts, next_attempt_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, '[]', $6)",
        )
        .bind(ids::new_webhook_delivery_id())
        .bind(endpoint_id)
        .bind(&event_id)
        .bind(kind.as_str())
        .bind(job_id)
        .bind(now)
        .bind(DeliveryStatus::Pending.as_str())
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
