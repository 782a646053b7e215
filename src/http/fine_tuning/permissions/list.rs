//! Lists the permissions of a checkpoint.

use axum::Json;
use axum::extract::State;

use super::object::PermissionList;
use super::path::PermissionsPath;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::{Limit, Query};
use crate::http::fine_tuning::MOST;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::store::Order;
use crate::util::excerpt::excerpt;

/// Lists a checkpoint's permissions.
#[utoipa::path(
    get, path = "/fine_tuning/checkpoints/{fine_tuned_model_checkpoint}/permissions",
    tag = "fine-tuning", operation_id = "listFineTuningCheckpointPermissions",
    params(
        ("fine_tuned_model_checkpoint" = String, Path, description = "ft:…"),
        ("project_id" = Option<String>, Query, description = "Only the one of this project"),
        ("after" = Option<String>, Query, description = "Id of the last one of the page before"),
        ("limit" = inline(Option<Limit>), Query, description = "1 to 100, default 10"),
        (
            "order" = Option<String>, Query,
            description = "ascending or descending (default) by creation"
        )
    ),
    responses(
        (status = 200, body = PermissionList), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub(super) async fn list(
    State(state): State<AppState>,
    caller: Caller,
    PermissionsPath(checkpoint): PermissionsPath,
    query: Query,
) -> ApiResult<Json<PermissionList>> {
    let order = match query.get("order") {
        None | Some("" | "descending") => Order::Descending,
        Some("ascending") => Order::Ascending,
        Some(other) => {
            let other = excerpt(other);
            let message = format!("order is {other:?}; it can be ascending or descending");
            return Err(ApiError::field("order", message));
        }
    };
    super::checkpoint::check_checkpoint(&state, &caller, &checkpoint).await?;
    let project = query.get("project_id").filter(|project| !project.is_empty());
    let page = query.page(10, MOST)?;
    let page = state.store.list_permissions(&checkpoint, project, order, &page).await?;
    Ok(Json(PermissionList::new(page.items, page.has_more)))
}
