//! Estimate of a run's peak memory, from the configuration alone.

use std::fmt;

use crate::train::backend::BackendError;
use crate::train::backend::candle;
use crate::train::backend::cpu::backend::HEAD_CHUNK;
use crate::train::backend::cpu::gemm::weight::CpuWeight;
use crate::train::decoder::shapes::{self, MatrixShape};
use crate::train::engine::{BackendKind, TOKENS_AT_ONCE, isa};
use crate::train::model::config::ModelConfig;
use crate::train::model::trainable::Trainable;

/// Copies of the adapter: itself, its gradient and two moments, the next gradient while the last one is used, and
/// the copies that a checkpoint makes to write the tensors one after the other.
const ADAPTER_COPIES: u64 = 8;

/// Copies of each of the model's own weights that trains: its value beside the one that computes, its
/// gradient and the next one, two moments, and the copies of a checkpoint.
const WEIGHT_COPIES: u64 = 6;

/// Buffers are an eighth of a power of two longer than what lies in them at most, a sixteenth on
/// average, and a few wait for their next use.
const BUFFER_SLACK: f64 = 1.2;

/// Memory of threads, code and the allocator.
const OTHER: u64 = 8 * 1024 * 1024;

/// The same of the machine beside a device of its own: what the driver and CUDA's libraries take there.
const HOST_OTHER: u64 = 256 * 1024 * 1024;

/// What CUDA's libraries take of a device's memory after it has been asked what is free: the workspace of cuBLAS (32
/// MiB on an H100) and kernels, which are loaded when they are first used. An estimate; no device has been
/// asked.
const CUDA_LIBRARIES: u64 = 256 * 1024 * 1024;

/// Bytes of a float.
const FLOAT: u64 = 4;

/// What decides on the memory of a run.
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
    /// Tokens of the longest prefix that examples share, which a pass has in addition to its own; zero where no
    /// prefix is shared.
    pub shared: usize,
    /// Examples in a step.
    pub batch_size: usize,
}

/// Peak memory of a run, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Frozen weights, packed for forward and backward passes, and tables of positions.
    pub weights: u64,
    /// The adapter, its gradients, moments and copies.
    pub adapter: u64,
    /// Saved activations of all layers, and working memory of one of them.
    pub activations: u64,
    /// The head's logits; with candle all that is made and dropped on the way, such as scores of
    /// attention.
    pub logits: u64,
    /// What reading the tensors takes beyond all weights, before there is anything else.
    pub reading: u64,
    /// What the libraries of a device take of its memory.
    pub libraries: u64,
}

impl MemoryEstimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        OTHER
            + self.libraries
            + self.weights
            + self.reading.max(self.adapter + self.activations + self.logits)
    }
}

impl fmt::Display for MemoryEstimate {
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

/// Estimates the peak memory of `workload`, in passes of [`TOKENS_AT_ONCE`] tokens.
///
/// # Errors
/// When the environment asks for instructions that this CPU does not have.
pub fn estimate(workload: &Workload<'_>) -> Result<MemoryEstimate, BackendError> {
    estimate_for(workload, TOKENS_AT_ONCE)
}

/// The same in passes of `pass_tokens` tokens.
///
/// # Errors
/// As [`estimate`].
pub fn estimate_for(
    workload: &Workload<'_>,
    pass_tokens: usize,
) -> Result<MemoryEstimate, BackendError> {
    let Workload { model, tuning, backend, longest, shared, batch_size } = *workload;
    let TrainableMemory { bytes: adapter, lowest, inner, .. } = trainable_memory(model, tuning);

    let mut weights = 0;
    let mut reading_peak = 0;
    for matrix in shapes::matrices(model) {
        let MatrixShape { outputs, inputs, backward } = matrix;
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
    weights += FLOAT * shapes::position_floats(model);

    let in_a_pass = (pass_tokens.max(shared) + shared).min(longest.saturating_mul(batch_size));
    let tokens = longest.max(in_a_pass) as u64;
    let kept: u64 =
        (lowest..model.layers).map(|layer| shapes::saved_floats(model, inner[layer])).sum();
    let working = shapes::working_floats(model);
    // Texts of the general-text evaluation fill a pass, however short the examples are.
    let measured = pass_tokens.min(model.context_length) as u64;
    let floats = (tokens * (kept + working)).max(measured * working);
    let activations = (BUFFER_SLACK * (FLOAT * floats) as f64) as u64;
    let logits = match backend {
        // Those of a chunk, and half as much for their gradient as the left side of a product.
        BackendKind::Cpu | BackendKind::CpuF32 => {
            FLOAT * 3 / 2 * (HEAD_CHUNK.min(tokens as usize) * model.vocabulary) as u64
        }
        BackendKind::Candle | BackendKind::Cuda(_) => candle::temporary_bytes(&candle::PassShape {
            heads: model.heads as u64,
            tokens,
            longest: longest as u64,
            shared: shared as u64,
            vocabulary: model.vocabulary as u64,
            head_rows: candle::head_rows(pass_tokens, model.vocabulary) as u64,
        }),
    };
    // The machine's memory reads for a device of its own.
    let reading = match backend {
        BackendKind::Cuda(_) => 0,
        _ => reading_peak.saturating_sub(weights),
    };
    let libraries = match backend {
        BackendKind::Cuda(_) => CUDA_LIBRARIES,
        _ => 0,
    };
    Ok(MemoryEstimate { weights, adapter, activations, logits, reading, libraries })
}

/// Most bytes of the machine's memory that the run of `workload` takes on a device of its own, while it reads the
/// model, writes a checkpoint, and reads the trained model back on the CPU, for which the model takes `read_back`
/// bytes ([`InferenceEngine::needed_bytes`](crate::train::engine::InferenceEngine::needed_bytes)).
pub fn host_bytes(workload: &Workload<'_>, read_back: u64) -> u64 {
    let Workload { model, tuning, .. } = *workload;
    let largest = shapes::matrices(model).iter().map(MatrixShape::elements).max().unwrap_or(0);
    // The file's bytes, the floats that are made of them, and what goes to the device.
    let reading = 3 * FLOAT * largest;
    let trained = trainable_memory(model, tuning);
    // Both moments, or what trains, and the file that is made of one of them.
    let checkpoint = 3 * trained.bytes / trained.copies;
    let adapter = if tuning.needs_weights() { 0 } else { trained.bytes / trained.copies };
    let read_back = read_back + adapter + FLOAT * shapes::position_floats(model) + reading;
    HOST_OTHER + read_back.max(checkpoint)
}

/// Memory of the trainable parameters.
struct TrainableMemory {
    /// With gradients, moments and copies.
    bytes: u64,
    /// How many times what trains is in them.
    copies: u64,
    /// The lowest layer that the backward pass runs through.
    lowest: usize,
    /// Floats of x · aᵀ that LoRA saves of each token in each layer.
    inner: Vec<usize>,
}

fn trainable_memory(model: &ModelConfig, tuning: &Trainable) -> TrainableMemory {
    let mut inner = vec![0; model.layers];
    let table = (model.vocabulary * model.hidden) as u64;
    let modules = shapes::modules(model);
    let in_blocks = |from: usize| -> u64 {
        let blocks = modules.iter().filter(|module| module.layer as usize >= from);
        blocks.map(|module| (module.outputs * module.inputs) as u64).sum()
    };
    let own = |floats: u64| FLOAT * WEIGHT_COPIES * floats;
    let lora = match tuning {
        Trainable::Full => {
            let outer = table * if model.tied { 1 } else { 2 };
            let bytes = own(in_blocks(0) + outer);
            return TrainableMemory { bytes, copies: WEIGHT_COPIES, lowest: 0, inner };
        }
        Trainable::LastLayers(count) => {
            let lowest = model.layers.saturating_sub(*count);
            let head = if model.tied { 0 } else { table };
            let bytes = own(in_blocks(lowest) + head);
            return TrainableMemory { bytes, copies: WEIGHT_COPIES, lowest, inner };
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
    let bytes = FLOAT * ADAPTER_COPIES * floats + saved;
    TrainableMemory { bytes, copies: WEIGHT_COPIES, lowest, inner }
}
