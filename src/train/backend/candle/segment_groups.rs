//! Segments of about one length attend together: each kernel then runs once for all of them, and not once for
//! each. Shorter ones are filled up with rows of zeros at their end. No row of a segment sees them, since a row
//! sees what is before it, and their own outputs and gradients are left behind.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::transfers::HostTransfers;
use crate::train::backend::{Outcome, Segment};

/// Longest segments that are filled up. Longer ones keep a device busy alone.
pub const MAX_FILLED: usize = 512;

/// The row that is not there: candle gathers zeros for it.
const NO_ROW: u32 = u32::MAX;

/// Segments that attend together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentGroup {
    /// Number of segments.
    pub count: usize,
    /// Rows of each, filled up.
    pub length: usize,
    /// Rows before them, which they share.
    pub before: Vec<Range<usize>>,
}

/// The segments of a pass in groups, and where the rows of the groups come from. The groups' rows are one after
/// the other, those of a segment's prefix before its own among the keys and values.
pub struct GroupedSegments {
    /// The groups.
    pub groups: Vec<SegmentGroup>,
    /// `None` where one segment is the whole pass.
    rows: Option<GroupRows>,
}

struct GroupRows {
    /// The batch's row of each row of queries.
    queries: Tensor,
    /// The batch's row of each row of keys and values.
    keys: Tensor,
    /// The row of queries of each row of the batch.
    of_queries: Tensor,
    /// The row of keys of each row of the batch, where it is no prefix.
    of_keys: Tensor,
}

/// The groups of the last pass: all its layers have the same.
#[derive(Default)]
pub struct GroupCache {
    known: RefCell<Option<(Vec<Segment>, Arc<GroupedSegments>)>>,
}

impl SegmentGroup {
    /// Rows of the prefix.
    pub fn prefix(&self) -> usize {
        self.before.iter().map(Range::len).sum()
    }

    /// Keys of each segment.
    pub fn keys(&self) -> usize {
        self.prefix() + self.length
    }
}

impl GroupCache {
    /// The groups of `segments`, with at most `max_scores` scores in each group of several segments.
    pub fn of(
        &self,
        transfers: &HostTransfers,
        segments: &[Segment],
        heads: usize,
        max_scores: usize,
    ) -> Outcome<Arc<GroupedSegments>> {
        let known = &mut *self.known.borrow_mut();
        if let Some((of, groups)) = known
            && of == segments
        {
            return Ok(groups.clone());
        }
        let groups = Arc::new(GroupedSegments::new(transfers, segments, heads, max_scores)?);
        *known = Some((Vec::from(segments), groups.clone()));
        Ok(groups)
    }
}

/// The groups of `segments`, by number.
fn groups(segments: &[Segment], heads: usize, max_scores: usize) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (number, segment) in segments.iter().enumerate() {
        let filled = filled_length(segment.rows.len());
        let scores = heads * filled * (segment.keys() - segment.rows.len() + filled);
        let joins = |group: &Vec<usize>| {
            let other = &segments[group[0]];
            other.before == segment.before
                && filled_length(other.rows.len()) == filled
                && (group.len() + 1) * scores <= max_scores
        };
        match groups.iter_mut().find(|group| joins(group)) {
            Some(group) => group.push(number),
            None => groups.push(vec![number]),
        }
    }
    groups
}

/// Rows up to which a segment of so many rows may be filled up.
fn filled_length(rows: usize) -> usize {
    if rows > MAX_FILLED { rows } else { rows.next_power_of_two() }
}

impl GroupedSegments {
    fn new(
        transfers: &HostTransfers,
        segments: &[Segment],
        heads: usize,
        max_scores: usize,
    ) -> Outcome<Self> {
        if let [Segment { rows, before }] = segments
            && before.is_empty()
        {
            let whole = SegmentGroup { count: 1, length: rows.len(), before: Vec::new() };
            return Ok(Self { groups: vec![whole], rows: None });
        }
        let all = segments.last().map_or(0, |segment| segment.rows.end);
        let (mut queries, mut keys) = (Vec::new(), Vec::new());
        let (mut of_queries, mut of_keys) = (vec![NO_ROW; all], vec![NO_ROW; all]);
        let mut made = Vec::new();
        for group in groups(segments, heads, max_scores) {
            let members = group.iter().map(|number| &segments[*number]);
            let length = members.clone().map(|segment| segment.rows.len()).max().unwrap_or(0);
            for segment in members {
                keys.extend(segment.before.iter().cloned().flatten().map(|row| row as u32));
                for row in segment.rows.clone() {
                    of_queries[row] = queries.len() as u32;
                    of_keys[row] = keys.len() as u32;
                    queries.push(row as u32);
                    keys.push(row as u32);
                }
                let filled = length - segment.rows.len();
                queries.extend(std::iter::repeat_n(NO_ROW, filled));
                keys.extend(std::iter::repeat_n(NO_ROW, filled));
            }
            let before = segments[group[0]].before.clone();
            made.push(SegmentGroup { count: group.len(), length, before });
        }
        let rows = GroupRows {
            queries: transfers.indexes(&queries)?,
            keys: transfers.indexes(&keys)?,
            of_queries: transfers.indexes(&of_queries)?,
            of_keys: transfers.indexes(&of_keys)?,
        };
        Ok(Self { groups: made, rows: Some(rows) })
    }

    /// Rows of queries, or of what belongs to them, for the groups.
    pub fn queries(&self, batch: &Tensor) -> Outcome<Tensor> {
        match &self.rows {
            Some(rows) => Ok(batch.index_select(&rows.queries, 0)?),
            None => Ok(batch.clone()),
        }
    }

    /// Rows of keys or values for the groups.
    pub fn keys(&self, batch: &Tensor) -> Outcome<Tensor> {
        match &self.rows {
            Some(rows) => Ok(batch.index_select(&rows.keys, 0)?),
            None => Ok(batch.clone()),
        }
    }

    /// The groups' rows of queries, or of what belongs to them, back in the order of the batch.
    pub fn batch_of_queries(&self, parts: &[Tensor]) -> Outcome<Tensor> {
        let all = Tensor::cat(parts, 0)?;
        match &self.rows {
            Some(rows) => Ok(all.index_select(&rows.of_queries, 0)?),
            None => Ok(all),
        }
    }

    /// Gradients of the groups' rows of keys or values, in the order of the batch. The rows of a prefix get those
    /// of all segments behind it, in the order of the groups.
    pub fn batch_of_keys(&self, parts: &[Tensor]) -> Outcome<Tensor> {
        let all = Tensor::cat(parts, 0)?;
        let Some(rows) = &self.rows else { return Ok(all) };
        // Of each row as a row of its own segment. This tensor is new and no other has its memory: it is changed
        // in place.
        let made = all.index_select(&rows.of_keys, 0)?;
        let width = made.dim(1)?;
        for (group, part) in self.groups.iter().zip(parts) {
            let prefix = group.prefix();
            if prefix == 0 {
                continue;
            }
            let part = part.reshape((group.count, group.keys(), width))?;
            let of_prefix = part.narrow(1, 0, prefix)?.sum(0)?;
            let mut first = 0;
            for before in &group.before {
                let more = of_prefix.narrow(0, first, before.len())?;
                let sum = (made.narrow(0, before.start, before.len())? + more)?;
                made.slice_set(&sum, 0, before.start)?;
                first += before.len();
            }
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_of_about_one_length_and_one_prefix_attend_together_as_long_as_the_scores_fit() {
        let prefix = Segment::alone(0..20);
        let behind = |rows| Segment { rows, before: std::iter::once(0..20).collect() };
        let mut segments =
            vec![prefix, behind(20..30), behind(30..46), behind(46..55), Segment::alone(55..70)];
        assert_eq!(groups(&segments, 2, 1 << 20), [vec![0], vec![1, 2, 3], vec![4]]);
        // 2 heads, 16 rows of 36 keys: two of them fit, and never less than one.
        assert_eq!(groups(&segments, 2, 2 * 2 * 16 * 36)[1..], [vec![1, 2], vec![3], vec![4]]);
        assert_eq!(groups(&segments, 2, 0).len(), 5);
        // Long ones only with those that are as long.
        segments.extend([Segment::alone(70..670), Segment::alone(670..1270)]);
        segments.push(Segment::alone(1270..1871));
        assert_eq!(groups(&segments, 2, 1 << 22)[3..], [vec![5, 6], vec![7]]);
    }
}
