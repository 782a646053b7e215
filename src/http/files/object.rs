//! The file object.

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::file::{FilePurpose, FileRecord};

/// `object: "file"`.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileObject {
    /// `file-…`.
    id: String,
    /// `file`.
    object: &'static str,
    /// Size.
    bytes: i64,
    /// Unix seconds.
    created_at: i64,
    /// Unix seconds; absent when the file stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    /// Base name.
    filename: String,
    /// What it is for.
    purpose: FilePurpose,
    /// `processed`: whether the data is good is the job's to say.
    status: &'static str,
}

impl From<FileRecord> for FileObject {
    fn from(file: FileRecord) -> Self {
        Self {
            id: file.id,
            object: "file",
            bytes: file.bytes,
            created_at: file.created_at,
            expires_at: file.expires_at,
            filename: file.filename,
            purpose: file.purpose,
            status: "processed",
        }
    }
}
