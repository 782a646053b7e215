//! SQL of permissions to use a fine-tuned model or checkpoint.

use sqlx::SqliteConnection;

use super::{cursor, models, rows};
use crate::domain::ids;
use crate::domain::model::CheckpointPermission;
use crate::domain::project::Project;
use crate::store::{Order, Page, PageRequest, StoreError};

/// Adds a row for each project that has none, and returns those of all, in the order of `projects`
/// and each once; `None` when there is no such model.
pub(super) async fn grant(
    connection: &mut SqliteConnection,
    checkpoint: &str,
    projects: &[Project],
    now: i64,
) -> Result<Option<Vec<CheckpointPermission>>, StoreError> {
    if models::by_id(connection, checkpoint).await?.is_none() {
        return Ok(None);
    }
    let mut granted: Vec<CheckpointPermission> = Vec::with_capacity(projects.len());
    for project in projects {
        if granted.iter().any(|one| one.project == *project) {
            continue;
        }
        sqlx::query(
            "INSERT INTO checkpoint_permissions (id, checkpoint, project_id, created_at)
             VALUES ($1, $2, $3, $4) ON CONFLICT (checkpoint, project_id) DO NOTHING",
        )
        .bind(ids::new_permission_id())
        .bind(checkpoint)
        .bind(project.as_str())
        .bind(now)
        .execute(&mut *connection)
        .await?;
        let row = sqlx::query(
            "SELECT * FROM checkpoint_permissions WHERE checkpoint = $1 AND project_id = $2",
        )
        .bind(checkpoint)
        .bind(project.as_str())
        .fetch_one(&mut *connection)
        .await?;
        granted.push(rows::permission(&row)?);
    }
    Ok(Some(granted))
}

/// One page of a model's permissions, by creation.
pub(super) async fn list(
    connection: &mut SqliteConnection,
    checkpoint: &str,
    project: Option<&str>,
    order: Order,
    page: &PageRequest,
) -> Result<Page<CheckpointPermission>, StoreError> {
    let (from, query) = match order {
        Order::Ascending => (
            0,
            "SELECT * FROM checkpoint_permissions
             WHERE checkpoint = $1 AND position > $2 AND ($3 IS NULL OR project_id = $3)
             ORDER BY position ASC LIMIT $4",
        ),
        Order::Descending => (
            i64::MAX,
            "SELECT * FROM checkpoint_permissions
             WHERE checkpoint = $1 AND position < $2 AND ($3 IS NULL OR project_id = $3)
             ORDER BY position DESC LIMIT $4",
        ),
    };
    let from = match &page.after {
        None => from,
        Some(id) => {
            let query =
                "SELECT position FROM checkpoint_permissions WHERE id = $1 AND checkpoint = $2
                 UNION ALL SELECT position FROM deleted_items
                 WHERE list = 'checkpoint_permissions' AND id = $1 AND owner = $2";
            cursor::position(connection, query, id, checkpoint).await?
        }
    };
    let found = sqlx::query(query)
        .bind(checkpoint)
        .bind(from)
        .bind(project)
        .bind(i64::from(page.limit) + 1)
        .fetch_all(connection)
        .await?;
    rows::page(&found, page.limit, rows::permission)
}

/// Removes a permission; says whether it was there.
pub(super) async fn delete(
    connection: &mut SqliteConnection,
    checkpoint: &str,
    id: &str,
) -> Result<bool, StoreError> {
    let removed =
        sqlx::query("DELETE FROM checkpoint_permissions WHERE id = $1 AND checkpoint = $2")
            .bind(id)
            .bind(checkpoint)
            .execute(connection)
            .await?;
    Ok(removed.rows_affected() > 0)
}

/// Whether the project has one.
pub(super) async fn is_permitted(
    connection: &mut SqliteConnection,
    checkpoint: &str,
    project: &Project,
) -> Result<bool, StoreError> {
    let found: Option<i64> = sqlx::query_scalar(
        "SELECT 1 FROM checkpoint_permissions WHERE checkpoint = $1 AND project_id = $2",
    )
    .bind(checkpoint)
    .bind(project.as_str())
    .fetch_optional(connection)
    .await?;
    Ok(found.is_some())
}

/// Fails with [`StoreError::MissingModel`] when the project has no model `id`, and no permission to use
/// that of another project.
pub(super) async fn require_usable(
    connection: &mut SqliteConnection,
    project: &Project,
    id: &str,
) -> Result<(), StoreError> {
    let missing = || StoreError::MissingModel(id.to_owned());
    let model = models::by_id(connection, id).await?.ok_or_else(missing)?;
    if model.project == *project || is_permitted(connection, id, project).await? {
        return Ok(());
    }
    Err(missing())
}
