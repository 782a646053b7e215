//! Looks at how a run goes: the validation file, and the signs that something goes wrong.

use super::diagnostics::{self, Finding};
use super::early_stopping::Look;
use super::errors::engine_failed;
use super::general_text;
use super::notices::note;
use super::objective::Measured;
use super::setup::Prepared;
use super::{Run, Sink};
use crate::domain::job::{EventLevel, JobError, StepMetrics};
use crate::train::engine::Engine;

/// Prompts of the training file that are answered at the ends of epochs, to see repetition.
const SAMPLES: usize = 3;

/// Most tokens of such an answer.
const SAMPLE_TOKENS: usize = 48;

/// What the base alone was like, which is asked before its own weights move.
pub(super) struct Before {
    /// Its loss on ordinary text.
    pub ordinary: Option<f64>,
    /// Whether it repeated itself.
    repeats: bool,
}

impl Before {
    /// Asks the engine while it still holds the base.
    pub(super) fn ask(prepared: &Prepared, engine: &mut dyn Engine) -> Result<Self, JobError> {
        let texts = general_text::sequences(&prepared.base, prepared.context);
        let ordinary = general_text::loss(engine, &texts, false).map_err(engine_failed)?;
        let answers = answers(prepared, engine, false)?;
        Ok(Self { ordinary, repeats: diagnostics::collapse(0, &answers).is_some() })
    }
}

impl Run<'_> {
    /// Every so many steps and at the ends of epochs, measures the whole validation file, and writes
    /// into `metrics` what it comes to: all of it, and one batch's worth, from another place each
    /// time. Says whether the model is clearly better than before.
    pub(super) fn look(
        &mut self,
        metrics: &mut StepMetrics,
        sink: &mut Sink<'_>,
    ) -> Result<bool, JobError> {
        let values = &self.prepared.plan.hyperparameters;
        let Some(validation) =
            self.validation.as_ref().filter(|_| self.prepared.plan.looks_after(metrics.step))
        else {
            return Ok(false);
        };
        let measured = validation.evaluate(self.engine).map_err(engine_failed)?;
        let all = sum_of(&measured);
        metrics.full_valid_loss = Some(all.mean_loss());
        metrics.full_valid_mean_token_accuracy = Some(all.accuracy());
        let size = (values.batch_size as usize).min(measured.len());
        let first = self.state.watch.looks.len() * size % measured.len();
        let batch: Vec<Measured> =
            measured.iter().cycle().skip(first).take(size).copied().collect();
        let batch = sum_of(&batch);
        metrics.valid_loss = Some(batch.mean_loss());
        metrics.valid_mean_token_accuracy = Some(batch.accuracy());

        let train_loss = self.train_loss_since_last_look(metrics);
        let look = Look { step: metrics.step, loss: all.mean_loss(), train_loss };
        let is_better = self.state.watch.look(look, values.early_stopping_threshold);
        if self.is_over()
            && let Some(best) = self.state.watch.best
        {
            let message = format!(
                "Training ends early at step {}: {} looks at the validation file in a row were not \
                 better by {} than the {:.4} of step {}",
                look.step,
                self.state.watch.without_improvement,
                values.early_stopping_threshold,
                best.loss,
                best.step
            );
            note(sink, EventLevel::Info, message, None);
        }
        Ok(is_better)
    }

    /// Mean training loss of the steps since the last look, `now` among them.
    fn train_loss_since_last_look(&self, now: &StepMetrics) -> f64 {
        let since = self.state.watch.looks.last().map_or(0, |look| look.step) as usize;
        let before = &self.state.metrics[since..];
        let sum: f64 = before.iter().map(|metrics| metrics.train_loss).sum();
        (sum + now.train_loss) / (before.len() + 1) as f64
    }

    /// Looks for the signs that can be seen while a run goes on; each is said once.
    pub(super) fn watch_health(
        &mut self,
        metrics: &StepMetrics,
        is_epoch_end: bool,
        sink: &mut Sink<'_>,
    ) -> Result<(), JobError> {
        let plan = &self.prepared.plan;
        let warm_up = plan.hyperparameters.warmup_ratio * plan.total_steps as f64;
        let is_early = (metrics.step as f64) <= warm_up.max(plan.total_steps as f64 / 2.0);
        let guessing = (self.prepared.vocabulary as f64).ln();
        self.find(diagnostics::divergence(metrics, guessing, is_early), sink);
        self.find(diagnostics::overfitting(&self.state.watch), sink);
        if !is_epoch_end {
            return Ok(());
        }
        let found =
            diagnostics::collapse(metrics.step, &answers(self.prepared, self.engine, true)?);
        if found.is_none() {
            return Ok(());
        }
        // A base model that repeats itself was like that before.
        let repeated = match &self.before {
            Some(before) => before.repeats,
            None => {
                let answers = answers(self.prepared, self.engine, false)?;
                diagnostics::collapse(metrics.step, &answers).is_some()
            }
        };
        if !repeated {
            self.find(found, sink);
        }
        Ok(())
    }

    /// Says a finding, unless its sign was found before.
    pub(super) fn find(&mut self, finding: Option<Finding>, sink: &mut Sink<'_>) {
        let Some(finding) = finding else { return };
        if self.state.health.iter().any(|earlier| earlier.sign == finding.sign) {
            return;
        }
        let data = serde_json::json!({"sign": finding.sign, "step": finding.step});
        note(sink, EventLevel::Warn, finding.message.clone(), Some(data));
        self.state.health.push(finding);
    }
}

/// Greedy answers to a few training prompts, of the model as it is or of the base alone.
fn answers(
    prepared: &Prepared,
    engine: &mut dyn Engine,
    trained: bool,
) -> Result<Vec<Vec<u32>>, JobError> {
    let ends = &prepared.base.tokenizer.special().ends;
    let mut answers = Vec::new();
    for prompt in prepared.prompts(SAMPLES) {
        if prompt.len() + SAMPLE_TOKENS > prepared.context {
            continue;
        }
        let answer = engine.continue_greedily(prompt, SAMPLE_TOKENS, ends, trained);
        answers.push(answer.map_err(engine_failed)?);
    }
    Ok(answers)
}

fn sum_of(measured: &[Measured]) -> Measured {
    let mut sum = Measured::default();
    measured.iter().for_each(|one| sum.add(one));
    sum
}
