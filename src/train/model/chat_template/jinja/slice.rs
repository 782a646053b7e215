//! Positions that may count from the end, and slices.

use super::error::Error;
use super::value::Value;

/// The index of a position that may count from the end.
pub(crate) fn index_of(length: usize, position: i64) -> Option<usize> {
    let length = i64::try_from(length).ok()?;
    let index = if position < 0 { position.checked_add(length)? } else { position };
    usize::try_from(index).ok().filter(|_| index < length)
}

/// The start, end and step of a slice.
pub(crate) struct Slice {
    pub(crate) start: Option<i64>,
    pub(crate) stop: Option<i64>,
    pub(crate) step: Option<i64>,
}

impl Slice {
    /// The borders as values: whole numbers or `None`; nothing else is a border.
    pub(crate) fn new(start: &Value, stop: &Value, step: &Value) -> Option<Self> {
        let border = |value: &Value| match value {
            Value::None => Some(None),
            other => other.as_integer().map(|value| Some(value.saturating())),
        };
        Some(Self { start: border(start)?, stop: border(stop)?, step: border(step)? })
    }

    /// First index, the one behind the last, and the step for so many items.
    ///
    /// # Errors
    /// A step of zero.
    pub(crate) fn resolve(&self, length: usize) -> Result<(i64, i64, i64), Error> {
        let length = i64::try_from(length).unwrap_or(i64::MAX);
        let step = self.step.unwrap_or(1);
        if step == 0 {
            return Err(Error::new("slice step cannot be zero"));
        }
        let (lowest, highest) = if step > 0 { (0, length) } else { (-1, length - 1) };
        let clamp = |border: i64| {
            let border = if border < 0 { border.saturating_add(length) } else { border };
            border.clamp(lowest, highest)
        };
        let (first, last) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
        Ok((self.start.map_or(first, clamp), self.stop.map_or(last, clamp), step))
    }

    /// The characters of a text that it selects.
    ///
    /// # Errors
    /// A step of zero.
    pub(crate) fn characters(&self, text: &str) -> Result<String, Error> {
        let length = text.chars().count();
        let (start, stop, step) = self.resolve(length)?;
        let distance = if step > 0 { stop - start } else { start - stop };
        let count = usize::try_from(distance).unwrap_or(0);
        let every = usize::try_from(step.unsigned_abs()).unwrap_or(usize::MAX);
        let start = usize::try_from(start).unwrap_or(0);
        Ok(match step > 0 {
            true => text.chars().skip(start).take(count).step_by(every).collect(),
            false => {
                let behind = length.saturating_sub(start.saturating_add(1));
                text.chars().rev().skip(behind).take(count).step_by(every).collect()
            }
        })
    }

    /// The indices that it selects of so many items.
    ///
    /// # Errors
    /// A step of zero.
    pub(crate) fn indices(&self, length: usize) -> Result<Vec<usize>, Error> {
        let (start, stop, step) = self.resolve(length)?;
        let mut position = start;
        let mut indices = Vec::new();
        while (step > 0 && position < stop) || (step < 0 && position > stop) {
            indices.extend(usize::try_from(position).ok());
            position = position.saturating_add(step);
        }
        Ok(indices)
    }
}
