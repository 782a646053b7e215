//! What a run computes, and how long that takes: the arithmetic of [`ModelFlops`] at a share of the CPU's peak,
//! which is measured.

use super::token_count::TokenCount;
use crate::train::backend::cpu::peak;
use crate::train::data::sequence::Sequence;
use crate::train::decoder::frozen::FrozenRows;
use crate::train::decoder::pack::{PackedBatch, cut};
use crate::train::decoder::size;
use crate::train::engine::{BackendKind, TOKENS_AT_ONCE, isa};
use crate::train::model::config::ModelConfig;
use crate::train::model::flops::{LayerTraining, ModelFlops, TrainableLayers};
use crate::train::model::tensors::ModelPart;
use crate::train::model::trainable::Trainable;
use crate::train::run::plan::Plan;
use crate::train::run::setup::RunMemory;

/// Share of the peak that training reaches with the CPU's kernels: 0.60 to 0.81 in `benches/README.md`,
/// on models of 135 million parameters and more.
const SHARE_OF_PEAK: f64 = 0.65;

/// Batches that are packed as a sample, to see what shared prefixes spare.
const BATCHES: usize = 16;

/// What a sequence takes, or several together, in floating-point operations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct SequenceFlops {
    /// A training step over it, in the blocks.
    blocks: f64,
    /// The same in the head.
    head: f64,
    /// The frozen blocks, part of `blocks`.
    frozen: f64,
    /// Measuring its loss.
    evaluation: f64,
}

impl SequenceFlops {
    pub(super) fn add(&mut self, more: &SequenceFlops) {
        self.blocks += more.blocks;
        self.head += more.head;
        self.frozen += more.frozen;
        self.evaluation += more.evaluation;
    }
}

/// How much a run with a model computes.
pub(super) struct FlopEstimate {
    model: ModelFlops,
    /// Of the head in a training step, for each loss-bearing token.
    of_target: f64,
    /// Frozen blocks, and the width of what they hand on.
    frozen: (usize, usize),
    is_sharing: bool,
}

impl FlopEstimate {
    /// Of a model of which this trains.
    ///
    /// # Errors
    /// What `trainable` names and the model does not have.
    pub(super) fn new(model: &ModelConfig, trainable: &Trainable) -> Result<Self, String> {
        let layers = layers(model, trainable)?;
        let flops = ModelFlops::new(model, &size::modules(model), &layers);
        let probe = |counts: bool| {
            let sequence = Sequence { input_ids: vec![0; 2], loss_mask: vec![false, counts] };
            flops.of_training(sequence.length())
        };
        Ok(Self {
            of_target: probe(true) - probe(false),
            frozen: (layers.lowest_block, model.hidden),
            is_sharing: trainable.dropout() == 0.0,
            model: flops,
        })
    }

    /// Of one sequence.
    pub(super) fn of(&self, sequence: &Sequence) -> SequenceFlops {
        let head = sequence.targets() as f64 * self.of_target;
        SequenceFlops {
            blocks: self.model.of_training(sequence.length()) - head,
            head,
            frozen: self.model.of_frozen(sequence.length()),
            evaluation: self.model.of_evaluation(sequence.length()),
        }
    }

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

    /// Whether the cache of the frozen blocks has room for so many tokens.
    pub(super) fn has_room(&self, memory: &RunMemory, backend: BackendKind, tokens: u64) -> bool {
        let room = match backend {
            BackendKind::Cpu | BackendKind::CpuF32 => {
                let (blocks, width) = self.frozen;
                let mut rows = FrozenRows::new(blocks, width);
                rows.set_budget(memory.spare());
                rows.room()
            }
            BackendKind::Candle | BackendKind::Cuda(_) => 0,
        };
        room >= tokens
    }
}

/// How often a run evaluates its validation file.
fn evaluations(plan: &Plan) -> f64 {
    (1..=plan.total_steps).filter(|step| plan.evaluates_after(*step)).count() as f64
}

/// What trains of a model, known before it is loaded.
fn layers(model: &ModelConfig, trainable: &Trainable) -> Result<TrainableLayers, String> {
    let (modules, tensors) = (size::modules(model), size::tensors(model));
    let selected = trainable.select(&tensors)?;
    let has = |part: ModelPart| {
        tensors.iter().zip(&selected).any(|(tensor, trains)| *trains && tensor.part == part)
    };
    let is_adapted = match trainable {
        Trainable::Lora(lora) => lora.target.select(&modules)?,
        Trainable::Full | Trainable::LastLayers(_) => vec![false; modules.len()],
    };
    let mut lowest_block = model.layers;
    let mut trained = Vec::with_capacity(modules.len());
    for (module, is_adapted) in modules.iter().zip(is_adapted) {
        let rank = match trainable {
            Trainable::Lora(lora) if is_adapted => Some(lora.rank),
            _ => None,
        };
        trained.push(match rank {
            Some(rank) => LayerTraining::Adapted { rank },
            None if has(ModelPart::Block(module.layer)) => LayerTraining::Whole,
            None => LayerTraining::Frozen,
        });
        if trained.last() != Some(&LayerTraining::Frozen) {
            lowest_block = lowest_block.min(module.layer as usize);
        }
    }
    if has(ModelPart::Embedding) || has(ModelPart::Positions) {
        lowest_block = 0;
    }
    let head = if model.tied { has(ModelPart::Embedding) } else { has(ModelPart::Head) };
    Ok(TrainableLayers { modules: trained, lowest_block, head })
}

/// How fast this machine computes.
#[derive(Debug, Clone, Copy)]
pub struct MachineSpeed {
    /// SequenceFlops a second at best, in the words that the kernels multiply; `None` where the
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
