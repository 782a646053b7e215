//! What a run computes, and how long that takes: the arithmetic of [`ModelFlops`] at a share of the CPU's peak,
//! which is measured.

use super::flops::FlopEstimate;
use super::token_count::TokenCount;
use crate::train::backend::cpu::peak;
use crate::train::data::example::EncodedExample;
use crate::train::data::sequence::Sequence;
use crate::train::decoder::pack::{PackedBatch, split_into_micro_batches};
use crate::train::engine::{BackendKind, TOKENS_AT_ONCE, isa};
use crate::train::run::plan::Plan;

/// Share of the peak that training reaches with the CPU's kernels: 0.60 to 0.81 in `benches/README.md`,
/// on models of 135 million parameters and more.
const SHARE_OF_PEAK: f64 = 0.65;

/// Batches that are packed as a sample, to see what shared prefixes spare.
const BATCHES: usize = 16;

impl FlopEstimate {
    /// Of all steps of a run, of its evaluations, and of the reference pass over preferences. With
    /// `has_room` the outputs of the frozen blocks are computed in the first epoch alone.
    pub(super) fn of_run(
        &self,
        plan: &Plan,
        training: &TokenCount,
        validation: Option<&TokenCount>,
        has_room: bool,
    ) -> f64 {
        let values = &plan.hyperparameters;
        let epochs = f64::from(values.n_epochs);
        let an_epoch = training.flops;
        let unshared = self.unshared(training, values.batch_size as usize);
        let mut sum = epochs * (an_epoch.blocks * unshared + an_epoch.head);
        let of_validation = validation.map_or(0.0, |count| count.flops.evaluation);
        sum += evaluations(plan) * of_validation;
        if values.beta.is_some() {
            sum += an_epoch.evaluation + of_validation;
        }
        if has_room {
            sum -= (epochs - 1.0) * an_epoch.frozen * unshared;
        }
        sum
    }

    /// Share of the tokens that a pass really runs over: beginnings that several examples of a batch
    /// share stand in it once.
    fn unshared(&self, count: &TokenCount, batch_size: usize) -> f64 {
        let examples = count.examples().iter().take(BATCHES * batch_size);
        let examples: Vec<&EncodedExample> = examples.collect();
        let (mut packed, mut tokens) = (0, 0);
        for batch in examples.chunks(batch_size.max(1)) {
            let items: Vec<Vec<&Sequence>> =
                batch.iter().flat_map(|example| example.items()).collect();
            let items: Vec<&[&Sequence]> = items.iter().map(Vec::as_slice).collect();
            for run in split_into_micro_batches(&items, TOKENS_AT_ONCE, self.is_sharing) {
                let sequences = items[run].concat();
                tokens += sequences.iter().map(|one| one.input_ids.len()).sum::<usize>();
                packed += match self.is_sharing {
                    true => PackedBatch::new(&sequences, &[]).ids.len(),
                    false => sequences.iter().map(|one| one.input_ids.len()).sum(),
                };
            }
        }
        packed as f64 / tokens.max(1) as f64
    }
}

/// How often a run evaluates its validation file.
fn evaluations(plan: &Plan) -> f64 {
    (1..=plan.total_steps).filter(|step| plan.evaluates_after(*step)).count() as f64
}

/// How fast this machine computes.
#[derive(Debug, Clone, Copy)]
pub struct MachineSpeed {
    /// Operations a second at best, in the words that the kernels multiply; `None` where the
    /// environment asks for instructions that the CPU does not have.
    peak: Option<f64>,
}

impl MachineSpeed {
    /// Measures it, which takes a quarter of a second of every thread.
    pub fn measure() -> Self {
        Self { peak: isa(BackendKind::Cpu).ok().map(peak::measure) }
    }

    /// What so many operations take; `None` where something else computes than the CPU's kernels, of
    /// whose speed nothing is known beforehand.
    pub(super) fn seconds(&self, operations: f64, backend: BackendKind) -> Option<f64> {
        match backend {
            BackendKind::Cpu => Some(operations / (SHARE_OF_PEAK * self.peak?)),
            BackendKind::CpuF32 | BackendKind::Candle | BackendKind::Cuda(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::train::engine::load_for_training;
    use crate::train::model::config::ModelConfig;
    use crate::train::model::lora::{LoraSettings, LoraTarget};
    use crate::train::model::trainable::Trainable;
    use crate::train::model::weights::safetensors;

    /// The models of the golden tests, tied and untied heads and learned positions among them.
    const MODELS: &[&str] = &["llama", "gpt2", "qwen2"];

    fn folder_of(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(name)
    }

    fn configuration(name: &str) -> (serde_json::Value, ModelConfig) {
        let text = std::fs::read(folder_of(name).join("config.json")).expect("reads");
        let config = serde_json::from_slice(&text).expect("JSON");
        let model = ModelConfig::read(&config).expect("a configuration");
        (config, model)
    }

    #[test]
    fn what_trains_is_known_before_the_model_is_loaded() {
        for name in MODELS {
            let (config, model) = configuration(name);
            let weights = safetensors::open(&folder_of(name)).expect("opens");
            let last = model.layers as u32 - 1;
            let lora = |layers: Option<Vec<u32>>| {
                let target = LoraTarget { modules: None, layers };
                LoraSettings { target, ..LoraSettings::new(4, 8.0) }
            };
            let mut tunings = vec![
                Trainable::Lora(lora(None)),
                Trainable::Lora(lora(Some(vec![last]))),
                Trainable::Full,
                Trainable::LastLayers(1),
            ];
            if !model.tied {
                let saved = |module: &str| vec![module.to_owned()];
                for module in ["lm_head", "embed_tokens"] {
                    let settings = LoraSettings { saved_modules: saved(module), ..lora(None) };
                    tunings.push(Trainable::Lora(settings));
                }
            }
            for tuning in tunings {
                let weights = weights.as_ref();
                let engine = load_for_training(&config, weights, &tuning, 1, BackendKind::Candle);
                let engine = engine.unwrap_or_else(|error| panic!("{name} {tuning:?}: {error}"));
                let flops = FlopEstimate::new(&model, &tuning).expect("it has all of it");
                assert_eq!(flops.model, engine.cost(), "{name} {tuning:?}");
            }
        }
    }

    #[test]
    fn a_beginning_that_a_batch_shares_is_counted_once() {
        let (_, model) = configuration("llama");
        let with_dropout = LoraSettings { dropout: 0.1, ..LoraSettings::new(4, 8.0) };
        let without =
            FlopEstimate::new(&model, &Trainable::Lora(LoraSettings::new(4, 8.0))).expect("fits");
        let with = FlopEstimate::new(&model, &Trainable::Lora(with_dropout)).expect("fits");
        let example = |own: u32| Sequence {
            input_ids: (0..100).map(|at| if at < 90 { at } else { own }).collect(),
            loss_mask: (0..100).map(|at| at >= 95).collect(),
        };
        let count = TokenCount::of((0..8).map(example));
        // Eight times a hundred tokens, of which ninety stand once in a batch of four.
        let share = without.unshared(&count, 4);
        assert_eq!(share, f64::from(90 + 4 * 10) / 400.0);
        assert_eq!(with.unshared(&count, 4), 1.0);
    }
}
