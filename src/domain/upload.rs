//! An upload as the product sees it: a file that comes in parts.

use serde::{Deserialize, Serialize};

use crate::domain::file::FilePurpose;
use crate::domain::project::Project;

/// Where an upload stands. The spelling on the wire is OpenAI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UploadStatus {
    /// Takes parts.
    Pending,
    /// Has become a file.
    Completed,
    /// Ended by the client.
    Cancelled,
    /// Its time was over before it was completed.
    Expired,
}

impl UploadStatus {
    /// Every state.
    pub const ALL: &'static [UploadStatus] =
        &[Self::Pending, Self::Completed, Self::Cancelled, Self::Expired];

    /// The spelling on the wire and in the store.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    /// The state that `text` spells, if any.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|status| status.as_str() == text)
    }
}

/// A file that comes in parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// `upload_…`.
    pub id: String,
    /// Whose it is.
    pub project: Project,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds until which it can be completed.
    pub expires_at: i64,
    /// Size of the whole file, as the client announced it.
    pub bytes: i64,
    /// Base name that the client gave.
    pub filename: String,
    /// What the file will be for.
    pub purpose: FilePurpose,
    /// Seconds that the file is kept; `None` for ever.
    pub file_lifetime: Option<i64>,
    /// Its status.
    pub status: UploadStatus,
    /// The parts of which it was made, in order; empty until it is completed.
    pub part_ids: Vec<String>,
    /// The file that it became.
    pub file_id: Option<String>,
}

/// One part. Its bytes lie in the blob store under [`UploadPart::blob_key`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadPart {
    /// `part_…`.
    pub id: String,
    /// The upload to which it belongs.
    pub upload_id: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Size.
    pub bytes: i64,
    /// Where the bytes lie in the blob store.
    pub blob_key: String,
}
