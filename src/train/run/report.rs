//! The report of a run: one JSON document with everything that a user or an auditor asks for later.
//! It holds line numbers and never the texts of examples, and no times: the same run always writes
//! the same bytes.

use serde_json::{Value, json};

use super::checkpoint::RunState;
use super::objective::Objective;
use super::plan::Plan;
use crate::train::data::sequence::Sequence;
use crate::train::data::tokenize::EncodedFile;

/// The file's name among the result files.
pub const FILE_NAME: &str = "report.json";

/// Examples with the highest loss that are named.
const WORST: usize = 10;

/// What the report is made of, beside the run's state.
pub(super) struct ReportInputs<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The training set.
    pub training: &'a Objective<'a>,
    /// The validation set.
    pub validation: Option<&'a Objective<'a>>,
    /// Id of the base model.
    pub base_model: &'a str,
    /// SHA-256 of the chat template; `None` without one.
    pub template_digest: Option<String>,
    /// Trainable and total parameters.
    pub parameters: (u64, u64),
    /// Step of the checkpoint that became the model.
    pub step: u64,
    /// Mean |ΔW| of each adapted block.
    pub change: &'a [(u32, f64)],
    /// Loss on general text before and after, in nats a token; `None` when the model takes none.
    pub general_text: Option<(f64, f64)>,
}

/// The document.
pub(super) fn render(state: &RunState, inputs: &ReportInputs<'_>) -> Value {
    let identity = &state.identity;
    let first = state.metrics.first();
    let last = state.metrics.last();
    let change: Vec<Value> = inputs
        .change
        .iter()
        .map(|(layer, mean)| json!({"layer": layer, "mean_absolute_change": mean}))
        .collect();
    json!({
        "hone": env!("CARGO_PKG_VERSION"),
        "base_model": {"id": inputs.base_model, "sha256": identity.model},
        "continued_from": identity.initial_adapter,
        "seed": identity.seed,
        "hyperparameters": identity.hyperparameters,
        "chat_template": {
            "sha256": inputs.template_digest,
            "kwargs": identity.chat_template.as_ref().map(|template| &template.kwargs),
            "date": identity.chat_template.as_ref().map(|template| template.date),
        },
        "explanations": inputs.plan.explanations,
        "parameters": {"trained": inputs.parameters.0, "total": inputs.parameters.1},
        "data": {
            "training": statistics(inputs.training.file()),
            "validation": inputs.validation.map(|file| statistics(file.file())),
        },
        "steps": {
            "planned": inputs.plan.total_steps,
            "done": state.step,
            "an_epoch": inputs.plan.steps_per_epoch,
            "model_is_of": inputs.step,
        },
        "trained_tokens": state.trained_tokens,
        "losses": {
            "first_step": first.map(|step| step.train_loss),
            "last_step": last.map(|step| step.train_loss),
            "validation": state.early_stopping.evaluations,
            "best": state.early_stopping.best,
        },
        "health": state.findings,
        "ordinary_text_loss": inputs.general_text.map(|(before, after)| {
            json!({"before": before, "after": after})
        }),
        "change_by_layer": change,
        "highest_losses": worst(state, inputs.training.file()),
    })
}

/// Counts and lengths of a file.
fn statistics(file: &EncodedFile) -> Value {
    let mut lengths: Vec<usize> = file.all().map(|sequence| sequence.input_ids.len()).collect();
    lengths.sort_unstable();
    let supervised: u64 = file.all().map(Sequence::targets).sum();
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
        "examples": file.examples.len(),
        "tokens": file.tokens(),
        "loss_tokens": supervised,
        "tokens_of_an_example": {"least": at(0.0), "median": at(0.5), "most": at(1.0)},
        "left_out_as_too_long": too_long,
    })
}

/// The examples with the highest loss when they were last trained on, by line.
fn worst(state: &RunState, training: &EncodedFile) -> Vec<Value> {
    let mut losses: Vec<(u64, f32)> = training
        .examples
        .iter()
        .zip(&state.example_losses)
        .filter_map(|(example, loss)| loss.map(|loss| (example.line, loss)))
        .collect();
    losses.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    losses.truncate(WORST);
    losses.into_iter().map(|(line, loss)| json!({"line": line, "loss": loss})).collect()
}
