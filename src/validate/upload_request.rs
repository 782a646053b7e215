//! The JSON bodies of uploads in parts.

use serde_json::{Map, Value};

use super::fields::{self, BodyFields};
use super::{Refusal, file_request};
use crate::config::MAX_PARTED_UPLOAD_BYTES;
use crate::domain::file::FilePurpose;
use crate::util::excerpt::{excerpt, excerpt_of};

/// A valid request to create an upload.
#[derive(Debug, PartialEq, Eq)]
pub struct UploadRequest {
    /// Base name.
    pub filename: String,
    /// Purpose of the file.
    pub purpose: FilePurpose,
    /// Size of the whole file.
    pub bytes: i64,
    /// Seconds until the file expires; `None`: never.
    pub file_lifetime: Option<i64>,
}

/// A valid request to complete an upload.
#[derive(Debug, PartialEq, Eq)]
pub struct UploadCompletion {
    /// The parts, in the order of their bytes.
    pub part_ids: Vec<String>,
    /// MD5 that the file must have, lower-case hex.
    pub md5: Option<String>,
}

/// The fields of a request to create an upload.
pub const CREATE_FIELDS: &[&str] = &["filename", "purpose", "bytes", "mime_type", "expires_after"];

/// The fields of a request to complete an upload.
pub const COMPLETE_FIELDS: &[&str] = &["part_ids", "md5"];

/// Reads a request to create an upload.
pub fn read(body: &Map<String, Value>) -> Result<UploadRequest, Refusal> {
    let fields = BodyFields::new(body, CREATE_FIELDS);
    let filename = fields.required_text("filename")?;
    let purpose = file_request::purpose(fields.text("purpose")?.as_deref())?;
    let bytes = bytes(fields.get("bytes"))?;
    // OpenAI requires it. hone does not use it.
    fields.required_text("mime_type")?;
    Ok(UploadRequest {
        filename: file_request::base_name(&filename, "filename")?,
        purpose,
        bytes,
        file_lifetime: file_lifetime(fields.get("expires_after"))?,
    })
}

fn bytes(value: Option<&Value>) -> Result<i64, Refusal> {
    let Some(value) = value else {
        return Err(Refusal::new("bytes", "bytes is missing: the size of the whole file"));
    };
    let bytes = value.as_i64().filter(|bytes| (1..=MAX_PARTED_UPLOAD_BYTES).contains(bytes));
    bytes.ok_or_else(|| {
        let value = excerpt_of(value);
        let message = format!(
            "bytes is {value}; it must be a whole number from 1 to {MAX_PARTED_UPLOAD_BYTES}"
        );
        Refusal::new("bytes", message)
    })
}

fn file_lifetime(value: Option<&Value>) -> Result<Option<i64>, Refusal> {
    let Some(value) = value else {
        return Ok(None);
    };
    let Some(object) = value.as_object() else {
        let message = "expires_after must be an object with anchor and seconds";
        return Err(Refusal::new("expires_after", message));
    };
    let anchor =
        fields::text(object, "anchor").map_err(|refusal| refusal.within("expires_after"))?;
    let seconds = fields::given(object, "seconds").map(Value::to_string).unwrap_or_default();
    let names = ["expires_after.anchor", "expires_after.seconds"];
    file_request::lifetime(anchor.as_deref(), Some(&seconds), names)
}

/// Reads a request to complete an upload.
pub fn read_completion(body: &Map<String, Value>) -> Result<UploadCompletion, Refusal> {
    let fields = BodyFields::new(body, COMPLETE_FIELDS);
    let ids = fields.get("part_ids").and_then(Value::as_array);
    let Some(ids) = ids.filter(|ids| !ids.is_empty()) else {
        let message = "part_ids must be a list of the parts' ids, in the order of their bytes";
        return Err(Refusal::new("part_ids", message));
    };
    let mut part_ids = Vec::with_capacity(ids.len());
    for (index, id) in ids.iter().enumerate() {
        let Some(id) = id.as_str() else {
            let id = excerpt_of(id);
            let message = format!("the id is {id}; it must be a text");
            return Err(Refusal::new(format!("part_ids[{index}]"), message));
        };
        part_ids.push(id.to_owned());
    }
    let md5 = fields.text("md5")?;
    if let Some(md5) = &md5
        && (md5.len() != 32 || !md5.bytes().all(|byte| byte.is_ascii_hexdigit()))
    {
        let md5 = excerpt(md5);
        return Err(Refusal::new("md5", format!("md5 is {md5:?}; it must be 32 hex digits")));
    }
    Ok(UploadCompletion { part_ids, md5: md5.map(|md5| md5.to_ascii_lowercase()) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(changes: Value) -> Map<String, Value> {
        let mut body = json!({"filename": "a/b.jsonl", "purpose": "fine-tune", "bytes": 5,
            "mime_type": "text/jsonl"});
        let object = body.as_object_mut().expect("an object");
        object.extend(changes.as_object().expect("an object").clone());
        object.clone()
    }

    #[test]
    fn each_wrong_field_is_named() {
        let good = read(&body(json!({"expires_after": {"anchor": "created_at", "seconds": 3600}})));
        let good = good.expect("it is good");
        assert_eq!((good.filename.as_str(), good.file_lifetime), ("b.jsonl", Some(3600)));
        for (changes, param) in [
            (json!({"filename": null}), "filename"),
            (json!({"filename": 3}), "filename"),
            (json!({"purpose": "vision"}), "purpose"),
            (json!({"bytes": null}), "bytes"),
            (json!({"bytes": 0}), "bytes"),
            (json!({"bytes": 1.5}), "bytes"),
            (json!({"bytes": MAX_PARTED_UPLOAD_BYTES + 1}), "bytes"),
            (json!({"mime_type": ""}), "mime_type"),
            (json!({"expires_after": 3600}), "expires_after"),
            (json!({"expires_after": {"anchor": "created_at"}}), "expires_after.seconds"),
            (json!({"expires_after": {"anchor": "now", "seconds": 3600}}), "expires_after.anchor"),
        ] {
            assert_eq!(
                read(&body(changes.clone())).expect_err("it is wrong").param,
                param,
                "{changes}"
            );
        }
        for (wrong, param) in [
            (json!({}), "part_ids"),
            (json!({"part_ids": []}), "part_ids"),
            (json!({"part_ids": ["a", 3]}), "part_ids[1]"),
            (json!({"part_ids": ["a"], "md5": "abc"}), "md5"),
            (json!({"part_ids": ["a"], "md5": "é".repeat(16)}), "md5"),
        ] {
            let wrong = wrong.as_object().expect("an object");
            assert_eq!(read_completion(wrong).expect_err("it is wrong").param, param, "{wrong:?}");
        }
    }
}
