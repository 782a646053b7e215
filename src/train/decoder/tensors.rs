//! The model's own tensors, where they train: values in 32 bits, gradients or moments.

use std::collections::BTreeMap;

use super::Decoder;
use crate::train::backend::{Backend, Outcome};
use crate::train::engine::{EngineError, LoadEngineError, NamedTensors};
use crate::train::weights::{LoadError, WeightSource, transposed};

/// Which part of a model a tensor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
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
    pub part: Part,
    /// Rows in the decoder: outputs of a layer, tokens of an embedding, 1 for a bias or a norm.
    pub(super) rows: usize,
    /// Columns in the decoder.
    pub(super) columns: usize,
    /// Whether the file has it the other way round (GPT-2's `Conv1D`).
    pub(super) is_transposed: bool,
    /// Whether the file has it without the dimension of its one row.
    pub(super) is_row: bool,
}

impl ModelTensor {
    /// A matrix.
    pub(super) fn matrix(name: String, part: Part, rows: usize, columns: usize) -> Self {
        let stored = name.clone();
        Self { name, stored, part, rows, columns, is_transposed: false, is_row: false }
    }

    /// A bias or the weight of a norm.
    pub(super) fn row(name: String, part: Part, columns: usize) -> Self {
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
    pub(super) fn values(&self, weights: &dyn WeightSource) -> Result<Vec<f32>, LoadError> {
        let values = weights.tensor(&self.stored)?.into_f32();
        Ok(self.in_decoder(values))
    }

    /// Its values in the decoder's layout, from the file's; `key` names it in errors.
    pub(super) fn taken(
        &self,
        key: &str,
        (shape, values): &(Vec<usize>, Vec<f32>),
    ) -> Outcome<Vec<f32>> {
        let wanted = self.shape();
        if *shape != wanted || values.len() != self.elements() {
            return Err(EngineError::Tensors(format!(
                "{key:?} has shape {shape:?} instead of {wanted:?}"
            )));
        }
        Ok(self.in_decoder(values.clone()))
    }

    fn in_decoder(&self, values: Vec<f32>) -> Vec<f32> {
        match self.is_transposed {
            true => transposed(&values, self.columns, self.rows),
            false => values,
        }
    }

    fn in_file(&self, values: Vec<f32>) -> Vec<f32> {
        match self.is_transposed {
            true => transposed(&values, self.rows, self.columns),
            false => values,
        }
    }
}

/// A matrix for each of a model's tensors that trains, in the decoder's layout.
pub struct Tensors<B: Backend> {
    /// By the tensor's place; `None` where it is frozen.
    held: Vec<Option<B::Matrix>>,
}

impl<B: Backend> Tensors<B> {
    /// The values of the `selected` tensors as `weights` has them.
    pub fn read(
        decoder: &Decoder<B>,
        weights: &dyn WeightSource,
        selected: &[bool],
    ) -> Result<Self, LoadEngineError> {
        let mut held = Vec::with_capacity(decoder.tensors.len());
        for (tensor, is_selected) in decoder.tensors.iter().zip(selected) {
            held.push(match is_selected {
                false => None,
                true => {
                    let values = tensor.values(weights)?;
                    Some(decoder.backend.matrix(tensor.rows, tensor.columns, &values)?)
                }
            });
        }
        Ok(Self { held })
    }

    /// Zeros in the shape of `self`: gradients or moments.
    pub fn zeros_like(&self, decoder: &Decoder<B>) -> Outcome<Self> {
        let mut held = Vec::with_capacity(self.held.len());
        for (matrix, tensor) in self.held.iter().zip(&decoder.tensors) {
            held.push(match matrix {
                None => None,
                Some(_) => Some(decoder.backend.zeros(tensor.rows, tensor.columns)?),
            });
        }
        Ok(Self { held })
    }

    /// Those that are held, in the file's layout, under `prefix` and Hugging Face's names.
    pub fn named(&self, decoder: &Decoder<B>, prefix: &str) -> Outcome<NamedTensors> {
        let mut named = NamedTensors::new();
        for (tensor, matrix) in self.each(decoder) {
            let values = tensor.in_file(decoder.backend.values(matrix)?);
            named.insert(format!("{prefix}{}", tensor.name), (tensor.shape(), values));
        }
        Ok(named)
    }

    /// Tensors of the same places from the file's layout; what else `tensors` holds is not looked
    /// at. How many were taken stands beside it.
    ///
    /// # Errors
    /// One that is missing or has another shape, by name.
    pub fn from_named(
        &self,
        decoder: &Decoder<B>,
        prefix: &str,
        tensors: &NamedTensors,
    ) -> Outcome<(Self, usize)> {
        let mut held = Vec::with_capacity(self.held.len());
        let mut taken = 0;
        for (matrix, tensor) in self.held.iter().zip(&decoder.tensors) {
            if matrix.is_none() {
                held.push(None);
                continue;
            }
            let key = format!("{prefix}{}", tensor.name);
            let Some(found) = tensors.get(&key) else {
                return Err(EngineError::Tensors(format!("{key:?} is missing")));
            };
            let values = tensor.taken(&key, found)?;
            held.push(Some(decoder.backend.matrix(tensor.rows, tensor.columns, &values)?));
            taken += 1;
        }
        Ok((Self { held }, taken))
    }

    /// Number of parameters.
    pub fn parameters(&self, decoder: &Decoder<B>) -> u64 {
        self.each(decoder).map(|(tensor, _)| tensor.elements() as u64).sum()
    }

    /// Whether any tensor is held.
    pub fn is_empty(&self) -> bool {
        self.held.iter().all(Option::is_none)
    }

    /// Mean |W - W0| over the tensors of each block that has some, where `weights` holds W0.
    pub fn mean_change_by_layer(
        &self,
        decoder: &Decoder<B>,
        weights: &dyn WeightSource,
    ) -> Result<Vec<(u32, f64)>, LoadEngineError> {
        let mut sums: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        for (tensor, matrix) in self.each(decoder) {
            let Part::Block(layer) = tensor.part else { continue };
            let before = tensor.values(weights)?;
            let now = decoder.backend.values(matrix)?;
            let change =
                now.iter().zip(&before).map(|(now, before)| f64::from((now - before).abs()));
            let layer = sums.entry(layer).or_default();
            layer.0 += change.sum::<f64>();
            layer.1 += now.len() as f64;
        }
        Ok(sums.into_iter().map(|(layer, (sum, count))| (layer, sum / count)).collect())
    }

    /// The matrix of a place, where it is held.
    pub(super) fn get(&self, place: usize) -> Option<&B::Matrix> {
        self.held[place].as_ref()
    }

    /// The matrix of a place, where it is held.
    pub(super) fn get_mut(&mut self, place: usize) -> Option<&mut B::Matrix> {
        self.held[place].as_mut()
    }

    /// Those that are held, in order.
    pub(super) fn matrices(&self) -> impl Iterator<Item = &B::Matrix> {
        self.held.iter().flatten()
    }

    /// Those that are held, in order.
    pub(super) fn matrices_mut(&mut self) -> impl Iterator<Item = &mut B::Matrix> {
        self.held.iter_mut().flatten()
    }

    /// Every held matrix with its tensor.
    fn each<'a>(
        &'a self,
        decoder: &'a Decoder<B>,
    ) -> impl Iterator<Item = (&'a ModelTensor, &'a B::Matrix)> {
        let both = decoder.tensors.iter().zip(&self.held);
        both.filter_map(|(tensor, matrix)| matrix.as_ref().map(|matrix| (tensor, matrix)))
    }
}
