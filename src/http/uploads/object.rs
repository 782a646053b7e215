//! The upload and part objects.

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::file::{FilePurpose, FileRecord};
use crate::domain::upload::{Upload, UploadPart, UploadStatus};
use crate::http::files::object::FileObject;

/// `object: "upload"`.
#[derive(Debug, Serialize, ToSchema)]
pub struct UploadObject {
    /// `upload_…`.
    id: String,
    /// `upload`.
    object: &'static str,
    /// Size of the whole file.
    bytes: i64,
    /// Unix seconds.
    created_at: i64,
    /// Unix seconds until which it can be completed.
    expires_at: i64,
    /// Base name.
    filename: String,
    /// What the file will be for.
    purpose: FilePurpose,
    status: UploadStatus,
    /// Null until the upload is completed.
    file: Option<FileObject>,
}

impl UploadObject {
    /// The upload with the file that it became.
    pub(super) fn new(upload: Upload, file: Option<FileRecord>) -> Self {
        Self {
            id: upload.id,
            object: "upload",
            bytes: upload.bytes,
            created_at: upload.created_at,
            expires_at: upload.expires_at,
            filename: upload.filename,
            purpose: upload.purpose,
            status: upload.status,
            file: file.map(FileObject::from),
        }
    }
}

/// `object: "upload.part"`.
#[derive(Debug, Serialize, ToSchema)]
pub struct PartObject {
    /// `part_…`.
    id: String,
    /// `upload.part`.
    object: &'static str,
    /// Unix seconds.
    created_at: i64,
    /// The upload to which it belongs.
    upload_id: String,
}

impl From<UploadPart> for PartObject {
    fn from(part: UploadPart) -> Self {
        Self {
            id: part.id,
            object: "upload.part",
            created_at: part.created_at,
            upload_id: part.upload_id,
        }
    }
}
