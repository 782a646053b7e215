//! Tests: what stands behind `is`.

use super::arguments::Arguments;
use super::ast::{Binary, Comparison};
use super::dict::Key;
use super::error::Error;
use super::operators;
use super::value::Value;
use super::{budget, character_classes, filters, repr};

const NAMES: &[&str] = &[
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "filter",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "test",
    "true",
    "undefined",
    "upper",
];

/// Whether there is a test of that name.
pub(crate) fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// What a test says of a value.
pub(crate) fn apply(name: &str, value: &Value, arguments: Arguments) -> Result<bool, Error> {
    let comparison = match name {
        "==" | "eq" | "equalto" => Some(Comparison::Equal),
        "!=" | "ne" => Some(Comparison::NotEqual),
        "<" | "lt" | "lessthan" => Some(Comparison::Less),
        "<=" | "le" => Some(Comparison::LessOrEqual),
        ">" | "gt" | "greaterthan" => Some(Comparison::Greater),
        ">=" | "ge" => Some(Comparison::GreaterOrEqual),
        "in" => Some(Comparison::In),
        _ => None,
    };
    if let Some(comparison) = comparison {
        let [other] = operand(name, arguments)?;
        return operators::compare(comparison, value, &other);
    }
    if matches!(name, "divisibleby" | "sameas") {
        let [other] = operand(name, arguments)?;
        return match name {
            "sameas" => Ok(value.is_same(&other)),
            _ => leaves(value, &other, 0),
        };
    }
    let [] = arguments.bind(name, [], 0)?;
    Ok(match name {
        "boolean" => matches!(value, Value::Bool(_)),
        "callable" => match value {
            Value::Undefined(_) => true,
            Value::Object(object) => object.is_callable(),
            _ => false,
        },
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "escaped" => matches!(value, Value::Markup(_)),
        "even" => leaves(value, &Value::int(2), 0)?,
        "odd" => leaves(value, &Value::int(2), 1)?,
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "filter" => is_name(value, filters::is_known)?,
        "test" => is_name(value, is_known)?,
        "float" => matches!(value, Value::Float(_)),
        "integer" => matches!(value, Value::Int(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "iterable" => value.try_iterate().is_some(),
        "lower" | "upper" => {
            let text = repr::to_text(value)?;
            budget::charge_text(text.len().saturating_mul(4))?;
            character_classes::is(&text, if name == "lower" { "islower" } else { "isupper" })
        }
        "mapping" => matches!(value, Value::Dict(_)),
        "none" => matches!(value, Value::None),
        "sequence" => match value {
            Value::Object(object) => object.is_sequence(),
            other => other.length().is_ok(),
        },
        "string" => value.as_text().is_some(),
        _ => return Err(Error::new(format!("No test named '{name}'."))),
    })
}

/// Whether a value is a name that is known; only what can be a key is asked for.
fn is_name(value: &Value, is_known: fn(&str) -> bool) -> Result<bool, Error> {
    Key::new(value.clone())?;
    Ok(value.as_text().is_some_and(is_known))
}

fn operand(name: &str, arguments: Arguments) -> Result<[Value; 1], Error> {
    let [other] = arguments.positional(name, 1)?;
    Ok([other.unwrap_or(Value::None)])
}

/// Whether a division leaves this rest.
fn leaves(value: &Value, divisor: &Value, rest: i64) -> Result<bool, Error> {
    Ok(operators::binary(Binary::Modulo, value, divisor)?.equals(&Value::int(rest)))
}
