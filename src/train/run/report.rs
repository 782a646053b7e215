//! The report of a run: one JSON document with everything that a user or an auditor asks for later.
//! It holds line numbers and never the texts of examples, and no times: the same run always writes
//! the same bytes.

use serde_json::{Value, json};

use super::checkpoint::State;
use super::objective::Material;
use super::plan::Plan;
use crate::train::data::sequence::Sequence;
use crate::train::data::tokenize::EncodedFile;

/// The file's name among the result files.
pub const FILE_NAME: &str = "report.json";

/// Examples with the highest loss that are named.
const WORST: usize = 10;

/// What the report is made of, beside the run's state.
pub(super) struct Findings<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// What was trained on.
    pub training: &'a Material<'a>,
    /// What was measured on.
    pub validation: Option<&'a Material<'a>>,
    /// Id of the base model.
    pub base_model: &'a str,
    /// Trainable and total parameters.
    pub parameters: (u64, u64),
    /// Step of the checkpoint that became the model.
    pub step: u64,
    /// Mean |ΔW| of each adapted block.
    pub change: &'a [(u32, f64)],
    /// Loss on ordinary text before and after, in nats a token; `None` when the model takes none.
    pub ordinary: Option<(f64, f64)>,
}

/// The document.
pub(super) fn render(state: &State, findings: &Findings<'_>) -> Value {
    let identity = &state.identity;
    let first = state.metrics.first();
    let last = state.metrics.last();
    let change: Vec<Value> = findings
        .change
        .iter()
        .map(|(layer, mean)| json!({"layer": layer, "mean_absolute_change": mean}))
        .collect();
    json!({
        "hone": env!("CARGO_PKG_VERSION"),
        "base_model": {"id": findings.base_model, "sha256": identity.model},
        "continued_from": identity.start,
        "seed": identity.seed,
        "hyperparameters": identity.hyperparameters,
        "explanations": findings.plan.explanations,
        "parameters": {"trained": findings.parameters.0, "total": findings.parameters.1},
        "data": {
            "training": statistics(findings.training.file()),
            "validation": findings.validation.map(|file| statistics(file.file())),
        },
        "steps": {
            "planned": findings.plan.total_steps,
            "done": state.step,
            "an_epoch": findings.plan.steps_per_epoch,
            "model_is_of": findings.step,
        },
        "trained_tokens": state.trained_tokens,
        "losses": {
            "first_step": first.map(|step| step.train_loss),
            "last_step": last.map(|step| step.train_loss),
            "validation": state.watch.looks,
            "best": state.watch.best,
        },
        "health": state.health,
        "ordinary_text_loss": findings.ordinary.map(|(before, after)| {
            json!({"before": before, "after": after})
        }),
        "change_by_layer": change,
        "highest_losses": worst(state, findings.training.file()),
    })
}

/// Counts and lengths of a file.
fn statistics(file: &EncodedFile) -> Value {
    let mut lengths: Vec<usize> = file.all().map(|sequence| sequence.input_ids.len()).collect();
    lengths.sort_unstable();
    let learnt: u64 = file.all().map(Sequence::targets).sum();
    let at = |share: f64| {
        let last = lengths.len().saturating_sub(1);
        lengths.get((share * last as f64).round() as usize).copied()
    };
    let too_long: Vec<Value> = file
        .too_long
        .iter()
        .map(|(line, tokens)| json!({"line": line, "tokens": tokens}))
        .collect();
    json!({
        "sha256": file.digest,
        "examples": file.sequences.len(),
        "tokens": file.tokens(),
        "loss_tokens": learnt,
        "tokens_of_an_example": {"least": at(0.0), "median": at(0.5), "most": at(1.0)},
        "left_out_as_too_long": too_long,
    })
}

/// The examples with the highest loss when they were last trained on, by line.
fn worst(state: &State, training: &EncodedFile) -> Vec<Value> {
    let mut losses: Vec<(u64, f32)> = training
        .lines
        .iter()
        .zip(&state.example_losses)
        .filter_map(|(line, loss)| loss.map(|loss| (*line, loss)))
        .collect();
    losses.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    losses.truncate(WORST);
    losses.into_iter().map(|(line, loss)| json!({"line": line, "loss": loss})).collect()
}
