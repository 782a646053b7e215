//! JSON as values: integers of any size stay whole, numbers with a fraction become Python's floats.

use super::dict::{Dict, Key};
use super::integer::Integer;
use super::value::Value;
use crate::util::exact_json::ExactJson;

/// JSON that has been parsed already.
pub(crate) fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::None,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => from_number(number),
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(items) => Value::list(items.iter().map(from_json).collect()),
        serde_json::Value::Object(object) => {
            let mut dict = Dict::with_capacity(object.len());
            for (key, value) in object {
                dict.insert(Key::text(key), from_json(value));
            }
            Value::dict(dict)
        }
    }
}

fn from_number(number: &serde_json::Number) -> Value {
    if let Some(small) = number.as_i64() {
        return Value::int(small);
    }
    match number.as_u64() {
        Some(large) => Value::Int(num_bigint::BigInt::from(large).into()),
        None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
    }
}

/// JSON as it is written; numbers keep every digit.
pub(crate) fn from_exact(json: &ExactJson) -> Value {
    match json {
        ExactJson::Null => Value::None,
        ExactJson::Bool(value) => Value::Bool(*value),
        ExactJson::Number(number) => {
            let whole =
                if number.contains(['.', 'e', 'E']) { None } else { Integer::parse(number, 10) };
            whole.map_or_else(|| Value::Float(number.parse().unwrap_or(f64::NAN)), Value::Int)
        }
        ExactJson::Text(text) => Value::from(text.as_str()),
        ExactJson::List(items) => Value::list(items.iter().map(from_exact).collect()),
        ExactJson::Object(members) => {
            let mut dict = Dict::with_capacity(members.len());
            for (key, value) in members {
                dict.insert(Key::text(key), from_exact(value));
            }
            Value::dict(dict)
        }
    }
}
