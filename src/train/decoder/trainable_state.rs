//! The trainable state: a LoRA adapter, tensors of the model itself, or both. Gradients and moments have the
//! same shape.

use super::adapter::{LoraAdapter, PREFIX, unknown_tensor};
use super::trainable_tensors::TrainableTensors;
use super::{Decoder, DecoderLayer, Linear, Mlp, NormLayer, Qkv};
use crate::train::backend::BackendError;
use crate::train::backend::NormKind;
use crate::train::backend::{Backend, Outcome};
use crate::train::model::error::LoadModelError;
use crate::train::model::flops::{LayerTraining, ModelFlops, TrainableLayers};
use crate::train::model::tensors::ModelPart;
use crate::train::model::tensors::NamedTensors;
use crate::train::model::trainable::Trainable;
use crate::train::model::weights::WeightSource;

/// All trainable parameters of one model, on a device.
pub struct TrainableState<B: Backend> {
    /// `None` where the model's own tensors train alone.
    pub(super) adapter: Option<LoraAdapter<B>>,
    /// Tensors of the model itself; none of them with plain LoRA.
    pub(super) tensors: TrainableTensors<B>,
}

impl<B: Backend> TrainableState<B> {
    /// The initial state for `tuning`: a fresh adapter, the tensors as `weights` has them.
    ///
    /// # Errors
    /// A layer or tensor that the model does not have, with those that it has.
    pub fn new(
        decoder: &Decoder<B>,
        weights: &dyn WeightSource,
        tuning: &Trainable,
        seed: u64,
    ) -> Result<Self, LoadModelError> {
        let selected = tuning.select(decoder.tensors()).map_err(LoadModelError::Target)?;
        let mut adapter = None;
        if let Trainable::Lora(lora) = tuning {
            let modules = lora.target.select(decoder.modules()).map_err(LoadModelError::Target)?;
            adapter = Some(LoraAdapter::new(decoder, lora, &modules, seed)?);
        }
        let tensors = TrainableTensors::read(decoder, weights, &selected)?;
        let mut made = Self { adapter, tensors };
        made.update_adapter_weights(decoder)?;
        Ok(made)
    }

    /// Zeros in the shape of `self`: gradients or moments.
    pub fn zeros_like(&self, decoder: &Decoder<B>) -> Outcome<Self> {
        let adapter = match &self.adapter {
            Some(adapter) => Some(adapter.zeros_like(decoder)?),
            None => None,
        };
        Ok(Self { adapter, tensors: self.tensors.zeros_like(decoder)? })
    }

    /// The LoRA adapter, where there is one.
    pub fn adapter(&self) -> Option<&LoraAdapter<B>> {
        self.adapter.as_ref()
    }

    /// Whether the model's own tensors train, in the place of an adapter.
    pub fn is_in_place(&self) -> bool {
        self.adapter.is_none()
    }

    /// The prefix of Hugging Face's names: PEFT's prefix with an adapter.
    fn prefix(&self) -> &'static str {
        if self.adapter.is_some() { PREFIX } else { "" }
    }

    /// All tensors, an adapter's under PEFT's keys, otherwise under Hugging Face's names.
    pub fn named(&self, decoder: &Decoder<B>) -> Outcome<NamedTensors> {
        let mut named = self.tensors.named(decoder, self.prefix())?;
        if let Some(adapter) = &self.adapter {
            named.extend(adapter.named(decoder)?);
        }
        Ok(named)
    }

    /// Replaces every tensor; keys and shapes must be those of [`TrainableState::named`].
    pub fn replace(
        &mut self,
        decoder: &Decoder<B>,
        tuning: &Trainable,
        named: &NamedTensors,
    ) -> Outcome<()> {
        let (tensors, mut used_tensors) = self.tensors.from_named(decoder, self.prefix(), named)?;
        let mut pairs = None;
        if let (Trainable::Lora(lora), Some(adapter)) = (tuning, &self.adapter) {
            let (made, used) = LoraAdapter::pairs_from_named(decoder, lora, named)?;
            if made.parameters(decoder) != adapter.parameters(decoder) {
                return Err(BackendError::Tensors(
                    "there is not a tensor for each adapted layer".to_owned(),
                ));
            }
            used_tensors += used;
            pairs = Some(made);
        }
        if used_tensors != named.len() {
            return Err(BackendError::Tensors(unknown_tensor(decoder, named)));
        }
        (self.adapter, self.tensors) = (pairs, tensors);
        Ok(())
    }

    /// Copies the embedding and head that train beside the adapter into its weights, whenever they change.
    pub fn update_adapter_weights(&mut self, decoder: &Decoder<B>) -> Outcome<()> {
        let Some(adapter) = &mut self.adapter else { return Ok(()) };
        for (index, tensor) in decoder.tensors().iter().enumerate() {
            let Some(matrix) = self.tensors.get(index) else { continue };
            let slot = match tensor.part {
                ModelPart::Embedding => &mut adapter.embedding,
                ModelPart::Head => &mut adapter.head,
                _ => continue,
            };
            let backend = decoder.backend();
            if slot.is_none() {
                let values = backend.values(matrix)?;
                *slot = Some(backend.weight(tensor.rows, tensor.columns, &values, None, true)?);
            }
            if let Some(weight) = slot {
                backend.replace_weight(weight, Some(matrix), None)?;
            }
        }
        Ok(())
    }

    /// Number of trained parameters.
    pub fn parameters(&self, decoder: &Decoder<B>) -> u64 {
        let of_adapter = self.adapter.as_ref().map_or(0, |adapter| adapter.parameters(decoder));
        of_adapter + self.tensors.parameters(decoder)
    }

    /// Mean |ΔW| of the trained weights, by layer: what an adapter adds to a weight, or the distance of the
    /// weight from that in `weights`.
    pub fn mean_change_by_layer(
        &self,
        decoder: &Decoder<B>,
        weights: &dyn WeightSource,
    ) -> Result<Vec<(u32, f64)>, LoadModelError> {
        match &self.adapter {
            Some(adapter) => Ok(adapter.mean_change_by_layer(decoder)?),
            None => self.tensors.mean_change_by_layer(decoder, weights),
        }
    }

    /// Every matrix, always in the same order.
    pub fn matrices(&self) -> impl Iterator<Item = &B::Matrix> {
        let pairs = self.adapter.iter().flat_map(LoraAdapter::pairs);
        pairs.flat_map(|pair| [&pair.a, &pair.b]).chain(self.tensors.matrices())
    }

    /// Every matrix, in the order of [`TrainableState::matrices`].
    pub fn matrices_mut(&mut self) -> impl Iterator<Item = &mut B::Matrix> {
        let pairs = self.adapter.iter_mut().flat_map(LoraAdapter::pairs_mut);
        let pairs = pairs.flat_map(|pair| [&mut pair.a, &mut pair.b]);
        pairs.chain(self.tensors.matrices_mut())
    }
}

impl<B: Backend> Decoder<B> {
    /// Copies the trained tensors of the model itself into its weights.
    pub fn load_trained_weights(&mut self, trained: &TrainableState<B>) -> Outcome<()> {
        if !trained.is_in_place() {
            return Ok(());
        }
        let (backend, tensors) = (&self.backend, &trained.tensors);
        let values = tensors.get(self.outer_tensors.embedding);
        backend.replace_weight(&mut self.embedding, values, None)?;
        if let (Some(table), Some(place)) = (&mut self.positions, self.outer_tensors.positions) {
            backend.replace_weight(table, tensors.get(place), None)?;
        }
        for layer in &mut self.layers {
            for linear in layer.linears_mut() {
                let bias = linear.bias_tensor.and_then(|place| tensors.get(place));
                backend.replace_weight(&mut linear.weight, tensors.get(linear.tensor), bias)?;
            }
            for norm in layer.norms_mut() {
                norm.load_trained_weights(backend, tensors)?;
            }
        }
        self.final_norm.load_trained_weights(backend, tensors)?;
        if let Some(head) = &mut self.head {
            backend.replace_weight(head, tensors.get(self.outer_tensors.head), None)?;
        }
        Ok(())
    }

    /// Number of frozen layers, from the first on, with the embedding before them.
    pub fn frozen_layers(&self, trained: &TrainableState<B>) -> usize {
        if self.trains_input(trained) {
            return 0;
        }
        let has_pair = |linear: &Linear<B>| {
            trained.adapter.as_ref().is_some_and(|adapter| adapter.pairs[linear.pair].is_some())
        };
        let of_adapter =
            self.layers.iter().position(|layer| layer.linears().into_iter().any(has_pair));
        let of_tensors = self.tensors.iter().enumerate().filter_map(|(place, tensor)| {
            let ModelPart::Block(layer) = tensor.part else { return None };
            trained.tensors.get(place).map(|_| layer as usize)
        });
        of_adapter.into_iter().chain(of_tensors).min().unwrap_or(self.layers.len())
    }

    /// The FLOPs of training this state.
    pub fn cost(&self, trained: &TrainableState<B>) -> ModelFlops {
        let mut modules = Vec::with_capacity(self.modules.len());
        for linear in self.layers.iter().flat_map(DecoderLayer::linears) {
            let pair = trained.adapter.as_ref().and_then(|all| all.pairs[linear.pair].as_ref());
            modules.push(match pair {
                Some(pair) => LayerTraining::Adapted { rank: self.backend.rows(&pair.a) },
                None if trained.tensors.get(linear.tensor).is_some() => LayerTraining::Whole,
                None => LayerTraining::Frozen,
            });
        }
        let lowest_block = self.frozen_layers(trained);
        let head = trained.tensors.get(self.outer_tensors.head).is_some();
        ModelFlops::new(
            &self.config,
            &self.modules,
            &TrainableLayers { modules, lowest_block, head },
        )
    }

    /// Whether the embedding or the positions train.
    pub(super) fn trains_input(&self, trained: &TrainableState<B>) -> bool {
        let places = [Some(self.outer_tensors.embedding), self.outer_tensors.positions];
        // The embedding of a tied model counts as its input as well.
        places.into_iter().flatten().any(|place| trained.tensors.get(place).is_some())
    }
}

impl<B: Backend> NormLayer<B> {
    fn load_trained_weights(&mut self, backend: &B, tensors: &TrainableTensors<B>) -> Outcome<()> {
        if let Some(weight) = tensors.get(self.tensor) {
            let plus = if self.norm.kind == NormKind::RmsOnePlus { 1.0 } else { 0.0 };
            self.norm.weight = backend.vector_from(weight, plus)?;
        }
        if self.norm.bias.is_some()
            && let Some(bias) = tensors.get(self.tensor + 1)
        {
            self.norm.bias = Some(backend.vector_from(bias, 0.0)?);
        }
        Ok(())
    }
}

impl<B: Backend> DecoderLayer<B> {
    fn linears(&self) -> Vec<&Linear<B>> {
        let mut all = match &self.qkv {
            Qkv::Separate(three) => three.iter().collect(),
            Qkv::Fused(one, _) => vec![one],
        };
        all.push(&self.output);
        match &self.mlp {
            Mlp::Gated { gate, up, down } => all.extend([gate, up, down]),
            Mlp::FusedGated { gate_up, down } => all.extend([gate_up, down]),
            Mlp::Plain { up, down } => all.extend([up, down]),
        }
        all
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear<B>> {
        let mut all = match &mut self.qkv {
            Qkv::Separate(three) => three.iter_mut().collect(),
            Qkv::Fused(one, _) => vec![one],
        };
        all.push(&mut self.output);
        match &mut self.mlp {
            Mlp::Gated { gate, up, down } => all.extend([gate, up, down]),
            Mlp::FusedGated { gate_up, down } => all.extend([gate_up, down]),
            Mlp::Plain { up, down } => all.extend([up, down]),
        }
        all
    }

    fn norms_mut(&mut self) -> impl Iterator<Item = &mut NormLayer<B>> {
        let pairs = [&mut self.qk_norms, &mut self.post_norms];
        [&mut self.attention_norm, &mut self.mlp_norm]
            .into_iter()
            .chain(pairs.into_iter().flatten().flatten())
    }
}
