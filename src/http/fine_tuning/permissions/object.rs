//! The permission object and its list.

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::model::CheckpointPermission;

/// `object: "checkpoint.permission"`.
#[derive(Debug, Serialize, ToSchema)]
pub struct PermissionObject {
    /// `cp_…`.
    id: String,
    /// `checkpoint.permission`.
    object: &'static str,
    /// Unix seconds.
    created_at: i64,
    project_id: String,
}

/// A page of permissions.
#[derive(Debug, Serialize, ToSchema)]
pub struct PermissionList {
    /// `list`.
    object: &'static str,
    /// The permissions.
    data: Vec<PermissionObject>,
    /// Of the first one here.
    first_id: Option<String>,
    /// Of the last one here: the cursor of the next page.
    last_id: Option<String>,
    /// Whether there is another page.
    has_more: bool,
}

impl From<CheckpointPermission> for PermissionObject {
    fn from(permission: CheckpointPermission) -> Self {
        Self {
            id: permission.id,
            object: "checkpoint.permission",
            created_at: permission.created_at,
            project_id: permission.project.as_str().to_owned(),
        }
    }
}

impl PermissionList {
    pub(super) fn new(permissions: Vec<CheckpointPermission>, has_more: bool) -> Self {
        Self {
            object: "list",
            first_id: permissions.first().map(|permission| permission.id.clone()),
            last_id: permissions.last().map(|permission| permission.id.clone()),
            data: permissions.into_iter().map(PermissionObject::from).collect(),
            has_more,
        }
    }
}
