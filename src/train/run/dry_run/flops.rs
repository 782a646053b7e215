//! The floating-point operations of a run's sequences, known before the model is loaded.

use crate::train::data::sequence::Sequence;
use crate::train::decoder::frozen_layer_cache::FrozenLayerCache;
use crate::train::decoder::shapes;
use crate::train::engine::BackendKind;
use crate::train::model::config::ModelConfig;
use crate::train::model::flops::{LayerTraining, ModelFlops, TrainableLayers};
use crate::train::model::tensors::ModelPart;
use crate::train::model::trainable::Trainable;
use crate::train::run::setup::RunMemory;

/// What a sequence takes, or several together, in floating-point operations.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct SequenceFlops {
    /// A training step over it, in the blocks.
    pub(super) blocks: f64,
    /// The same in the head.
    pub(super) head: f64,
    /// The frozen blocks, part of `blocks`.
    pub(super) frozen: f64,
    /// Measuring its loss.
    pub(super) evaluation: f64,
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
    pub(super) model: ModelFlops,
    /// Of the head in a training step, for each loss-bearing token.
    pub(super) of_target: f64,
    /// Frozen blocks, and the width of what they hand on.
    pub(super) frozen: (usize, usize),
    pub(super) is_sharing: bool,
}

impl FlopEstimate {
    /// Of a model of which this trains.
    ///
    /// # Errors
    /// What `trainable` names and the model does not have.
    pub(super) fn new(model: &ModelConfig, trainable: &Trainable) -> Result<Self, String> {
        let layers = layers(model, trainable)?;
        let flops = ModelFlops::new(model, &shapes::modules(model), &layers);
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

    /// Whether the cache of the frozen blocks has room for so many tokens.
    pub(super) fn has_room(&self, memory: &RunMemory, backend: BackendKind, tokens: u64) -> bool {
        let room = match backend {
            BackendKind::Cpu | BackendKind::CpuF32 => {
                let (blocks, width) = self.frozen;
                let mut rows = FrozenLayerCache::new(blocks, width);
                rows.set_budget(memory.spare());
                rows.capacity()
            }
            BackendKind::Candle | BackendKind::Cuda(_) => 0,
        };
        room >= tokens
    }
}

/// What trains of a model, known before it is loaded.
fn layers(model: &ModelConfig, trainable: &Trainable) -> Result<TrainableLayers, String> {
    let (modules, tensors) = (shapes::modules(model), shapes::tensors(model));
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
