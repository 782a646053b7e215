//! Evaluation: the loss over the whole validation file, and whether the model has improved.

use super::early_stopping::EvalResult;
use super::errors::{RunError, engine_failed};
use super::notices::note;
use super::objective::LossStatistics;
use super::{Controls, Run, Sink};
use crate::domain::job::{EventLevel, StepMetrics};

impl Run<'_> {
    /// Evaluates the whole validation file where the plan says so, and writes the result into
    /// `metrics`: that of the whole file, and that of one batch's worth of examples, other ones each
    /// time. Whether the model has improved; `None` when the run was told to end meanwhile.
    pub(super) fn evaluate(
        &mut self,
        metrics: &mut StepMetrics,
        sink: &mut Sink<'_>,
        controls: &mut Controls<'_>,
    ) -> Result<Option<bool>, RunError> {
        let plan = &self.setup.plan;
        let values = &plan.hyperparameters;
        if self.validation.is_none() || !plan.evaluates_after(metrics.step) {
            return Ok(Some(false));
        }
        let Some(losses) = self.validation_losses(controls)? else {
            return Ok(None);
        };
        let all = LossStatistics::sum(&losses);
        metrics.full_valid_loss = Some(all.mean_loss());
        metrics.full_valid_mean_token_accuracy = Some(all.accuracy());
        let size = (values.batch_size as usize).min(losses.len());
        let first = self.state.early_stopping.evaluations.len() * size % losses.len();
        let batch: Vec<LossStatistics> =
            losses.iter().cycle().skip(first).take(size).copied().collect();
        let batch = LossStatistics::sum(&batch);
        metrics.valid_loss = Some(batch.mean_loss());
        metrics.valid_mean_token_accuracy = Some(batch.accuracy());

        let train_loss = self.train_loss_since_last_evaluation(metrics);
        let result = EvalResult { step: metrics.step, loss: all.mean_loss(), train_loss };
        let is_improvement = self.state.early_stopping.add(result, values.early_stopping_threshold);
        if self.stops_early()
            && let Some(best) = self.state.early_stopping.best
        {
            let message = format!(
                "Training stops early at step {}: {} evaluations in a row were not better by {} than \
                 the validation loss {:.4} of step {}",
                result.step,
                self.state.early_stopping.without_improvement,
                values.early_stopping_threshold,
                best.loss,
                best.step
            );
            note(sink, EventLevel::Info, message, None);
        }
        Ok(Some(is_improvement))
    }

    /// The losses of each validation example, computed in micro-batches; `None` when the run was told to
    /// end between them.
    fn validation_losses(
        &mut self,
        controls: &mut Controls<'_>,
    ) -> Result<Option<Vec<LossStatistics>>, RunError> {
        let Some(validation) = &self.validation else { return Ok(Some(Vec::new())) };
        let examples: Vec<usize> = (0..validation.len()).collect();
        let mut losses = vec![LossStatistics::default(); examples.len()];
        for items in validation.micro_batches(self.engine, &examples) {
            if self.requested(controls).is_some() {
                return Ok(None);
            }
            if let Some(validation) = &self.validation {
                validation.evaluate(self.engine, &items, &mut losses).map_err(engine_failed)?;
            }
        }
        Ok(Some(losses))
    }

    /// Whether early stopping ends the run.
    pub(super) fn stops_early(&self) -> bool {
        let patience = self.setup.plan.hyperparameters.early_stopping_patience;
        self.state.early_stopping.is_over(patience)
    }

    /// Mean training loss of the steps since the last evaluation, `now` among them.
    fn train_loss_since_last_evaluation(&self, now: &StepMetrics) -> f64 {
        let last = self.state.early_stopping.evaluations.last();
        let before = &self.state.metrics[last.map_or(0, |last| last.step) as usize..];
        let sum: f64 = before.iter().map(|metrics| metrics.train_loss).sum();
        (sum + now.train_loss) / (before.len() + 1) as f64
    }
}
