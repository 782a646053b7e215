//! The `Idempotency-Key` of a request. A repeated request with the same key is a replay of the first one.

use std::collections::BTreeMap;

use axum::http::HeaderMap;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::domain::project::Project;
use crate::http::error::{ApiError, ApiResult};
use crate::store::IdempotencyKey;
use crate::util::hex::hex;

/// The header's name.
const NAME: &str = "idempotency-key";

/// Longest key.
const MAX_LENGTH: usize = 255;

/// The key of a request with this body, if the client sent one.
pub(super) fn read(
    project: &Project,
    headers: &HeaderMap,
    body: &Map<String, Value>,
) -> ApiResult<Option<IdempotencyKey>> {
    let mut sent = headers.get_all(NAME).iter();
    let Some(value) = sent.next() else {
        return Ok(None);
    };
    let key = value.to_str().unwrap_or_default();
    if sent.next().is_some() || !(1..=MAX_LENGTH).contains(&key.len()) {
        let message = format!("the key must be one text of 1 to {MAX_LENGTH} ASCII characters");
        return Err(ApiError::field("Idempotency-Key", message));
    }
    Ok(Some(IdempotencyKey {
        project: project.clone(),
        key: key.to_owned(),
        digest: digest(body)?,
    }))
}

/// SHA-256 of the body. It does not depend on the order of keys or on white space.
fn digest(body: &Map<String, Value>) -> ApiResult<String> {
    let sorted = serde_json::to_vec(&sorted(body)).map_err(ApiError::internal)?;
    Ok(hex(&Sha256::digest(sorted)))
}

fn sorted(object: &Map<String, Value>) -> Value {
    let pairs: BTreeMap<&String, Value> =
        object.iter().map(|(key, value)| (key, sorted_value(value))).collect();
    pairs.into_iter().map(|(key, value)| (key.clone(), value)).collect()
}

fn sorted_value(value: &Value) -> Value {
    match value {
        Value::Object(object) => sorted(object),
        Value::Array(items) => items.iter().map(sorted_value).collect(),
        plain => plain.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(text: &str) -> String {
        digest(&serde_json::from_str(text).expect("an object")).expect("a digest")
    }

    #[test]
    fn a_body_is_the_same_whatever_its_order_and_white_space() {
        let one = digest_of(r#"{"a": {"x": [1, {"p": 1, "q": 2}], "y": null}, "b": "t"}"#);
        assert_eq!(one, digest_of(r#"{"b":"t","a":{"y":null,"x":[1,{"q":2,"p":1}]}}"#));
        for other in [
            r#"{"b":"t","a":{"y":null,"x":[{"q":2,"p":1},1]}}"#,
            r#"{"b":"t","a":{"x":[1,{"q":2,"p":1}]}}"#,
            r#"{"b":"T","a":{"y":null,"x":[1,{"q":2,"p":1}]}}"#,
        ] {
            assert_ne!(one, digest_of(other), "{other}");
        }
    }
}
