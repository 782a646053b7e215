//! The operators of expressions, with Python's rules for numbers, texts and lists.

use std::cmp::Ordering;

use super::ast::{Binary, Comparison};
use super::budget::{self, check_items, check_text_bytes};
use super::error::Error;
use super::integer::Integer;
use super::value::Value;
use super::{float, markup, percent_format};

/// What a binary operator makes of two values.
pub(crate) fn binary(operator: Binary, left: &Value, right: &Value) -> Result<Value, Error> {
    for value in [left, right] {
        // `%` of a text formats what is undefined as an empty text.
        let formats = operator == Binary::Modulo && left.as_text().is_some();
        if let Value::Undefined(reason) = value
            && !formats
        {
            return Err(Error::new(reason.as_ref()));
        }
    }
    match operator {
        Binary::Add => return add(left, right),
        Binary::Multiply => return multiply(left, right),
        Binary::Modulo if left.as_text().is_some() => {
            return percent(left, right);
        }
        _ => {}
    }
    match (number(left), number(right)) {
        (Some(Number::Int(a)), Some(Number::Int(b))) => of_integers(operator, &a, &b),
        (Some(a), Some(b)) => of_floats(operator, a.to_float()?, b.to_float()?),
        _ => Err(unsupported(operator.symbol(), left, right)),
    }
}

/// `text % values`.
pub(crate) fn percent(text: &Value, values: &Value) -> Result<Value, Error> {
    let is_markup = matches!(text, Value::Markup(_));
    let written = percent_format::format(text.as_text().unwrap_or_default(), values, is_markup)?;
    Ok(if is_markup { Value::Markup(written.into()) } else { written.into() })
}

enum Number {
    Int(Integer),
    Float(f64),
}

impl Number {
    fn to_float(&self) -> Result<f64, Error> {
        match self {
            Self::Int(value) => value.to_float(),
            Self::Float(value) => Ok(*value),
        }
    }
}

fn number(value: &Value) -> Option<Number> {
    match value {
        Value::Float(value) => Some(Number::Float(*value)),
        other => other.as_integer().map(Number::Int),
    }
}

fn unsupported(symbol: &str, left: &Value, right: &Value) -> Error {
    Error::new(format!(
        "unsupported operand type(s) for {symbol}: '{}' and '{}'",
        left.type_name(),
        right.type_name()
    ))
}

fn of_integers(operator: Binary, a: &Integer, b: &Integer) -> Result<Value, Error> {
    Ok(match operator {
        Binary::Add => Value::Int(a.add(b)),
        Binary::Subtract => Value::Int(a.subtract(b)),
        Binary::Multiply => Value::Int(a.multiply(b)?),
        Binary::Divide => Value::Float(a.true_divide(b)?),
        Binary::FloorDivide => Value::Int(a.divide(b)?.0),
        Binary::Modulo => Value::Int(a.divide(b)?.1),
        Binary::Power if b.is_negative() => of_floats(operator, a.to_float()?, b.to_float()?)?,
        Binary::Power => Value::Int(a.power(b)?),
    })
}

fn of_floats(operator: Binary, a: f64, b: f64) -> Result<Value, Error> {
    Ok(Value::Float(match operator {
        Binary::Add => a + b,
        Binary::Subtract => a - b,
        Binary::Multiply => a * b,
        Binary::Divide if b == 0.0 => return Err(Error::new("division by zero")),
        Binary::Divide => a / b,
        Binary::FloorDivide => float::floor_divide(a, b)?,
        Binary::Modulo => float::modulo(a, b)?,
        Binary::Power => float::power(a, b)?,
    }))
}

fn add(left: &Value, right: &Value) -> Result<Value, Error> {
    match (left, right) {
        (Value::Text(a), Value::Text(b)) => joined(a, b).map(Value::from),
        // What is not HTML yet is escaped where HTML is added to it.
        (Value::Markup(_), Value::Text(_) | Value::Markup(_))
        | (Value::Text(_), Value::Markup(_)) => {
            joined(&markup::escaped(left)?, &markup::escaped(right)?)
                .map(|text| Value::Markup(text.into()))
        }
        (Value::List(a), Value::List(b)) => chained(a, b).map(Value::list),
        (Value::Tuple(a), Value::Tuple(b)) => chained(a, b).map(Value::tuple),
        _ => match (number(left), number(right)) {
            (Some(Number::Int(a)), Some(Number::Int(b))) => of_integers(Binary::Add, &a, &b),
            (Some(a), Some(b)) => of_floats(Binary::Add, a.to_float()?, b.to_float()?),
            _ if left.as_text().is_some() => Err(Error::new(format!(
                "can only concatenate str (not \"{}\") to str",
                right.type_name()
            ))),
            _ => Err(unsupported("+", left, right)),
        },
    }
}

fn joined(a: &str, b: &str) -> Result<String, Error> {
    check_text_bytes(a.len() + b.len())?;
    budget::charge_text(a.len() + b.len())?;
    let mut text = String::with_capacity(a.len() + b.len());
    text.push_str(a);
    text.push_str(b);
    Ok(text)
}

fn chained(a: &[Value], b: &[Value]) -> Result<Vec<Value>, Error> {
    check_items(a.len() + b.len())?;
    budget::charge_items(a.len() + b.len())?;
    Ok([a, b].concat())
}

fn multiply(left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (number(left), number(right)) {
        return match (a, b) {
            (Number::Int(a), Number::Int(b)) => of_integers(Binary::Multiply, &a, &b),
            (a, b) => of_floats(Binary::Multiply, a.to_float()?, b.to_float()?),
        };
    }
    let (sequence, times) = match (left.as_integer(), right.as_integer()) {
        (None, Some(times)) => (left, times),
        (Some(times), None) => (right, times),
        _ => return Err(unsupported("*", left, right)),
    };
    let times = usize::try_from(times.saturating()).unwrap_or(0);
    let repeated_text = |text: &str| {
        check_text_bytes(text.len().saturating_mul(times))?;
        budget::charge_text(text.len() * times)?;
        Ok(text.repeat(times))
    };
    let repeated = |items: &[Value]| {
        let length = items.len().saturating_mul(times);
        check_items(length)?;
        budget::charge_items(length)?;
        let mut repeated = Vec::with_capacity(length);
        repeated.extend(items.iter().cycle().take(length).cloned());
        Ok(repeated)
    };
    match sequence {
        Value::Text(text) => repeated_text(text).map(Value::from),
        Value::Markup(text) => repeated_text(text).map(|text| Value::Markup(text.into())),
        Value::List(items) => repeated(items).map(Value::list),
        Value::Tuple(items) => repeated(items).map(Value::tuple),
        _ => Err(unsupported("*", left, right)),
    }
}

/// `-x`.
pub(crate) fn negate(value: &Value) -> Result<Value, Error> {
    match value {
        Value::Undefined(reason) => Err(Error::new(reason.as_ref())),
        Value::Float(value) => Ok(Value::Float(-value)),
        other => other.as_integer().map(|value| Value::Int(value.negate())).ok_or_else(|| {
            Error::new(format!("bad operand type for unary -: '{}'", other.type_name()))
        }),
    }
}

/// `+x`.
pub(crate) fn plus(value: &Value) -> Result<Value, Error> {
    match value {
        Value::Undefined(reason) => Err(Error::new(reason.as_ref())),
        Value::Float(value) => Ok(Value::Float(*value)),
        other => other.as_integer().map(Value::Int).ok_or_else(|| {
            Error::new(format!("bad operand type for unary +: '{}'", other.type_name()))
        }),
    }
}

/// What a comparison says.
pub(crate) fn compare(operator: Comparison, left: &Value, right: &Value) -> Result<bool, Error> {
    let holds = match operator {
        Comparison::Equal => left.equals(right),
        Comparison::NotEqual => !left.equals(right),
        Comparison::In => contains(right, left)?,
        Comparison::NotIn => !contains(right, left)?,
        Comparison::Less => order(left, right, "<")?.is_some_and(Ordering::is_lt),
        Comparison::LessOrEqual => order(left, right, "<=")?.is_some_and(Ordering::is_le),
        Comparison::Greater => order(left, right, ">")?.is_some_and(Ordering::is_gt),
        Comparison::GreaterOrEqual => order(left, right, ">=")?.is_some_and(Ordering::is_ge),
    };
    budget::check()?;
    Ok(holds)
}

/// `left < right`.
///
/// # Errors
/// Types that Python does not order.
pub(crate) fn is_less(left: &Value, right: &Value) -> Result<bool, Error> {
    Ok(order(left, right, "<")?.is_some_and(Ordering::is_lt))
}

/// The order of two values; none where one is not a number.
///
/// # Errors
/// Types that Python does not order.
pub(crate) fn order(left: &Value, right: &Value, symbol: &str) -> Result<Option<Ordering>, Error> {
    budget::charge(1)?;
    Ok(match (left, right) {
        (Value::Undefined(reason), _) | (_, Value::Undefined(reason)) => {
            return Err(Error::new(reason.as_ref()));
        }
        (Value::Text(a) | Value::Markup(a), Value::Text(b) | Value::Markup(b)) => {
            budget::charge_text(a.len().min(b.len()))?;
            Some((**a).cmp(&**b))
        }
        (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => {
            for (a, b) in a.iter().zip(b.iter()) {
                if !a.equals(b) {
                    return order(a, b, symbol);
                }
            }
            Some(a.len().cmp(&b.len()))
        }
        _ => match (number(left), number(right)) {
            (Some(Number::Int(a)), Some(Number::Int(b))) => Some(a.cmp(&b)),
            (Some(Number::Int(a)), Some(Number::Float(b))) => a.compare_float(b),
            (Some(Number::Float(a)), Some(Number::Int(b))) => {
                b.compare_float(a).map(Ordering::reverse)
            }
            (Some(Number::Float(a)), Some(Number::Float(b))) => a.partial_cmp(&b),
            _ => {
                return Err(Error::new(format!(
                    "'{symbol}' not supported between instances of '{}' and '{}'",
                    left.type_name(),
                    right.type_name()
                )));
            }
        },
    })
}

/// `item in container`.
pub(crate) fn contains(container: &Value, item: &Value) -> Result<bool, Error> {
    match container {
        Value::Text(text) | Value::Markup(text) => match item.as_text() {
            Some(part) => {
                budget::charge_text(text.len())?;
                Ok(text.contains(part))
            }
            None => Err(Error::new(format!(
                "'in <string>' requires string as left operand, not {}",
                item.type_name()
            ))),
        },
        Value::Dict(dict) => Ok(dict.get(item)?.is_some()),
        other => {
            let items = other.try_iterate().ok_or_else(|| {
                Error::new(format!("argument of type '{}' is not iterable", other.type_name()))
            })?;
            for other in items {
                if other?.equals(item) {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}
