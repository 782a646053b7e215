//! Attention over packed batches, segment by segment.

use candle_core::Tensor;

use super::CandleBackend;
use crate::train::backend::{AttentionOps, AttentionShape, Outcome, Segment};

/// The rows of a segment and of its prefix, in the order of the sequence.
fn seen_rows(matrix: &Tensor, segment: &Segment) -> Outcome<Tensor> {
    let mut parts = Vec::with_capacity(1 + segment.before.len());
    for rows in segment.seen() {
        parts.push(matrix.narrow(0, rows.start, rows.len())?);
    }
    match &parts[..] {
        [only] => Ok(only.clone()),
        _ => Ok(Tensor::cat(&parts, 0)?),
    }
}

impl AttentionOps for CandleBackend {
    fn attention(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<(Tensor, Tensor)> {
        let mut outputs = Vec::with_capacity(segments.len());
        for segment in segments {
            let queries = queries.narrow(0, segment.rows.start, segment.rows.len())?;
            let parts = [&queries, &seen_rows(keys, segment)?, &seen_rows(values, segment)?];
            outputs.push(self.attention.forward(&self.transfers, parts, shape)?);
        }
        let output = Tensor::cat(&outputs, 0)?;
        // The way back wants nothing more.
        Ok((output.clone(), output))
    }

    fn attention_backward(
        &self,
        gradient: &Tensor,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        _output: &Tensor,
        _saved: &Tensor,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<[Tensor; 3]> {
        let mut query_gradients = Vec::with_capacity(segments.len());
        // Gradients of each segment's own rows, which later segments that see them add to.
        let mut others: Vec<[Tensor; 2]> = Vec::with_capacity(segments.len());
        for segment in segments {
            let own = |matrix: &Tensor| matrix.narrow(0, segment.rows.start, segment.rows.len());
            let parts = [&own(queries)?, &seen_rows(keys, segment)?, &seen_rows(values, segment)?];
            let gradient = own(gradient)?;
            let [queries, keys, values] =
                self.attention.backward(&self.transfers, &gradient, parts, shape)?;
            query_gradients.push(queries);
            let mut first = 0;
            for rows in segment.seen() {
                let part = |matrix: &Tensor| matrix.narrow(0, first, rows.len());
                let made = [part(&keys)?, part(&values)?];
                first += rows.len();
                match segments[..others.len()].iter().position(|earlier| earlier.rows == rows) {
                    Some(earlier) => {
                        for (into, more) in others[earlier].iter_mut().zip(made) {
                            *into = (&*into + more)?;
                        }
                    }
                    None => others.push(made),
                }
            }
        }
        let [keys, values] = [0, 1].map(|which| {
            let parts: Vec<&Tensor> = others.iter().map(|two| &two[which]).collect();
            Tensor::cat(&parts, 0)
        });
        Ok([Tensor::cat(&query_gradients, 0)?, keys?, values?])
    }
}
