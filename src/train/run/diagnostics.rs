//! Diagnostics of a run under way: the signs that something goes wrong are looked for after each step, and each
//! is reported once.

use super::baseline::answers;
use super::errors::RunError;
use super::findings::{self, Finding};
use super::notices::note;
use super::{Run, Sink};
use crate::domain::job::{EventLevel, StepMetrics};

impl Run<'_> {
    /// Looks for divergence and overfitting, and at the ends of epochs for collapse.
    pub(super) fn diagnose(
        &mut self,
        metrics: &StepMetrics,
        sink: &mut Sink<'_>,
    ) -> Result<(), RunError> {
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
