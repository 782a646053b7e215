//! SQL of events.

use sqlx::SqliteConnection;

use super::{cursor, rows};
use crate::domain::ids::new_event_id;
use crate::domain::job::{EventKind, JobEvent, NewEvent};
use crate::store::{Order, Page, PageRequest, StoreError};

/// Appends events to a job's sequence. The job's own row counts them, so that the sequence has no
/// gap: the count moves in the transaction that adds the events.
pub(super) async fn append(
    connection: &mut SqliteConnection,
    job_id: &str,
    now: i64,
    events: &[NewEvent],
) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let mut sequence: i64 = sqlx::query_scalar("SELECT event_count FROM jobs WHERE id = $1")
        .bind(job_id)
        .fetch_one(&mut *connection)
        .await?;
    for event in events {
        sequence += 1;
        sqlx::query(
            "INSERT INTO events (id, job_id, sequence, created_at, level, kind, message, data, step)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(new_event_id())
        .bind(job_id)
        .bind(sequence)
        .bind(now)
        .bind(rows::level_word(event.level))
        .bind(rows::kind_word(event.kind))
        .bind(&event.message)
        .bind(rows::to_optional_json("events.data", event.data.as_ref())?)
        .bind(step_of(event))
        .execute(&mut *connection)
        .await?;
    }
    sqlx::query("UPDATE jobs SET event_count = $1 WHERE id = $2")
        .bind(sequence)
        .bind(job_id)
        .execute(connection)
        .await?;
    Ok(())
}

/// The step whose numbers an event holds.
fn step_of(event: &NewEvent) -> Option<i64> {
    match event.kind {
        EventKind::Metrics => event.data.as_ref()?["step"].as_i64(),
        EventKind::Message => None,
    }
}

/// One page of a job's metrics events by step. Steps that ran again after a crash have several
/// events, of which the last counts.
pub(super) async fn metrics(
    connection: &mut SqliteConnection,
    job_id: &str,
    after: u64,
    limit: u32,
) -> Result<Page<JobEvent>, StoreError> {
    let found = sqlx::query(
        "SELECT * FROM events AS event
         WHERE job_id = $1 AND step > $2
           AND NOT EXISTS (
               SELECT 1 FROM events AS later
               WHERE later.job_id = event.job_id AND later.step = event.step
                 AND later.sequence > event.sequence)
         ORDER BY step ASC LIMIT $3",
    )
    .bind(job_id)
    // No step is beyond what the column holds.
    .bind(i64::try_from(after).unwrap_or(i64::MAX))
    .bind(i64::from(limit) + 1)
    .fetch_all(connection)
    .await?;
    rows::page(&found, limit, rows::event)
}

/// One page of a job's events, in the order in which they were written or the other way round.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    job_id: &str,
    order: Order,
    page: &PageRequest,
) -> Result<Page<JobEvent>, StoreError> {
    let (from, query) = match order {
        Order::Ascending => (
            0,
            "SELECT * FROM events WHERE job_id = $1 AND sequence > $2
             ORDER BY sequence ASC LIMIT $3",
        ),
        Order::Descending => (
            i64::MAX,
            "SELECT * FROM events WHERE job_id = $1 AND sequence < $2
             ORDER BY sequence DESC LIMIT $3",
        ),
    };
    let from = match &page.after {
        None => from,
        Some(id) => {
            let query = "SELECT sequence FROM events WHERE id = $1 AND job_id = $2";
            cursor::position(connection, query, id, job_id).await?
        }
    };
    let found = sqlx::query(query)
        .bind(job_id)
        .bind(from)
        .bind(i64::from(page.limit) + 1)
        .fetch_all(connection)
        .await?;
    rows::page(&found, page.limit, rows::event)
}
