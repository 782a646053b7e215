//! Keys that stand twice in an object.

use std::collections::HashSet;

use serde_json_borrow::{ObjectAsVec as Object, Value};

/// A key that stands more than once in an object: which of them counts would be a guess.
pub(super) struct Twice {
    /// From the line's object on.
    pub(super) path: String,
    /// The message that it is in.
    pub(super) message_index: Option<usize>,
}

/// The first one, if there is one anywhere in a line.
pub(super) fn key_twice(value: &Value<'_>) -> Option<Twice> {
    let mut twice = find_twice(value)?;
    twice.path.remove(0);
    Some(twice)
}

/// The same with a dot at the beginning of the path.
fn find_twice(value: &Value<'_>) -> Option<Twice> {
    match value {
        Value::Array(list) => list.iter().enumerate().find_map(|(index, value)| {
            let found = find_twice(value)?;
            // The outermost list is that of the messages.
            Some(Twice { path: format!("[{index}]{}", found.path), message_index: Some(index) })
        }),
        Value::Object(object) => {
            if let Some(key) = repeated(object) {
                return Some(Twice { path: format!(".{key}"), message_index: None });
            }
            object.iter().find_map(|(key, value)| {
                let found = find_twice(value)?;
                let is_of_messages = !["tools", "functions"].contains(&key);
                let message_index = found.message_index.filter(|_| is_of_messages);
                Some(Twice { path: format!(".{key}{}", found.path), message_index })
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
