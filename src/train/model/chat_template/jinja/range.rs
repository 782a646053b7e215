//! Ranges of whole numbers.

use std::any::Any;

use super::arguments::{Arguments, whole};
use super::error::Error;
use super::object::Object;
use super::slice::{Slice, index_of};
use super::value::Value;

/// Longest range of Jinja's sandbox.
const MAX_RANGE: u64 = 100_000;

/// `range(…)` as a function.
///
/// # Errors
/// What is no whole number, a step of zero, more numbers than the sandbox of Jinja allows.
pub(crate) fn make(arguments: Arguments) -> Result<Value, Error> {
    let [first, second, third] = arguments.positional("range", 1)?;
    if let Some(Value::Undefined(reason)) = &first {
        return Err(Error::new(reason.as_ref()));
    }
    let step = whole(third.as_ref(), 1)?;
    let (start, stop) = match second {
        Some(stop) => (whole(first.as_ref(), 0)?, whole(Some(&stop), 0)?),
        None => (0, whole(first.as_ref(), 0)?),
    };
    let range = Range { start, stop, step };
    if step == 0 {
        return Err(Error::new("range() arg 3 must not be zero"));
    }
    if range.count() > MAX_RANGE {
        return Err(Error::new(format!(
            "Range too big. The sandbox blocks ranges larger than MAX_RANGE ({MAX_RANGE})."
        )));
    }
    Ok(Value::object(range))
}

/// `range(start, stop, step)`.
pub(crate) struct Range {
    start: i64,
    stop: i64,
    step: i64,
}

impl Range {
    fn count(&self) -> u64 {
        let (low, high) =
            if self.step > 0 { (self.start, self.stop) } else { (self.stop, self.start) };
        let distance = if low < high { high.abs_diff(low) } else { 0 };
        distance.div_ceil(self.step.unsigned_abs())
    }

    fn len(&self) -> usize {
        usize::try_from(self.count()).unwrap_or(0)
    }

    /// What tells its numbers: how many, the first and the step, as far as there are so many.
    fn numbers(&self) -> (usize, Option<i64>, Option<i64>) {
        let length = self.len();
        (length, (length > 0).then_some(self.start), (length > 1).then_some(self.step))
    }

    /// The numbers that a slice selects, which are a range, too.
    pub(crate) fn slice(&self, slice: &Slice) -> Result<Self, Error> {
        let (start, stop, step) = slice.resolve(self.len())?;
        let at = |index: i64| self.start.saturating_add(index.saturating_mul(self.step));
        Ok(Self { start: at(start), stop: at(stop), step: self.step.saturating_mul(step) })
    }

    fn at(&self, index: usize) -> Value {
        let offset = i64::try_from(index).unwrap_or(0).wrapping_mul(self.step);
        Value::int(self.start.wrapping_add(offset))
    }
}

impl Object for Range {
    fn type_name(&self) -> &'static str {
        "range"
    }

    fn repr(&self) -> Result<String, Error> {
        let Self { start, stop, step } = self;
        Ok(match step {
            1 => format!("range({start}, {stop})"),
            _ => format!("range({start}, {stop}, {step})"),
        })
    }

    fn attribute(&self, name: &str) -> Option<Value> {
        match name {
            "start" => Some(Value::int(self.start)),
            "stop" => Some(Value::int(self.stop)),
            "step" => Some(Value::int(self.step)),
            _ => None,
        }
    }

    fn item(&self, position: i64) -> Option<Value> {
        index_of(self.len(), position).map(|index| self.at(index))
    }

    fn is_iterable(&self) -> bool {
        true
    }

    fn nth(&self, index: usize) -> Option<Value> {
        (index < self.len()).then(|| self.at(index))
    }

    /// Ranges are equal where their numbers are.
    fn equals(&self, other: &dyn Object) -> bool {
        other.as_any().downcast_ref::<Self>().is_some_and(|other| self.numbers() == other.numbers())
    }

    fn hash(&self) -> Option<u64> {
        let (length, start, step) = self.numbers();
        let mix = |hash: u64, number: u64| hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number;
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let numbers = [start, step].into_iter().flatten();
        Some(numbers.fold(length, |hash, number| mix(hash, number.unsigned_abs())))
    }

    fn length(&self) -> Option<usize> {
        Some(self.len())
    }

    fn is_sequence(&self) -> bool {
        true
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
