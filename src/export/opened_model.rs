//! A fine-tuned model, opened for export: a base model with an adapter, or a whole model.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;

use super::error::ExportError;
use super::format::ExportFormat;
use crate::artifacts::model::WeightType;
use crate::artifacts::peft::{self, AdapterConfig, AdapterTensors};
use crate::train::decoder::{FileTensor, tensors_of};
use crate::train::model::base_model::BaseModel;
use crate::train::model::config::ModelConfig;
use crate::train::model::kept_template::KeptTemplate;
use crate::train::model::lora::LoraSettings;
use crate::train::model::weights::TensorData;

/// The prefix of module paths in PEFT's keys.
const PREFIX: &str = "base_model.model.";

/// A fine-tuned model and its base model.
pub struct OpenedModel {
    /// Its name, `ft:…`.
    pub name: String,
    /// The base model, or the whole model itself.
    pub base: BaseModel,
    /// The configuration of the base model.
    pub config: ModelConfig,
    /// The tensors of the base model.
    pub tensors: Vec<FileTensor>,
    /// `None` for a whole model.
    adapter: Option<OpenedAdapter>,
}

/// An adapter that has been read and matches its base model.
pub struct OpenedAdapter {
    /// Its configuration.
    pub config: AdapterConfig,
    /// Its tensors under PEFT's keys.
    pub tensors: AdapterTensors,
    /// Scale of B · A.
    pub scale: f32,
    /// Rank.
    pub rank: usize,
}

/// The LoRA matrices of one layer.
pub struct AdapterPair<'a> {
    /// `[rank, inputs]`.
    pub a: &'a [f32],
    /// `[outputs, rank]`.
    pub b: &'a [f32],
    /// Width of the layer's output.
    pub outputs: usize,
    /// Width of the layer's input.
    pub inputs: usize,
}

impl OpenedModel {
    /// Opens the model `name`. `base` is the base model's folder or file, `adapter` the folder
    /// of an adapter in PEFT's layout; without one the base is the whole model. Its chat template is the one
    /// that it was trained with.
    ///
    /// # Errors
    /// Files that cannot be read, tensors that do not match.
    pub fn open(name: &str, base: &Path, adapter: Option<&Path>) -> Result<Self, ExportError> {
        let mut base = BaseModel::open(base)?;
        if let Some(folder) = adapter {
            base.use_kept(KeptTemplate::of_adapter(folder)?)?;
        }
        let config = ModelConfig::read(&base.config)?;
        let tensors = tensors_of(&config, base.weights.as_ref())?;
        let adapter = match adapter {
            Some(folder) => Some(OpenedAdapter::read(folder, &tensors)?),
            None => None,
        };
        Ok(Self { name: name.to_owned(), base, config, tensors, adapter })
    }

    /// The adapter; an error for a whole model.
    pub(super) fn adapter(&self, format: ExportFormat) -> Result<&OpenedAdapter, ExportError> {
        self.adapter.as_ref().ok_or_else(|| ExportError::no_adapter(&self.name, format))
    }

    /// The type of the base model's weights: that of its largest tensor. Of a quantised GGUF file it is float32,
    /// which holds each value as it is.
    pub(super) fn weight_type(&self) -> Result<WeightType, ExportError> {
        let size = |tensor: &&FileTensor| tensor.shape.iter().product::<usize>();
        let Some(largest) = self.tensors.iter().max_by_key(size) else {
            return Ok(WeightType::Float32);
        };
        Ok(match self.base.weights.tensor(&largest.stored)?.data {
            TensorData::F32(_) => WeightType::Float32,
            TensorData::Bf16(_) => WeightType::Bfloat16,
            TensorData::F16(_) => WeightType::Float16,
        })
    }

    /// The elements of a tensor in the base model's layout, merged with the adapter: plus scale · B · A in
    /// 32 bits where the adapter has a LoRA pair, or replaced where it has the tensor in full.
    pub(super) fn merged_values(&self, tensor: &FileTensor) -> Result<Vec<f32>, ExportError> {
        let Some(adapter) = &self.adapter else {
            return Ok(self.base.weights.tensor(&tensor.stored)?.into_f32());
        };
        if let Some((_, values)) = adapter.tensors.get(&format!("{PREFIX}{}", tensor.name)) {
            return Ok(values.clone());
        }
        let mut values = self.base.weights.tensor(&tensor.stored)?.into_f32();
        if let Some(pair) = adapter.pair(tensor) {
            add_lora(&mut values, &pair, adapter.scale, tensor.is_transposed);
        }
        Ok(values)
    }
}

impl OpenedAdapter {
    fn read(folder: &Path, of_base: &[FileTensor]) -> Result<Self, ExportError> {
        let (config, tensors) = peft::read(
            &std::fs::read(folder.join(peft::CONFIG_FILE))?,
            &std::fs::read(folder.join(peft::WEIGHTS_FILE))?,
        )?;
        let lora = LoraSettings::of_peft(&config);
        let adapter = Self { config, tensors, scale: lora.scale(), rank: lora.rank };
        adapter.check(of_base)?;
        Ok(adapter)
    }

    /// Checks that each tensor of the adapter matches the base model in name and shape.
    fn check(&self, of_base: &[FileTensor]) -> Result<(), ExportError> {
        let mut wanted = BTreeMap::new();
        for tensor in of_base {
            wanted.insert(format!("{PREFIX}{}", tensor.name), tensor.shape.clone());
            if let (Some(module), Some((outputs, inputs))) = (module(tensor), sides(tensor)) {
                wanted.insert(key(module, "A"), vec![self.rank, inputs]);
                wanted.insert(key(module, "B"), vec![outputs, self.rank]);
            }
        }
        for (name, (shape, _)) in &self.tensors {
            match wanted.get(name) {
                Some(wanted) if wanted == shape => {}
                Some(wanted) => {
                    let what = format!("{name:?} has shape {shape:?} instead of {wanted:?}");
                    return Err(ExportError::Mismatch(what));
                }
                None => {
                    let what = format!("{name:?} names nothing of the base model");
                    return Err(ExportError::Mismatch(what));
                }
            }
            for (one, other) in [("A", "B"), ("B", "A")] {
                let partner = name.strip_suffix(&format!(".lora_{one}.weight"));
                let partner = partner.map(|module| format!("{module}.lora_{other}.weight"));
                if let Some(partner) = partner.filter(|key| !self.tensors.contains_key(key)) {
                    let what = format!("{partner:?} is missing, though its partner is there");
                    return Err(ExportError::Mismatch(what));
                }
            }
        }
        Ok(())
    }

    /// The LoRA pair of a weight, if there is one.
    pub(super) fn pair(&self, tensor: &FileTensor) -> Option<AdapterPair<'_>> {
        let module = module(tensor)?;
        let (outputs, inputs) = sides(tensor)?;
        let (_, a) = self.tensors.get(&key(module, "A"))?;
        let (_, b) = self.tensors.get(&key(module, "B"))?;
        Some(AdapterPair { a, b, outputs, inputs })
    }

    /// The names of tensors that it has in full (PEFT's `modules_to_save`).
    pub(super) fn full_tensors(&self) -> impl Iterator<Item = &str> {
        let names = self.tensors.keys().filter(|key| !key.contains(".lora_"));
        names.map(|key| key.strip_prefix(PREFIX).unwrap_or(key))
    }
}

/// The module of a weight.
fn module(tensor: &FileTensor) -> Option<&str> {
    tensor.name.strip_suffix(".weight")
}

/// Outputs and inputs of a layer's weight.
fn sides(tensor: &FileTensor) -> Option<(usize, usize)> {
    match (&tensor.shape[..], tensor.is_transposed) {
        (&[outputs, inputs], false) => Some((outputs, inputs)),
        (&[inputs, outputs], true) => Some((outputs, inputs)),
        _ => None,
    }
}

/// The key of A (or B) of `module` in PEFT's `adapter_model.safetensors`.
fn key(module: &str, matrix: &str) -> String {
    format!("{PREFIX}{module}.lora_{matrix}.weight")
}

/// Adds scale · B · A to a weight, which may be stored as `[inputs, outputs]`.
fn add_lora(weight: &mut [f32], pair: &AdapterPair<'_>, scale: f32, is_transposed: bool) {
    let AdapterPair { a, b, outputs, inputs } = *pair;
    let rank = a.len() / inputs.max(1);
    // Rows of the stored matrix: of the product, or of its transpose Aᵀ · Bᵀ.
    let width = if is_transposed { outputs } else { inputs };
    weight.par_chunks_mut(width.max(1)).enumerate().for_each(|(row, weight)| {
        let mut sum = vec![0.0f32; width];
        for r in 0..rank {
            match is_transposed {
                false => {
                    let factor = b[row * rank + r];
                    for (sum, a) in sum.iter_mut().zip(&a[r * inputs..][..inputs]) {
                        *sum += factor * a;
                    }
                }
                true => {
                    let factor = a[r * inputs + row];
                    for (sum, b) in sum.iter_mut().zip(b.iter().skip(r).step_by(rank)) {
                        *sum += factor * b;
                    }
                }
            }
        }
        for (weight, sum) in weight.iter_mut().zip(&sum) {
            *weight += scale * sum;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scaled_product_is_added_in_either_layout_of_the_weight() {
        // B of [3, 2], A of [2, 2].
        let (a, b) = ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        let pair = AdapterPair { a: &a, b: &b, outputs: 3, inputs: 2 };
        let mut weight = [1.0; 6];
        add_lora(&mut weight, &pair, 0.5, false);
        assert_eq!(weight, [1.5, 2.0, 2.5, 3.0, 3.0, 4.0]);
        let mut weight = [1.0; 6];
        add_lora(&mut weight, &pair, 0.5, true);
        assert_eq!(weight, [1.5, 2.5, 3.0, 2.0, 3.0, 4.0]);
    }
}
