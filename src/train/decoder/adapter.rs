//! A LoRA adapter of a decoder (Hu et al. 2021): a pair of matrices for each adapted layer, and an
//! embedding and a head of its own where these train adapters them.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use super::Decoder;
use crate::train::backend::BackendError;
use crate::train::backend::{Backend, LoraPair, Outcome};
use crate::train::model::lora::LoraSettings;
use crate::train::model::tensors::ModelPart;
use crate::train::model::tensors::NamedTensors;
use crate::train::rng::Stream;

/// Adapter tensors of one model on a device; the same shape holds gradients and moments.
pub struct LoraAdapter<B: Backend> {
    /// One for each of the decoder's modules; `None` where the layer is not adapted.
    pub(in crate::train) pairs: Vec<Option<LoraPair<B>>>,
    /// Factor on the output.
    pub(super) scale: f32,
    /// Share of the inputs that training drops.
    pub(super) dropout: f32,
    /// Replaces the model's embedding.
    pub(super) embedding: Option<B::Weight>,
    /// Replaces the model's head.
    pub(super) head: Option<B::Weight>,
}

/// An adapter for inference: its pairs are packed once for all steps.
pub struct PackedAdapter<B: Backend> {
    /// One for each of the decoder's modules; `None` where the layer is not adapted.
    pub(super) pairs: Vec<Option<B::PackedLora>>,
    /// Replaces the model's embedding.
    pub(super) embedding: Option<B::Weight>,
    /// Replaces the model's head.
    pub(super) head: Option<B::Weight>,
}

impl<B: Backend> PackedAdapter<B> {
    /// Packs an adapter's pairs.
    pub fn new(decoder: &Decoder<B>, adapter: LoraAdapter<B>) -> Outcome<Self> {
        let LoraAdapter { pairs, scale, dropout: _, embedding, head } = adapter;
        let mut packed = Vec::with_capacity(pairs.len());
        for pair in &pairs {
            packed.push(match pair {
                Some(pair) => Some(decoder.backend().pack_lora(pair, scale)?),
                None => None,
            });
        }
        Ok(Self { pairs: packed, embedding, head })
    }
}

/// PEFT's prefix of the paths of a model's modules in `adapter_model.safetensors`.
pub(super) const PREFIX: &str = "base_model.model.";

/// The key of A (or B) of `module` in PEFT's `adapter_model.safetensors`.
fn key(module: &str, matrix: &str) -> String {
    format!("{PREFIX}{module}.lora_{matrix}.weight")
}

impl<B: Backend> LoraAdapter<B> {
    /// A fresh adapter of the `selected` modules, which does not change the model yet: A uniform in ±1/√inputs (PEFT's
    /// `kaiming_uniform_(a=√5)`), B zero. Each tensor has its own random stream, so that none
    /// depends on the others.
    pub fn new(
        decoder: &Decoder<B>,
        settings: &LoraSettings,
        selected: &[bool],
        seed: u64,
    ) -> Outcome<Self> {
        let backend = decoder.backend();
        let mut pairs = Vec::with_capacity(decoder.modules().len());
        for (module, is_adapted) in decoder.modules().iter().zip(selected) {
            if !is_adapted {
                pairs.push(None);
                continue;
            }
            let stream = Stream::new(seed, &key(&module.module, "A"), 0);
            let bound = 1.0 / (module.inputs as f32).sqrt();
            let values: Vec<f32> = (0..settings.rank * module.inputs)
                .map(|index| (2.0 * stream.unit(index as u64) - 1.0) * bound)
                .collect();
            pairs.push(Some(LoraPair {
                a: backend.matrix(settings.rank, module.inputs, &values)?,
                b: backend.zeros(module.outputs, settings.rank)?,
            }));
        }
        Ok(Self::of_pairs(pairs, settings))
    }

    fn of_pairs(pairs: Vec<Option<LoraPair<B>>>, settings: &LoraSettings) -> Self {
        let (scale, dropout) = (settings.scale(), settings.dropout as f32);
        Self { pairs, scale, dropout, embedding: None, head: None }
    }

    /// Zeros in the shape of the pairs: gradients or moments.
    pub fn zeros_like(&self, decoder: &Decoder<B>) -> Outcome<Self> {
        let backend = decoder.backend();
        let mut pairs = Vec::with_capacity(self.pairs.len());
        for (pair, module) in self.pairs.iter().zip(decoder.modules()) {
            pairs.push(match pair {
                None => None,
                Some(pair) => {
                    let rank = backend.rows(&pair.a);
                    let a = backend.zeros(rank, module.inputs)?;
                    Some(LoraPair { a, b: backend.zeros(module.outputs, rank)? })
                }
            });
        }
        let (scale, dropout) = (self.scale, self.dropout);
        Ok(Self { pairs, scale, dropout, embedding: None, head: None })
    }

    /// The pairs' tensors under PEFT's keys.
    pub fn named(&self, decoder: &Decoder<B>) -> Outcome<NamedTensors> {
        let backend = decoder.backend();
        let mut named = NamedTensors::new();
        for (pair, module) in self.pairs.iter().zip(decoder.modules()) {
            let Some(pair) = pair else { continue };
            let rank = backend.rows(&pair.a);
            let a = (vec![rank, module.inputs], backend.values(&pair.a)?);
            let b = (vec![module.outputs, rank], backend.values(&pair.b)?);
            named.insert(key(&module.module, "A"), a);
            named.insert(key(&module.module, "B"), b);
        }
        Ok(named)
    }

    /// An adapter for inference, from tensors under PEFT's keys. Layers without tensors are not adapted. A
    /// layer with only one of its two tensors, another shape, or a key that names no layer is an error.
    pub fn from_named(
        decoder: &Decoder<B>,
        settings: &LoraSettings,
        tensors: &NamedTensors,
    ) -> Outcome<Self> {
        let (mut made, mut used) = Self::pairs_from_named(decoder, settings, tensors)?;
        for tensor in decoder.tensors() {
            let slot = match tensor.part {
                ModelPart::Embedding if !decoder.config().tied => &mut made.embedding,
                ModelPart::Head => &mut made.head,
                _ => continue,
            };
            let key = format!("{PREFIX}{}", tensor.name);
            let Some(found) = tensors.get(&key) else { continue };
            let values = tensor.taken(&key, found)?;
            let (rows, columns) = (tensor.rows, tensor.columns);
            *slot = Some(decoder.backend().weight(rows, columns, &values, None, false)?);
            used += 1;
        }
        if used != tensors.len() {
            return Err(BackendError::Tensors(unknown_tensor(decoder, tensors)));
        }
        if used == 0 {
            return Err(BackendError::Tensors("it holds no tensors".to_owned()));
        }
        Ok(made)
    }

    /// The pairs from tensors under PEFT's keys, and the number of tensors used.
    pub(super) fn pairs_from_named(
        decoder: &Decoder<B>,
        settings: &LoraSettings,
        tensors: &NamedTensors,
    ) -> Outcome<(Self, usize)> {
        let backend = decoder.backend();
        let mut pairs = Vec::with_capacity(decoder.modules().len());
        let mut used = 0;
        for module in decoder.modules() {
            let (key_a, key_b) = (key(&module.module, "A"), key(&module.module, "B"));
            let (a, b) = match (tensors.get(&key_a), tensors.get(&key_b)) {
                (None, None) => {
                    pairs.push(None);
                    continue;
                }
                (Some(a), Some(b)) => (a, b),
                (None, Some(_)) => return Err(missing(&key_a)),
                (Some(_), None) => return Err(missing(&key_b)),
            };
            let wanted = [[settings.rank, module.inputs], [module.outputs, settings.rank]];
            for ((key, found), wanted) in [(&key_a, a), (&key_b, b)].into_iter().zip(wanted) {
                if found.0 != wanted || found.1.len() != wanted[0] * wanted[1] {
                    return Err(BackendError::Tensors(format!(
                        "{key:?} has shape {:?} instead of {wanted:?}",
                        found.0
                    )));
                }
            }
            used += 2;
            pairs.push(Some(LoraPair {
                a: backend.matrix(settings.rank, module.inputs, &a.1)?,
                b: backend.matrix(module.outputs, settings.rank, &b.1)?,
            }));
        }
        Ok((Self::of_pairs(pairs, settings), used))
    }

    /// Number of the pairs' parameters.
    pub fn parameters(&self, decoder: &Decoder<B>) -> u64 {
        let mut count = 0;
        for (pair, module) in self.pairs.iter().zip(decoder.modules()) {
            if let Some(pair) = pair {
                count += decoder.backend().rows(&pair.a) * (module.inputs + module.outputs);
            }
        }
        count as u64
    }

    /// Mean |scale · B · A| over the adapted weights of each layer.
    pub fn mean_change_by_layer(&self, decoder: &Decoder<B>) -> Outcome<Vec<(u32, f64)>> {
        let backend = decoder.backend();
        let mut sums: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
        for (pair, module) in self.pairs.iter().zip(decoder.modules()) {
            let Some(pair) = pair else { continue };
            let (a, b) = (backend.values(&pair.a)?, backend.values(&pair.b)?);
            let layer = sums.entry(module.layer).or_default();
            layer.0 += sum_of_product(&a, &b, module.inputs) * f64::from(self.scale.abs());
            layer.1 += (module.outputs * module.inputs) as f64;
        }
        Ok(sums.into_iter().map(|(layer, (sum, count))| (layer, sum / count)).collect())
    }

    /// Every pair that is there.
    pub(in crate::train) fn pairs_mut(&mut self) -> impl Iterator<Item = &mut LoraPair<B>> {
        self.pairs.iter_mut().flatten()
    }

    /// Every pair that is there.
    pub(in crate::train) fn pairs(&self) -> impl Iterator<Item = &LoraPair<B>> {
        self.pairs.iter().flatten()
    }
}

/// Σ |B · A| over all elements, for `a` of `[rank, inputs]` and `b` of `[outputs, rank]`.
fn sum_of_product(a: &[f32], b: &[f32], inputs: usize) -> f64 {
    let rank = a.len() / inputs.max(1);
    let row_sum = |row: &[f32]| {
        let mut product = vec![0.0f32; inputs];
        for (factor, a) in row.iter().zip(a.chunks_exact(inputs)) {
            for (product, a) in product.iter_mut().zip(a) {
                *product += factor * a;
            }
        }
        product.iter().map(|value| f64::from(value.abs())).sum::<f64>()
    };
    // Collected in order, so that the sum does not depend on the threads.
    let rows: Vec<f64> = b.par_chunks_exact(rank.max(1)).map(row_sum).collect();
    rows.iter().sum()
}

/// The error of tensors of which some are not used.
pub(super) fn unknown_tensor<B: Backend>(decoder: &Decoder<B>, tensors: &NamedTensors) -> String {
    let of_pairs = decoder.modules().iter().map(|module| &module.module);
    let of_pairs = of_pairs.flat_map(|module| [key(module, "A"), key(module, "B")]);
    let known: BTreeSet<String> =
        of_pairs.chain(decoder.tensors().iter().map(|tensor| tensor.name.clone())).collect();
    match tensors.keys().find(|key| !known.contains(*key)) {
        Some(key) => format!("{key:?} names no layer of the model"),
        None => "there are tensors of layers that do not train".to_owned(),
    }
}

fn missing(key: &str) -> BackendError {
    BackendError::Tensors(format!("{key:?} is missing, though its partner is there"))
}
