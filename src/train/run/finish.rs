//! The end of a run: the best checkpoint becomes the model, and the CSV and the report are written.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::certificate::Witness;
use super::checkpoint;
use super::diagnostics;
use super::errors::{cannot_load, checkpoint_failed, engine_failed, internal};
use super::general_text;
use super::notices::{note, warn};
use super::report::{self, Findings};
use super::{Run, Sink};
use crate::artifacts::{certificate, metrics_csv};
use crate::domain::job::{EventLevel, JobError};
use crate::train::protocol::Progress;
use crate::util::atomic_file;

impl Run<'_> {
    /// Writes what the run leaves.
    pub(super) fn conclude(&mut self, sink: &mut Sink<'_>) -> Result<Progress, JobError> {
        let last = self.checkpoint()?;
        let (step, directory) = self.choose(last, sink)?;
        let texts = general_text::sequences(&self.prepared.base, self.prepared.context);
        let mut loss =
            |trained: bool| general_text::loss(self.engine, &texts, trained).map_err(engine_failed);
        let before = match &self.before {
            Some(before) => before.ordinary,
            None => loss(false)?,
        };
        let ordinary = before.zip(loss(true)?);
        if let Some((before, after)) = ordinary {
            self.find(diagnostics::forgetting(step, before, after), sink);
        }
        let change = self
            .engine
            .mean_change_by_layer(self.prepared.base.weights.as_ref())
            .map_err(cannot_load)?;
        say_change(&change, sink);

        let findings = Findings {
            plan: &self.prepared.plan,
            training: &self.training,
            validation: self.validation.as_ref(),
            base_model: &self.spec.base_model_id,
            parameters: self.engine.parameter_counts(),
            step,
            change: &change,
            ordinary,
        };
        let report = report::render(&self.state, &findings);
        let mut text = serde_json::to_vec_pretty(&report)
            .map_err(|error| internal(format!("the report cannot be written: {error}")))?;
        text.push(b'\n');
        let report = self.write(report::FILE_NAME, &text)?;
        let csv = metrics_csv::render(&self.state.metrics);
        let metrics_csv = self.write(metrics_csv::FILE_NAME, csv.as_bytes())?;
        let waited = self.give_way.waited.as_secs_f64();
        if waited >= 1.0 {
            let message =
                format!("Training waited {waited:.0} seconds while requests were answered");
            note(sink, EventLevel::Info, message, Some(json!({"yielded_seconds": waited})));
        }
        self.witness = Some(Witness::ask(self.prepared, self.engine).map_err(engine_failed)?);
        Ok(Progress::Finished {
            directory,
            metrics_csv,
            report,
            certificate: self.spec.work_dir.join(certificate::FILE_NAME),
            trained_steps: self.state.step,
            trained_tokens: self.state.trained_tokens,
        })
    }

    /// The step and the folder of the checkpoint that becomes the model, which is in the
    /// engine then: that of the lowest validation loss, the last one without a validation file.
    fn choose(&mut self, last: PathBuf, sink: &mut Sink<'_>) -> Result<(u64, PathBuf), JobError> {
        let now = self.state.step;
        let Some(best) = self.state.watch.best.filter(|best| best.step != now) else {
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

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf, JobError> {
        let path: &Path = &self.spec.work_dir;
        let path = path.join(name);
        atomic_file::write(&path, bytes)
            .map_err(|error| internal(format!("{}: {error}", path.display())))?;
        Ok(path)
    }
}

/// Says how far each block's weights have moved, the blocks in order.
fn say_change(change: &[(u32, f64)], sink: &mut Sink<'_>) {
    let (Some(first), Some(last)) = (change.first(), change.last()) else {
        return;
    };
    let message = format!(
        "Mean |ΔW| by block: from {:.2e} in block {} to {:.2e} in block {}; the report has the table",
        first.1, first.0, last.1, last.0
    );
    let data = change.iter().map(|(layer, mean)| (layer.to_string(), serde_json::json!(mean)));
    let data = serde_json::json!({"mean_absolute_change": serde_json::Map::from_iter(data)});
    note(sink, EventLevel::Info, message, Some(data));
}
