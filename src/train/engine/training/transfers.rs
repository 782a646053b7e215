//! What a step moves between host and device with the candle backend: counted on the CPU, where the
//! same code runs as on a CUDA device.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::train::backend::candle::{CandleBackend, TransferCounts};
use crate::train::model::error::LoadError;
use crate::train::model::lora::LoraSettings;
use crate::train::model::weights::{HostTensor, safetensors};

/// The first layer of a small model, repeated.
struct Repeated {
    one: Box<dyn WeightSource>,
    layers: usize,
}

/// A tensor's name around its layer's number: `model.layers.`, 0, `.mlp.up_proj.weight`.
fn parts(name: &str) -> Option<(&str, usize, &str)> {
    for before in ["model.layers.", "transformer.h.", "gpt_neox.layers."] {
        if let Some((number, rest)) =
            name.strip_prefix(before).and_then(|rest| rest.split_once('.'))
        {
            return Some((before, number.parse().ok()?, rest));
        }
    }
    None
}

impl WeightSource for Repeated {
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes = Vec::new();
        for (name, shape) in self.one.shapes() {
            match parts(&name) {
                None => shapes.push((name, shape)),
                Some((before, 0, rest)) => shapes.extend(
                    (0..self.layers)
                        .map(|layer| (format!("{before}{layer}.{rest}"), shape.clone())),
                ),
                Some(_) => {}
            }
        }
        shapes
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, LoadError> {
        match parts(name) {
            None => self.one.tensor(name),
            Some((before, _layer, rest)) => self.one.tensor(&format!("{before}0.{rest}")),
        }
    }
}

pub(super) fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(family)
}

/// A model of `family` with so many layers, on candle.
pub(super) fn engine(
    family: &str,
    layers: usize,
    tuning: &Trainable,
    backend: CandleBackend,
) -> TrainingEngine<CandleBackend> {
    changed_engine(family, layers, tuning, backend, |_config| ())
}

/// The same with another configuration.
pub(super) fn changed_engine(
    family: &str,
    layers: usize,
    tuning: &Trainable,
    backend: CandleBackend,
    change: impl FnOnce(&mut Value),
) -> TrainingEngine<CandleBackend> {
    let text = std::fs::read(golden(family).join("config.json")).expect("reads");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    change(&mut config);
    let key = if config["n_layer"].is_null() { "num_hidden_layers" } else { "n_layer" };
    config[key] = json!(layers);
    if let Value::Array(types) = &config["layer_types"] {
        let types: Vec<Value> = types.iter().cycle().take(layers).cloned().collect();
        config["layer_types"] = json!(types);
    }
    let weights = Repeated { one: safetensors::open(&golden(family)).expect("opens"), layers };
    let config = ModelConfig::read(&config).expect("a configuration");
    TrainingEngine::load(backend, config, &weights, tuning, 1).expect("loads")
}

pub(super) fn lora(dropout: f64) -> Trainable {
    Trainable::Lora(LoraSettings { dropout, ..LoraSettings::new(4, 8.0) })
}

pub(super) fn sequences() -> Vec<Sequence> {
    let of = |length: u32| Sequence {
        input_ids: (0..length).map(|at| (at * 31 + length) % 320).collect(),
        loss_mask: (0..length).map(|at| at > 2).collect(),
    };
    vec![of(40), of(17), of(29)]
}

/// What the work moves.
fn moved(
    engine: &mut TrainingEngine<CandleBackend>,
    work: impl FnOnce(&mut TrainingEngine<CandleBackend>),
) -> TransferCounts {
    let before = engine.decoder.backend().transfer_counts();
    work(engine);
    let after = engine.decoder.backend().transfer_counts();
    TransferCounts {
        to_device: after.to_device - before.to_device,
        to_host: after.to_host - before.to_host,
        bytes_to_device: after.bytes_to_device - before.bytes_to_device,
        bytes_to_host: after.bytes_to_host - before.bytes_to_host,
    }
}

/// The numbers of transfers up and down.
fn numbers(counts: TransferCounts) -> (u64, u64) {
    (counts.to_device, counts.to_host)
}

pub(super) fn step(engine: &mut TrainingEngine<CandleBackend>, number: u64) {
    let sequences = sequences();
    let batch: Vec<&Sequence> = sequences.iter().collect();
    engine.accumulate(&batch, MicroBatch::whole(number, 77)).expect("computes");
    let rates = AdamWStep {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
        clip: 1.0,
        step: number,
    };
    assert!(engine.step(&rates).expect("computes").is_finite());
}

#[test]
fn a_step_moves_its_batch_up_and_its_losses_and_norm_down_whatever_trains_in_how_many_layers() {
    for family in ["llama", "mistral", "gemma2", "qwen3", "phi3", "gpt2", "gpt_neox"] {
        for (layers, tuning) in [
            (1, lora(0.0)),
            (5, lora(0.0)),
            (1, Trainable::Full),
            (5, Trainable::Full),
            (5, Trainable::LastLayers(2)),
        ] {
            let backend = CandleBackend::new(candle_core::Device::Cpu);
            let mut engine = engine(family, layers, &tuning, backend);
            let first = moved(&mut engine, |engine| step(engine, 1));
            // Token ids, positions, loss rows, targets and factors; once also the positions that the mask of
            // attention is made of, and the four lists of rows of segments that attend together, which the
            // second pass has in common with the first.
            assert_eq!(numbers(first), (10, 2), "{family} {layers} {tuning:?}");
            let second = moved(&mut engine, |engine| step(engine, 2));
            assert_eq!(numbers(second), (5, 2), "{family} {layers} {tuning:?}");
        }
    }
}

#[test]
fn dropout_moves_the_masks_of_all_layers_at_once() {
    for layers in [1, 5] {
        let backend = CandleBackend::new(candle_core::Device::Cpu);
        let mut engine = engine("llama", layers, &lora(0.1), backend);
        step(&mut engine, 1);
        let second = moved(&mut engine, |engine| step(engine, 2));
        // The masks' bits, and what a byte of them means.
        assert_eq!(numbers(second), (7, 2), "{layers}");
    }
}

#[test]
fn losses_that_decide_on_factors_come_down_once() {
    for layers in [1, 5] {
        let backend = CandleBackend::new(candle_core::Device::Cpu);
        let mut engine = engine("llama", layers, &lora(0.0), backend);
        step(&mut engine, 1);
        let sequences = sequences();
        let batch: Vec<&Sequence> = sequences.iter().collect();
        let pass = engine.pack_sequences(&batch, || None).expect("fits").remove(0);
        let moved = moved(&mut engine, |engine| {
            let mut weights_of = |losses: &[RowLoss]| losses.iter().map(|row| row.loss).collect();
            let TrainingEngine { decoder, trained, gradients, frozen, .. } = engine;
            let loss_weights = LossWeights::FromLosses(&mut weights_of);
            let made =
                decoder.losses_and_gradients(trained, &pass, loss_weights, gradients, frozen);
            made.expect("computes");
        });
        assert_eq!(numbers(moved), (5, 1), "{layers}");
    }
}

#[test]
fn frozen_weights_in_bfloat16_give_nearly_the_same_gradients() {
    let gradients = |precision| {
        let device = candle_core::Device::Cpu;
        let mut engine =
            engine("llama", 2, &lora(0.0), CandleBackend::with_precision(device, precision));
        // A fresh adapter's B is zero, and so are the gradients of its A.
        let mut adapter = engine.trainable_tensors().expect("reads");
        for (_shape, values) in adapter.values_mut().filter(|(shape, _)| shape[1] == 4) {
            for (at, value) in values.iter_mut().enumerate() {
                *value = (at % 7) as f32 * 0.05 - 0.15;
            }
        }
        engine.set_trainable_tensors(&adapter).expect("fits");
        let sequences = sequences();
        let batch: Vec<&Sequence> = sequences.iter().collect();
        engine.accumulate(&batch, MicroBatch::whole(1, 77)).expect("computes");
        engine.gradients().expect("reads")
    };
    let exact = gradients(candle_core::DType::F32);
    let narrow = gradients(candle_core::DType::BF16);
    for (key, (_shape, exact)) in &exact {
        let narrow = &narrow[key].1;
        let (mut apart, mut norm) = (0.0, 1e-30);
        for (narrow, exact) in narrow.iter().zip(exact) {
            apart += f64::from(narrow - exact).powi(2);
            norm += f64::from(*exact).powi(2);
        }
        let off = (apart / norm).sqrt();
        // 8 bits of mantissa: 0.4 % of a value, some times over.
        assert!(off > 1e-5 && off < 0.1, "{key}: {off}");
    }
}
