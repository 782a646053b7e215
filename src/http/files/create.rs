//! Takes an upload: streamed to disk while it is hashed and checked, never held in memory.

use std::collections::BTreeMap;
use std::io::Write;

use axum::Json;
use axum::extract::multipart::{Field, MultipartError, MultipartRejection};
use axum::extract::{DefaultBodyLimit, FromRequest, Multipart, Request, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::sync::mpsc;

use super::object::FileObject;
use crate::blobs::upload_key;
use crate::config::MAX_UPLOAD_BYTES;
use crate::dataset::Verdict;
use crate::error_code::ErrorCode;
use crate::file::{FilePurpose, FileRecord};
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::state::AppState;
use crate::ids;
use crate::validate::upload::UploadChecker;

/// Longest text field beside the file.
const MAX_FIELD_BYTES: usize = 4096;

/// Chunks on their way to the disk.
const CHUNKS_IN_FLIGHT: usize = 8;

/// Longest name that is kept.
const MAX_NAME_CHARS: usize = 255;

/// Range of `expires_after[seconds]`.
const EXPIRY_SECONDS: std::ops::RangeInclusive<i64> = 3600..=2_592_000;

/// What a client sends.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the form for the OpenAPI document")]
struct UploadForm {
    /// The bytes.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// `fine-tune`, `user_data` or `evals`.
    purpose: String,
    /// `created_at`.
    #[schema(rename = "expires_after[anchor]")]
    anchor: Option<String>,
    /// 3600 to 2592000.
    #[schema(rename = "expires_after[seconds]")]
    seconds: Option<String>,
}

/// An upload on disk.
struct Spooled {
    file: NamedTempFile,
    bytes: u64,
    sha256: String,
    verdict: Verdict,
    filename: String,
}

/// Uploads a file.
#[utoipa::path(
    post, path = "/files", tag = "files", operation_id = "createFile",
    request_body(content = UploadForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, body = FileObject),
        (status = 400, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 415, body = ErrorBody), (status = 507, body = ErrorBody)
    )
)]
pub async fn create(
    State(state): State<AppState>,
    mut request: Request,
) -> ApiResult<Json<FileObject>> {
    // Our own limit counts the file's bytes as they come in.
    DefaultBodyLimit::disable().apply(&mut request);
    let mut form = Multipart::from_request(request, &state).await.map_err(not_multipart)?;
    let mut spooled = None;
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    // Fields come in any order: node streams send the file first.
    while let Some(field) = form.next_field().await.map_err(broken)? {
        let name = field.name().unwrap_or_default().to_owned();
        if name == "file" {
            spooled = Some(spool(&state, field).await?);
        } else {
            fields.insert(name, text(field).await?);
        }
    }
    let purpose = purpose(fields.get("purpose"))?;
    let Some(spooled) = spooled else {
        return Err(ApiError::field("file", "the form has no field \"file\" with the bytes"));
    };
    let created_at = state.clock.now();
    let id = ids::new_file_id();
    let file = FileRecord {
        blob_key: upload_key(&id),
        id,
        bytes: spooled.bytes as i64,
        created_at,
        expires_at: expiry(&fields, created_at)?,
        filename: spooled.filename,
        purpose,
        sha256: spooled.sha256,
        verdict: (purpose == FilePurpose::FineTune).then_some(spooled.verdict),
    };
    state.blobs.put_file(&file.blob_key, spooled.file.path()).await?;
    state.store.insert_file(&file).await?;
    Ok(Json(file.into()))
}

fn not_multipart(rejection: MultipartRejection) -> ApiError {
    let message = format!(
        "files are uploaded as multipart/form-data with the fields \"file\" and \"purpose\": {rejection}"
    );
    ApiError::new(ErrorCode::UnsupportedMediaType, message)
}

fn broken(error: MultipartError) -> ApiError {
    match error.into_response().status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        _ => ApiError::new(
            ErrorCode::InvalidRequest,
            "the multipart form is broken, or ended before it was complete",
        ),
    }
}

fn too_large() -> ApiError {
    let message = format!(
        "a file may have {} MiB at most: split it, or leave out what is not needed",
        MAX_UPLOAD_BYTES >> 20
    );
    ApiError::new(ErrorCode::FileTooLarge, message).with_param("file")
}

/// Writes the file's bytes to a spool file on a blocking thread, which also hashes and checks them.
async fn spool(state: &AppState, mut field: Field<'_>) -> ApiResult<Spooled> {
    let filename = base_name(field.file_name().unwrap_or("upload"));
    let spool_dir = state.blobs.spool_dir().to_owned();
    let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_IN_FLIGHT);
    let writer = tokio::task::spawn_blocking(move || -> std::io::Result<Spooled> {
        let mut file = tempfile::Builder::new().prefix(".upload-").tempfile_in(spool_dir)?;
        let mut hash = Sha256::new();
        let mut checker = UploadChecker::new();
        let mut bytes = 0;
        while let Some(chunk) = chunks.blocking_recv() {
            file.write_all(&chunk)?;
            hash.update(&chunk);
            checker.feed(&chunk);
            bytes += chunk.len() as u64;
        }
        file.flush()?;
        let sha256 = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Spooled { file, bytes, sha256, verdict: checker.finish(), filename })
    });
    let mut received = 0;
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        received += chunk.len() as u64;
        if received > MAX_UPLOAD_BYTES {
            drain(&mut field, MAX_UPLOAD_BYTES).await;
            return Err(too_large());
        }
        if sender.send(chunk).await.is_err() {
            // The writer has ended early and says why below.
            break;
        }
    }
    drop(sender);
    match writer.await.map_err(ApiError::internal)? {
        Ok(spooled) => Ok(spooled),
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
            Err(ApiError::new(ErrorCode::InsufficientStorage, "the server's disk is full"))
        }
        Err(error) => Err(ApiError::internal(error)),
    }
}

/// Reads on for a while without keeping anything: many clients look for a reply only once they have
/// sent everything, and would see a broken connection instead.
async fn drain(field: &mut Field<'_>, mut most: u64) {
    while let Ok(Some(chunk)) = field.chunk().await {
        let length = chunk.len() as u64;
        if length > most {
            return;
        }
        most -= length;
    }
}

async fn text(mut field: Field<'_>) -> ApiResult<String> {
    let name = field.name().unwrap_or_default().to_owned();
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(broken)? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_FIELD_BYTES {
            let message = format!("the field may have {MAX_FIELD_BYTES} bytes at most");
            return Err(ApiError::field(name, message));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::field(name, "the field is not UTF-8"))
}

/// A client's name without folders; it is shown and never used as a path.
fn base_name(name: &str) -> String {
    let base = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let base: String = base.chars().filter(|c| !c.is_control()).take(MAX_NAME_CHARS).collect();
    if base.is_empty() || base == "." || base == ".." { "upload".to_owned() } else { base }
}

fn purpose(text: Option<&String>) -> ApiResult<FilePurpose> {
    let allowed = || {
        let names: Vec<&str> = FilePurpose::UPLOADABLE.iter().map(|one| one.as_str()).collect();
        names.join(", ")
    };
    let Some(text) = text else {
        let message = format!("the form has no field \"purpose\"; it can be {}", allowed());
        return Err(ApiError::field("purpose", message));
    };
    let known = FilePurpose::parse(text).filter(|one| FilePurpose::UPLOADABLE.contains(one));
    known.ok_or_else(|| {
        let message = format!("the purpose is {text:?}; hone takes {}", allowed());
        ApiError::field("purpose", message)
    })
}

fn expiry(fields: &BTreeMap<String, String>, created_at: i64) -> ApiResult<Option<i64>> {
    const ANCHOR: &str = "expires_after[anchor]";
    const SECONDS: &str = "expires_after[seconds]";
    let (anchor, seconds) = (fields.get(ANCHOR), fields.get(SECONDS));
    if anchor.is_none() && seconds.is_none() {
        return Ok(None);
    }
    if anchor.is_some_and(|anchor| anchor != "created_at") {
        return Err(ApiError::field(ANCHOR, "the anchor can only be \"created_at\""));
    }
    let seconds = seconds.and_then(|text| text.parse::<i64>().ok());
    match seconds.filter(|seconds| EXPIRY_SECONDS.contains(seconds)) {
        Some(seconds) => Ok(Some(created_at + seconds)),
        None => {
            let (least, most) = (EXPIRY_SECONDS.start(), EXPIRY_SECONDS.end());
            let message = format!("the seconds must be a whole number from {least} to {most}");
            Err(ApiError::field(SECONDS, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_and_control_characters_are_taken_off_a_name() {
        for (name, want) in [
            ("wire/train.jsonl", "train.jsonl"),
            ("..\\..\\x", "x"),
            ("/etc/passwd", "passwd"),
            ("a\r\nb\0c", "abc"),
            ("", "upload"),
            ("dir/", "upload"),
            ("dir/..", "upload"),
            (".", "upload"),
            ("..hidden", "..hidden"),
        ] {
            assert_eq!(base_name(name), want);
        }
        assert_eq!(base_name(&"x".repeat(10_000)).len(), MAX_NAME_CHARS);
    }
}
