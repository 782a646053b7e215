//! Python's format specifications (`{:>8.2f}`), and the padding that `%` shares with them.

use super::budget::{self, check_text_bytes};
use super::error::Error;
use super::integer::Integer;
use super::value::Value;
use super::{float, padding, repr};

/// Longest specification.
const MAX_SPEC_BYTES: usize = 256;
/// Most places behind the point that are written.
const MAX_PRECISION: usize = 10_000;

/// How a value is written: fill, alignment, sign, width, grouping, precision and kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct FormatSpec {
    pub(crate) fill: Option<char>,
    pub(crate) align: Option<char>,
    /// `+`, `-` or a space.
    pub(crate) sign: Option<char>,
    /// Whether zeros have no sign once they are rounded.
    pub(crate) has_no_negative_zero: bool,
    pub(crate) is_alternate: bool,
    pub(crate) has_zeros: bool,
    pub(crate) width: usize,
    pub(crate) grouping: Option<char>,
    pub(crate) precision: Option<usize>,
    pub(crate) kind: Option<char>,
}

impl FormatSpec {
    /// `[[fill]align][sign][z][#][0][width][grouping][.precision][kind]`.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_SPEC_BYTES {
            return Err(Error::new(format!("Invalid format specifier '{text}'")));
        }
        let mut spec = Self::default();
        let characters: Vec<char> = text.chars().collect();
        let is_align = |index: usize| characters.get(index).is_some_and(|c| "<>=^".contains(*c));
        let mut at = 0;
        if is_align(1) {
            spec.fill = Some(characters[0]);
            spec.align = Some(characters[1]);
            at = 2;
        } else if is_align(0) {
            spec.align = Some(characters[0]);
            at = 1;
        }
        let mut take = |allowed: &str| {
            let found = characters.get(at).copied().filter(|c| allowed.contains(*c));
            at += usize::from(found.is_some());
            found
        };
        spec.sign = take("+- ");
        spec.has_no_negative_zero = take("z").is_some();
        spec.is_alternate = take("#").is_some();
        spec.has_zeros = take("0").is_some();
        let number = |take: &mut dyn FnMut(&str) -> Option<char>| {
            let mut digits = String::new();
            while let Some(digit) = take("0123456789") {
                digits.push(digit);
            }
            digits
        };
        let too_large = |_| Error::new("Too many decimal digits in format string");
        let width = number(&mut take);
        if !width.is_empty() {
            spec.width = width.parse().map_err(too_large)?;
        }
        spec.grouping = take(",_");
        if take(".").is_some() {
            let digits = number(&mut take);
            if digits.is_empty() {
                return Err(Error::new("Format specifier missing precision"));
            }
            spec.precision = Some(digits.parse().map_err(too_large)?);
        }
        spec.kind = take("bcdeEfFgGnosxX%");
        if at < characters.len() {
            return Err(Error::new(format!("Invalid format specifier '{text}'")));
        }
        if let (Some(grouping), Some(kind)) = (spec.grouping, spec.kind)
            && (matches!(kind, 'c' | 'n') || (grouping == ',' && "boxX".contains(kind)))
        {
            return Err(Error::new(format!("Cannot specify '{grouping}' with '{kind}'.")));
        }
        spec.check()?;
        Ok(spec)
    }

    /// Refuses widths and precisions that no machine can bear.
    pub(crate) fn check(&self) -> Result<(), Error> {
        check_text_bytes(self.width.saturating_mul(self.fill.map_or(1, char::len_utf8)))?;
        budget::charge_text(self.width)?;
        if self.kind != Some('s') {
            budget::charge_text(self.precision.unwrap_or(0).min(MAX_PRECISION) * 8)?;
        }
        if self.precision.unwrap_or(0) > MAX_PRECISION && self.kind != Some('s') {
            return Err(Error::new("precision too big"));
        }
        Ok(())
    }

    /// A text, cut to the precision and padded to the width.
    ///
    /// # Errors
    /// The text would be too long.
    pub(crate) fn text(&self, text: &str) -> Result<String, Error> {
        let text: String = match self.precision {
            Some(precision) => text.chars().take(precision).collect(),
            None => text.to_owned(),
        };
        let fill = self.fill.unwrap_or(if self.has_zeros { '0' } else { ' ' });
        pad(&text, self.width, fill, self.align.unwrap_or('<'))
    }

    /// A number of which the sign, what stands before its digits, and the digits are known.
    pub(crate) fn number(
        &self,
        is_negative: bool,
        prefix: &str,
        digits: &str,
    ) -> Result<String, Error> {
        let sign = match self.sign {
            _ if is_negative => "-",
            Some('+') => "+",
            Some(' ') => " ",
            _ => "",
        };
        let is_padded_inside = self.align == Some('=') || (self.align.is_none() && self.has_zeros);
        let fill = self.fill.unwrap_or(if self.has_zeros { '0' } else { ' ' });
        let mut digits = self.grouped(digits);
        if is_padded_inside {
            let room = self.width.saturating_sub(sign.len() + prefix.len());
            if fill == '0' && self.grouping.is_some() {
                digits = self.grouped_to(&digits, room);
            }
            let missing = padding::missing(&digits, room);
            let digits = padding::padded(&digits, fill, [missing, 0])?;
            return Ok(format!("{sign}{prefix}{digits}"));
        }
        pad(&format!("{sign}{prefix}{digits}"), self.width, fill, self.align.unwrap_or('>'))
    }

    fn grouped(&self, digits: &str) -> String {
        let Some(separator) = self.grouping else { return digits.to_owned() };
        let size = self.group_size();
        let (whole, rest) = self.split_whole(digits);
        let mut out = String::new();
        for (index, digit) in whole.chars().enumerate() {
            if index > 0 && (whole.len() - index).is_multiple_of(size) {
                out.push(separator);
            }
            out.push(digit);
        }
        out + rest
    }

    /// How many digits stand between two separators.
    fn group_size(&self) -> usize {
        if matches!(self.kind, Some('b' | 'o' | 'x' | 'X')) { 4 } else { 3 }
    }

    /// The digits before the point, and the rest.
    fn split_whole<'a>(&self, digits: &'a str) -> (&'a str, &'a str) {
        let is_hexadecimal = self.group_size() == 4;
        let is_digit =
            |c: char| if is_hexadecimal { c.is_ascii_hexdigit() } else { c.is_ascii_digit() };
        digits.split_at(digits.find(|c| !is_digit(c)).unwrap_or(digits.len()))
    }

    /// Grouped digits with as many zeros before them as fit into the width.
    fn grouped_to(&self, grouped: &str, room: usize) -> String {
        let separator = self.grouping.unwrap_or(',');
        let plain: String = grouped.chars().filter(|c| *c != separator).collect();
        let (whole, rest) = self.split_whole(&plain);
        let needed = room.saturating_sub(rest.len());
        let size = self.group_size();
        // A separator stands before each group but the first one.
        let mut digits = needed * size / (size + 1);
        while digits + digits.saturating_sub(1) / size < needed {
            digits += 1;
        }
        let zeros = digits.saturating_sub(whole.len());
        self.grouped(&format!("{}{plain}", "0".repeat(zeros)))
    }
}

/// A text with fill characters around it.
fn pad(text: &str, width: usize, fill: char, align: char) -> Result<String, Error> {
    let missing = padding::missing(text, width);
    let before = match align {
        '<' => 0,
        '^' => missing / 2,
        _ => missing,
    };
    padding::padded(text, fill, [before, missing - before])
}

/// `format(value, specification)`.
pub(crate) fn format(value: &Value, specification: &str) -> Result<String, Error> {
    if specification.is_empty() {
        return repr::to_text(value).map(std::borrow::Cow::into_owned);
    }
    let spec = FormatSpec::parse(specification)?;
    match (value, value.as_integer()) {
        (Value::Text(text) | Value::Markup(text), _) => {
            if spec.sign.is_some()
                || spec.has_no_negative_zero
                || spec.align == Some('=')
                || spec.is_alternate
            {
                return Err(Error::new("Sign, '=' and '#' are not allowed with texts"));
            }
            if !matches!(spec.kind, None | Some('s')) || spec.grouping.is_some() {
                return Err(unknown_kind(&spec, value));
            }
            spec.text(text)
        }
        (Value::Float(number), _) => format_float(*number, &spec, value),
        (_, Some(number)) => match spec.kind {
            Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%') => {
                format_float(number.to_float()?, &spec, value)
            }
            _ => format_integer(&number, &spec, value),
        },
        _ => Err(Error::new(format!(
            "unsupported format string passed to {}.__format__",
            value.type_name()
        ))),
    }
}

fn unknown_kind(spec: &FormatSpec, value: &Value) -> Error {
    Error::new(format!(
        "Unknown format code '{}' for object of type '{}'",
        spec.kind.unwrap_or('s'),
        value.type_name()
    ))
}

fn format_integer(number: &Integer, spec: &FormatSpec, value: &Value) -> Result<String, Error> {
    if spec.has_no_negative_zero {
        return Err(Error::new("Negative zero coercion (z) not allowed in format specifier"));
    }
    if spec.precision.is_some() {
        return Err(Error::new("Precision not allowed in integer format specifier"));
    }
    let (base, prefix) = match spec.kind {
        None | Some('d' | 'n') => (10, ""),
        Some('b') => (2, "0b"),
        Some('o') => (8, "0o"),
        Some('x') => (16, "0x"),
        Some('X') => (16, "0X"),
        Some('c') => {
            let code = number.to_i64().and_then(|code| u32::try_from(code).ok());
            let character = code.and_then(char::from_u32);
            let character = character.ok_or_else(|| Error::new("%c arg not in range(0x110000)"))?;
            return spec.text(&character.to_string());
        }
        _ => return Err(unknown_kind(spec, value)),
    };
    let mut digits = number.to_text(base)?;
    let is_negative = digits.starts_with('-');
    if is_negative {
        digits.remove(0);
    }
    if spec.kind == Some('X') {
        digits = digits.to_ascii_uppercase();
    }
    spec.number(is_negative, if spec.is_alternate { prefix } else { "" }, &digits)
}

fn format_float(number: f64, spec: &FormatSpec, value: &Value) -> Result<String, Error> {
    let magnitude = number.abs();
    let places = spec.precision.unwrap_or(6);
    let digits = match spec.kind {
        Some('f' | 'F') => float::fixed(magnitude, places),
        Some('e' | 'E') => float::scientific(magnitude, places),
        Some('g' | 'G' | 'n') => float::general(magnitude, places, spec.is_alternate),
        Some('%') => float::fixed(magnitude * 100.0, places) + "%",
        None if spec.precision.is_none() => float::repr(magnitude),
        None => shortened(magnitude, places, spec.is_alternate),
        _ => return Err(unknown_kind(spec, value)),
    };
    let digits = match spec.kind {
        Some('E' | 'F' | 'G') => digits.to_uppercase(),
        _ => digits,
    };
    let digits = if spec.is_alternate { with_point(digits) } else { digits };
    let is_zero = !digits.contains(|c: char| matches!(c, '1'..='9'));
    let is_negative = number.is_sign_negative()
        && !number.is_nan()
        && !(spec.has_no_negative_zero && is_zero && number.is_finite());
    spec.number(is_negative, "", &digits)
}

/// A number with a point, also where nothing stands behind it.
pub(crate) fn with_point(digits: String) -> String {
    if digits.contains('.') || !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return digits;
    }
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (whole, rest) = digits.split_at(end);
    format!("{whole}.{rest}")
}

/// Like `g`, but with a digit behind the point at least, and an exponent one digit earlier.
fn shortened(magnitude: f64, places: usize, keeps_zeros: bool) -> String {
    let places = places.max(1);
    let scientific = float::scientific(magnitude, places - 1);
    let exponent = scientific.split_once('e').and_then(|(_, text)| text.parse::<i64>().ok());
    let is_large = exponent.is_some_and(|exponent| exponent >= places as i64 - 1);
    let general = float::general(magnitude, places, keeps_zeros);
    if general.contains(['e', 'n', 'i']) {
        return general;
    }
    if is_large {
        let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "+00"));
        let mantissa = match mantissa.contains('.') && !keeps_zeros {
            true => mantissa.trim_end_matches('0').trim_end_matches('.'),
            false => mantissa,
        };
        return format!("{mantissa}e{exponent}");
    }
    if general.contains('.') { general } else { general + ".0" }
}
