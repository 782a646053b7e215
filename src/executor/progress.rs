//! The progress of a run as rows and events: which steps become events, and with which message.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::context::ExecutorContext;
use crate::domain::job::{
    EventKind, EventLevel, Job, NewEvent, ResolvedHyperparameters, StepMetrics,
};
use crate::store::{Claim, StoreError};

/// Most metrics events that a run leaves, give or take the ends of its epochs.
const METRICS_EVENTS: u64 = 300;

/// Every write to the store is flushed to the disk; between events, progress waits this long.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Writes the progress of one run.
pub(super) struct ProgressRecorder<'a> {
    context: &'a ExecutorContext,
    claim: &'a Claim,
    /// The values whose explanations an earlier attempt has written.
    explained: Option<&'a ResolvedHyperparameters>,
    /// Optimiser steps in all, once they are known.
    pub(super) total_steps: Option<u64>,
    written_at: Option<Instant>,
    /// Metrics of the last step, when they are not written yet.
    unwritten: Option<StepMetrics>,
    /// Seconds that the run has yielded to serving.
    yielded_seconds: f64,
    /// The last step that the trainer has reported.
    pub(super) step: Option<u64>,
}

impl<'a> ProgressRecorder<'a> {
    /// The progress of the run of `job` that `claim` allows.
    pub(super) fn new(context: &'a ExecutorContext, claim: &'a Claim, job: &'a Job) -> Self {
        let explained = job.resolved.as_ref();
        Self {
            context,
            claim,
            explained,
            total_steps: None,
            written_at: None,
            unwritten: None,
            yielded_seconds: 0.0,
            step: None,
        }
    }

    /// Appends one message.
    pub(super) async fn note(
        &self,
        level: EventLevel,
        message: String,
        data: Option<Value>,
    ) -> Result<(), StoreError> {
        let event = NewEvent { level, kind: EventKind::Message, message, data };
        self.context.store.append_events(self.claim, &[event]).await
    }

    /// Writes the resolved values, with a message for each explanation unless an earlier attempt has
    /// written them.
    pub(super) async fn resolved(
        &mut self,
        hyperparameters: &ResolvedHyperparameters,
        total_steps: u64,
        explanations: Vec<String>,
    ) -> Result<(), StoreError> {
        self.total_steps = Some(total_steps);
        let mut events = Vec::new();
        if self.explained != Some(hyperparameters) {
            for explanation in explanations {
                events.push(NewEvent::message(EventLevel::Info, explanation));
            }
        }
        self.context.store.record_resolved(self.claim, hyperparameters, total_steps, &events).await
    }

    /// Writes a step when it becomes an event, or when [`PROGRESS_INTERVAL`] has passed since the last
    /// write.
    pub(super) async fn step(
        &mut self,
        metrics: &StepMetrics,
        tokens_per_second: f64,
        seconds_left: f64,
        yielded_seconds: f64,
    ) -> Result<(), StoreError> {
        if let Some(serving_load) = &self.context.yields_to {
            serving_load.count_yielded_seconds(yielded_seconds - self.yielded_seconds);
        }
        self.yielded_seconds = yielded_seconds;
        self.step = Some(metrics.step);
        let mut events = Vec::new();
        if is_shown(metrics, self.total_steps) {
            let throughput = Throughput { tokens_per_second, yielded_seconds };
            events.push(metrics_event(metrics, self.total_steps, &throughput));
        }
        let is_due = self.written_at.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL);
        if events.is_empty() && !is_due {
            self.unwritten = Some(metrics.clone());
            return Ok(());
        }
        self.unwritten = None;
        self.written_at = Some(Instant::now());
        let estimated_finish = seconds_left
            .is_finite()
            .then(|| self.context.clock.now().saturating_add(seconds_left.ceil() as i64));
        self.context.store.record_progress(self.claim, metrics, estimated_finish, &events).await
    }

    /// Writes the last step, unless it is written already.
    pub(super) async fn write_last_step(&mut self) -> Result<(), StoreError> {
        match self.unwritten.take() {
            Some(metrics) => {
                self.context.store.record_progress(self.claim, &metrics, None, &[]).await
            }
            None => Ok(()),
        }
    }
}

/// Whether a step becomes an event: the first, the last, every k-th, and those with an evaluation over
/// the whole validation file.
fn is_shown(metrics: &StepMetrics, total_steps: Option<u64>) -> bool {
    let every = total_steps.map_or(1, |total| total.div_ceil(METRICS_EVENTS).max(1));
    metrics.step == 1
        || Some(metrics.step) == total_steps
        || metrics.step.is_multiple_of(every)
        || metrics.full_valid_loss.is_some()
}

/// The throughput of a run.
struct Throughput {
    tokens_per_second: f64,
    /// Seconds that the run has yielded to serving so far.
    yielded_seconds: f64,
}

/// The event of a step: a message in the form that clients parse, and its metrics.
fn metrics_event(
    metrics: &StepMetrics,
    total_steps: Option<u64>,
    throughput: &Throughput,
) -> NewEvent {
    let mut message = format!("Step {}", metrics.step);
    if let Some(total_steps) = total_steps {
        message.push_str(&format!("/{total_steps}"));
    }
    message.push_str(&format!(": training loss={:.2}", metrics.train_loss));
    if let Some(valid_loss) = metrics.valid_loss.or(metrics.full_valid_loss) {
        message.push_str(&format!(", validation loss={valid_loss:.2}"));
    }
    let mut data = serde_json::json!(metrics);
    if let Value::Object(data) = &mut data {
        data.insert("total_steps".to_owned(), serde_json::json!(total_steps));
        let Throughput { tokens_per_second, yielded_seconds } = throughput;
        data.insert("tokens_per_second".to_owned(), serde_json::json!(tokens_per_second));
        data.insert("yielded_seconds".to_owned(), serde_json::json!(yielded_seconds));
    }
    NewEvent { level: EventLevel::Info, kind: EventKind::Metrics, message, data: Some(data) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(step: u64) -> StepMetrics {
        StepMetrics { step, train_loss: 0.254, ..Default::default() }
    }

    #[test]
    fn a_long_run_shows_a_few_hundred_steps_with_the_first_and_the_last() {
        for total in [1, 7, 300, 301, 12_345, 1_000_000] {
            let shown: Vec<u64> =
                (1..=total).filter(|step| is_shown(&metrics(*step), Some(total))).collect();
            assert_eq!(shown.first(), Some(&1), "{total}");
            assert_eq!(shown.last(), Some(&total), "{total}");
            assert!(shown.len() as u64 >= total.min(150), "{total}: {}", shown.len());
            assert!(
                shown.len() as u64 <= total.min(METRICS_EVENTS + 2),
                "{total}: {}",
                shown.len()
            );
        }
    }

    #[test]
    fn the_message_of_a_step_has_the_form_that_clients_parse() {
        let mut metrics = metrics(131);
        let throughput = Throughput { tokens_per_second: 10.0, yielded_seconds: 2.5 };
        assert_eq!(
            metrics_event(&metrics, Some(303), &throughput).message,
            "Step 131/303: training loss=0.25"
        );
        metrics.valid_loss = Some(0.3651);
        let event = metrics_event(&metrics, Some(303), &throughput);
        assert_eq!(event.message, "Step 131/303: training loss=0.25, validation loss=0.37");
        let data = event.data.expect("numbers");
        for key in [
            "step",
            "train_loss",
            "train_mean_token_accuracy",
            "valid_loss",
            "total_steps",
            "learning_rate",
            "epoch",
            "grad_norm",
            "tokens_per_second",
            "yielded_seconds",
        ] {
            assert!(data[key].is_number(), "{key}: {data}");
        }
        assert!(data.get("full_valid_loss").is_none());
    }
}
