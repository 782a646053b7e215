//! Python's `int`: whole numbers of any size.

use std::cmp::Ordering;
use std::sync::Arc;

use num_bigint::{BigInt, Sign};
use num_integer::Integer as _;
use num_traits::{FromPrimitive, Num, Pow, Signed, ToPrimitive, Zero};

use super::budget;
use super::error::Error;

/// Python's limit on digits of a number that becomes a text, or comes from one.
const MAX_DIGITS: usize = 4300;
/// A number of more bits has more digits for certain.
const MAX_DECIMAL_BITS: u64 = 4 * 4300;
/// Longest number that a template may compute.
const MAX_BITS: u64 = 1 << 17;
/// Longest text that is read as a number in a base that is a power of two.
const MAX_BITS_READ: usize = 1 << 17;

/// A whole number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Integer {
    /// One that fits.
    Small(i64),
    /// One that does not fit into 64 bits.
    Big(Arc<BigInt>),
}

impl From<i64> for Integer {
    fn from(value: i64) -> Self {
        Self::Small(value)
    }
}

impl From<usize> for Integer {
    fn from(value: usize) -> Self {
        i64::try_from(value).map_or_else(|_| BigInt::from(value).into(), Self::Small)
    }
}

impl From<BigInt> for Integer {
    fn from(value: BigInt) -> Self {
        value.to_i64().map_or_else(|| Self::Big(Arc::new(value)), Self::Small)
    }
}

impl Integer {
    /// The number of digits in a base, as `int(text, base)` reads them: signs, underscores between
    /// digits and, for base 0 or the fitting base, `0x`, `0o` and `0b`.
    pub(crate) fn parse(text: &str, base: u32) -> Option<Self> {
        let text = text.trim_matches(super::unicode::is_space);
        let (negative, digits) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let prefix = digits.get(..2).map(str::to_ascii_lowercase);
        let (base, digits) = match (prefix.as_deref(), base) {
            (Some("0x"), 0 | 16) => (16, &digits[2..]),
            (Some("0o"), 0 | 8) => (8, &digits[2..]),
            (Some("0b"), 0 | 2) => (2, &digits[2..]),
            (_, 0) if digits.len() > 1 && digits.starts_with('0') => {
                let zeros = digits.chars().all(|digit| digit == '0' || digit == '_');
                zeros.then_some((10, digits))?
            }
            (_, 0) => (10, digits),
            _ => (base, digits),
        };
        if digits.is_empty()
            || digits.starts_with(['_', '+', '-'])
            || digits.ends_with('_')
            || digits.contains("__")
        {
            return None;
        }
        let digits: String =
            digits.chars().filter(|digit| *digit != '_').map(super::unicode::ascii_digit).collect();
        let most = if base.is_power_of_two() { MAX_BITS_READ } else { MAX_DIGITS };
        if digits.len() > most {
            return None;
        }
        let signed = if negative { format!("-{digits}") } else { digits };
        if let Ok(small) = i64::from_str_radix(&signed, base) {
            return Some(Self::Small(small));
        }
        BigInt::from_str_radix(&signed, base).ok().map(Self::from)
    }

    /// The whole part of a number.
    ///
    /// # Errors
    /// Infinities and what is no number.
    pub(crate) fn from_float(value: f64) -> Result<Self, Error> {
        if value.is_nan() {
            return Err(Error::new("cannot convert float NaN to integer"));
        }
        BigInt::from_f64(value.trunc())
            .map(Self::from)
            .ok_or_else(|| Error::new("cannot convert float infinity to integer"))
    }

    pub(crate) fn to_big(&self) -> BigInt {
        match self {
            Self::Small(value) => BigInt::from(*value),
            Self::Big(value) => value.as_ref().clone(),
        }
    }

    /// As a position or a count, if it is small.
    pub(crate) fn to_i64(&self) -> Option<i64> {
        match self {
            Self::Small(value) => Some(*value),
            Self::Big(_) => None,
        }
    }

    /// As a position, where numbers of any size count as the last or the first one.
    pub(crate) fn saturating(&self) -> i64 {
        match self {
            Self::Small(value) => *value,
            Self::Big(value) if value.is_negative() => i64::MIN,
            Self::Big(_) => i64::MAX,
        }
    }

    /// The nearest float.
    ///
    /// # Errors
    /// The number is too large.
    pub(crate) fn to_float(&self) -> Result<f64, Error> {
        match self {
            // The nearest float is what the standard says `as` gives.
            Self::Small(value) => Ok(*value as f64),
            Self::Big(value) => value
                .to_f64()
                .filter(|float| float.is_finite())
                .ok_or_else(|| Error::new("int too large to convert to float")),
        }
    }

    pub(crate) fn is_zero(&self) -> bool {
        matches!(self, Self::Small(0))
    }

    pub(crate) fn is_negative(&self) -> bool {
        match self {
            Self::Small(value) => *value < 0,
            Self::Big(value) => value.is_negative(),
        }
    }

    /// The digits in base 10, 16, 8 or 2, with a minus sign where one is due.
    ///
    /// # Errors
    /// More digits than Python writes.
    pub(crate) fn to_text(&self, base: u32) -> Result<String, Error> {
        let value = match self {
            Self::Small(value) if base == 10 => return Ok(value.to_string()),
            other => other.to_big(),
        };
        budget::charge(1 + value.bits() / 64)?;
        // Each digit has more than three bits: a text that is far too long is not even made.
        let is_too_long = |text: &str| text.trim_start_matches('-').len() > MAX_DIGITS;
        let text = match base {
            10 if value.bits() > MAX_DECIMAL_BITS => None,
            10 => Some(value.to_str_radix(10)).filter(|text| !is_too_long(text)),
            other => Some(value.to_str_radix(other)),
        };
        text.ok_or_else(|| {
            Error::new(format!(
                "Exceeds the limit ({MAX_DIGITS} digits) for integer string conversion"
            ))
        })
    }

    pub(crate) fn add(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Small(a), Self::Small(b)) => a
                .checked_add(*b)
                .map_or_else(|| (BigInt::from(*a) + BigInt::from(*b)).into(), Self::Small),
            _ => (self.to_big() + other.to_big()).into(),
        }
    }

    pub(crate) fn negate(&self) -> Self {
        match self {
            Self::Small(value) => {
                value.checked_neg().map_or_else(|| (-BigInt::from(*value)).into(), Self::Small)
            }
            Self::Big(value) => (-value.as_ref()).into(),
        }
    }

    pub(crate) fn subtract(&self, other: &Self) -> Self {
        self.add(&other.negate())
    }

    pub(crate) fn multiply(&self, other: &Self) -> Result<Self, Error> {
        if let (Self::Small(a), Self::Small(b)) = (self, other)
            && let Some(product) = a.checked_mul(*b)
        {
            return Ok(Self::Small(product));
        }
        let (a, b) = (self.to_big(), other.to_big());
        check_bits(a.bits() + b.bits())?;
        charge_product(a.bits(), b.bits())?;
        Ok((a * b).into())
    }

    /// `//` and `%`: rounded towards minus infinity; the rest has the divisor's sign.
    ///
    /// # Errors
    /// Division by zero.
    pub(crate) fn divide(&self, other: &Self) -> Result<(Self, Self), Error> {
        if other.is_zero() {
            return Err(Error::new("integer division or modulo by zero"));
        }
        if let (Self::Small(a), Self::Small(b)) = (self, other)
            && *b != -1
        {
            let (quotient, rest) = a.div_mod_floor(b);
            return Ok((Self::Small(quotient), Self::Small(rest)));
        }
        let (a, b) = (self.to_big(), other.to_big());
        charge_product(a.bits(), b.bits())?;
        let (quotient, rest) = a.div_mod_floor(&b);
        Ok((quotient.into(), rest.into()))
    }

    /// `/`: the float that is nearest to the quotient.
    ///
    /// # Errors
    /// Division by zero, and quotients that are too large.
    pub(crate) fn true_divide(&self, other: &Self) -> Result<f64, Error> {
        if other.is_zero() {
            return Err(Error::new("division by zero"));
        }
        // Both are exact as floats, so their quotient is rounded once.
        let is_exact = |value: &Self| value.to_i64().is_some_and(|it| it.unsigned_abs() <= 1 << 53);
        if is_exact(self) && is_exact(other) {
            return Ok(self.to_float()? / other.to_float()?);
        }
        let (a, b) = (self.to_big(), other.to_big());
        let bits = |value: &BigInt| i64::try_from(value.bits()).unwrap_or(i64::MAX);
        charge_product(a.bits(), b.bits())?;
        // 66 bits of the quotient, of which the last one tells whether anything follows.
        let shift = 66 - (bits(&a) - bits(&b));
        let magnitude = |value: &BigInt, shift: i64| {
            BigInt::from(value.magnitude().clone()) << u64::try_from(shift).unwrap_or(0)
        };
        let (quotient, rest) = magnitude(&a, shift).div_rem(&magnitude(&b, -shift));
        let quotient = quotient * 2 + i32::from(!rest.is_zero());
        let nearest = Self::from(quotient).to_float()?;
        let exponent = i32::try_from(-shift - 1).unwrap_or(i32::MAX);
        // In two steps, since the power alone may be too small or too large.
        let half = exponent / 2;
        let float = nearest * 2_f64.powi(half) * 2_f64.powi(exponent - half);
        if float.is_infinite() {
            return Err(Error::new("integer division result too large for a float"));
        }
        Ok(if self.is_negative() == other.is_negative() { float } else { -float })
    }

    /// `**` with an exponent that is not negative.
    ///
    /// # Errors
    /// The power is too long.
    pub(crate) fn power(&self, exponent: &Self) -> Result<Self, Error> {
        let base = self.to_big();
        let exponent = exponent.saturating().unsigned_abs();
        if base.is_zero() || base.magnitude().bits() == 1 {
            let is_odd = exponent % 2 == 1;
            return Ok(match base.sign() {
                Sign::NoSign if exponent == 0 => Self::Small(1),
                Sign::NoSign => Self::Small(0),
                Sign::Minus if is_odd => Self::Small(-1),
                _ => Self::Small(1),
            });
        }
        let bits = base.bits().saturating_mul(exponent);
        check_bits(bits)?;
        charge_product(bits, bits)?;
        Ok(Pow::pow(base, exponent).into())
    }

    /// Compared with a float, exactly; `None` for what is no number.
    pub(crate) fn compare_float(&self, other: f64) -> Option<Ordering> {
        if other.is_nan() {
            return None;
        }
        if other.is_infinite() {
            return Some(if other > 0.0 { Ordering::Less } else { Ordering::Greater });
        }
        let whole = BigInt::from_f64(other.trunc())?;
        let fraction = other - other.trunc();
        Some(
            self.to_big()
                .cmp(&whole)
                .then_with(|| 0.0.partial_cmp(&fraction).unwrap_or(Ordering::Equal)),
        )
    }
}

impl PartialOrd for Integer {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Integer {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Small(a), Self::Small(b)) => a.cmp(b),
            _ => self.to_big().cmp(&other.to_big()),
        }
    }
}

/// Counts the steps of a product or a quotient of numbers of so many bits.
fn charge_product(a: u64, b: u64) -> Result<(), Error> {
    // Words of 64 bits; some of their products are a step.
    budget::charge((1 + a / 64) * (1 + b / 64) / 16)
}

fn check_bits(bits: u64) -> Result<(), Error> {
    if bits <= MAX_BITS {
        return Ok(());
    }
    Err(Error::limit(format!("the template computes a number of more than {MAX_BITS} bits")))
}
