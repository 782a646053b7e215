//! What a run holds in memory at its peak, from the configuration alone.

use std::fmt;

use crate::train::backend::BackendError;
use crate::train::backend::candle;
use crate::train::backend::cpu::backend::HEAD_CHUNK;
use crate::train::backend::cpu::gemm::weight::CpuWeight;
use crate::train::decoder::size::{self, MatrixSize};
use crate::train::engine::{BackendKind, TOKENS_AT_ONCE, isa};
use crate::train::model::config::ModelConfig;
use crate::train::model::trainable::Trainable;

/// Copies of the adapter: itself, its gradient and two moments; the next gradient while the last one
/// is spent; and what a checkpoint takes to write the tensors one after the other.
const ADAPTER_COPIES: u64 = 8;

/// Copies of each of the model's own weights that trains: its value beside the one that computes, its
/// gradient and the next one, two moments, and what a checkpoint writes.
const WEIGHT_COPIES: u64 = 6;

/// Buffers are an eighth of a power of two longer than what lies in them at most, a sixteenth on
/// average, and a few wait for their next use.
const BUFFER_SLACK: f64 = 1.2;

/// What threads, code and the allocator take beside all that.
const OTHER: u64 = 8 * 1024 * 1024;

/// Bytes of a float.
const FLOAT: u64 = 4;

/// A run, as far as its memory is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Workload<'a> {
    /// The model.
    pub model: &'a ModelConfig,
    /// What trains.
    pub tuning: &'a Trainable,
    /// What computes.
    pub backend: BackendKind,
    /// Tokens of the longest example, of both answers where it has two.
    pub longest: usize,
    /// Tokens of the longest beginning that examples share, which a pass has beside its own; zero
    /// where each stands for itself.
    pub shared: usize,
    /// Examples in a step.
    pub batch_size: usize,
}

/// What a run holds at its peak, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Frozen weights, packed for the way forward and the way back, and tables of positions.
    pub weights: u64,
    /// The adapter, its gradients, moments and copies.
    pub adapter: u64,
    /// What the blocks keep of every token, and what one of them works with.
    pub activations: u64,
    /// The head's logits; with candle all that is made and dropped on the way, such as scores of
    /// attention.
    pub logits: u64,
    /// What reading the tensors takes beyond all weights, before there is anything else.
    pub reading: u64,
}

impl Need {
    /// All of it.
    pub fn total(&self) -> u64 {
        OTHER + self.weights + self.reading.max(self.adapter + self.activations + self.logits)
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} MiB of weights, {} of activations, {} of adapter and optimiser, {} of logits",
            self.weights >> 20,
            self.activations >> 20,
            self.adapter >> 20,
            self.logits >> 20
        )
    }
}

/// What `workload` needs.
///
/// # Errors
/// When the environment asks for instructions that this CPU does not have.
pub fn estimate(workload: &Workload<'_>) -> Result<Need, BackendError> {
    let Workload { model, tuning, backend, longest, shared, batch_size } = *workload;
    let Trained { bytes: adapter, lowest, inner } = trained(model, tuning);

    let mut weights = 0;
    let mut reading_peak = 0;
    for matrix in size::matrices(model) {
        let MatrixSize { outputs, inputs, backward } = matrix;
        let floats = FLOAT * matrix.elements();
        let taken = match backend {
            BackendKind::Cpu | BackendKind::CpuF32 => {
                CpuWeight::bytes(isa(backend)?, outputs, inputs, backward)
            }
            BackendKind::Candle => floats,
            BackendKind::Cuda(_) => floats / 2,
        };
        // First the file's bytes beside the floats that are made of them, then these floats beside
        // what the device makes of them.
        reading_peak = reading_peak.max(weights + floats + floats.max(taken));
        weights += taken;
    }
    weights += FLOAT * size::position_floats(model);

    let in_a_pass = (TOKENS_AT_ONCE.max(shared) + shared).min(longest.saturating_mul(batch_size));
    let tokens = longest.max(in_a_pass) as u64;
    let kept: u64 =
        (lowest..model.layers).map(|layer| size::kept_floats(model, inner[layer])).sum();
    let working = size::working_floats(model);
    // Texts that the model is measured on fill a pass, however short the examples are.
    let measured = TOKENS_AT_ONCE.min(model.context_length) as u64;
    let floats = (tokens * (kept + working)).max(measured * working);
    let activations = (BUFFER_SLACK * (FLOAT * floats) as f64) as u64;
    let logits = match backend {
        // Those of a chunk, and half as much for their gradient as the left side of a product.
        BackendKind::Cpu | BackendKind::CpuF32 => {
            FLOAT * 3 / 2 * (HEAD_CHUNK.min(tokens as usize) * model.vocabulary) as u64
        }
        BackendKind::Candle | BackendKind::Cuda(_) => {
            let (heads, vocabulary) = (model.heads as u64, model.vocabulary as u64);
            candle::temporary_bytes(heads, longest as u64, vocabulary)
        }
    };
    // The machine's memory reads for a device of its own.
    let reading = match backend {
        BackendKind::Cuda(_) => 0,
        _ => reading_peak.saturating_sub(weights),
    };
    Ok(Need { weights, adapter, activations, logits, reading })
}

/// What trains, as far as memory is concerned.
struct Trained {
    /// With gradients, moments and copies.
    bytes: u64,
    /// The lowest block that the backward pass runs through.
    lowest: usize,
    /// Floats that LoRA keeps of each token in each block.
    inner: Vec<usize>,
}

fn trained(model: &ModelConfig, tuning: &Trainable) -> Trained {
    let mut inner = vec![0; model.layers];
    let table = (model.vocabulary * model.hidden) as u64;
    let modules = size::modules(model);
    let in_blocks = |from: usize| -> u64 {
        let blocks = modules.iter().filter(|module| module.layer as usize >= from);
        blocks.map(|module| (module.outputs * module.inputs) as u64).sum()
    };
    let own = |floats: u64| FLOAT * WEIGHT_COPIES * floats;
    let lora = match tuning {
        Trainable::Full => {
            let outer = table * if model.tied { 1 } else { 2 };
            return Trained { bytes: own(in_blocks(0) + outer), lowest: 0, inner };
        }
        Trainable::LastLayers(count) => {
            let lowest = model.layers.saturating_sub(*count);
            let head = if model.tied { 0 } else { table };
            return Trained { bytes: own(in_blocks(lowest) + head), lowest, inner };
        }
        Trainable::Lora(lora) => lora,
    };
    // A choice that leaves nothing is refused when the adapter is made.
    let selected = lora.target.select(&modules).unwrap_or_else(|_error| vec![true; modules.len()]);
    let mut floats = 0;
    let mut lowest = model.layers;
    for (module, _) in modules.iter().zip(selected).filter(|(_, is_selected)| *is_selected) {
        floats += (lora.rank * (module.inputs + module.outputs)) as u64;
        lowest = lowest.min(module.layer as usize);
        inner[module.layer as usize] += lora.rank;
    }
    let saved = own(lora.saved_modules.len() as u64 * table);
    Trained { bytes: FLOAT * ADAPTER_COPIES * floats + saved, lowest, inner }
}
