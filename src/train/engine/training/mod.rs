//! [`Engine`] as a decoder on one backend with its trainable state: micro-batches, gradient accumulation, steps.

use std::ops::Range;

use self::gradient_clip::clip_factor;
use super::{
    Engine, FrozenCache, LossSums, MicroBatch, PreferencePair, PreferenceRewards, TOKENS_AT_ONCE,
};
use crate::train::backend::AdamWStep;
use crate::train::backend::BackendError;
use crate::train::backend::{Backend, ParameterUpdate, RowLoss};
use crate::train::data::sequence::Sequence;
use crate::train::decoder::Decoder;
use crate::train::decoder::backward::LossWeights;
use crate::train::decoder::frozen_layer_cache::FrozenLayerCache;
use crate::train::decoder::pack::{self, PackedBatch};
use crate::train::decoder::trainable_state::TrainableState;
use crate::train::engine::dpo;
use crate::train::model::config::ModelConfig;
use crate::train::model::error::LoadModelError;
use crate::train::model::flops::ModelFlops;
use crate::train::model::tensors::ModelTensor;
use crate::train::model::tensors::NamedTensors;
use crate::train::model::trainable::Trainable;
use crate::train::model::weights::WeightSource;
use crate::train::rng::Stream;

mod gradient_clip;
#[cfg(all(test, feature = "cuda"))]
mod on_the_stand_in;
#[cfg(test)]
mod transfers;

/// [`Engine`] on one backend.
pub(super) struct TrainingEngine<B: Backend> {
    decoder: Decoder<B>,
    tuning: Trainable,
    seed: u64,
    trained: TrainableState<B>,
    gradients: TrainableState<B>,
    first_moments: TrainableState<B>,
    second_moments: TrainableState<B>,
    frozen: FrozenLayerCache,
    /// Most tokens of a pass beside a shared prefix.
    pass_tokens: usize,
    /// Whether the model's own weights are no longer the base's.
    has_moved: bool,
}

impl<B: Backend> TrainingEngine<B> {
    /// Loads a base model with its trainable parameters.
    pub(super) fn load(
        backend: B,
        config: ModelConfig,
        weights: &dyn WeightSource,
        tuning: &Trainable,
        seed: u64,
    ) -> Result<Self, LoadModelError> {
        if tuning.needs_weights() && !backend.trains_weights() {
            return Err(BackendError::FrozenWeights { backend: backend.name() }.into());
        }
        let mut decoder = Decoder::load(backend, config, weights, true)?;
        let trained = TrainableState::new(&decoder, weights, tuning, seed)?;
        // The device holds the values once where it can share them.
        decoder.load_trained_weights(&trained)?;
        let gradients = trained.zeros_like(&decoder)?;
        let first_moments = trained.zeros_like(&decoder)?;
        let second_moments = trained.zeros_like(&decoder)?;
        let frozen =
            FrozenLayerCache::new(decoder.frozen_layers(&trained), decoder.config().hidden);
        let (tuning, has_moved) = (tuning.clone(), false);
        Ok(Self {
            decoder,
            tuning,
            seed,
            trained,
            gradients,
            first_moments,
            second_moments,
            frozen,
            pass_tokens: TOKENS_AT_ONCE,
            has_moved,
        })
    }

    /// The same with passes of at most so many tokens.
    pub(super) fn with_pass_tokens(self, pass_tokens: usize) -> Self {
        Self { pass_tokens, ..self }
    }

    /// Refuses to run the base model when its own weights have been trained.
    fn check_base(&self, as_trained: bool) -> Result<(), BackendError> {
        match as_trained || !self.has_moved {
            true => Ok(()),
            false => Err(BackendError::BaseIsGone),
        }
    }

    /// Copies the trained values into the weights that the forward pass reads.
    fn update_weights(&mut self) -> Result<(), BackendError> {
        self.has_moved |= self.trained.is_in_place();
        self.decoder.load_trained_weights(&self.trained)?;
        self.trained.update_adapter_weights(&self.decoder)
    }

    /// Packs items of one or more sequences into micro-batches, split by
    /// [`Engine::split_into_micro_batches`]. `dropout_streams` has one stream for each sequence in order.
    fn pack(
        &self,
        items: &[&[&Sequence]],
        mut dropout_streams: impl FnMut() -> Option<Stream>,
    ) -> Result<Vec<PackedBatch>, BackendError> {
        for sequence in items.iter().copied().flatten() {
            self.decoder.check_tokens(0, &sequence.input_ids)?;
            if sequence.loss_mask.len() != sequence.input_ids.len() {
                return Err(BackendError::Sequence(format!(
                    "a loss mask of {} does not fit {} tokens",
                    sequence.loss_mask.len(),
                    sequence.input_ids.len()
                )));
            }
        }
        let mut passes = Vec::new();
        for run in self.split_into_micro_batches(items) {
            let sequences = items[run].concat();
            let dropout_streams: Vec<Stream> =
                sequences.iter().filter_map(|_| dropout_streams()).collect();
            passes.push(PackedBatch::new(&sequences, &dropout_streams));
        }
        Ok(passes)
    }

    /// Packs sequences into micro-batches, each sequence an item.
    fn pack_sequences(
        &self,
        batch: &[&Sequence],
        dropout_streams: impl FnMut() -> Option<Stream>,
    ) -> Result<Vec<PackedBatch>, BackendError> {
        let items: Vec<&[&Sequence]> = batch.chunks(1).collect();
        self.pack(&items, dropout_streams)
    }

    /// Random streams for the dropout of the sequences of a step, from number `first` on.
    fn dropout_streams(&self, step: u64, first: usize) -> impl FnMut() -> Option<Stream> + use<B> {
        let is_dropping = self.tuning.dropout() > 0.0;
        let stream = Stream::new(self.seed, "dropout", step);
        let mut next = first as u64;
        move || {
            next += 1;
            is_dropping.then(|| stream.child(next - 1))
        }
    }
}

impl<B: Backend> Engine for TrainingEngine<B> {
    fn split_into_micro_batches(&self, items: &[&[&Sequence]]) -> Vec<Range<usize>> {
        pack::split_into_micro_batches(items, self.pass_tokens, self.tuning.dropout() == 0.0)
    }

    fn accumulate(
        &mut self,
        batch: &[&Sequence],
        part: MicroBatch,
    ) -> Result<Vec<LossSums>, BackendError> {
        let mut sums = Vec::with_capacity(batch.len());
        let factor = 1.0 / part.total.max(1) as f32;
        for pass in self.pack_sequences(batch, self.dropout_streams(part.step, part.first))? {
            let losses = self.decoder.losses_and_gradients(
                &self.trained,
                &pass,
                LossWeights::Uniform(factor),
                &mut self.gradients,
                &mut self.frozen,
            )?;
            sums.extend(pass.loss_ranges.iter().map(|range| LossSums::of(&losses[range.clone()])));
        }
        Ok(sums)
    }

    fn accumulate_preferences(
        &mut self,
        batch: &[PreferencePair<'_>],
        beta: f64,
        part: MicroBatch,
    ) -> Result<Vec<PreferenceRewards>, BackendError> {
        let mut made = Vec::with_capacity(batch.len());
        let pairs = dpo::sequences(batch);
        let groups: Vec<&[&Sequence]> = pairs.iter().map(|pair| pair.as_slice()).collect();
        for pass in self.pack(&groups, self.dropout_streams(part.step, 2 * part.first))? {
            let these = &batch[made.len()..];
            let mut rewards = Vec::new();
            let mut weights_of = |losses: &[RowLoss]| {
                rewards = dpo::rewards(these, &pass.loss_ranges, losses, beta);
                dpo::factors(&rewards, &pass.loss_ranges, losses.len(), beta, part.total)
            };
            self.decoder.losses_and_gradients(
                &self.trained,
                &pass,
                LossWeights::FromLosses(&mut weights_of),
                &mut self.gradients,
                &mut self.frozen,
            )?;
            made.extend(rewards);
        }
        Ok(made)
    }

    fn evaluate(&mut self, batch: &[&Sequence]) -> Result<Vec<LossSums>, BackendError> {
        let mut sums = Vec::with_capacity(batch.len());
        for pass in self.pack_sequences(batch, || None)? {
            let adapter = self.trained.adapter();
            let losses = self.decoder.losses(adapter, &pass, &mut self.frozen)?;
            sums.extend(pass.loss_ranges.iter().map(|range| LossSums::of(&losses[range.clone()])));
        }
        Ok(sums)
    }

    fn evaluate_preferences(
        &mut self,
        batch: &[PreferencePair<'_>],
        beta: f64,
    ) -> Result<Vec<PreferenceRewards>, BackendError> {
        let mut made = Vec::with_capacity(batch.len());
        let pairs = dpo::sequences(batch);
        let groups: Vec<&[&Sequence]> = pairs.iter().map(|pair| pair.as_slice()).collect();
        for pass in self.pack(&groups, || None)? {
            let adapter = self.trained.adapter();
            let losses = self.decoder.losses(adapter, &pass, &mut self.frozen)?;
            let these = &batch[made.len()..];
            made.extend(dpo::rewards(these, &pass.loss_ranges, &losses, beta));
        }
        Ok(made)
    }

    fn log_probabilities(
        &mut self,
        batch: &[&Sequence],
        as_trained: bool,
    ) -> Result<Vec<f64>, BackendError> {
        self.check_base(as_trained)?;
        let mut made = Vec::with_capacity(batch.len());
        for pass in self.pack_sequences(batch, || None)? {
            let adapter = self.trained.adapter().filter(|_| as_trained);
            let losses = self.decoder.losses(adapter, &pass, &mut self.frozen)?;
            for range in &pass.loss_ranges {
                made.push(dpo::log_probability(&losses[range.clone()]));
            }
        }
        Ok(made)
    }

    fn generate_greedily(
        &mut self,
        prompt: &[u32],
        max_tokens: usize,
        stop_tokens: &[u32],
        as_trained: bool,
    ) -> Result<Vec<u32>, BackendError> {
        self.check_base(as_trained)?;
        let adapter = self.trained.adapter().filter(|_| as_trained);
        let mut cache = self.decoder.new_cache()?;
        let mut logits = self.decoder.extend(adapter, &mut cache, prompt)?;
        let mut written = Vec::new();
        loop {
            let mut likeliest = 0;
            for (index, logit) in logits.iter().enumerate() {
                if *logit > logits[likeliest] {
                    likeliest = index;
                }
            }
            let next = likeliest as u32;
            if written.len() == max_tokens || stop_tokens.contains(&next) {
                return Ok(written);
            }
            written.push(next);
            logits = self.decoder.extend(adapter, &mut cache, &[next])?;
        }
    }

    fn step(&mut self, step: &AdamWStep) -> Result<f64, BackendError> {
        let backend = self.decoder.backend();
        let gradients: Vec<&B::Matrix> = self.gradients.matrices().collect();
        let norm = backend.sum_of_squares(&gradients)?.sqrt();
        if norm.is_finite() {
            let factor = clip_factor(norm, step.clip);
            let tensors = self
                .trained
                .matrices_mut()
                .zip(self.gradients.matrices())
                .zip(self.first_moments.matrices_mut())
                .zip(self.second_moments.matrices_mut())
                .map(|(((parameter, gradient), first), second)| ParameterUpdate {
                    parameter,
                    gradient,
                    first,
                    second,
                });
            backend.adamw(tensors.collect(), step, factor)?;
            self.update_weights()?;
        }
        self.gradients = self.gradients.zeros_like(&self.decoder)?;
        Ok(norm)
    }

    fn gradients(&self) -> Result<NamedTensors, BackendError> {
        self.gradients.named(&self.decoder)
    }

    fn trainable_tensors(&self) -> Result<NamedTensors, BackendError> {
        self.trained.named(&self.decoder)
    }

    fn set_trainable_tensors(&mut self, tensors: &NamedTensors) -> Result<(), BackendError> {
        self.trained.replace(&self.decoder, &self.tuning, tensors)?;
        self.update_weights()
    }

    fn moments(&self) -> Result<(NamedTensors, NamedTensors), BackendError> {
        let first = self.first_moments.named(&self.decoder)?;
        Ok((first, self.second_moments.named(&self.decoder)?))
    }

    fn set_moments(
        &mut self,
        first: &NamedTensors,
        second: &NamedTensors,
    ) -> Result<(), BackendError> {
        self.first_moments.replace(&self.decoder, &self.tuning, first)?;
        self.second_moments.replace(&self.decoder, &self.tuning, second)
    }

    fn set_frozen_cache_budget(&mut self, bytes: u64) {
        self.frozen.set_budget(bytes);
    }

    fn frozen_cache(&self) -> FrozenCache {
        FrozenCache { capacity: self.frozen.capacity(), hit_tokens: self.frozen.hit_tokens() }
    }

    fn logits(&mut self, input_ids: &[u32]) -> Result<Vec<f32>, BackendError> {
        self.decoder.logits(self.trained.adapter(), input_ids)
    }

    fn adapted_modules(&self) -> Vec<String> {
        let Some(adapter) = self.trained.adapter() else { return Vec::new() };
        let modules = self.decoder.modules().iter().zip(&adapter.pairs);
        modules.filter(|(_, pair)| pair.is_some()).map(|(one, _)| one.module.clone()).collect()
    }

    fn mean_change_by_layer(
        &self,
        base: &dyn WeightSource,
    ) -> Result<Vec<(u32, f64)>, LoadModelError> {
        self.trained.mean_change_by_layer(&self.decoder, base)
    }

    fn tensors(&self) -> &[ModelTensor] {
        self.decoder.tensors()
    }

    fn has_base(&self) -> bool {
        !self.trained.is_in_place()
    }

    fn parameter_counts(&self) -> (u64, u64) {
        let trainable = self.trained.parameters(&self.decoder);
        match self.trained.is_in_place() {
            true => (trainable, self.decoder.parameters()),
            false => (trainable, trainable + self.decoder.parameters()),
        }
    }

    fn cost(&self) -> ModelFlops {
        self.decoder.cost(&self.trained)
    }

    fn backend_name(&self) -> &'static str {
        self.decoder.backend().name()
    }
}
