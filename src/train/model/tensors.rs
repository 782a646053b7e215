//! The tensors of a model: their names and shapes in its files and in the decoder.

use std::collections::BTreeMap;

use super::error::LoadError;
use super::weights::{WeightSource, transposed};
use crate::train::backend::{BackendError, Outcome};

/// What trains, or its gradients or moments: shape and row-major values, beside LoRA under the keys
/// of PEFT's `adapter_model.safetensors`, else under Hugging Face's names and in their layouts.
pub type NamedTensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Which part of a model a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelPart {
    /// The embedding, which is the head as well in a tied model.
    Embedding,
    /// Learned positions.
    Positions,
    /// The block of this index.
    Block(u32),
    /// The norm behind the last block.
    FinalNorm,
    /// A head of its own.
    Head,
}

/// One tensor of a model, in its file and in the decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelTensor {
    /// Hugging Face's name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Its name in the file at hand.
    pub stored: String,
    /// What it belongs to.
    pub part: ModelPart,
    /// Rows in the decoder: outputs of a layer, tokens of an embedding, 1 for a bias or a norm.
    pub(in crate::train) rows: usize,
    /// Columns in the decoder.
    pub(in crate::train) columns: usize,
    /// Whether the file has it the other way round (GPT-2's `Conv1D`).
    pub(in crate::train) is_transposed: bool,
    /// Whether the file has it without the dimension of its one row.
    pub(in crate::train) is_row: bool,
}

impl ModelTensor {
    /// A matrix.
    pub(in crate::train) fn matrix(
        name: String,
        part: ModelPart,
        rows: usize,
        columns: usize,
    ) -> Self {
        let stored = name.clone();
        Self { name, stored, part, rows, columns, is_transposed: false, is_row: false }
    }

    /// A bias or the weight of a norm.
    pub(in crate::train) fn row(name: String, part: ModelPart, columns: usize) -> Self {
        Self { is_row: true, ..Self::matrix(name, part, 1, columns) }
    }

    /// Its module: its name without `.weight` or `.bias`.
    pub fn module(&self) -> &str {
        self.name.rsplit_once('.').map_or(&self.name, |(module, _)| module)
    }

    /// Number of its elements.
    pub fn elements(&self) -> usize {
        self.rows * self.columns
    }

    /// Its shape in the file.
    pub fn shape(&self) -> Vec<usize> {
        match (self.is_row, self.is_transposed) {
            (true, _) => vec![self.columns],
            (false, true) => vec![self.columns, self.rows],
            (false, false) => vec![self.rows, self.columns],
        }
    }

    /// Reads its values, in the decoder's layout.
    pub(in crate::train) fn values(
        &self,
        weights: &dyn WeightSource,
    ) -> Result<Vec<f32>, LoadError> {
        let values = weights.tensor(&self.stored)?.into_f32();
        Ok(self.in_decoder(values))
    }

    /// Its values in the decoder's layout, from the file's; `key` names it in errors.
    pub(in crate::train) fn taken(
        &self,
        key: &str,
        (shape, values): &(Vec<usize>, Vec<f32>),
    ) -> Outcome<Vec<f32>> {
        let wanted = self.shape();
        if *shape != wanted || values.len() != self.elements() {
            return Err(BackendError::Tensors(format!(
                "{key:?} has shape {shape:?} instead of {wanted:?}"
            )));
        }
        Ok(self.in_decoder(values.clone()))
    }

    pub(in crate::train) fn in_decoder(&self, values: Vec<f32>) -> Vec<f32> {
        match self.is_transposed {
            true => transposed(&values, self.columns, self.rows),
            false => values,
        }
    }

    pub(in crate::train) fn in_file(&self, values: Vec<f32>) -> Vec<f32> {
        match self.is_transposed {
            true => transposed(&values, self.rows, self.columns),
            false => values,
        }
    }
}
