//! The model's own tensors that train: f32 values, gradients or moments.

use std::collections::BTreeMap;

use super::Decoder;
use crate::train::backend::BackendError;
use crate::train::backend::{Backend, Outcome};
use crate::train::model::error::LoadModelError;
use crate::train::model::tensors::{ModelPart, ModelTensor, NamedTensors};
use crate::train::model::weights::WeightSource;

/// A matrix for each tensor of the model that trains, in the decoder's layout.
pub struct TrainableTensors<B: Backend> {
    /// By the tensor's index; `None` where it is frozen.
    matrices: Vec<Option<B::Matrix>>,
}

impl<B: Backend> TrainableTensors<B> {
    /// The values of the `selected` tensors as `weights` has them.
    pub fn read(
        decoder: &Decoder<B>,
        weights: &dyn WeightSource,
        selected: &[bool],
    ) -> Result<Self, LoadModelError> {
        let mut matrices = Vec::with_capacity(decoder.tensors.len());
        for (tensor, is_selected) in decoder.tensors.iter().zip(selected) {
            matrices.push(match is_selected {
                false => None,
                true => {
                    let values = tensor.values(weights)?;
                    Some(decoder.backend.matrix(tensor.rows, tensor.columns, &values)?)
                }
            });
        }
        Ok(Self { matrices })
    }

    /// Zeros in the shape of `self`: gradients or moments.
    pub fn zeros_like(&self, decoder: &Decoder<B>) -> Outcome<Self> {
        let mut matrices = Vec::with_capacity(self.matrices.len());
        for (matrix, tensor) in self.matrices.iter().zip(&decoder.tensors) {
            matrices.push(match matrix {
                None => None,
                Some(_) => Some(decoder.backend.zeros(tensor.rows, tensor.columns)?),
            });
        }
        Ok(Self { matrices })
    }

    /// The tensors that train, in the file's layout, under `prefix` and Hugging Face's names.
    pub fn named(&self, decoder: &Decoder<B>, prefix: &str) -> Outcome<NamedTensors> {
        let mut named = NamedTensors::new();
        for (tensor, matrix) in self.each(decoder) {
            let values = tensor.in_file(decoder.backend.values(matrix)?);
            named.insert(format!("{prefix}{}", tensor.name), (tensor.shape(), values));
        }
        Ok(named)
    }

    /// Tensors with the same indexes from the file's layout; others of `tensors` are ignored. Also returns how many
    /// were used.
    ///
    /// # Errors
    /// One that is missing or has another shape, by name.
    pub fn from_named(
        &self,
        decoder: &Decoder<B>,
        prefix: &str,
        tensors: &NamedTensors,
    ) -> Outcome<(Self, usize)> {
        let mut matrices = Vec::with_capacity(self.matrices.len());
        let mut used = 0;
        for (matrix, tensor) in self.matrices.iter().zip(&decoder.tensors) {
            if matrix.is_none() {
                matrices.push(None);
                continue;
            }
            let key = format!("{prefix}{}", tensor.name);
            let Some(found) = tensors.get(&key) else {
                return Err(BackendError::Tensors(format!("{key:?} is missing")));
            };
            let values = tensor.taken(&key, found)?;
            matrices.push(Some(decoder.backend.matrix(tensor.rows, tensor.columns, &values)?));
            used += 1;
        }
        Ok((Self { matrices }, used))
    }

    /// Number of parameters.
    pub fn parameters(&self, decoder: &Decoder<B>) -> u64 {
        self.each(decoder).map(|(tensor, _)| tensor.elements() as u64).sum()
    }

    /// Whether no tensor trains.
    pub fn is_empty(&self) -> bool {
        self.matrices.iter().all(Option::is_none)
    }

    /// Mean |W - W0| over the trained tensors of each layer, where `weights` holds W0.
    pub fn mean_change_by_layer(
        &self,
        decoder: &Decoder<B>,
        weights: &dyn WeightSource,
    ) -> Result<Vec<(u32, f64)>, LoadModelError> {
        let mut sums: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        for (tensor, matrix) in self.each(decoder) {
            let ModelPart::Block(layer) = tensor.part else { continue };
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

    /// The matrix of a tensor that trains.
    pub(super) fn get(&self, index: usize) -> Option<&B::Matrix> {
        self.matrices[index].as_ref()
    }

    /// The matrix of a tensor that trains.
    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut B::Matrix> {
        self.matrices[index].as_mut()
    }

    /// The matrices of all tensors that train, in order.
    pub(super) fn matrices(&self) -> impl Iterator<Item = &B::Matrix> {
        self.matrices.iter().flatten()
    }

    /// The matrices of all tensors that train, in order.
    pub(super) fn matrices_mut(&mut self) -> impl Iterator<Item = &mut B::Matrix> {
        self.matrices.iter_mut().flatten()
    }

    /// Every tensor that trains, with its matrix.
    fn each<'a>(
        &'a self,
        decoder: &'a Decoder<B>,
    ) -> impl Iterator<Item = (&'a ModelTensor, &'a B::Matrix)> {
        let both = decoder.tensors.iter().zip(&self.matrices);
        both.filter_map(|(tensor, matrix)| matrix.as_ref().map(|matrix| (tensor, matrix)))
    }
}
