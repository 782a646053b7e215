//! A linear layer as the kernels multiply it, for training and for answering.

use std::sync::Arc;

use rayon::prelude::*;

use super::packed::Packed;
use crate::train::backend::cpu::buffer_pool::Pool;
use crate::train::backend::cpu::isa::Isa;

/// W of `[outputs, inputs]` packed for the way forward, Wᵀ for the way back.
pub struct Weight {
    /// W.
    pub(in crate::train::backend::cpu) forward: Packed,
    /// Wᵀ, of a weight that gradients go through.
    pub(in crate::train::backend::cpu) backward: Option<Packed>,
    /// Added to each row of the result.
    pub(in crate::train::backend::cpu) bias: Option<Vec<f32>>,
}

impl Weight {
    /// For the way forward and the way back.
    pub fn to_train(
        isa: Isa,
        pool: &Arc<Pool>,
        values: &[f32],
        outputs: usize,
        inputs: usize,
    ) -> Self {
        let forward = Packed::of_rows(isa, pool, values, outputs, inputs);
        let backward = Some(Packed::of_columns(isa, pool, values, inputs, outputs));
        Self { forward, backward, bias: None }
    }

    /// W alone, in half the memory where that changes no product. With `rounds` it is rounded to
    /// bfloat16 also where the kernels multiply floats.
    pub fn to_answer(
        isa: Isa,
        pool: &Arc<Pool>,
        values: &[f32],
        outputs: usize,
        inputs: usize,
        rounds: bool,
    ) -> Self {
        let rounded: Vec<f32>;
        let values = if rounds {
            let round = |value: &f32| half::bf16::from_f32(*value).to_f32();
            rounded = values.par_iter().map(round).collect();
            &rounded
        } else {
            values
        };
        let forward = Packed::of_exact_halves(isa, pool, values, outputs, inputs)
            .unwrap_or_else(|| Packed::of_rows(isa, pool, values, outputs, inputs));
        Self { forward, backward: None, bias: None }
    }

    /// Bytes that one of this size takes, for training with `backward` (without, where no half of the
    /// memory is enough).
    pub fn bytes(isa: Isa, outputs: usize, inputs: usize, backward: bool) -> u64 {
        let back = if backward { Packed::bytes(isa, inputs, outputs) } else { 0 };
        Packed::bytes(isa, outputs, inputs) + back
    }

    /// Bytes that it takes.
    pub fn held(&self) -> u64 {
        self.forward.held() + self.backward.as_ref().map_or(0, Packed::held)
    }
}
