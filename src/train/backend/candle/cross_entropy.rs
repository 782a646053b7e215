//! Cross entropy of the head, a chunk of rows at a time.

use candle_core::{D, DType, Tensor};

use super::transfers::HostTransfers;
use super::weight::{CandleWeight, multiply, soft_capped};
use crate::train::backend::{Outcome, RowLoss};

/// Rows of logits that exist at once, where nothing else is asked for.
pub const HEAD_CHUNK: usize = 256;

/// Loss and whether the target has the largest logit (0 or 1) of each row, `[rows, 2]`; with
/// `factors` the gradient of x too, and that of the head's weight is added to `head_gradient` where it
/// is given.
pub fn head_loss(
    (transfers, head_rows): (&HostTransfers, usize),
    x: &Tensor,
    head: &CandleWeight,
    targets: &Tensor,
    soft_cap: Option<f32>,
    factors: Option<&[f32]>,
    mut head_gradient: Option<&mut Tensor>,
) -> Outcome<(Tensor, Option<Tensor>)> {
    let rows = targets.dim(0)?;
    let targets = targets.unsqueeze(1)?;
    let factors = match factors {
        Some(factors) => Some(transfers.floats(factors, (rows, 1))?),
        None => None,
    };
    let mut losses = Vec::new();
    let mut gradients = Vec::new();
    for first in (0..rows).step_by(head_rows) {
        let length = head_rows.min(rows - first);
        let targets = targets.narrow(0, first, length)?;
        let x = x.narrow(0, first, length)?;
        let logits = soft_capped(head.forward(&x)?, soft_cap)?;
        let most = logits.max_keepdim(D::Minus1)?;
        let shifted = logits.broadcast_sub(&most)?.exp()?;
        let sums = shifted.sum_keepdim(D::Minus1)?;
        let at_target = logits.gather(&targets, 1)?;
        let loss = ((sums.log()? + &most)? - &at_target)?;
        let correct = at_target.eq(&most)?.to_dtype(DType::F32)?;
        losses.push(Tensor::cat(&[loss, correct], 1)?);
        let Some(factors) = &factors else { continue };
        let probabilities = shifted.broadcast_div(&sums)?;
        drop(shifted);
        // In place: nothing else has this tensor.
        let chosen = Tensor::full(-1.0f32, at_target.shape(), at_target.device())?;
        probabilities.scatter_add_set(&targets, &chosen, 1)?;
        let mut logit_gradients =
            probabilities.broadcast_mul(&factors.narrow(0, first, length)?)?;
        drop(probabilities);
        if let Some(cap) = soft_cap {
            logit_gradients = (logit_gradients * (1.0 - (logits / f64::from(cap))?.sqr()?)?)?;
        }
        if let Some(into) = &mut head_gradient {
            **into = (&**into + logit_gradients.t()?.matmul(&x)?)?;
        }
        gradients.push(multiply(&logit_gradients, &head.weight)?);
    }
    let gradient = match factors {
        Some(_) => Some(Tensor::cat(&gradients, 0)?),
        None => None,
    };
    Ok((Tensor::cat(&losses, 0)?, gradient))
}

/// The numbers of [`head_loss`] on the host.
pub fn read(transfers: &HostTransfers, losses: &Tensor) -> Outcome<Vec<RowLoss>> {
    let values = transfers.read(losses)?;
    let (rows, _) = values.as_chunks::<2>();
    let of = |[loss, correct]: &[f32; 2]| RowLoss { loss: *loss, correct: *correct == 1.0 };
    Ok(rows.iter().map(of).collect())
}
