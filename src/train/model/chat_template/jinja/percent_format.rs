//! `text % values`.

use super::budget::{self, check_text_bytes};
use super::error::Error;
use super::format_spec::{FormatSpec, with_point};
use super::integer::Integer;
use super::value::Value;
use super::{float, markup, repr};

/// What stands for the fields of a text is taken from these values.
struct Values<'a> {
    all: &'a Value,
    /// Those that are taken one by one.
    remaining: std::vec::IntoIter<Value>,
    escapes: bool,
}

impl Values<'_> {
    fn next(&mut self) -> Result<Value, Error> {
        self.remaining.next().ok_or_else(|| Error::new("not enough arguments for format string"))
    }

    fn of_key(&self, key: &str) -> Result<Value, Error> {
        let Value::Dict(dict) = self.all else {
            return Err(Error::new("format requires a mapping"));
        };
        dict.get_text(key).cloned().ok_or_else(|| Error::new(format!("KeyError: '{key}'")))
    }

    fn next_size(&mut self) -> Result<i64, Error> {
        let size = self.next()?.as_integer().and_then(|size| size.to_i64());
        size.ok_or_else(|| Error::new("* wants int"))
    }
}

/// The text with its fields filled in.
///
/// `escapes` says whether the text is HTML, so that what is written into it is escaped.
///
/// # Errors
/// Values that are missing, left over, or do not fit a field.
pub(crate) fn format(text: &str, values: &Value, escapes: bool) -> Result<String, Error> {
    budget::charge_text(text.len())?;
    let list = match values {
        Value::Tuple(items) => items.to_vec(),
        other => vec![other.clone()],
    };
    let mut values = Values { all: values, remaining: list.into_iter(), escapes };
    let mut out = String::new();
    let mut rest = text;
    while let Some(position) = rest.find('%') {
        out.push_str(&rest[..position]);
        rest = &rest[position + 1..];
        budget::charge(1)?;
        rest = format_field(rest, &mut values, &mut out)?;
        check_text_bytes(out.len())?;
    }
    out.push_str(rest);
    // Python takes everything with items for a mapping, of which it needs not all.
    let may_be_left = match values.all {
        Value::List(_) | Value::Dict(_) | Value::Undefined(_) => true,
        Value::Object(object) => object.is_sequence(),
        _ => false,
    };
    if !may_be_left && values.remaining.len() > 0 {
        return Err(Error::new("not all arguments converted during string formatting"));
    }
    Ok(out)
}

/// Writes one field and gives what follows it.
fn format_field<'a>(
    field: &'a str,
    values: &mut Values<'_>,
    out: &mut String,
) -> Result<&'a str, Error> {
    let mut rest = field;
    let mut keyed = None;
    if let Some(inner) = rest.strip_prefix('(') {
        let end = closing(inner).ok_or_else(|| Error::new("incomplete format key"))?;
        keyed = Some(values.of_key(&inner[..end])?);
        rest = &inner[end + 1..];
    }
    let mut spec = FormatSpec::default();
    loop {
        match rest.chars().next() {
            Some('-') => spec.align = Some('<'),
            Some('+') => spec.sign = Some('+'),
            Some(' ') if spec.sign.is_none() => spec.sign = Some(' '),
            Some(' ') => {}
            Some('#') => spec.is_alternate = true,
            Some('0') => spec.has_zeros = true,
            _ => break,
        }
        rest = &rest[1..];
    }
    let (width, after) = size(rest, values)?;
    rest = after;
    if let Some(width) = width {
        if width < 0 {
            spec.align = Some('<');
        }
        spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
    }
    if let Some(after) = rest.strip_prefix('.') {
        let (precision, after) = size(after, values)?;
        spec.precision = Some(usize::try_from(precision.unwrap_or(0)).unwrap_or(0));
        rest = after;
    }
    rest = rest.strip_prefix(['h', 'l', 'L']).unwrap_or(rest);
    let kind = rest.chars().next().ok_or_else(|| Error::new("incomplete format"))?;
    rest = &rest[kind.len_utf8()..];
    if kind == '%' {
        out.push('%');
        return Ok(rest);
    }
    // Numbers stand at the right, and a minus sign in the field wins over zeros.
    if spec.align == Some('<') {
        spec.has_zeros = false;
    }
    spec.kind = Some(kind);
    spec.check()?;
    let value = match keyed {
        Some(value) => value,
        None => values.next()?,
    };
    out.push_str(&convert(&value, kind, &spec, values.escapes)?);
    Ok(rest)
}

/// Where the parenthesis that was opened before closes.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1;
    for (position, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(position);
        }
    }
    None
}

/// A width or precision: digits, or a star for the next value.
fn size<'a>(text: &'a str, values: &mut Values<'_>) -> Result<(Option<i64>, &'a str), Error> {
    if let Some(rest) = text.strip_prefix('*') {
        return Ok((Some(values.next_size()?), rest));
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Ok((None, rest));
    }
    let size = digits.parse::<u32>().map_err(|_| Error::new("width too big"))?;
    Ok((Some(i64::from(size)), rest))
}

fn convert(value: &Value, kind: char, spec: &FormatSpec, escapes: bool) -> Result<String, Error> {
    let text = |text: &str| {
        let align = spec.align.or(Some('>'));
        FormatSpec { align, has_zeros: false, ..spec.clone() }.text(text)
    };
    match kind {
        's' if escapes => text(&markup::escaped(value)?),
        'r' if escapes => text(&markup::escaped_text(&repr::repr(value)?)?),
        'a' if escapes => text(&markup::escaped_text(&repr::ascii(value)?)?),
        's' => text(&repr::to_text(value)?),
        'r' => text(&repr::repr(value)?),
        'a' => text(&repr::ascii(value)?),
        'c' => {
            let character = match (value.as_text(), value.as_integer()) {
                (Some(text), _) if text.chars().count() == 1 => Some(text.to_owned()),
                (None, Some(code)) => code
                    .to_i64()
                    .and_then(|code| u32::try_from(code).ok())
                    .and_then(char::from_u32)
                    .map(String::from),
                _ => None,
            };
            let character = character.ok_or_else(|| Error::new("%c requires int or char"))?;
            let spec =
                FormatSpec { precision: None, align: spec.align.or(Some('>')), ..spec.clone() };
            FormatSpec { has_zeros: false, ..spec }.text(&character)
        }
        'd' | 'i' | 'u' => {
            let number = match value {
                Value::Float(number) => Some(Integer::from_float(*number)?),
                other => other.as_integer(),
            };
            integer(&required(number, kind, value)?, 10, "", spec)
        }
        'x' => integer(&required(value.as_integer(), kind, value)?, 16, "0x", spec),
        'X' => {
            let number = required(value.as_integer(), kind, value)?;
            integer(&number, 16, "0x", spec).map(|text| text.to_uppercase())
        }
        'o' => integer(&required(value.as_integer(), kind, value)?, 8, "0o", spec),
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
            let number = match (value, value.as_integer()) {
                (Value::Float(number), _) => *number,
                (_, Some(number)) => number.to_float()?,
                _ => {
                    return Err(Error::new(format!(
                        "must be real number, not {}",
                        value.type_name()
                    )));
                }
            };
            let magnitude = number.abs();
            let places = spec.precision.unwrap_or(6);
            let digits = match kind {
                'e' | 'E' => float::scientific(magnitude, places),
                'f' | 'F' => float::fixed(magnitude, places),
                _ => float::general(magnitude, places, spec.is_alternate),
            };
            let digits = if kind.is_uppercase() { digits.to_uppercase() } else { digits };
            let digits = if spec.is_alternate { with_point(digits) } else { digits };
            let is_negative = number.is_sign_negative() && !number.is_nan();
            FormatSpec { kind: None, ..spec.clone() }.number(is_negative, "", &digits)
        }
        other => Err(Error::new(format!("unsupported format character '{other}'"))),
    }
}

fn required(number: Option<Integer>, kind: char, value: &Value) -> Result<Integer, Error> {
    number.ok_or_else(|| {
        let wanted = if matches!(kind, 'd' | 'i' | 'u') { "a real number" } else { "an integer" };
        Error::new(format!("%{kind} format: {wanted} is required, not {}", value.type_name()))
    })
}

fn integer(number: &Integer, base: u32, prefix: &str, spec: &FormatSpec) -> Result<String, Error> {
    let text = number.to_text(base)?;
    let digits = text.trim_start_matches('-');
    let zeros = spec.precision.unwrap_or(0).saturating_sub(digits.len());
    let digits = format!("{}{digits}", "0".repeat(zeros));
    let prefix = if spec.is_alternate { prefix } else { "" };
    spec.number(number.is_negative(), prefix, &digits)
}
