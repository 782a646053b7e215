//! How far a device's numbers lie from the golden ones: the largest difference of each kind in each case, as JSON.
//!
//! `benches/gpu` takes this test along to machines with a GPU. There `HONE_GOLDEN_DEVICE` names the device
//! (`cpu`, `cuda`, `cuda:N`; `cpu` without it), `HONE_GOLDEN_PRECISION` the precision of the weights (`f32` or `bf16`;
//! `f32` without it), and `HONE_GOLDEN_REPORT` a file for the JSON, which is written anew after each case.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Instant;

use hone::device::Device;
use hone::train::backend::BackendError;
use hone::train::data::sequence::Sequence;
use hone::train::engine::{
    BackendKind, Engine, LossSums, MicroBatch, PreferencePair, PreferenceRewards, load, load_in_f32,
};
use hone::train::model::error::LoadModelError;
use hone::train::model::tensors::NamedTensors;
use hone::train::model::trainable::Trainable;
use hone::train::model::weights::safetensors;
use serde_json::{Map, Value, json};

use super::golden::{
    Case, FINAL, GRADIENT, LOGITS, LOSS, STEP_NORM, argmax, cases, distance, read_json, relative,
    wanted_logits,
};

/// What computes.
#[derive(Clone, Copy)]
struct MeasuredDevice {
    device: Device,
    is_f32: bool,
}

impl MeasuredDevice {
    /// As the environment names it.
    fn from_environment() -> Self {
        let variable = |name: &str| std::env::var(name).ok();
        let device = variable("HONE_GOLDEN_DEVICE").map_or(Device::Cpu, |text| {
            text.parse().unwrap_or_else(|error| panic!("HONE_GOLDEN_DEVICE: {error}"))
        });
        let is_f32 = match variable("HONE_GOLDEN_PRECISION").as_deref() {
            None | Some("f32") => true,
            Some("bf16") => false,
            Some(other) => panic!("HONE_GOLDEN_PRECISION is {other:?}: f32 or bf16"),
        };
        Self { device, is_f32 }
    }

    fn engine(self, case: &Case, config: &Value) -> Result<Box<dyn Engine>, LoadModelError> {
        let weights = safetensors::open(&case.folder)?;
        let lora = case.lora();
        match (self.device, self.is_f32) {
            (Device::Cpu, true) => load(config, weights.as_ref(), &lora, 0, BackendKind::CpuF32),
            (device, false) => load(config, weights.as_ref(), &lora, 0, BackendKind::of(device)),
            (device, true) => {
                load_in_f32(config, weights.as_ref(), &Trainable::Lora(lora), 0, device)
            }
        }
    }
}

/// The largest differences of a case, by what was compared.
#[derive(Default)]
struct Differences(BTreeMap<&'static str, LargestDifference>);

#[derive(Clone, Copy, Default)]
struct LargestDifference {
    /// Relative.
    relative: f64,
    /// In multiples of what the golden tests allow for 32-bit floats.
    of_allowed: f64,
}

/// The larger one. A number that is not one must show, and `max` would pass over it.
fn worse(now: f64, new: f64) -> f64 {
    if new.is_nan() || new > now { new } else { now }
}

impl Differences {
    /// A relative difference, and how large a one the golden tests allow.
    fn add(&mut self, what: &'static str, relative: f64, allowed: f64) {
        let largest = self.0.entry(what).or_default();
        largest.relative = worse(largest.relative, relative);
        largest.of_allowed = worse(largest.of_allowed, relative / allowed);
    }

    /// The same of two numbers, with what may lie between them.
    fn add_numbers(&mut self, what: &'static str, got: f64, want: f64, allowed: f64) {
        self.add(what, relative(got, want), allowed / want.abs().max(1e-30));
    }

    fn add_logits(&mut self, what: &'static str, got: &[f32], want: &[f32]) {
        let most = want.iter().fold(0.0f64, |most, x| most.max(f64::from(x.abs())));
        let mut largest = 0.0;
        for (got, want) in got.iter().zip(want) {
            largest = worse(largest, f64::from((got - want).abs()) / most);
        }
        self.add(what, largest, LOGITS);
    }

    fn add_tensors(
        &mut self,
        what: &'static str,
        got: &NamedTensors,
        want: &NamedTensors,
        allowed: f64,
    ) {
        assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
        for (key, (_, want)) in want {
            self.add(what, distance(&got[key].1, want), allowed);
        }
    }

    fn json(&self) -> Value {
        let of = |largest: &LargestDifference| {
            // JSON has no number for one that is not finite.
            let number = |value: f64| {
                if value.is_finite() { json!(value) } else { json!(value.to_string()) }
            };
            json!({"relative": number(largest.relative), "of_allowed": number(largest.of_allowed)})
        };
        self.0.iter().map(|(what, largest)| ((*what).to_owned(), of(largest))).collect()
    }
}

fn measure_supervised(
    case: &Case,
    engine: &mut dyn Engine,
) -> Result<(Differences, Value), BackendError> {
    let mut found = Differences::default();
    let sequences = case.sequences("");
    let batch: Vec<&Sequence> = sequences.iter().collect();
    for (row, sequence) in sequences.iter().enumerate() {
        let got = engine.logits(&sequence.input_ids)?;
        found.add_logits("base_logits", &got, wanted_logits(case, "base_logits", row, got.len()));
    }
    let base = LossSums::total(&engine.evaluate(&batch)?);
    let want = f64::from(case.floats("base_loss")[0]);
    found.add("base_loss", relative(base.loss / base.tokens as f64, want), LOSS);
    engine.set_trainable_tensors(&case.named("lora_init."))?;
    for (row, sequence) in sequences.iter().enumerate() {
        let got = engine.logits(&sequence.input_ids)?;
        found.add_logits("lora_logits", &got, wanted_logits(case, "lora_logits", row, got.len()));
    }
    for step in 1..=case.description["steps"].as_u64().unwrap() {
        let sums = engine.accumulate(&batch, MicroBatch::whole(step, base.tokens))?;
        let sums = LossSums::total(&sums);
        add_step(&mut found, case, engine, step, sums.loss / sums.tokens as f64)?;
    }
    let trained = engine.trainable_tensors()?;
    found.add_tensors("trained_adapter", &trained, &case.named("lora_final."), FINAL);
    let sums = LossSums::total(&engine.evaluate(&batch)?);
    let want = f64::from(case.floats("final_loss")[0]);
    let loss = sums.loss / sums.tokens as f64;
    found.add_numbers("trained_loss", loss, want, 2.0 * case.loss_allowance(want));

    let token = |id: &i64| *id as u32;
    let mut text: Vec<u32> = case.integers("prompt_ids")[0].iter().map(token).collect();
    let want: Vec<u32> = case.integers("generated_ids")[0].iter().map(token).collect();
    let prompt = text.len();
    for _ in &want {
        let logits = engine.logits(&text)?;
        let vocabulary = logits.len() / text.len();
        text.push(argmax(&logits[logits.len() - vocabulary..]));
    }
    let same = text[prompt..].iter().zip(&want).take_while(|(got, want)| got == want).count();
    Ok((found, json!({"generated_tokens": want.len(), "same_generated_tokens": same})))
}

fn measure_preferences(
    case: &Case,
    engine: &mut dyn Engine,
) -> Result<(Differences, Value), BackendError> {
    let mut found = Differences::default();
    let beta = case.description["beta"].as_f64().unwrap();
    let chosen = case.sequences("chosen_");
    let rejected = case.sequences("rejected_");
    engine.set_trainable_tensors(&case.named("lora_init."))?;
    let mut references = Vec::new();
    for (side, wanted) in [(&chosen, "ref_logps_chosen"), (&rejected, "ref_logps_rejected")] {
        let side: Vec<&Sequence> = side.iter().collect();
        let made = engine.log_probabilities(&side, false)?;
        for (made, want) in made.iter().zip(case.floats(wanted)) {
            found.add("reference_log_probabilities", relative(*made, f64::from(*want)), LOSS);
        }
        references.push(made);
    }
    let mut batch = Vec::new();
    for (index, (chosen, rejected)) in chosen.iter().zip(&rejected).enumerate() {
        let reference = [references[0][index], references[1][index]];
        batch.push(PreferencePair { chosen, rejected, reference });
    }
    for step in 1..=case.description["steps"].as_u64().unwrap() {
        let part = MicroBatch::whole(step, batch.len() as u64);
        let rewards = engine.accumulate_preferences(&batch, beta, part)?;
        let sum: f64 = rewards.iter().map(PreferenceRewards::loss).sum();
        add_step(&mut found, case, engine, step, sum / batch.len() as f64)?;
    }
    let trained = engine.trainable_tensors()?;
    found.add_tensors("trained_adapter", &trained, &case.named("lora_final."), FINAL);
    Ok((found, json!({})))
}

/// Loss, norm and, in the first step, gradients of an optimiser step that has been accumulated; takes the step.
fn add_step(
    found: &mut Differences,
    case: &Case,
    engine: &mut dyn Engine,
    step: u64,
    loss: f64,
) -> Result<(), BackendError> {
    let index = step as usize - 1;
    let want = f64::from(case.floats("step_losses")[index]);
    let allowed = if step == 1 { LOSS * want } else { case.loss_allowance(want) };
    found.add_numbers("step_losses", loss, want, allowed);
    if step == 1 {
        let wanted = case.named("lora_grad.");
        found.add_tensors("gradients", &engine.gradients()?, &wanted, GRADIENT);
    }
    let norm = engine.step(&case.optimiser(step))?;
    let want = f64::from(case.floats("step_grad_norms")[index]);
    let allowed = case.allowance("step_grad_norms", STEP_NORM, want);
    found.add_numbers("gradient_norms", norm, want, allowed);
    Ok(())
}

/// The report of a case, or why there is none.
fn measure(case: &Case, measured: MeasuredDevice) -> Value {
    let began = Instant::now();
    let run = || -> Result<Value, String> {
        let config = read_json(&case.folder.join("config.json"));
        let mut engine = measured.engine(case, &config).map_err(|error| error.to_string())?;
        let made = match case.description["kind"].as_str() {
            Some("sft") => measure_supervised(case, engine.as_mut()),
            Some("dpo") => measure_preferences(case, engine.as_mut()),
            other => return Err(format!("a case of kind {other:?}")),
        };
        let (found, mut report) = made.map_err(|error| error.to_string())?;
        report["backend"] = engine.backend_name().into();
        report["differences"] = found.json();
        Ok(report)
    };
    // A device in a bad state can panic where its objects are dropped: the other cases still get their turn.
    let outcome = catch_unwind(AssertUnwindSafe(run));
    let mut report = match outcome {
        Ok(Ok(report)) => report,
        Ok(Err(reason)) => json!({"failed": reason}),
        Err(_) => json!({"failed": "it panicked: its message is on standard error"}),
    };
    report["seconds"] = json!((began.elapsed().as_secs_f64() * 1e3).round() / 1e3);
    report
}

#[test]
fn the_largest_differences_from_the_golden_cases_are_measured_on_a_device() {
    let measured = MeasuredDevice::from_environment();
    let path = std::env::var_os("HONE_GOLDEN_REPORT").map(PathBuf::from);
    let mut reports = Map::new();
    for case in cases() {
        reports.insert(case.name.clone(), measure(&case, measured));
        if let Some(path) = &path {
            let report = json!({
                "device": measured.device.to_string(),
                "precision": if measured.is_f32 { "f32" } else { "bf16" },
                "cases": &reports,
            });
            std::fs::write(path, report.to_string()).expect("the report is written");
        }
    }
    for (name, report) in &reports {
        assert!(report["failed"].is_null(), "{name}: {report}");
        let differences = report["differences"].as_object().expect("differences");
        for what in ["step_losses", "gradients", "gradient_norms", "trained_adapter"] {
            assert!(differences.contains_key(what), "{name}: {what} is not compared");
        }
        if measured.device == Device::Cpu && measured.is_f32 {
            for (what, largest) in differences {
                let of_allowed = largest["of_allowed"].as_f64().expect("finite");
                assert!(of_allowed <= 1.0, "{name}: {what}: {largest}");
            }
        }
    }
}
