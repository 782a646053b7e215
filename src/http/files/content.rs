//! The content of a file, streamed: all of it, or one range.

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
    let file = super::find::find(&state, &caller, &id).await?;
    let size = file.bytes as u64;
    // RFC 9110: a range is for GET, and with If-Range only for the version that it names. hone sends no
    // version, so If-Range never matches.
    let is_whole = method == Method::HEAD || headers.contains_key(header::IF_RANGE);
    let requested = headers.get(header::RANGE).filter(|_| !is_whole);
    let requested = requested.and_then(|value| value.to_str().ok());
    let range = match requested.map(|text| parse_range(text, size)) {
        None | Some(RequestedRange::Whole) => None,
        Some(RequestedRange::Part(range)) => Some(range),
        Some(RequestedRange::Unsatisfiable) => {
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
enum RequestedRange {
    /// The whole file: there is no range, there are several, or the range is malformed (RFC 9110 lets a
    /// server ignore those).
    Whole,
    /// One range.
    Part(Range<u64>),
    /// No byte of the file is in the range.
    Unsatisfiable,
}

fn parse_range(text: &str, size: u64) -> RequestedRange {
    let Some((unit, numbers)) = text.split_once('=') else {
        return RequestedRange::Whole;
    };
    let Some((first, last)) = numbers.split_once('-') else {
        return RequestedRange::Whole;
    };
    // Rust would take a sign before a number as well.
    if !unit.eq_ignore_ascii_case("bytes") || numbers.contains('+') {
        return RequestedRange::Whole;
    }
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..size.min(last.saturating_add(1)),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(count)) if first.is_empty() => size.saturating_sub(count)..size,
        _ => return RequestedRange::Whole,
    };
    if range.start < range.end {
        RequestedRange::Part(range)
    } else {
        RequestedRange::Unsatisfiable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        for (text, want) in [
            ("bytes=0-4", RequestedRange::Part(0..5)),
            ("bytes=5-", RequestedRange::Part(5..10)),
            ("bytes=-3", RequestedRange::Part(7..10)),
            ("bytes=-30", RequestedRange::Part(0..10)),
            ("bytes=8-99", RequestedRange::Part(8..10)),
            ("bytes=10-", RequestedRange::Unsatisfiable),
            ("bytes=-0", RequestedRange::Unsatisfiable),
            ("bytes=4-2", RequestedRange::Whole),
            ("bytes=0-1,3-4", RequestedRange::Whole),
            ("lines=1-2", RequestedRange::Whole),
            ("Bytes=0-4", RequestedRange::Part(0..5)),
            ("bytes=+0-+4", RequestedRange::Whole),
            ("bytes", RequestedRange::Whole),
        ] {
            assert_eq!(parse_range(text, 10), want, "{text}");
        }
        assert_eq!(parse_range("bytes=0-", 0), RequestedRange::Unsatisfiable);
    }
}
