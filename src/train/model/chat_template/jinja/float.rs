//! Python's `float`: how it is written, read and divided.

use super::error::Error;

/// The shortest text that reads back as the same number: `1.0`, `1e+16`, `1e-05`, `nan`.
pub(crate) fn repr(value: f64) -> String {
    if !value.is_finite() {
        return non_finite(value).to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let text = format!("{value}");
        return if text.contains('.') { text } else { format!("{text}.0") };
    }
    with_exponent(digits, exponent)
}

/// `inf`, `-inf` and `nan`.
pub(crate) fn non_finite(value: f64) -> &'static str {
    if value.is_nan() {
        "nan"
    } else if value > 0.0 {
        "inf"
    } else {
        "-inf"
    }
}

/// Digits and an exponent of at least two digits with its sign.
fn with_exponent(digits: &str, exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

/// A text as `float()` reads it: spaces around it, underscores between digits, `inf` and `nan`.
pub(crate) fn parse(text: &str) -> Option<f64> {
    let text = text.trim_matches(super::unicode::is_space);
    let digits = |character: Option<char>| character.is_some_and(|c| c.is_ascii_digit());
    let mut plain = String::with_capacity(text.len());
    let mut before = None;
    let mut characters = text.chars().map(super::unicode::ascii_digit).peekable();
    while let Some(character) = characters.next() {
        if character == '_' {
            if !digits(before) || !digits(characters.peek().copied()) {
                return None;
            }
        } else {
            plain.push(character);
        }
        before = Some(character);
    }
    let lower = plain.to_ascii_lowercase();
    let word = lower.trim_start_matches(['+', '-']);
    let is_word = matches!(word, "inf" | "infinity" | "nan") && lower.len() - word.len() < 2;
    if !is_word && word.chars().any(|c| !matches!(c, '0'..='9' | '.' | 'e' | '+' | '-')) {
        return None;
    }
    lower.parse().ok()
}

/// `//`.
pub(crate) fn floor_divide(a: f64, b: f64) -> Result<f64, Error> {
    let rest = modulo(a, b)?;
    let quotient = (a - rest) / b;
    if quotient == 0.0 {
        return Ok(if (a / b).is_sign_negative() { -0.0 } else { 0.0 });
    }
    let floor = quotient.floor();
    Ok(if quotient - floor > 0.5 { floor + 1.0 } else { floor })
}

/// `%`: the rest has the divisor's sign.
pub(crate) fn modulo(a: f64, b: f64) -> Result<f64, Error> {
    if b == 0.0 {
        return Err(Error::new("float modulo by zero"));
    }
    let rest = a % b;
    if rest == 0.0 {
        return Ok(0.0_f64.copysign(b));
    }
    Ok(if (rest < 0.0) == (b < 0.0) { rest } else { rest + b })
}

/// `**`.
///
/// # Errors
/// Zero to a negative power, results that are complex or too large.
pub(crate) fn power(base: f64, exponent: f64) -> Result<f64, Error> {
    if base == 0.0 && exponent < 0.0 {
        return Err(Error::new("0.0 cannot be raised to a negative power"));
    }
    if base < 0.0 && base.is_finite() && exponent.is_finite() && exponent.fract() != 0.0 {
        return Err(Error::new("the power of a negative number is complex"));
    }
    let power = base.powf(exponent);
    if power.is_infinite() && base.is_finite() && exponent.is_finite() {
        return Err(Error::new("Numerical result out of range"));
    }
    Ok(power)
}

/// Rounded to so many places behind the point, ties to even digits of the exact value.
pub(crate) fn round(value: f64, places: i64) -> f64 {
    if !value.is_finite() || places > 323 {
        return value;
    }
    if places < -308 {
        return 0.0_f64.copysign(value);
    }
    if places >= 0 {
        let places = usize::try_from(places).unwrap_or(0);
        return format!("{value:.places$}").parse().unwrap_or(value);
    }
    let scale = 10_f64.powi(i32::try_from(-places).unwrap_or(308));
    (value / scale).round_ties_even() * scale
}

/// `%f`: so many places behind the point.
pub(crate) fn fixed(value: f64, places: usize) -> String {
    if value.is_finite() { format!("{value:.places$}") } else { non_finite(value).to_owned() }
}

/// `%e`: one digit before the point, so many behind it.
pub(crate) fn scientific(value: f64, places: usize) -> String {
    if !value.is_finite() {
        return non_finite(value).to_owned();
    }
    let text = format!("{value:.places$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    with_exponent(digits, exponent.parse().unwrap_or(0))
}

/// `%g`: so many significant digits; zeros at the end stay only where asked for.
pub(crate) fn general(value: f64, digits: usize, keeps_zeros: bool) -> String {
    if !value.is_finite() {
        return non_finite(value).to_owned();
    }
    let digits = digits.max(1);
    let text = scientific(value, digits - 1);
    let exponent: i64 =
        text.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    let significant = i64::try_from(digits).unwrap_or(i64::MAX);
    if exponent < -4 || exponent >= significant {
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "+00"));
        let mantissa = if keeps_zeros { mantissa } else { without_zeros(mantissa) };
        return format!("{mantissa}e{exponent}");
    }
    let text = fixed(value, usize::try_from(significant - 1 - exponent).unwrap_or(0));
    if keeps_zeros { text } else { without_zeros(&text).to_owned() }
}

fn without_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}
