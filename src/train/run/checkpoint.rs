//! Checkpoints: everything that a run needs to go on bit for bit, in a folder that is there whole or
//! not at all.
//!
//! A checkpoint is `step-<n>/` in the run's work folder: what trains, ready for use (an adapter in
//! PEFT layout, or the whole model in the folder `model`), both moments, `state.json`, and `manifest.json` with the SHA-256 of each, written last into a temporary folder
//! that is then renamed. A folder whose manifest does not verify is passed over.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::chat_template::TemplateIdentity;
use super::checkpoint_error::CheckpointError;
use super::early_stopping::EarlyStopping;
use super::export::{self, TrainedModel};
use super::findings::Finding;
use crate::artifacts::peft;
use crate::domain::job::{ResolvedHyperparameters, StepMetrics};
use crate::train::engine::Engine;
use crate::util::fail_point::FailPoint;
use crate::util::{atomic_file, disk_space, file_digest};

const STATE_FILE: &str = "state.json";
const FIRST_MOMENTS_FILE: &str = "first_moments.safetensors";
const SECOND_MOMENTS_FILE: &str = "second_moments.safetensors";
const MANIFEST_FILE: &str = "manifest.json";
const LOCK_FILE: &str = ".lock";

/// What a run is, beside its progress; a checkpoint of another run is not continued.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// SHA-256 of the base model.
    pub model: String,
    /// SHA-256 of the adapter that it began with; a fresh one without.
    #[serde(rename = "start")]
    pub initial_adapter: Option<String>,
    /// SHA-256 of the training file.
    pub training_file: String,
    /// SHA-256 of the validation file.
    pub validation_file: Option<String>,
    /// Seed of everything random.
    pub seed: u32,
    /// Every hyperparameter.
    pub hyperparameters: ResolvedHyperparameters,
    /// What the job says of the chat template, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<TemplateIdentity>,
}

/// How far a run is. The place in the data and every random number follow from the step and the
/// seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// What the run is.
    pub identity: Identity,
    /// Optimiser steps done.
    pub step: u64,
    /// Real tokens that went through training.
    pub trained_tokens: u64,
    /// Numbers of every step so far: the CSV's rows.
    pub metrics: Vec<StepMetrics>,
    /// Loss of each training example when it was last trained on.
    pub example_losses: Vec<Option<f32>>,
    /// Evaluations on the validation file.
    #[serde(rename = "watch")]
    pub early_stopping: EarlyStopping,
    /// What the diagnostics found.
    #[serde(rename = "health")]
    pub findings: Vec<Finding>,
    /// Steps whose checkpoints are retained for the user, in order.
    #[serde(rename = "kept")]
    pub retained: Vec<u64>,
    /// Metrics of the last step, when the run was told to stop before it was evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unevaluated: Option<StepMetrics>,
}

impl RunState {
    /// Nothing done yet, over so many training examples.
    pub fn new(identity: Identity, examples: usize) -> Self {
        Self {
            identity,
            step: 0,
            trained_tokens: 0,
            metrics: Vec::new(),
            example_losses: vec![None; examples],
            early_stopping: EarlyStopping::default(),
            findings: Vec::new(),
            retained: Vec::new(),
            unevaluated: None,
        }
    }
}

/// A checkpoint that has been found whole.
pub struct ResumePoint {
    /// How far it is.
    pub state: RunState,
    /// Its folder.
    pub folder: PathBuf,
}

/// What looking for a checkpoint came to.
#[derive(Default)]
pub struct CheckpointSearch {
    /// The newest whole one of this run.
    pub found: Option<ResumePoint>,
    /// Newer ones that cannot be used, and why.
    pub passed_over: Vec<String>,
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.display().to_string();
    move |source| CheckpointError::Io { path, source }
}

/// The right to write into a run's work folder, until it is dropped or its process ends in any way.
#[derive(Debug)]
pub struct WorkDirLock {
    _file: File,
}

/// Locks a work folder, which is created if it is not there. Another trainer may still work in it: one
/// whose server was killed ends only after its micro-batch. `waits` is called again and again in that case;
/// `None` when it returns false.
pub fn lock(
    work_dir: &Path,
    mut waits: impl FnMut() -> bool,
) -> Result<Option<WorkDirLock>, CheckpointError> {
    /// How often the lock is tried.
    const POLL: Duration = Duration::from_millis(20);
    /// An earlier trainer whose server is gone has as long to end as one that is told to.
    const GRACE: Duration = Duration::from_secs(30);
    let began = Instant::now();
    std::fs::create_dir_all(work_dir).map_err(io_error(work_dir))?;
    let path = work_dir.join(LOCK_FILE);
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    let mut file = options.open(&path).map_err(io_error(&path))?;
    loop {
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0).map_err(io_error(&path))?;
                writeln!(file, "{}", std::process::id()).map_err(io_error(&path))?;
                return Ok(Some(WorkDirLock { _file: file }));
            }
            Err(std::fs::TryLockError::WouldBlock) if waits() => {
                if began.elapsed() >= GRACE {
                    end_holder(&path);
                }
                std::thread::sleep(POLL);
            }
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(error)) => return Err(io_error(&path)(error)),
        }
    }
}

/// Kills the trainer that holds the lock at `path`, by the number in it, if a process of that number has the
/// file open: it is stopped or hangs, and would hold its memory and the folder for ever.
fn end_holder(path: &Path) {
    let number = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    let Some(pid) = number.and_then(Pid::from_raw) else { return };
    let folder = format!("/proc/{}/fd", pid.as_raw_nonzero());
    let Ok(path) = path.canonicalize() else { return };
    let mut open = std::fs::read_dir(folder).into_iter().flatten().flatten();
    if open.any(|entry| std::fs::read_link(entry.path()).is_ok_and(|file| file == path)) {
        tracing::warn!(process = %pid.as_raw_nonzero(), "an earlier trainer does not end and is killed");
        // It may have ended by itself meanwhile.
        let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// The folder of the checkpoint of `step`.
pub fn folder(work_dir: &Path, step: u64) -> PathBuf {
    work_dir.join(format!("step-{step}"))
}

/// Writes the engine's state as the checkpoint of `state.step`; one that is there already, whole and of this
/// state, stays.
pub fn write(
    work_dir: &Path,
    engine: &dyn Engine,
    trained_model: &TrainedModel<'_>,
    state: &RunState,
) -> Result<PathBuf, CheckpointError> {
    let target = folder(work_dir, state.step);
    // The same step always comes to the same state, but for an evaluation that is still to be done.
    if read_state(&target).is_ok_and(|found| found == *state) {
        return Ok(target);
    }
    disk_space::require(work_dir, 0).map_err(io_error(work_dir))?;
    if target.exists() {
        std::fs::remove_dir_all(&target).map_err(io_error(&target))?;
    }
    let partial = tempfile::Builder::new()
        .prefix(".partial-")
        .tempdir_in(work_dir)
        .map_err(io_error(work_dir))?;
    let inside = |name: &str| partial.path().join(name);

    let mut names = trained_model.write(partial.path(), engine)?;
    let (first, second) = engine.moments()?;
    for (name, moments) in [(FIRST_MOMENTS_FILE, first), (SECOND_MOMENTS_FILE, second)] {
        let path = inside(name);
        atomic_file::write(&path, &peft::serialise(&moments)?).map_err(io_error(&path))?;
    }
    let path = inside(STATE_FILE);
    atomic_file::write(&path, &to_json(state)?).map_err(io_error(&path))?;

    let mut manifest = BTreeMap::new();
    names.extend([FIRST_MOMENTS_FILE, SECOND_MOMENTS_FILE, STATE_FILE].map(str::to_owned));
    for name in names {
        let sha256 = sha256_of(&inside(&name))?;
        manifest.insert(name, sha256);
    }
    let path = inside(MANIFEST_FILE);
    atomic_file::write(&path, &to_json(&manifest)?).map_err(io_error(&path))?;

    let partial = partial.keep();
    std::fs::rename(&partial, &target).map_err(io_error(&target))?;
    FailPoint::CheckpointRenamed.reach().map_err(io_error(&target))?;
    atomic_file::sync_folder(work_dir).map_err(io_error(work_dir))?;
    Ok(target)
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>, CheckpointError> {
    serde_json::to_vec_pretty(value).map_err(|error| CheckpointError::Damaged(error.to_string()))
}

/// SHA-256 of a file, lower-case hex.
pub fn sha256_of(path: &Path) -> Result<String, CheckpointError> {
    file_digest::sha256_of_file(path).map_err(io_error(path))
}

/// Checks every file of a checkpoint against its manifest.
fn verify(folder: &Path) -> Result<(), CheckpointError> {
    let path = folder.join(MANIFEST_FILE);
    let bytes = std::fs::read(&path).map_err(io_error(&path))?;
    let manifest: BTreeMap<String, String> = serde_json::from_slice(&bytes)
        .map_err(|error| CheckpointError::Damaged(format!("{}: {error}", path.display())))?;
    for (name, wanted) in &manifest {
        let path = folder.join(name);
        if sha256_of(&path)? != *wanted {
            let message = format!("{} does not have the bytes that were written", path.display());
            return Err(CheckpointError::Damaged(message));
        }
    }
    Ok(())
}

/// Whether a checkpoint's folder is there with the bytes that were written.
pub fn is_whole(folder: &Path) -> bool {
    verify(folder).is_ok()
}

/// The steps of which there is a checkpoint folder, newest first.
pub fn steps(work_dir: &Path) -> Result<Vec<u64>, CheckpointError> {
    let mut steps: Vec<u64> = Vec::new();
    for entry in std::fs::read_dir(work_dir).map_err(io_error(work_dir))? {
        let name = entry.map_err(io_error(work_dir))?.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix("step-"));
        if let Some(step) = step.and_then(|step| step.parse().ok()) {
            steps.push(step);
        }
    }
    steps.sort_unstable_by(|a, b| b.cmp(a));
    Ok(steps)
}

/// Looks for the newest whole checkpoint of the run that `identity` describes.
pub fn newest(work_dir: &Path, identity: &Identity) -> Result<CheckpointSearch, CheckpointError> {
    let mut search = CheckpointSearch::default();
    for step in steps(work_dir)? {
        let folder = folder(work_dir, step);
        match read_state(&folder) {
            Ok(state) if state.identity == *identity && state.step == step => {
                search.found = Some(ResumePoint { state, folder });
                return Ok(search);
            }
            Ok(_) => search.passed_over.push(format!(
                "the checkpoint of step {step} belongs to other data, another base model or other \
                 settings"
            )),
            Err(error) => search
                .passed_over
                .push(format!("the checkpoint of step {step} is not whole: {error}")),
        }
    }
    Ok(search)
}

fn read_state(folder: &Path) -> Result<RunState, CheckpointError> {
    verify(folder)?;
    let path = folder.join(STATE_FILE);
    let bytes = std::fs::read(&path).map_err(io_error(&path))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| CheckpointError::Damaged(format!("{}: {error}", path.display())))
}

/// Puts what trains, as a checkpoint has it, and the moments into the engine.
pub fn restore(folder: &Path, engine: &mut dyn Engine) -> Result<(), CheckpointError> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read(&path).map_err(io_error(&path))
    };
    let first = peft::deserialise(&read(FIRST_MOMENTS_FILE)?)?;
    engine.set_trainable_tensors(&export::read(folder, &first)?)?;
    let second = peft::deserialise(&read(SECOND_MOMENTS_FILE)?)?;
    engine.set_moments(&first, &second)?;
    Ok(())
}

/// Removes a checkpoint that nothing needs any more.
pub fn remove(work_dir: &Path, step: u64) -> Result<(), CheckpointError> {
    let folder = folder(work_dir, step);
    std::fs::remove_dir_all(&folder).map_err(io_error(&folder))
}
