//! Attention over packed batches, a group of segments at a time.

use candle_core::Tensor;

use super::CandleBackend;
use crate::train::backend::{AttentionOps, AttentionShape, Outcome, Segment};

impl AttentionOps for CandleBackend {
    fn attention(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<(Tensor, Tensor)> {
        let grouped = self.grouped(segments, shape)?;
        let queries = grouped.queries(queries)?;
        let (keys, values) = (grouped.keys(keys)?, grouped.keys(values)?);
        let mut outputs = Vec::with_capacity(grouped.groups.len());
        let mut next = (0, 0);
        for group in &grouped.groups {
            let (rows, seen) = (group.count * group.length, group.count * group.keys());
            let parts = [
                &queries.narrow(0, next.0, rows)?,
                &keys.narrow(0, next.1, seen)?,
                &values.narrow(0, next.1, seen)?,
            ];
            outputs.push(self.attention.forward(&self.transfers, parts, group.count, shape)?);
            next = (next.0 + rows, next.1 + seen);
        }
        let output = grouped.batch_of_queries(&outputs)?;
        // The way back wants nothing more.
        Ok((output.clone(), output))
    }

    fn attention_backward(
        &self,
        gradient: &Tensor,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        output: &Tensor,
        _saved: &Tensor,
        segments: &[Segment],
        shape: &AttentionShape,
    ) -> Outcome<[Tensor; 3]> {
        let grouped = self.grouped(segments, shape)?;
        let along = along_output(gradient, output, shape)?;
        let (gradient, along) = (grouped.queries(gradient)?, grouped.queries(&along)?);
        let queries = grouped.queries(queries)?;
        let (keys, values) = (grouped.keys(keys)?, grouped.keys(values)?);
        let mut made: [Vec<Tensor>; 3] = Default::default();
        let mut next = (0, 0);
        for group in &grouped.groups {
            let (rows, seen) = (group.count * group.length, group.count * group.keys());
            let parts = [
                &queries.narrow(0, next.0, rows)?,
                &keys.narrow(0, next.1, seen)?,
                &values.narrow(0, next.1, seen)?,
            ];
            let gradient = &gradient.narrow(0, next.0, rows)?;
            let along = &along.narrow(0, next.0, rows)?;
            let (device, gradients) = (&self.transfers, [gradient, along]);
            let gradients =
                self.attention.backward(device, gradients, parts, group.count, shape)?;
            for (all, one) in made.iter_mut().zip(gradients) {
                all.push(one);
            }
            next = (next.0 + rows, next.1 + seen);
        }
        let [queries, keys, values] = made;
        Ok([
            grouped.batch_of_queries(&queries)?,
            grouped.batch_of_keys(&keys)?,
            grouped.batch_of_keys(&values)?,
        ])
    }
}

/// Σ gradient · output of each head, `[tokens, heads]`. It is the sum over the keys of probability times the
/// probability's gradient, which softmax subtracts on its way back (Dao et al. 2022), without a matrix of scores.
fn along_output(gradient: &Tensor, output: &Tensor, shape: &AttentionShape) -> Outcome<Tensor> {
    let tokens = gradient.dim(0)?;
    let product = (gradient * output)?.reshape((tokens, shape.heads, shape.head_dim))?;
    Ok(product.sum(2)?)
}
