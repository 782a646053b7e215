//! A file's bytes, streamed; whole, or one range of them.

use std::ops::Range;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::domain::error_code::ErrorCode;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::PathId;
use crate::http::middleware::authenticate::Caller;
use crate::http::reply::attachment;
use crate::http::state::AppState;

/// A file's bytes.
#[utoipa::path(
    get, path = "/files/{file_id}/content", tag = "files", operation_id = "downloadFile",
    params(("file_id" = String, Path, description = "file-…")),
    responses(
        (status = 200, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, content_type = "application/octet-stream", body = Vec<u8>),
        (status = 404, body = ErrorBody),
        (status = 416, body = ErrorBody)
    )
)]
pub async fn content(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
    method: Method,
    headers: HeaderMap,
) -> ApiResult<Response> {
    let file = super::find(&state, &caller, &id).await?;
    let size = file.bytes as u64;
    // RFC 9110: a range is for GET, and counts only for the version that If-Range names; hone names
    // none, so that it is never the one.
    let is_whole = method == Method::HEAD || headers.contains_key(header::IF_RANGE);
    let asked = headers.get(header::RANGE).filter(|_| !is_whole);
    let asked = asked.and_then(|value| value.to_str().ok());
    let range = match asked.map(|text| parse_range(text, size)) {
        None | Some(Asked::Whole) => None,
        Some(Asked::Part(range)) => Some(range),
        Some(Asked::Outside) => {
            let message = format!("the range lies outside of the file's {size} bytes");
            let error = ApiError::new(ErrorCode::InvalidRange, message);
            return Ok(
                ([(header::CONTENT_RANGE, format!("bytes */{size}"))], error).into_response()
            );
        }
    };
    let (_, stream) = state.blobs.stream(&file.blob_key, range.clone()).await?;
    let length = range.as_ref().map_or(size, |range| range.end - range.start);
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_DISPOSITION, attachment::disposition(&file.filename)?);
    if let Some(range) = range {
        let text = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        let value = HeaderValue::from_str(&text).map_err(ApiError::internal)?;
        headers.insert(header::CONTENT_RANGE, value);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// Everything: no range, several, or one that is not understood (RFC 9110 lets a server ignore
    /// those).
    Whole,
    Part(Range<u64>),
    Outside,
}

fn parse_range(text: &str, size: u64) -> Asked {
    let Some((unit, numbers)) = text.split_once('=') else {
        return Asked::Whole;
    };
    let Some((first, last)) = numbers.split_once('-') else {
        return Asked::Whole;
    };
    // Rust would take a sign before a number as well.
    if !unit.eq_ignore_ascii_case("bytes") || numbers.contains('+') {
        return Asked::Whole;
    }
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..size.min(last.saturating_add(1)),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(count)) if first.is_empty() => size.saturating_sub(count)..size,
        _ => return Asked::Whole,
    };
    if range.start < range.end { Asked::Part(range) } else { Asked::Outside }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        for (text, want) in [
            ("bytes=0-4", Asked::Part(0..5)),
            ("bytes=5-", Asked::Part(5..10)),
            ("bytes=-3", Asked::Part(7..10)),
            ("bytes=-30", Asked::Part(0..10)),
            ("bytes=8-99", Asked::Part(8..10)),
            ("bytes=10-", Asked::Outside),
            ("bytes=-0", Asked::Outside),
            ("bytes=4-2", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("lines=1-2", Asked::Whole),
            ("Bytes=0-4", Asked::Part(0..5)),
            ("bytes=+0-+4", Asked::Whole),
            ("bytes", Asked::Whole),
        ] {
            assert_eq!(parse_range(text, 10), want, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), Asked::Outside);
    }
}
