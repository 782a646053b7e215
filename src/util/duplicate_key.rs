//! Keys that stand twice in an object of JSON.

use std::collections::HashSet;

use serde_json_borrow::{ObjectAsVec as Object, Value};

/// A key that stands more than once in an object: which of them counts would be a guess.
pub struct DuplicateKey {
    /// From the outermost object on, such as `messages[2].content`.
    pub path: String,
    /// The place in the outermost list that it is in, such as that of a message.
    pub list_index: Option<usize>,
}

/// The first one, if there is one anywhere in an object.
pub fn find(value: &Value<'_>) -> Option<DuplicateKey> {
    let mut found = find_below(value)?;
    found.path.remove(0);
    Some(found)
}

/// The same with a dot at the beginning of the path.
fn find_below(value: &Value<'_>) -> Option<DuplicateKey> {
    match value {
        Value::Array(list) => list.iter().enumerate().find_map(|(index, value)| {
            let found = find_below(value)?;
            Some(DuplicateKey { path: format!("[{index}]{}", found.path), list_index: Some(index) })
        }),
        Value::Object(object) => {
            if let Some(key) = repeated(object) {
                return Some(DuplicateKey { path: format!(".{key}"), list_index: None });
            }
            object.iter().find_map(|(key, value)| {
                let found = find_below(value)?;
                Some(DuplicateKey { path: format!(".{key}{}", found.path), ..found })
            })
        }
        _ => None,
    }
}

/// A key that an object holds more than once.
fn repeated<'a>(object: &'a Object<'_>) -> Option<&'a str> {
    /// Most keys that are compared with each other: a line can hold a hundred thousand.
    const FEW: usize = 16;
    if object.len() <= FEW {
        let is_repeated =
            |(place, key): &(usize, &str)| object.keys().take(*place).any(|k| k == *key);
        return object.keys().enumerate().find(is_repeated).map(|(_, key)| key);
    }
    let mut seen = HashSet::new();
    object.keys().find(|key| !seen.insert(*key))
}
