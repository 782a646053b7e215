//! Sorting, with Python's `<` for what is compared.

use super::budget;
use super::error::Error;
use super::operators;
use super::value::Value;

/// The values in ascending order of their keys, equal ones in the order in which they came.
///
/// A merge sort of our own: comparisons can fail, and numbers that are none have no order.
///
/// # Errors
/// Types that Python does not order.
pub(crate) fn by_key(items: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<Value>, Error> {
    budget::check_items(items.len())?;
    let is_less = |a: &(Value, Value), b: &(Value, Value)| {
        let (a, b) = if reverse { (b, a) } else { (a, b) };
        operators::is_less(&a.0, &b.0)
    };
    let mut order: Vec<usize> = (0..items.len()).collect();
    let mut merged = Vec::with_capacity(order.len());
    let mut width = 1;
    while width < order.len() {
        merged.clear();
        for run in order.chunks(width.saturating_mul(2)) {
            let (left, right) = run.split_at(width.min(run.len()));
            merge(left, right, &mut merged, |a, b| is_less(&items[a], &items[b]))?;
        }
        std::mem::swap(&mut order, &mut merged);
        width = width.saturating_mul(2);
    }
    Ok(order.into_iter().map(|index| items[index].1.clone()).collect())
}

/// Appends both sorted runs in order.
fn merge(
    left: &[usize],
    right: &[usize],
    out: &mut Vec<usize>,
    is_less: impl Fn(usize, usize) -> Result<bool, Error>,
) -> Result<(), Error> {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let next = if is_less(**b, **a)? { right.next() } else { left.next() };
        out.extend(next);
    }
    out.extend(left);
    out.extend(right);
    Ok(())
}
