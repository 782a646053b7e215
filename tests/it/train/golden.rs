//! The engine computes what transformers + PEFT compute: every case folder of `make_golden.py` in
//! the folder that `HONE_GOLDEN_DIR` names (default `tests/data/golden`), in both spellings of its
//! configuration, on every backend, through the interface that the trainer and the server use.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hone::train::backend::AdamWStep;
use hone::train::data::sequence::Sequence;
use hone::train::engine::{
    BackendKind, Engine, InferenceEngine, LossSums, MicroBatch, PreferencePair, PreferenceRewards,
    load,
};
use hone::train::model::lora::LoraSettings;
use hone::train::model::tensors::NamedTensors;
use hone::train::model::weights::safetensors;
use serde_json::Value;

/// Cross entropy, relative. float64 and float32 differ by 1e-7 relative in transformers itself.
pub const LOSS: f64 = 1e-5;
/// Gradient tensors: norm of the difference, relative to the tensor's norm.
pub const GRADIENT: f64 = 1e-4;
/// Losses of the optimiser steps, relative: ten steps of rounding at a large learning rate.
const STEP_LOSS: f64 = 1e-4;
/// The same, relative to the loss of the first step: a loss that falls from 10 to 0.01 keeps the
/// rounding of sums as large as it began (some 16 units in the last place).
const STEP_LOSS_OF_FIRST: f64 = 2e-6;
/// What a step may differ by in multiples of how far transformers' own float32 lies from its float64
/// in that case: some seeds make rounding grow from step to step, for every engine.
const FLOAT64_DIFFERENCES: f64 = 4.0;
/// Global gradient norms of the steps, relative.
pub const STEP_NORM: f64 = 1e-3;
/// Logits, relative to the largest: float64 and float32 differ by up to 1e-6 in transformers.
pub const LOGITS: f64 = 1e-5;
/// Final adapter, relative to the tensor's norm. Adam divides by the root of the second moment, so
/// where a gradient is near zero its rounding decides the direction; `case.json` shows 3e-5 absolute
/// between float32 and float64.
pub const FINAL: f64 = 5e-3;

/// One case folder.
pub struct Case {
    /// The folder's name.
    pub name: String,
    /// Where it lies.
    pub folder: PathBuf,
    pub description: Value,
    tensors: BTreeMap<String, (Vec<usize>, Tensor)>,
}

enum Tensor {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden");
    let root = std::env::var_os("HONE_GOLDEN_DIR").map_or(default, PathBuf::from);
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&root)
        .unwrap_or_else(|error| panic!("{}: {error}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("case.json").exists())
        .collect();
    folders.sort();
    assert!(!folders.is_empty(), "{} holds no case", root.display());
    folders.into_iter().map(|folder| read_case(&folder)).collect()
}

fn read_case(folder: &Path) -> Case {
    let description = read_json(&folder.join("case.json"));
    let bytes = std::fs::read(folder.join("case.safetensors")).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let tensor = match view.dtype() {
            ::safetensors::Dtype::F32 => Tensor::Floats(
                view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            ),
            ::safetensors::Dtype::I64 => Tensor::Integers(
                view.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            ),
            other => panic!("{name}: {other:?}"),
        };
        tensors.insert(name, (view.shape().to_vec(), tensor));
    }
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    Case { name, folder: folder.to_owned(), description, tensors }
}

/// A file that holds JSON.
pub fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

impl Case {
    /// The values of a tensor of floats.
    pub fn floats(&self, name: &str) -> &[f32] {
        match &self.tensors[name].1 {
            Tensor::Floats(values) => values,
            Tensor::Integers(_) => panic!("{name} holds integers"),
        }
    }

    /// The rows of a tensor of integers.
    pub fn integers(&self, name: &str) -> Vec<Vec<i64>> {
        let (shape, Tensor::Integers(values)) = &self.tensors[name] else {
            panic!("{name} holds floats")
        };
        values.chunks(shape[1]).map(<[i64]>::to_vec).collect()
    }

    /// The tensors under `prefix`, by their PEFT keys.
    pub fn named(&self, prefix: &str) -> NamedTensors {
        let found = self.tensors.iter().filter_map(|(name, (shape, tensor))| {
            let (Some(key), Tensor::Floats(values)) = (name.strip_prefix(prefix), tensor) else {
                return None;
            };
            Some((key.to_owned(), (shape.clone(), values.clone())))
        });
        found.collect()
    }

    /// The rows of a batch without their padding.
    pub fn sequences(&self, prefix: &str) -> Vec<Sequence> {
        let ids = self.integers(&format!("{prefix}input_ids"));
        let seen = self.integers(&format!("{prefix}attention_mask"));
        let labels = self.integers(&format!("{prefix}labels"));
        let mut rows = Vec::new();
        for ((ids, seen), labels) in ids.iter().zip(&seen).zip(&labels) {
            let length = seen.iter().filter(|seen| **seen == 1).count();
            rows.push(Sequence {
                input_ids: ids[..length].iter().map(|id| *id as u32).collect(),
                loss_mask: labels[..length].iter().map(|label| *label != -100).collect(),
            });
        }
        rows
    }

    /// The adapter that was trained.
    pub fn lora(&self) -> LoraSettings {
        let lora = &self.description["lora"];
        LoraSettings::new(lora["r"].as_u64().unwrap() as usize, lora["alpha"].as_f64().unwrap())
    }

    /// The optimiser of a step, counted from 1.
    pub fn optimiser(&self, step: u64) -> AdamWStep {
        let optimiser = &self.description["optimizer"];
        let number = |key: &str| optimiser[key].as_f64().unwrap();
        AdamWStep {
            learning_rate: number("lr"),
            beta1: optimiser["betas"][0].as_f64().unwrap(),
            beta2: optimiser["betas"][1].as_f64().unwrap(),
            epsilon: number("eps"),
            weight_decay: number("weight_decay"),
            clip: number("clip_grad_norm"),
            step,
        }
    }

    /// How far a value of `tensor` after the first step may lie from `want`: by the share `relative`,
    /// or by a few times the distance of transformers' float32 from its float64, where the case
    /// tells.
    pub fn allowance(&self, tensor: &str, relative: f64, want: f64) -> f64 {
        let known = &self.description["float64_differences"][tensor]["max_abs_diff"];
        (relative * want.abs()).max(FLOAT64_DIFFERENCES * known.as_f64().unwrap_or(0.0))
    }

    /// The loss of the optimiser step `step`, counted from 1.
    fn check_step_loss(&self, kind: BackendKind, step: u64, loss: f64) {
        let wanted = self.floats("step_losses");
        let want = f64::from(wanted[step as usize - 1]);
        let allowed = if step == 1 { LOSS * want } else { self.loss_allowance(want) };
        let off = (loss - want).abs();
        let name = &self.name;
        assert!(
            off <= allowed,
            "{name} {kind:?} step {step}: {loss} {want}, allowed {allowed:.1e}"
        );
    }

    /// How far the loss `want` of a later step may be missed.
    pub fn loss_allowance(&self, want: f64) -> f64 {
        let of_first = STEP_LOSS_OF_FIRST * f64::from(self.floats("step_losses")[0]);
        self.allowance("step_losses", STEP_LOSS, want).max(of_first)
    }

    /// The global norm of the gradients of the step `step`, counted from 1.
    fn check_step_norm(&self, kind: BackendKind, step: u64, norm: f64) {
        let want = f64::from(self.floats("step_grad_norms")[step as usize - 1]);
        let allowed = self.allowance("step_grad_norms", STEP_NORM, want);
        let off = (norm - want).abs();
        let name = &self.name;
        assert!(
            off <= allowed,
            "{name} {kind:?} step {step}: {norm} {want}, allowed {allowed:.1e}"
        );
    }

    fn engine(&self, config: &Value, kind: BackendKind) -> Box<dyn Engine> {
        let weights = safetensors::open(&self.folder).unwrap();
        load(config, weights.as_ref(), &self.lora(), 0, kind)
            .unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }
}

/// Norm of the difference over the norm of what is wanted.
pub fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let (mut difference, mut norm) = (0.0, 1e-30);
    for (got, want) in got.iter().zip(want) {
        difference += (f64::from(*got) - f64::from(*want)).powi(2);
        norm += f64::from(*want).powi(2);
    }
    (difference / norm).sqrt()
}

/// Difference over what is wanted.
pub fn relative(got: f64, want: f64) -> f64 {
    (got - want).abs() / want.abs().max(1e-30)
}

/// Logits of the real (not padded) positions of a row, which has `count` of them.
pub fn wanted_logits<'a>(case: &'a Case, wanted: &str, row: usize, count: usize) -> &'a [f32] {
    let (shape, _) = &case.tensors[wanted];
    &case.floats(wanted)[row * shape[1] * shape[2]..][..count]
}

/// Largest difference of real (not padded) positions over the largest logit.
fn check_logits(case: &Case, wanted: &str, row: usize, got: &[f32]) {
    let want = wanted_logits(case, wanted, row, got.len());
    let most = want.iter().fold(0.0f64, |most, x| most.max(f64::from(x.abs())));
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let difference = f64::from((got - want).abs()) / most;
        assert!(difference <= LOGITS, "{} {wanted} row {row} [{index}]: {got} {want}", case.name);
    }
}

pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, value) in logits.iter().enumerate() {
        if *value > logits[best] {
            best = index;
        }
    }
    best as u32
}

fn check_supervised(case: &Case, config: &Value, kind: BackendKind) {
    let name = &case.name;
    let sequences = case.sequences("");
    let batch: Vec<&Sequence> = sequences.iter().collect();
    let mut engine = case.engine(config, kind);

    // A fresh adapter has B = 0 and changes nothing: this is the base model.
    for (row, sequence) in sequences.iter().enumerate() {
        check_logits(case, "base_logits", row, &engine.logits(&sequence.input_ids).unwrap());
    }
    let base = LossSums::total(&engine.evaluate(&batch).unwrap());
    let want = f64::from(case.floats("base_loss")[0]);
    assert!(relative(base.loss / base.tokens as f64, want) <= LOSS, "{name}: base loss {base:?}");

    engine.set_trainable_tensors(&case.named("lora_init.")).unwrap();
    for (row, sequence) in sequences.iter().enumerate() {
        check_logits(case, "lora_logits", row, &engine.logits(&sequence.input_ids).unwrap());
    }
    let steps = case.description["steps"].as_u64().unwrap();
    for step in 1..=steps {
        let sums = engine.accumulate(&batch, MicroBatch::whole(step, base.tokens)).unwrap();
        let sums = LossSums::total(&sums);
        assert_eq!(sums.tokens, case.description["loss_tokens"].as_u64().unwrap());
        case.check_step_loss(kind, step, sums.loss / sums.tokens as f64);
        if step == 1 {
            check_gradients(case, &engine.gradients().unwrap());
        }
        case.check_step_norm(kind, step, engine.step(&case.optimiser(step)).unwrap());
    }
    let adapter = engine.trainable_tensors().unwrap();
    for (key, (_, want)) in case.named("lora_final.") {
        let off = distance(&adapter[&key].1, &want);
        assert!(off <= FINAL, "{name} {kind:?} {key}: {off}");
    }
    let sums = LossSums::total(&engine.evaluate(&batch).unwrap());
    let want = f64::from(case.floats("final_loss")[0]);
    let loss = sums.loss / sums.tokens as f64;
    let allowed = 2.0 * case.loss_allowance(want);
    assert!((loss - want).abs() <= allowed, "{name} {kind:?}: {loss} {want}");

    // Greedy decoding, the whole text again for each token.
    let mut text: Vec<u32> = case.integers("prompt_ids")[0].iter().map(|id| *id as u32).collect();
    let want: Vec<u32> = case.integers("generated_ids")[0].iter().map(|id| *id as u32).collect();
    let prompt = text.clone();
    for _ in &want {
        let logits = engine.logits(&text).unwrap();
        let vocabulary = logits.len() / text.len();
        text.push(argmax(&logits[logits.len() - vocabulary..]));
    }
    assert_eq!(text[prompt.len()..], want, "{name} {kind:?}: generation");
    if kind != BackendKind::Candle {
        check_session(case, config, kind, &adapter, &prompt, &want);
    }
}

fn check_preferences(case: &Case, config: &Value, kind: BackendKind) {
    let name = &case.name;
    let mut engine = case.engine(config, kind);
    let beta = case.description["beta"].as_f64().unwrap();
    let chosen = case.sequences("chosen_");
    let rejected = case.sequences("rejected_");
    engine.set_trainable_tensors(&case.named("lora_init.")).unwrap();
    // The base is asked through the engine whose adapter is not neutral.
    let reference = |engine: &mut dyn Engine, side: &[Sequence], wanted: &str| {
        let side: Vec<&Sequence> = side.iter().collect();
        let made = engine.log_probabilities(&side, false).unwrap();
        for (made, want) in made.iter().zip(case.floats(wanted)) {
            assert!(relative(*made, f64::from(*want)) <= LOSS, "{name}: {made} {want}");
        }
        made
    };
    let reference_chosen = reference(engine.as_mut(), &chosen, "ref_logps_chosen");
    let reference_rejected = reference(engine.as_mut(), &rejected, "ref_logps_rejected");
    let mut batch = Vec::new();
    for (index, (chosen, rejected)) in chosen.iter().zip(&rejected).enumerate() {
        let reference = [reference_chosen[index], reference_rejected[index]];
        batch.push(PreferencePair { chosen, rejected, reference });
    }
    let total = batch.len() as u64;
    for step in 1..=case.description["steps"].as_u64().unwrap() {
        let index = step as usize - 1;
        for (side, wanted) in [(&chosen, "step_logps_chosen"), (&rejected, "step_logps_rejected")] {
            let side: Vec<&Sequence> = side.iter().collect();
            let made = engine.log_probabilities(&side, true).unwrap();
            for (made, want) in made.iter().zip(&case.floats(wanted)[index * side.len()..]) {
                let want = f64::from(*want);
                let allowed = case.allowance(wanted, STEP_LOSS, want);
                assert!((made - want).abs() <= allowed, "{name} step {step}: {made} {want}");
            }
        }
        let seen = engine.evaluate_preferences(&batch, beta).unwrap();
        // In two batches, as a long step would go.
        let mut part = MicroBatch::whole(step, total);
        let mut sums = engine.accumulate_preferences(&batch[..1], beta, part).unwrap();
        part.first = 1;
        let rest = engine.accumulate_preferences(&batch[1..], beta, part).unwrap();
        sums.extend(rest);
        assert_eq!(sums.len(), batch.len());
        for (made, seen) in sums.iter().zip(&seen) {
            assert!(relative(made.loss(), seen.loss()) <= LOSS, "{name}: {made:?} {seen:?}");
        }
        let sum: f64 = sums.iter().map(PreferenceRewards::loss).sum();
        case.check_step_loss(kind, step, sum / total as f64);
        let rewards = &case.floats("step_rewards_chosen")[index * batch.len()..];
        for (seen, want) in seen.iter().zip(rewards) {
            let want = f64::from(*want);
            let apart = (seen.chosen_reward - want).abs();
            // A reward is beta times the difference of two sums that are some hundred times as large.
            let allowed = case.allowance("step_rewards_chosen", STEP_LOSS, want).max(1e-4);
            assert!(apart <= allowed, "{name} step {step}: {seen:?} {want}");
        }
        if step == 1 {
            check_gradients(case, &engine.gradients().unwrap());
        }
        case.check_step_norm(kind, step, engine.step(&case.optimiser(step)).unwrap());
    }
    let adapter = engine.trainable_tensors().unwrap();
    for (key, (_, want)) in case.named("lora_final.") {
        let off = distance(&adapter[&key].1, &want);
        assert!(off <= FINAL, "{name} {kind:?} {key}: {off}");
    }
}

fn check_gradients(case: &Case, gradients: &NamedTensors) {
    let wanted = case.named("lora_grad.");
    assert_eq!(gradients.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (key, (shape, want)) in wanted {
        assert_eq!(gradients[&key].0, shape);
        let off = distance(&gradients[&key].1, &want);
        assert!(off <= GRADIENT, "{} {key}: {off}", case.name);
    }
}

/// Greedy decoding with kept keys and values, on a base with the adapter beside it.
fn check_session(
    case: &Case,
    config: &Value,
    kind: BackendKind,
    adapter: &NamedTensors,
    prompt: &[u32],
    want: &[u32],
) {
    let weights = safetensors::open(&case.folder).unwrap();
    let responder = InferenceEngine::load(config, weights.as_ref(), kind).unwrap();
    let attached = responder.attach(&case.lora(), adapter).unwrap();
    let mut session = responder.begin(Some(&attached)).unwrap();
    let mut logits = session.extend(prompt).unwrap();
    let mut written = Vec::new();
    for _ in want {
        let next = argmax(&logits);
        written.push(next);
        logits = session.extend(&[next]).unwrap();
    }
    assert_eq!(written, want, "{} {kind:?}: generation with a cache", case.name);
}

/// The cases that have a test by their name below.
const NAMED: &[&str] = &[
    "llama",
    "llama3_rope",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "gpt2",
    "gpt_neox",
    "dpo_llama",
];

/// A case in both spellings of its configuration, on both backends.
fn check(case: &Case) {
    for spelling in ["config.json", "config_v4.json"] {
        let config = read_json(&case.folder.join(spelling));
        for kind in [BackendKind::Candle, BackendKind::CpuF32] {
            match case.description["kind"].as_str() {
                Some("sft") => check_supervised(case, &config, kind),
                Some("dpo") => check_preferences(case, &config, kind),
                other => panic!("{}: a case of kind {other:?}", case.name),
            }
        }
    }
}

/// The case called `name`. Another folder than hone's own need not have it.
fn check_named(name: &str) {
    assert!(NAMED.contains(&name), "{name} is checked twice");
    let cases = cases();
    let case = cases.iter().find(|case| case.name == name);
    assert!(case.is_some() || std::env::var_os("HONE_GOLDEN_DIR").is_some(), "{name} is not there");
    case.map(check);
}

#[test]
fn cases_by_other_names_are_those_of_transformers_and_peft() {
    cases().iter().filter(|case| !NAMED.contains(&case.name.as_str())).for_each(check);
}

#[test]
fn llama_is_that_of_transformers_and_peft() {
    check_named("llama");
}

#[test]
fn llama3_rope_is_that_of_transformers_and_peft() {
    check_named("llama3_rope");
}

#[test]
fn mistral_is_that_of_transformers_and_peft() {
    check_named("mistral");
}

#[test]
fn qwen2_is_that_of_transformers_and_peft() {
    check_named("qwen2");
}

#[test]
fn qwen3_is_that_of_transformers_and_peft() {
    check_named("qwen3");
}

#[test]
fn gemma2_is_that_of_transformers_and_peft() {
    check_named("gemma2");
}

#[test]
fn gemma3_text_is_that_of_transformers_and_peft() {
    check_named("gemma3_text");
}

#[test]
fn phi3_is_that_of_transformers_and_peft() {
    check_named("phi3");
}

#[test]
fn gpt2_is_that_of_transformers_and_peft() {
    check_named("gpt2");
}

#[test]
fn gpt_neox_is_that_of_transformers_and_peft() {
    check_named("gpt_neox");
}

#[test]
fn dpo_on_llama_is_that_of_the_formula_over_transformers_and_peft() {
    check_named("dpo_llama");
}

#[test]
fn missing_extra_and_misshapen_tensors_are_named() {
    // This one in any case: the sizes below are its own.
    let case = read_case(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/llama"));
    let weights = safetensors::open(&case.folder).unwrap();
    let mut config = read_json(&case.folder.join("config.json"));
    let error =
        |config: &Value| match load(config, weights.as_ref(), &case.lora(), 0, BackendKind::CpuF32)
        {
            Ok(_) => panic!("it loads"),
            Err(error) => error.to_string(),
        };
    config["tie_word_embeddings"] = false.into();
    let message = error(&config);
    assert!(message.contains("1 tensors are missing: \"lm_head.weight\""), "{message}");
    config["tie_word_embeddings"] = true.into();
    config["intermediate_size"] = 100.into();
    assert!(error(&config).contains("instead of [100, 64]"), "{}", error(&config));
    config["intermediate_size"] = 112.into();
    config["num_hidden_layers"] = 1.into();
    let message = error(&config);
    // The first of them by name, and how many more there are.
    assert!(
        message
            .contains("9 tensors are not part of the architecture: \"model.layers.1.input_layer"),
        "{message}"
    );
    assert!(message.ends_with("and 1 more"), "{message}");
    config["tie_word_embeddings"] = false.into();
    config["vocab_size"] = 300.into();
    let message = error(&config);
    for words in [
        "1 tensors are missing: \"lm_head.weight\"",
        "1 tensors have another shape: \"model.embed_tokens.weight\" has [320, 64] instead of [300, 64]",
        "9 tensors are not part of the architecture",
    ] {
        assert!(message.contains(words), "{words}: {message}");
    }
    config["model_type"] = "mamba".into();
    let message = error(&config);
    assert!(message.contains("mamba") && message.contains("gpt_neox"), "{message}");
}
