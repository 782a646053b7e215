//! [`Engine`] as a decoder on one backend with what trains: batches into passes, steps, moments.

use std::ops::Range;

use super::{
    BatchPart, Engine, FrozenCache, LossSums, Preference, PreferenceOutcome, TOKENS_AT_ONCE,
};
use crate::train::backend::AdamWStep;
use crate::train::backend::BackendError;
use crate::train::backend::{Backend, ParameterUpdate, RowLoss};
use crate::train::data::sequence::Sequence;
use crate::train::decoder::Decoder;
use crate::train::decoder::backward::Weighing;
use crate::train::decoder::frozen::FrozenRows;
use crate::train::decoder::pack::{self, PackedBatch};
use crate::train::decoder::trained::Trained;
use crate::train::engine::dpo;
use crate::train::model::config::ModelConfig;
use crate::train::model::error::LoadModelError;
use crate::train::model::flops::ModelFlops;
use crate::train::model::tensors::ModelTensor;
use crate::train::model::tensors::NamedTensors;
use crate::train::model::trainable::Trainable;
use crate::train::model::weights::WeightSource;
use crate::train::rng::Stream;

#[cfg(test)]
mod transfers;

/// [`Engine`] on one backend.
pub(super) struct TrainingEngine<B: Backend> {
    decoder: Decoder<B>,
    tuning: Trainable,
    seed: u64,
    trained: Trained<B>,
    gradients: Trained<B>,
    first_moments: Trained<B>,
    second_moments: Trained<B>,
    frozen: FrozenRows,
    /// Whether the model's own weights are no longer the base's.
    has_moved: bool,
}

impl<B: Backend> TrainingEngine<B> {
    /// Loads a base model and what trains of it or beside it.
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
        let trained = Trained::new(&decoder, weights, tuning, seed)?;
        // The device holds the values once where it can share them.
        decoder.take_in(&trained)?;
        let gradients = trained.zeros_like(&decoder)?;
        let first_moments = trained.zeros_like(&decoder)?;
        let second_moments = trained.zeros_like(&decoder)?;
        let frozen = FrozenRows::new(decoder.frozen_blocks(&trained), decoder.config().hidden);
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
            has_moved,
        })
    }

    /// Refuses to run the base alone where it is not there any more.
    fn check_base(&self, trained: bool) -> Result<(), BackendError> {
        match trained || !self.has_moved {
            true => Ok(()),
            false => Err(BackendError::BaseIsGone),
        }
    }

    /// Brings the values that train to where the forward pass reads them.
    fn take_in_trained(&mut self) -> Result<(), BackendError> {
        self.has_moved |= self.trained.is_in_place();
        self.decoder.take_in(&self.trained)?;
        self.trained.bring_tensors(&self.decoder)
    }

    /// Items of one or more sequences in packed passes, as [`Engine::cut`] cuts them. `draws` decide
    /// on dropout, one for each sequence in order.
    fn passes(
        &self,
        items: &[&[&Sequence]],
        mut draws: impl FnMut() -> Option<Stream>,
    ) -> Result<Vec<PackedBatch>, BackendError> {
        for sequence in items.iter().copied().flatten() {
            self.decoder.check(0, &sequence.input_ids)?;
            if sequence.loss_mask.len() != sequence.input_ids.len() {
                return Err(BackendError::Sequence(format!(
                    "a loss mask of {} does not fit {} tokens",
                    sequence.loss_mask.len(),
                    sequence.input_ids.len()
                )));
            }
        }
        let mut passes = Vec::new();
        for run in self.cut(items) {
            let sequences = items[run].concat();
            let draws: Vec<Stream> = sequences.iter().filter_map(|_| draws()).collect();
            passes.push(PackedBatch::new(&sequences, &draws));
        }
        Ok(passes)
    }

    /// Sequences in passes, each for itself.
    fn passes_of(
        &self,
        batch: &[&Sequence],
        draws: impl FnMut() -> Option<Stream>,
    ) -> Result<Vec<PackedBatch>, BackendError> {
        let items: Vec<&[&Sequence]> = batch.chunks(1).collect();
        self.passes(&items, draws)
    }

    /// Draws for the dropout of the sequences of a step, from number `first` on.
    fn draws(&self, step: u64, first: usize) -> impl FnMut() -> Option<Stream> + use<B> {
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
    fn cut(&self, items: &[&[&Sequence]]) -> Vec<Range<usize>> {
        pack::cut(items, TOKENS_AT_ONCE, self.tuning.dropout() == 0.0)
    }

    fn accumulate(
        &mut self,
        batch: &[&Sequence],
        part: BatchPart,
    ) -> Result<Vec<LossSums>, BackendError> {
        let mut sums = Vec::with_capacity(batch.len());
        let factor = 1.0 / part.total.max(1) as f32;
        for pass in self.passes_of(batch, self.draws(part.step, part.first))? {
            let losses = self.decoder.losses_and_gradients(
                &self.trained,
                &pass,
                Weighing::Even(factor),
                &mut self.gradients,
                &mut self.frozen,
            )?;
            sums.extend(pass.owned.iter().map(|owned| LossSums::of(&losses[owned.clone()])));
        }
        Ok(sums)
    }

    fn accumulate_preferences(
        &mut self,
        batch: &[Preference<'_>],
        beta: f64,
        part: BatchPart,
    ) -> Result<Vec<PreferenceOutcome>, BackendError> {
        let mut made = Vec::with_capacity(batch.len());
        let pairs = dpo::sequences(batch);
        let groups: Vec<&[&Sequence]> = pairs.iter().map(|pair| pair.as_slice()).collect();
        for pass in self.passes(&groups, self.draws(part.step, 2 * part.first))? {
            let these = &batch[made.len()..];
            let mut outcomes = Vec::new();
            let mut weigh = |losses: &[RowLoss]| {
                outcomes = dpo::outcomes(these, &pass.owned, losses, beta);
                dpo::factors(&outcomes, &pass.owned, losses.len(), beta, part.total)
            };
            self.decoder.losses_and_gradients(
                &self.trained,
                &pass,
                Weighing::ByLoss(&mut weigh),
                &mut self.gradients,
                &mut self.frozen,
            )?;
            made.extend(outcomes);
        }
        Ok(made)
    }

    fn evaluate(&mut self, batch: &[&Sequence]) -> Result<Vec<LossSums>, BackendError> {
        let mut sums = Vec::with_capacity(batch.len());
        for pass in self.passes_of(batch, || None)? {
            let adapter = self.trained.adapter();
            let losses = self.decoder.losses(adapter, &pass, &mut self.frozen)?;
            sums.extend(pass.owned.iter().map(|owned| LossSums::of(&losses[owned.clone()])));
        }
        Ok(sums)
    }

    fn evaluate_preferences(
        &mut self,
        batch: &[Preference<'_>],
        beta: f64,
    ) -> Result<Vec<PreferenceOutcome>, BackendError> {
        let mut made = Vec::with_capacity(batch.len());
        let pairs = dpo::sequences(batch);
        let groups: Vec<&[&Sequence]> = pairs.iter().map(|pair| pair.as_slice()).collect();
        for pass in self.passes(&groups, || None)? {
            let adapter = self.trained.adapter();
            let losses = self.decoder.losses(adapter, &pass, &mut self.frozen)?;
            let these = &batch[made.len()..];
            made.extend(dpo::outcomes(these, &pass.owned, &losses, beta));
        }
        Ok(made)
    }

    fn log_probabilities(
        &mut self,
        batch: &[&Sequence],
        trained: bool,
    ) -> Result<Vec<f64>, BackendError> {
        self.check_base(trained)?;
        let mut made = Vec::with_capacity(batch.len());
        for pass in self.passes_of(batch, || None)? {
            let adapter = self.trained.adapter().filter(|_| trained);
            let losses = self.decoder.losses(adapter, &pass, &mut self.frozen)?;
            for owned in &pass.owned {
                made.push(dpo::log_probability(&losses[owned.clone()]));
            }
        }
        Ok(made)
    }

    fn continue_greedily(
        &mut self,
        prompt: &[u32],
        most: usize,
        ends: &[u32],
        trained: bool,
    ) -> Result<Vec<u32>, BackendError> {
        self.check_base(trained)?;
        let adapter = self.trained.adapter().filter(|_| trained);
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
            if written.len() == most || ends.contains(&next) {
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
            let factor = (step.clip / (norm + 1e-6)).min(1.0);
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
            self.take_in_trained()?;
        }
        self.gradients = self.gradients.zeros_like(&self.decoder)?;
        Ok(norm)
    }

    fn gradients(&self) -> Result<NamedTensors, BackendError> {
        self.gradients.named(&self.decoder)
    }

    fn trained(&self) -> Result<NamedTensors, BackendError> {
        self.trained.named(&self.decoder)
    }

    fn set_trained(&mut self, tensors: &NamedTensors) -> Result<(), BackendError> {
        self.trained.replace(&self.decoder, &self.tuning, tensors)?;
        self.take_in_trained()
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

    fn keep_frozen(&mut self, bytes: u64) {
        self.frozen.set_budget(bytes);
    }

    fn frozen_use(&self) -> FrozenCache {
        FrozenCache { room: self.frozen.room(), spared: self.frozen.spared() }
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

    fn keeps_base(&self) -> bool {
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
