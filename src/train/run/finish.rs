//! The end of a run: the best checkpoint becomes the model, and the CSV and the report are written.

use std::path::{Path, PathBuf};

use super::certificate::ReferenceLogits;
use super::checkpoint;
use super::errors::{
    RunError, cannot_load, checkpoint_failed, engine_failed, file_failed, internal,
};
use super::findings;
use super::general_text;
use super::notices::{self, note, warn};
use super::report::{self, ReportInputs};
use super::{Run, Sink};
use crate::artifacts::{certificate, metrics_csv};
use crate::domain::job::EventLevel;
use crate::train::protocol::Progress;
use crate::util::atomic_file;

impl Run<'_> {
    /// Writes what the run leaves: the best checkpoint as the model, the metrics and the report.
    pub(super) fn finish(&mut self, sink: &mut Sink<'_>) -> Result<Progress, RunError> {
        let last = self.write_checkpoint()?;
        let (step, directory) = self.choose_model(last, sink)?;
        let general_text = self.general_text_losses(step, sink)?;
        let change = self
            .engine
            .mean_change_by_layer(self.setup.base.weights.as_ref())
            .map_err(cannot_load)?;
        notices::weight_change(&change, sink);

        let inputs = ReportInputs {
            plan: &self.setup.plan,
            training: &self.training,
            validation: self.validation.as_ref(),
            base_model: &self.spec.base_model_id,
            template_digest: self.setup.base.templates.digest(),
            parameters: self.engine.parameter_counts(),
            step,
            change: &change,
            general_text,
        };
        let report = report::render(&self.state, &inputs);
        let mut text = serde_json::to_vec_pretty(&report)
            .map_err(|error| internal(format!("the report cannot be written: {error}")))?;
        text.push(b'\n');
        let report = self.write_file(report::FILE_NAME, &text)?;
        let csv = metrics_csv::render(&self.state.metrics);
        let metrics_csv = self.write_file(metrics_csv::FILE_NAME, csv.as_bytes())?;
        notices::yielded(self.yielding.waited, sink);
        let reference = ReferenceLogits::compute(self.setup, self.engine);
        self.reference = Some(reference.map_err(engine_failed)?);
        Ok(Progress::Finished {
            directory,
            metrics_csv,
            report,
            certificate: self.spec.work_dir.join(certificate::FILE_NAME),
            trained_steps: self.state.step,
            trained_tokens: self.state.trained_tokens,
        })
    }

    /// Losses on general text before and after training; `None` when the model takes no such text.
    /// Forgetting is reported.
    fn general_text_losses(
        &mut self,
        step: u64,
        sink: &mut Sink<'_>,
    ) -> Result<Option<(f64, f64)>, RunError> {
        let texts = general_text::sequences(&self.setup.base, self.setup.context);
        let mut loss =
            |trained: bool| general_text::loss(self.engine, &texts, trained).map_err(engine_failed);
        let before = match &self.baseline {
            Some(baseline) => baseline.general_text,
            None => loss(false)?,
        };
        let losses = before.zip(loss(true)?);
        if let Some((before, after)) = losses {
            self.report_finding(findings::forgetting(step, before, after), sink);
        }
        Ok(losses)
    }

    /// The step and the folder of the checkpoint that becomes the model, which is in the
    /// engine then: that of the lowest validation loss, the last one without a validation file.
    fn choose_model(
        &mut self,
        last: PathBuf,
        sink: &mut Sink<'_>,
    ) -> Result<(u64, PathBuf), RunError> {
        let now = self.state.step;
        let Some(best) = self.state.early_stopping.best.filter(|best| best.step != now) else {
            return Ok((now, last));
        };
        let folder = checkpoint::folder(&self.spec.work_dir, best.step);
        if !checkpoint::is_whole(&folder) {
            let message = format!(
                "the checkpoint of step {}, whose validation loss {:.4} is the lowest, is not whole \
                 any more: the model is that of step {now}",
                best.step, best.loss
            );
            warn(sink, message);
            return Ok((now, last));
        }
        checkpoint::restore(&folder, self.engine).map_err(checkpoint_failed)?;
        let message = format!(
            "The model is that of step {}, whose validation loss {:.4} is the lowest",
            best.step, best.loss
        );
        note(sink, EventLevel::Info, message, None);
        Ok((best.step, folder))
    }

    fn write_file(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, RunError> {
        let path: &Path = &self.spec.work_dir;
        let path = path.join(name);
        atomic_file::write(&path, bytes).map_err(|error| file_failed(&path, &error))?;
        Ok(path)
    }
}
