//! `/v1/uploads`: files that come in parts, larger than one request may be.

pub(super) mod add_part;
pub(super) mod cancel;
pub(super) mod complete;
pub(super) mod create;
mod object;

use super::error::{ApiError, ApiResult};
use super::middleware::authenticate::Caller;
use super::state::AppState;
use crate::domain::error_code::ErrorCode;
use crate::domain::upload::{Upload, UploadStatus};

/// The caller's upload, or a 404.
async fn find(state: &AppState, caller: &Caller, id: &str) -> ApiResult<Upload> {
    let upload = state.store.upload(id).await?.filter(|upload| upload.project == caller.project);
    upload.ok_or_else(|| no_such_upload(id))
}

fn no_such_upload(id: &str) -> ApiError {
    ApiError::not_found(ErrorCode::UploadNotFound, "upload", id).with_param("upload_id")
}

/// The error of a request that needs a pending upload.
fn not_pending(upload: &Upload) -> ApiError {
    let what = match upload.status {
        UploadStatus::Expired => "has expired: create another one",
        UploadStatus::Cancelled => "was cancelled",
        UploadStatus::Completed | UploadStatus::Pending => "is completed",
    };
    ApiError::new(ErrorCode::UploadNotPending, format!("the upload {:?} {what}", upload.id))
        .with_param("upload_id")
}

/// Removes blobs that no row references any more. The next start removes what cannot be removed now, so the
/// reply does not wait for another try.
async fn remove_blobs(state: &AppState, keys: Vec<String>) {
    for key in keys {
        if let Err(error) = state.blobs.delete(&key).await {
            tracing::warn!(key, %error, "the blob of a part could not be removed");
        }
    }
}
