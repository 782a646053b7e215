//! The model's own tensors, where they train: values in 32 bits, gradients or moments.

use std::collections::BTreeMap;

use super::Decoder;
use crate::train::backend::BackendError;
use crate::train::backend::{Backend, Outcome};
use crate::train::model::error::LoadModelError;
use crate::train::model::tensors::{ModelPart, ModelTensor, NamedTensors};
use crate::train::model::weights::WeightSource;

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
    ) -> Result<Self, LoadModelError> {
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
                return Err(BackendError::Tensors(format!("{key:?} is missing")));
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
