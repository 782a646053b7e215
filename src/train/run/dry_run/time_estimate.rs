//! What a run computes, and how long that takes: the arithmetic of [`Cost`] at a share of the CPU's peak,
//! which is measured.

use super::token_count::Count;
use crate::train::backend::cpu::peak;
use crate::train::data::sequence::Sequence;
use crate::train::decoder::frozen::FrozenRows;
use crate::train::decoder::pack::{PackedBatch, cut};
use crate::train::decoder::size;
use crate::train::engine::memory;
use crate::train::engine::memory::estimate::Need;
use crate::train::engine::{BackendKind, TOKENS_AT_ONCE, isa};
use crate::train::model::config::ModelConfig;
use crate::train::model::flops::{Cost, Training, Trains};
use crate::train::model::tensors::ModelPart;
use crate::train::model::trainable::Trainable;
use crate::train::run::plan::Plan;

/// Share of the peak that training reaches with the CPU's kernels: 0.60 to 0.81 in `benches/README.md`,
/// on models of 135 million parameters and more.
const SHARE_OF_PEAK: f64 = 0.65;

/// Batches whose packing is looked at, to see what shared beginnings spare.
const BATCHES: usize = 16;

/// What a sequence takes, or several together, in floating-point operations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Operations {
    /// A training step over it, in the blocks.
    blocks: f64,
    /// The same in the head.
    head: f64,
    /// The frozen blocks, part of `blocks`.
    frozen: f64,
    /// Measuring its loss.
    evaluation: f64,
}

impl Operations {
    pub(super) fn add(&mut self, more: &Operations) {
        self.blocks += more.blocks;
        self.head += more.head;
        self.frozen += more.frozen;
        self.evaluation += more.evaluation;
    }
}

/// How much a run with a model computes.
pub(super) struct Effort {
    cost: Cost,
    /// Of the head in a training step, for each loss-bearing token.
    of_target: f64,
    /// Frozen blocks, and the width of what they hand on.
    frozen: (usize, usize),
    is_sharing: bool,
}

impl Effort {
    /// Of a model of which this trains.
    ///
    /// # Errors
    /// What `tuning` names and the model does not have.
    pub(super) fn new(model: &ModelConfig, tuning: &Trainable) -> Result<Self, String> {
        let trains = trains(model, tuning)?;
        let cost = Cost::new(model, &size::modules(model), &trains);
        let probe = |counts: bool| {
            let sequence = Sequence { input_ids: vec![0; 2], loss_mask: vec![false, counts] };
            cost.of_training(sequence.length())
        };
        Ok(Self {
            of_target: probe(true) - probe(false),
            frozen: (trains.lowest_block, model.hidden),
            is_sharing: tuning.dropout() == 0.0,
            cost,
        })
    }

    /// Of one sequence.
    pub(super) fn of(&self, sequence: &Sequence) -> Operations {
        let head = sequence.targets() as f64 * self.of_target;
        Operations {
            blocks: self.cost.of_training(sequence.length()) - head,
            head,
            frozen: self.cost.of_frozen(sequence.length()),
            evaluation: self.cost.of_evaluation(sequence.length()),
        }
    }

    /// Of all steps of a run, the looks at its validation file, and the first look at preferences.
    pub(super) fn of_run(
        &self,
        plan: &Plan,
        training: &Count,
        validation: Option<&Count>,
        need: &Need,
        (backend, free): (BackendKind, Option<u64>),
    ) -> f64 {
        let values = &plan.hyperparameters;
        let epochs = f64::from(values.n_epochs);
        let an_epoch = training.operations;
        let unshared = self.unshared(training, values.batch_size as usize);
        let mut sum = epochs * (an_epoch.blocks * unshared + an_epoch.head);
        let of_validation = validation.map_or(0.0, |count| count.operations.evaluation);
        sum += looks(plan) * of_validation;
        if values.beta.is_some() {
            sum += an_epoch.evaluation + of_validation;
        }
        let tokens = training.data.tokens + validation.map_or(0, |count| count.data.tokens);
        if self.room(need, backend, free) >= tokens {
            sum -= (epochs - 1.0) * an_epoch.frozen * unshared;
        }
        sum
    }

    /// Share of the tokens that a pass really runs over: beginnings that several examples of a batch
    /// share stand in it once.
    fn unshared(&self, count: &Count, batch_size: usize) -> f64 {
        let examples: Vec<Vec<&Sequence>> = count.examples().take(BATCHES * batch_size).collect();
        let (mut packed, mut tokens) = (0, 0);
        for batch in examples.chunks(batch_size.max(1)) {
            let items: Vec<&[&Sequence]> = batch.iter().map(Vec::as_slice).collect();
            for run in cut(&items, TOKENS_AT_ONCE, self.is_sharing) {
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

    /// Tokens over which frozen blocks need not run again.
    fn room(&self, need: &Need, backend: BackendKind, free: Option<u64>) -> u64 {
        match backend {
            BackendKind::Cpu | BackendKind::CpuF32 => {
                let (blocks, width) = self.frozen;
                let mut rows = FrozenRows::new(blocks, width);
                rows.set_budget(memory::spare(need, free));
                rows.room()
            }
            BackendKind::Candle | BackendKind::Cuda(_) => 0,
        }
    }
}

/// How often a run measures its validation file.
fn looks(plan: &Plan) -> f64 {
    (1..=plan.total_steps).filter(|step| plan.looks_after(*step)).count() as f64
}

/// What trains of a model, known before it is loaded.
fn trains(model: &ModelConfig, tuning: &Trainable) -> Result<Trains, String> {
    let (modules, tensors) = (size::modules(model), size::tensors(model));
    let selected = tuning.select(&tensors)?;
    let has = |part: ModelPart| {
        tensors.iter().zip(&selected).any(|(tensor, trains)| *trains && tensor.part == part)
    };
    let is_adapted = match tuning {
        Trainable::Lora(lora) => lora.target.select(&modules)?,
        Trainable::Full | Trainable::LastLayers(_) => vec![false; modules.len()],
    };
    let mut lowest_block = model.layers;
    let mut trained = Vec::with_capacity(modules.len());
    for (module, is_adapted) in modules.iter().zip(is_adapted) {
        let rank = match tuning {
            Trainable::Lora(lora) if is_adapted => Some(lora.rank),
            _ => None,
        };
        trained.push(match rank {
            Some(rank) => Training::Adapted { rank },
            None if has(ModelPart::Block(module.layer)) => Training::Whole,
            None => Training::Frozen,
        });
        if trained.last() != Some(&Training::Frozen) {
            lowest_block = lowest_block.min(module.layer as usize);
        }
    }
    if has(ModelPart::Embedding) || has(ModelPart::Positions) {
        lowest_block = 0;
    }
    let head = if model.tied { has(ModelPart::Embedding) } else { has(ModelPart::Head) };
    Ok(Trains { modules: trained, lowest_block, head })
}

/// How fast this machine computes.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Operations a second at best, in the words that the kernels multiply; `None` where the
    /// environment asks for instructions that the CPU does not have.
    peak: Option<f64>,
}

impl Pace {
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
    use crate::train::engine::load_tuned;
    use crate::train::model::lora::{LoraSettings, LoraTarget};
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
                let engine = load_tuned(&config, weights, &tuning, 1, BackendKind::Candle);
                let engine = engine.unwrap_or_else(|error| panic!("{name} {tuning:?}: {error}"));
                let effort = Effort::new(&model, &tuning).expect("it has all of it");
                assert_eq!(effort.cost, engine.cost(), "{name} {tuning:?}");
            }
        }
    }

    #[test]
    fn a_beginning_that_a_batch_shares_is_counted_once() {
        let (_, model) = configuration("llama");
        let with_dropout = LoraSettings { dropout: 0.1, ..LoraSettings::new(4, 8.0) };
        let without =
            Effort::new(&model, &Trainable::Lora(LoraSettings::new(4, 8.0))).expect("fits");
        let with = Effort::new(&model, &Trainable::Lora(with_dropout)).expect("fits");
        let example = |own: u32| Sequence {
            input_ids: (0..100).map(|at| if at < 90 { at } else { own }).collect(),
            loss_mask: (0..100).map(|at| at >= 95).collect(),
        };
        let count = Count::of((0..8).map(example));
        // Eight times a hundred tokens, of which ninety stand once in a batch of four.
        let share = without.unshared(&count, 4);
        assert_eq!(share, f64::from(90 + 4 * 10) / 400.0);
        assert_eq!(with.unshared(&count, 4), 1.0);
    }
}
