//! Filters that make numbers, or texts of them.

use super::super::arguments::{Arguments, whole};
use super::super::ast::Binary;
use super::super::error::Error;
use super::super::integer::Integer;
use super::super::value::Value;
use super::super::{budget, float, operators};

/// Longest text that is read as a whole number.
const MAX_NUMBER_BYTES: usize = 64 * 1024;

/// What a filter makes of a value.
pub(super) fn apply(name: &str, value: &Value, arguments: Arguments) -> Result<Value, Error> {
    if let Value::Undefined(reason) = value {
        return Err(Error::new(reason.as_ref()));
    }
    match name {
        "abs" => {
            let [] = arguments.bind(name, [], 0)?;
            absolute(value)
        }
        "float" => {
            let [default] = arguments.bind(name, ["default"], 0)?;
            let number = to_float(value)?.map(Value::Float);
            Ok(number.or(default).unwrap_or(Value::Float(0.0)))
        }
        "int" => {
            let [default, base] = arguments.bind(name, ["default", "base"], 0)?;
            let number = to_integer(value, whole(base.as_ref(), 10)?)?.map(Value::Int);
            Ok(number.or(default).unwrap_or(Value::int(0)))
        }
        "round" => {
            let [precision, method] = arguments.bind(name, ["precision", "method"], 0)?;
            let method = method.unwrap_or_else(|| Value::from("common"));
            round(value, whole(precision.as_ref(), 0)?, method.as_text().unwrap_or(""))
        }
        _ => {
            let [binary] = arguments.bind(name, ["binary"], 0)?;
            let bytes = to_float(value)?.ok_or_else(|| Error::new("could not convert to float"))?;
            Ok(file_size(bytes, binary.is_some_and(|binary| binary.is_true())).into())
        }
    }
}

fn absolute(value: &Value) -> Result<Value, Error> {
    match (value, value.as_integer()) {
        (Value::Float(number), _) => Ok(Value::Float(number.abs())),
        (_, Some(number)) if number.is_negative() => Ok(Value::Int(number.negate())),
        (_, Some(number)) => Ok(Value::Int(number)),
        _ => Err(Error::new(format!("bad operand type for abs(): '{}'", value.type_name()))),
    }
}

/// `float()`; nothing for what is no number.
fn to_float(value: &Value) -> Result<Option<f64>, Error> {
    match value {
        Value::Float(number) => Ok(Some(*number)),
        Value::Text(text) | Value::Markup(text) => {
            budget::charge_text(text.len().saturating_mul(4))?;
            Ok(float::parse(text))
        }
        other => other.as_integer().map(|number| number.to_float()).transpose(),
    }
}

/// `int()`, of texts also by way of a float; nothing for what is no number.
fn to_integer(value: &Value, base: i64) -> Result<Option<Integer>, Error> {
    match value {
        Value::Float(number) if number.is_infinite() => {
            Err(Error::new("cannot convert float infinity to integer"))
        }
        Value::Float(number) => Ok(Integer::from_float(*number).ok()),
        Value::Text(text) | Value::Markup(text) => {
            budget::charge_text(text.len().saturating_mul(4))?;
            if text.len() > MAX_NUMBER_BYTES {
                return Err(Error::limit("the text is too long for a number"));
            }
            let base = u32::try_from(base).ok().filter(|base| matches!(base, 0 | 2..=36));
            let number = base.and_then(|base| Integer::parse(text, base));
            let by_float = || Integer::from_float(float::parse(text)?).ok();
            Ok(number.or_else(by_float))
        }
        other => Ok(other.as_integer()),
    }
}

fn round(value: &Value, precision: i64, method: &str) -> Result<Value, Error> {
    if !matches!(method, "common" | "ceil" | "floor") {
        return Err(Error::new("method must be common, ceil or floor"));
    }
    let integer = value.as_integer();
    if !matches!(value, Value::Float(_)) && integer.is_none() {
        return Err(Error::new(format!(
            "type {} doesn't define __round__ method",
            value.type_name()
        )));
    }
    if method == "common" {
        return Ok(match (value, integer) {
            (Value::Float(number), _) => Value::Float(float::round(*number, precision)),
            (_, Some(number)) => Value::Int(round_integer(&number, precision)?),
            _ => value.clone(),
        });
    }
    let power = operators::binary(Binary::Power, &Value::int(10), &Value::int(precision))?;
    let scaled = operators::binary(Binary::Multiply, value, &power)?;
    let whole = match scaled {
        Value::Float(number) if method == "ceil" => Value::Int(Integer::from_float(number.ceil())?),
        Value::Float(number) => Value::Int(Integer::from_float(number.floor())?),
        other => other,
    };
    operators::binary(Binary::Divide, &whole, &power)
}

/// Places before the point; ties go to even digits.
fn round_integer(number: &Integer, places: i64) -> Result<Integer, Error> {
    if places >= 0 {
        return Ok(number.clone());
    }
    let unit = Integer::from(10_i64).power(&Integer::from(places).negate())?;
    let two = Integer::from(2_i64);
    let (quotient, rest) = number.divide(&unit)?;
    let (_, odd) = quotient.divide(&two)?;
    let rounds_up = match rest.multiply(&two)?.cmp(&unit) {
        std::cmp::Ordering::Less => false,
        std::cmp::Ordering::Equal => !odd.is_zero(),
        std::cmp::Ordering::Greater => true,
    };
    let quotient = if rounds_up { quotient.add(&Integer::from(1_i64)) } else { quotient };
    quotient.multiply(&unit)
}

fn file_size(bytes: f64, is_binary: bool) -> String {
    let base: f64 = if is_binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return "1 Byte".to_owned();
    }
    if bytes < base {
        // Zero has no sign here.
        return format!("{} Bytes", bytes.trunc() + 0.0);
    }
    let mut size = bytes / base;
    let mut prefixes = "kMGTPEZY".chars().peekable();
    while let Some(prefix) = prefixes.next() {
        if size < base || prefixes.peek().is_none() {
            let prefix = if is_binary {
                format!("{}i", prefix.to_ascii_uppercase())
            } else {
                prefix.to_string()
            };
            return format!("{size:.1} {prefix}B");
        }
        size /= base;
    }
    String::new()
}
