//! The certificate: what the exported files compute elsewhere is what the engine computed here.
//!
//! Before the engine is dropped, it computes the logits of a few rows ([`ReferenceLogits`]). Then the files
//! are read back from their bytes beside a base that is loaded anew, and must compute the same ([`issue`]).
//! Their numbers are written down, so that [`verify`] can compute them again later.

mod verify;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::checkpoint::sha256_of;
use super::checkpoint_error::CheckpointError;
use super::errors::{
    RunError, cannot_load, checkpoint_failed, engine_failed, file_failed, internal, invalid_model,
};
use super::setup::RunSetup;
use crate::artifacts::certificate::{
    Certificate, CertifiedBaseModel, CertifiedData, CertifiedRow, FILE_NAME, FORMAT_VERSION,
    ReadBackComparison,
};
use crate::artifacts::model;
use crate::artifacts::peft::{self, PeftError};
use crate::domain::error_code::ErrorCode;
use crate::domain::job::JobError;
use crate::train::backend::BackendError;
use crate::train::data::tokenize::EncodedFile;
use crate::train::engine::{BackendKind, Engine, InferenceEngine, precision};
use crate::train::model::base_model::BaseModel;
use crate::train::model::error::LoadError;
use crate::train::model::error::LoadModelError;
use crate::train::model::lora::LoraSettings;
use crate::train::protocol::RunSpec;
use crate::util::atomic_file;

pub use self::verify::{Verified, VerifyError, read, verify};

/// Rows that are compared.
const ROWS: usize = 4;

/// Tokens of a row.
const TOKENS: usize = 64;

/// Logits that are kept for the comparison: 64 MiB of them.
const MOST_LOGITS: usize = 16 << 20;

/// Largest difference that passes, relative to the largest logit: where the same arithmetic is done
/// twice, and where products round to bfloat16 on one side alone.
const SAME_ARITHMETIC: f32 = 1e-3;
const OTHER_ARITHMETIC: f32 = 5e-2;

/// Logits that the training engine computes, to compare with those of the exported files.
pub(super) struct ReferenceLogits {
    rows_of: &'static str,
    /// Tokens, and the logits of every position.
    rows: Vec<(Vec<u32>, Vec<f32>)>,
}

impl ReferenceLogits {
    /// Computes them for the first tokens of a few examples, with the engine as it is now.
    pub(super) fn compute(setup: &RunSetup, engine: &mut dyn Engine) -> Result<Self, BackendError> {
        if let Some(file) = &setup.validation {
            let reference = Self::of_file("validation", file, setup, engine)?;
            if !reference.rows.is_empty() {
                return Ok(reference);
            }
        }
        Self::of_file("training", &setup.training, setup, engine)
    }

    fn of_file(
        rows_of: &'static str,
        file: &EncodedFile,
        setup: &RunSetup,
        engine: &mut dyn Engine,
    ) -> Result<Self, BackendError> {
        let mut left = (MOST_LOGITS / setup.vocabulary.max(1)).max(1);
        let mut rows = Vec::new();
        let first = file.examples.iter().filter_map(|example| example.views.first());
        for sequence in first.filter(|sequence| !sequence.input_ids.is_empty()).take(ROWS) {
            let ids = &sequence.input_ids[..sequence.input_ids.len().min(TOKENS).min(left)];
            if ids.is_empty() {
                break;
            }
            left -= ids.len();
            rows.push((ids.to_vec(), engine.logits(ids)?));
        }
        Ok(Self { rows_of, rows })
    }
}

/// A model that was read from files, ready to compute.
struct LoadedExport {
    responder: InferenceEngine,
    adapter: Option<crate::train::engine::AttachedAdapter>,
}

/// Why a model cannot be read from its files.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Model(#[from] LoadError),
    #[error(transparent)]
    Load(#[from] LoadModelError),
    #[error(transparent)]
    Adapter(#[from] PeftError),
    #[error(transparent)]
    Engine(#[from] BackendError),
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
}

impl LoadedExport {
    /// Reads the adapter in `folder` beside `base` or, without a base, the whole model there.
    fn read(folder: &Path, base: Option<&BaseModel>, kind: BackendKind) -> Result<Self, ReadError> {
        let Some(base) = base else {
            let whole = BaseModel::open(folder)?;
            let responder = InferenceEngine::load(&whole.config, whole.weights.as_ref(), kind)?;
            return Ok(Self { responder, adapter: None });
        };
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path)
                .map_err(|source| ReadError::Io { path: path.display().to_string(), source })
        };
        let (config, tensors) = peft::read(&read(peft::CONFIG_FILE)?, &read(peft::WEIGHTS_FILE)?)?;
        let responder = InferenceEngine::load(&base.config, base.weights.as_ref(), kind)?;
        let adapter = responder.attach(&LoraSettings::of_peft(&config), &tensors)?;
        Ok(Self { responder, adapter: Some(adapter) })
    }

    /// Logits of every position.
    fn logits(&self, ids: &[u32]) -> Result<Vec<f32>, BackendError> {
        self.responder.logits(self.adapter.as_ref(), ids)
    }
}

/// Reads back what the run left in `directory`, compares, and writes the certificate into the work
/// folder. The run's engine should be gone: its memory is needed.
///
/// # Errors
/// [`ErrorCode::ExportCheckFailed`] where the files come to other numbers than the engine.
pub(super) fn issue(
    spec: &RunSpec,
    setup: &RunSetup,
    reference: &ReferenceLogits,
    directory: &Path,
) -> Result<PathBuf, RunError> {
    let is_whole = setup.adapter.is_none();
    let folder = if is_whole { directory.join(model::FOLDER) } else { directory.to_owned() };
    let base = (!is_whole).then_some(&setup.base);
    let loaded = LoadedExport::read(&folder, base, setup.backend).map_err(|error| match error {
        ReadError::Model(error) => invalid_model(error),
        ReadError::Load(error) => cannot_load(error),
        ReadError::Engine(error) => engine_failed(error),
        other => differs(&other.to_string()),
    })?;
    let mut rows = Vec::with_capacity(reference.rows.len());
    if reference.rows.is_empty() {
        return Err(differs("there is no example whose logits could be compared"));
    }
    let (mut difference, mut largest, mut tokens) = (0.0f32, 0.0f32, 0);
    for (ids, trained) in &reference.rows {
        let read = loaded.logits(ids).map_err(engine_failed)?;
        difference = difference.max(largest_difference(&read, trained)?);
        largest = trained.iter().fold(largest, |largest, logit| largest.max(logit.abs()));
        tokens += ids.len();
        rows.push(row(ids, &read));
    }
    let relative = match setup.backend {
        BackendKind::Cuda(_) => OTHER_ARITHMETIC,
        BackendKind::Cpu | BackendKind::CpuF32 | BackendKind::Candle => SAME_ARITHMETIC,
    };
    let allowed = relative * largest.max(1.0);
    if difference > allowed {
        return Err(differs(&format!(
            "logits differ by up to {difference:.3e}, and {allowed:.3e} is allowed"
        )));
    }
    let identity = &setup.identity;
    let certificate = Certificate {
        certificate: FORMAT_VERSION,
        hone: env!("CARGO_PKG_VERSION").to_owned(),
        base_model: CertifiedBaseModel {
            id: spec.base_model_id.clone(),
            sha256: identity.model.clone(),
        },
        data: CertifiedData {
            training_sha256: identity.training_file.clone(),
            validation_sha256: identity.validation_file.clone(),
        },
        template_sha256: setup.base.templates.digest(),
        template_kwargs: identity.chat_template.as_ref().map(|template| template.kwargs.clone()),
        template_date: identity.chat_template.as_ref().and_then(|template| template.date),
        continued_from_sha256: identity.initial_adapter.clone(),
        seed: identity.seed,
        files: digests(&folder, is_whole).map_err(checkpoint_failed)?,
        compared: ReadBackComparison {
            rows_of: reference.rows_of.to_owned(),
            tokens,
            largest_difference: difference,
            largest_logit: largest,
            allowed_difference: allowed,
            precision: precision(setup.backend).map_err(engine_failed)?.to_owned(),
        },
        rows,
    };
    let mut text = serde_json::to_vec_pretty(&certificate)
        .map_err(|error| internal(format!("the certificate cannot be written: {error}")))?;
    text.push(b'\n');
    let path = spec.work_dir.join(FILE_NAME);
    atomic_file::write(&path, &text).map_err(|error| file_failed(&path, &error))?;
    Ok(path)
}

/// The largest difference between two rows of logits.
///
/// # Errors
/// Rows of unequal length, and logits that are no numbers.
fn largest_difference(read: &[f32], trained: &[f32]) -> Result<f32, RunError> {
    if read.len() != trained.len() || read.is_empty() {
        let (read, trained) = (read.len(), trained.len());
        return Err(differs(&format!("there are {read} logits instead of {trained}")));
    }
    let mut largest = 0.0f32;
    for (read, trained) in read.iter().zip(trained) {
        if !read.is_finite() || !trained.is_finite() {
            return Err(differs(&format!("logits are {read} and {trained}, which are no numbers")));
        }
        largest = largest.max((read - trained).abs());
    }
    Ok(largest)
}

fn differs(what: &str) -> RunError {
    RunError::from(JobError {
        code: ErrorCode::ExportCheckFailed,
        message: format!(
            "the model's files were read back and do not compute what was trained: {what}. Nothing is \
             published; start the job again, and look at the machine's memory and disk if it happens \
             again"
        ),
        param: None,
    })
}

/// SHA-256 of the files that make a model, by name.
fn digests(folder: &Path, is_whole: bool) -> Result<BTreeMap<String, String>, CheckpointError> {
    let mut names = match is_whole {
        false => vec![peft::CONFIG_FILE, peft::WEIGHTS_FILE],
        true => vec![model::CONFIG_FILE, model::WEIGHTS_FILE],
    };
    if is_whole {
        names.extend(model::COMPANIONS.iter().filter(|name| folder.join(name).is_file()));
    }
    let mut digests = BTreeMap::new();
    for name in names {
        digests.insert(name.to_owned(), sha256_of(&folder.join(name))?);
    }
    Ok(digests)
}

/// What stands in the certificate of one row.
fn row(ids: &[u32], all: &[f32]) -> CertifiedRow {
    let vocabulary = all.len() / ids.len().max(1);
    let mut row = CertifiedRow {
        token_ids: ids.to_vec(),
        likeliest: Vec::with_capacity(ids.len()),
        logits: Vec::with_capacity(ids.len()),
        log_probabilities: Vec::with_capacity(ids.len()),
    };
    for (place, logits) in all.chunks_exact(vocabulary.max(1)).enumerate() {
        let mut best = 0;
        for (id, logit) in logits.iter().enumerate() {
            if *logit > logits[best] {
                best = id;
            }
        }
        row.likeliest.push(best as u32);
        row.logits.push(logits[best]);
        if let Some(next) = ids.get(place + 1) {
            let most = f64::from(logits[best]);
            let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - most).exp()).sum();
            let next = f64::from(logits[*next as usize]);
            row.log_probabilities.push((next - most - sum.ln()) as f32);
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chat_template::ChatTemplateSettings;
    use crate::domain::job::Hyperparameters;
    use crate::train::run::setup::prepare;

    #[test]
    fn a_run_whose_files_compute_something_else_fails_and_has_no_certificate() {
        let folder = tempfile::tempdir().expect("a folder");
        let training_file = folder.path().join("train.jsonl");
        let line =
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#;
        std::fs::write(&training_file, [line; 10].join("\n")).expect("writes");
        let spec = RunSpec {
            base_model: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama"),
            base_model_id: "tiny-llama".to_owned(),
            continue_from: None,
            training_file,
            validation_file: None,
            work_dir: folder.path().to_owned(),
            seed: 1,
            hyperparameters: Hyperparameters::default(),
            chat_template: ChatTemplateSettings::default(),
            training_date: None,
        };
        let (setup, mut engine) =
            prepare(&spec, BackendKind::CpuF32, &mut |_| ()).expect("prepares");
        setup.trained_model().write(folder.path(), engine.as_ref()).expect("writes");
        let reference = ReferenceLogits::compute(&setup, engine.as_mut()).expect("computes");
        issue(&spec, &setup, &reference, folder.path()).expect("the files are what was trained");
        std::fs::remove_file(folder.path().join(FILE_NAME)).expect("was written");

        // The files are whole and well-formed, and one layer's B is another.
        let path = folder.path().join(peft::WEIGHTS_FILE);
        let mut tensors = peft::deserialise(&std::fs::read(&path).expect("reads")).expect("floats");
        let key = "base_model.model.model.layers.0.mlp.down_proj.lora_B.weight";
        tensors.get_mut(key).expect("is there").1.fill(0.5);
        std::fs::write(&path, peft::serialise(&tensors).expect("serialises")).expect("writes");
        let error = issue(&spec, &setup, &reference, folder.path()).expect_err("it differs");
        assert_eq!(error.error.code, ErrorCode::ExportCheckFailed);
        let message = error.error.message;
        assert!(message.contains("logits differ by up to"), "{message}");
        assert!(!folder.path().join(FILE_NAME).exists());

        // What compares nothing, or fewer numbers, does not pass either.
        let (rows_of, rows) = (reference.rows_of, Vec::new());
        let error = issue(&spec, &setup, &ReferenceLogits { rows_of, rows }, folder.path());
        assert!(error.expect_err("it has no rows").error.message.contains("no example"));
        let half =
            reference.rows.iter().map(|(ids, all)| (ids.clone(), all[..all.len() / 2].to_vec()));
        let half = ReferenceLogits { rows_of, rows: half.collect() };
        let error = issue(&spec, &setup, &half, folder.path()).expect_err("it has fewer");
        assert!(error.error.message.contains("logits instead of"), "{}", error.error.message);
        assert!(!folder.path().join(FILE_NAME).exists());
    }

    #[test]
    fn logits_that_are_no_numbers_are_no_small_difference() {
        assert!(largest_difference(&[1.0, 2.0], &[1.0, 2.5]).is_ok_and(|most| most == 0.5));
        for (read, trained) in [
            (vec![f32::NAN], vec![1.0]),
            (vec![1.0], vec![f32::NAN]),
            (vec![f32::INFINITY], vec![f32::INFINITY]),
            (vec![1.0, 2.0], vec![1.0]),
            (vec![], vec![]),
        ] {
            let error = largest_difference(&read, &trained).expect_err("it is no match");
            assert_eq!(error.error.code, ErrorCode::ExportCheckFailed);
        }
    }
}
