//! Diagnostics of a run under way: the signs that something goes wrong are looked for after each step, and each
//! is reported once.

use super::errors::engine_failed;
use super::findings::{self, Finding};
use super::general_text;
use super::notices::note;
use super::setup::RunSetup;
use super::{Run, Sink};
use crate::domain::job::{EventLevel, JobError, StepMetrics};
use crate::train::engine::Engine;

/// Training prompts that the model answers at the ends of epochs, to see repetition.
const SAMPLES: usize = 3;

/// Most tokens of such an answer.
const SAMPLE_TOKENS: usize = 48;

/// What the base alone does, measured before its own weights move.
pub(super) struct Baseline {
    /// Its loss on general text.
    pub general_text: Option<f64>,
    /// Whether it repeats itself.
    repeats: bool,
}

impl Baseline {
    /// Measures it while the engine still holds the base.
    pub(super) fn measure(setup: &RunSetup, engine: &mut dyn Engine) -> Result<Self, JobError> {
        let texts = general_text::sequences(&setup.base, setup.context);
        let general_text = general_text::loss(engine, &texts, false).map_err(engine_failed)?;
        let answers = answers(setup, engine, false)?;
        Ok(Self { general_text, repeats: findings::collapse(0, &answers).is_some() })
    }
}

impl Run<'_> {
    /// Looks for divergence and overfitting, and at the ends of epochs for collapse.
    pub(super) fn diagnose(
        &mut self,
        metrics: &StepMetrics,
        sink: &mut Sink<'_>,
    ) -> Result<(), JobError> {
        let plan = &self.setup.plan;
        let warm_up = plan.hyperparameters.warmup_ratio * plan.total_steps as f64;
        let is_early = (metrics.step as f64) <= warm_up.max(plan.total_steps as f64 / 2.0);
        let guessing = (self.setup.vocabulary as f64).ln();
        self.report_finding(findings::divergence(metrics, guessing, is_early), sink);
        self.report_finding(findings::overfitting(&self.state.early_stopping), sink);
        if !metrics.step.is_multiple_of(plan.steps_per_epoch) {
            return Ok(());
        }
        let answers_now = answers(self.setup, self.engine, true)?;
        let found = findings::collapse(metrics.step, &answers_now);
        if found.is_none() {
            return Ok(());
        }
        // A base model that repeats itself did so before training.
        let base_repeats = match &self.baseline {
            Some(baseline) => baseline.repeats,
            None => {
                let answers = answers(self.setup, self.engine, false)?;
                findings::collapse(metrics.step, &answers).is_some()
            }
        };
        if !base_repeats {
            self.report_finding(found, sink);
        }
        Ok(())
    }

    /// Reports a finding, unless one of its kind was reported before.
    pub(super) fn report_finding(&mut self, finding: Option<Finding>, sink: &mut Sink<'_>) {
        let Some(finding) = finding else { return };
        if self.state.findings.iter().any(|earlier| earlier.kind == finding.kind) {
            return;
        }
        let data = serde_json::json!({"sign": finding.kind, "step": finding.step});
        note(sink, EventLevel::Warn, finding.message.clone(), Some(data));
        self.state.findings.push(finding);
    }
}

/// Greedy answers to a few training prompts, of the model as it is (`trained`) or of the base alone.
fn answers(
    setup: &RunSetup,
    engine: &mut dyn Engine,
    trained: bool,
) -> Result<Vec<Vec<u32>>, JobError> {
    let ends = &setup.base.tokenizer.special().ends;
    let mut answers = Vec::new();
    for prompt in setup.prompts(SAMPLES) {
        if prompt.len() + SAMPLE_TOKENS > setup.context {
            continue;
        }
        let answer = engine.continue_greedily(prompt, SAMPLE_TOKENS, ends, trained);
        answers.push(answer.map_err(engine_failed)?);
    }
    Ok(answers)
}
