//! Replies that a client saves under a name.

use axum::http::HeaderValue;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::http::error::{ApiError, ApiResult};

/// The value of `Content-Disposition` for bytes that are to be saved as `filename`.
pub(in crate::http) fn disposition(filename: &str) -> ApiResult<HeaderValue> {
    HeaderValue::from_str(&text(filename)).map_err(ApiError::internal)
}

/// Tells a client to save the bytes, and under which name: once in the letters that every client
/// reads, once in full (RFC 6266).
fn text(filename: &str) -> String {
    let plain: String = filename
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._- ".contains(c) { c } else { '_' })
        .collect();
    let full = utf8_percent_encode(filename, NON_ALPHANUMERIC);
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{full}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_gets_out_of_its_header() {
        assert_eq!(
            text("train.jsonl"),
            "attachment; filename=\"train.jsonl\"; filename*=UTF-8''train%2Ejsonl"
        );
        assert_eq!(
            text("a\"; x=\\\u{e4}.csv"),
            "attachment; filename=\"a__ x___.csv\"; \
             filename*=UTF-8''a%22%3B%20x%3D%5C%C3%A4%2Ecsv"
        );
    }
}
