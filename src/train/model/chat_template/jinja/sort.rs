//! Sorting, with Python's `<` for what is compared.

use std::cmp::Ordering;

use super::budget;
use super::error::Error;
use super::operators;
use super::value::Value;

/// Items that are sorted by inserting one after the other, as in Python.
const MIN_RUN: usize = 64;

/// The values in ascending order of their keys, equal ones in the order in which they came.
///
/// # Errors
/// Types that Python does not order.
pub(crate) fn by_key(items: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<Value>, Error> {
    let mut items = items;
    // Python sorts from the end so that equal ones keep their order.
    if reverse {
        items.reverse();
    }
    let mut sorted = with(items, operators::is_less)?;
    if reverse {
        sorted.reverse();
    }
    Ok(sorted)
}

/// The values in the order of their keys as `pprint` has it: by types where Python has no order.
///
/// # Errors
/// What has run out.
pub(crate) fn by_any_key(items: Vec<(Value, Value)>) -> Result<Vec<Value>, Error> {
    with(items, |a, b| match operators::order(a, b, "<") {
        Ok(order) => Ok(order == Some(Ordering::Less)),
        Err(error) if error.is_limit() => Err(error),
        Err(_) => Ok(a.type_name() < b.type_name()),
    })
}

/// A sort of our own: comparisons can fail, and numbers that are none have no order.
fn with(
    items: Vec<(Value, Value)>,
    is_less: impl Fn(&Value, &Value) -> Result<bool, Error>,
) -> Result<Vec<Value>, Error> {
    budget::check_items(items.len())?;
    let is_less = |a: usize, b: usize| is_less(&items[a].0, &items[b].0);
    let mut order: Vec<usize> = (0..items.len()).collect();
    for run in order.chunks_mut(MIN_RUN) {
        insert_all(run, is_less)?;
    }
    let mut width = MIN_RUN;
    let mut merged = Vec::with_capacity(order.len());
    while width < order.len() {
        merged.clear();
        for run in order.chunks(width.saturating_mul(2)) {
            let (left, right) = run.split_at(width.min(run.len()));
            merge(left, right, &mut merged, is_less)?;
        }
        std::mem::swap(&mut order, &mut merged);
        width = width.saturating_mul(2);
    }
    Ok(order.into_iter().map(|index| items[index].1.clone()).collect())
}

/// Inserts each item where it belongs among those before it. What descends at the beginning is turned round first.
fn insert_all(
    run: &mut [usize],
    is_less: impl Fn(usize, usize) -> Result<bool, Error>,
) -> Result<(), Error> {
    let descends = run.len() > 1 && is_less(run[1], run[0])?;
    let mut sorted = run.len().min(2);
    while sorted < run.len() && is_less(run[sorted], run[sorted - 1])? == descends {
        sorted += 1;
    }
    if descends {
        run[..sorted].reverse();
    }
    for index in sorted..run.len() {
        let (mut low, mut high) = (0, index);
        while low < high {
            let middle = low + (high - low) / 2;
            if is_less(run[index], run[middle])? {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        run[low..=index].rotate_right(1);
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(keys: &[Value], reverse: bool) -> Result<Vec<usize>, Error> {
        let keyed = keys.iter().enumerate().map(|(index, key)| (key.clone(), Value::from(index)));
        let index = |value: Value| value.as_integer().and_then(|index| index.to_i64());
        let order = by_key(keyed.collect(), reverse)?;
        Ok(order.into_iter().filter_map(|at| usize::try_from(index(at)?).ok()).collect())
    }

    #[test]
    fn many_items_are_sorted_and_equal_ones_keep_their_order() {
        for count in [0, 1, 2, 63, 64, 65, 127, 1000, 4097] {
            let number = |index: i64| (index * 7919) % 101;
            let keys: Vec<Value> = (0..count).map(|index| Value::int(number(index))).collect();
            for reverse in [false, true] {
                let mut expected: Vec<usize> = (0..keys.len()).collect();
                expected.sort_by_key(|index| {
                    let key = number(i64::try_from(*index).unwrap());
                    if reverse { -key } else { key }
                });
                assert_eq!(sorted(&keys, reverse).unwrap(), expected, "{count} {reverse}");
            }
        }
    }

    #[test]
    fn what_has_no_order_is_refused_and_never_panics() {
        let mixed: Vec<Value> = (0..200)
            .map(|index| if index % 3 == 0 { Value::from("a") } else { Value::int(index) })
            .collect();
        let error = sorted(&mixed, false).unwrap_err().to_string();
        assert!(error.contains("not supported between instances"), "{error}");
        let numbers: Vec<Value> = (0..500)
            .map(|index: i32| {
                let number = f64::from((index * 7919) % 101);
                Value::Float(if index % 7 == 0 { f64::NAN } else { number })
            })
            .collect();
        let mut order = sorted(&numbers, false).unwrap();
        order.sort_unstable();
        assert_eq!(order, (0..500).collect::<Vec<usize>>());
    }
}
