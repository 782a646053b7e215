//! Sixty steps on a real model and real data are those of transformers + PEFT, loss by loss.
//!
//! `HONE_GSM8K_REFERENCE` names a folder with `gsm8k_60steps_reference.json` (settings, loss and norm
//! of each step, validation loss), the adapter that both start from in `gsm8k_init_adapter/`, and
//! `gsm8k-train-2000.jsonl`; they are too large for the repository.

use std::path::{Path, PathBuf};

use hone::artifacts::peft;
use hone::train::backend::AdamWStep;
use hone::train::data::sequence::Sequence;
use hone::train::data::tokenize::{EncodedFile, encode_file};
use hone::train::engine::{BackendKind, Engine, LossSums, MicroBatch, load};
use hone::train::model::base_model::BaseModel;
use hone::train::model::lora::LoraSettings;
use serde_json::Value;

use crate::train::real_model;

/// Mean loss over loss-bearing tokens of a whole file.
fn loss(engine: &mut dyn Engine, file: &EncodedFile) -> f64 {
    let (mut loss, mut tokens) = (0.0, 0);
    for sequence in file.all() {
        let sums = LossSums::total(&engine.evaluate(&[sequence]).expect("computes"));
        loss += sums.loss;
        tokens += sums.tokens;
    }
    loss / tokens as f64
}

fn relative(found: f64, wanted: f64) -> f64 {
    (found - wanted).abs() / wanted
}

#[test]
fn sixty_steps_on_gsm8k_are_those_of_transformers_and_peft() {
    let Some(folder) = std::env::var_os("HONE_GSM8K_REFERENCE").map(PathBuf::from) else {
        eprintln!("not run: HONE_GSM8K_REFERENCE is not set");
        return;
    };
    let Some(models_dir) = real_model::models_dir() else { return };
    let text = std::fs::read(folder.join("gsm8k_60steps_reference.json")).expect("the reference");
    let reference: Value = serde_json::from_slice(&text).expect("JSON");
    let settings = &reference["settings"];
    assert_eq!((&settings["batch"], &settings["lora_r"]), (&8.into(), &8.into()));

    let base = BaseModel::open(&real_model::gguf(&models_dir)).expect("opens");
    let lora = LoraSettings::new(8, 16.0);
    let kind = match std::env::var("HONE_REFERENCE_DTYPE").as_deref() {
        Ok("bf16") => BackendKind::Cpu,
        _ => BackendKind::CpuF32,
    };
    let mut engine = load(&base.config, base.weights.as_ref(), &lora, 0, kind).expect("loads");
    let bytes = std::fs::read(folder.join("gsm8k_init_adapter/adapter_model.safetensors"));
    let start = peft::deserialise(&bytes.expect("the adapter")).expect("an adapter");
    engine.set_trainable_tensors(&start).expect("it fits");

    let training = folder.join("gsm8k-train-2000.jsonl");
    let training = encode_file(&training, &base, 1024).expect("encodes");
    let valid = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gsm8k/valid-100.jsonl");
    let valid = encode_file(&valid, &base, 1024).expect("encodes");
    let ids: Vec<u32> =
        serde_json::from_value(reference["first_example"]["input_ids"].clone()).expect("token ids");
    assert_eq!(training.examples[0].views[0].input_ids, ids);

    let (tolerance, end_tolerance) =
        if kind == BackendKind::Cpu { (0.02, 0.01) } else { (0.01, 0.005) };
    let before = reference["valid"]["loss_before"].as_f64().expect("a loss");
    let found = loss(engine.as_mut(), &valid);
    println!("before: {found} instead of {before}");
    assert!(relative(found, before) < end_tolerance);

    let mut worst: f64 = 0.0;
    for (index, wanted) in reference["steps"].as_array().expect("steps").iter().enumerate() {
        let batch: Vec<&Sequence> =
            training.examples[index * 8..][..8].iter().map(|example| &example.views[0]).collect();
        let tokens = wanted["loss_tokens"].as_u64().expect("a number");
        let sums = engine
            .accumulate(&batch, MicroBatch::whole(index as u64 + 1, tokens))
            .expect("computes");
        let sums = LossSums::total(&sums);
        assert_eq!(sums.tokens, tokens, "step {}", index + 1);
        let step = AdamWStep {
            learning_rate: settings["lr"].as_f64().expect("a rate"),
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            step: index as u64 + 1,
        };
        let norm = engine.step(&step).expect("steps");
        let found = sums.loss / tokens as f64;
        let difference = relative(found, wanted["loss"].as_f64().expect("a loss"));
        println!("step {}: loss {found:.6}, {difference:.1e} off; norm {norm:.4}", index + 1);
        worst = worst.max(difference);
    }
    let after = reference["valid"]["loss_after"].as_f64().expect("a loss");
    let found = loss(engine.as_mut(), &valid);
    println!("after: {found} instead of {after}; worst step {worst:.1e} off");
    assert!(worst < tolerance);
    assert!(relative(found, after) < end_tolerance);
}
