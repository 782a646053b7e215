//! The messages between a trainer process and its supervisor: JSON lines.
//!
//! The supervisor writes one [`RunSpec`] to the trainer's standard input, and [`Control`] lines
//! after it. The trainer writes [`Progress`] lines to its standard output; logs go to standard
//! error. A closed standard input means that the supervisor is gone: the trainer stops as for
//! [`Control::Stop`].

use std::path::PathBuf;

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use crate::dataset::Diagnostics;
use crate::domain::chat_template::ChatTemplateSettings;
use crate::domain::job::{
    EventLevel, Hyperparameters, JobError, NewEvent, ResolvedHyperparameters, StepMetrics,
};

/// Everything that a run needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Folder (HF layout) or `.gguf` file of the base model.
    pub base_model: PathBuf,
    /// Id of the base model, for the adapter's configuration.
    pub base_model_id: String,
    /// Folder of the adapter (PEFT layout) that the run begins with; a fresh one without.
    #[serde(default)]
    pub continue_from: Option<PathBuf>,
    /// Training JSONL, immutable.
    pub training_file: PathBuf,
    /// Validation JSONL, immutable.
    pub validation_file: Option<PathBuf>,
    /// The run's own folder: checkpoints lie here, and a newer run of the same job finds them.
    pub work_dir: PathBuf,
    /// Seed of everything random.
    pub seed: u32,
    /// What the client asked for.
    pub hyperparameters: Hyperparameters,
    /// How conversations are rendered.
    #[serde(default)]
    pub chat_template: ChatTemplateSettings,
    /// The day that `strftime_now` writes; without one the day on which it is called.
    #[serde(default)]
    pub training_date: Option<NaiveDate>,
}

impl RunSpec {
    /// A text for clients: paths of this machine are replaced by what lies there.
    pub fn without_paths(&self, text: &str) -> String {
        let optional = |path: &Option<PathBuf>, name: &str| {
            path.iter().map(|path| (path.clone(), name.to_owned())).collect::<Vec<_>>()
        };
        let mut names = vec![
            (self.training_file.clone(), "the training file".to_owned()),
            (self.base_model.clone(), self.base_model_id.clone()),
            (self.work_dir.clone(), "the work folder".to_owned()),
        ];
        names.extend(optional(&self.validation_file, "the validation file"));
        names.extend(optional(&self.continue_from, "the model to continue from"));
        // Files before the folders that they lie in.
        names.sort_by_key(|(path, _)| std::cmp::Reverse(path.as_os_str().len()));
        let mut shown = text.to_owned();
        for (path, name) in names.iter().filter(|(path, _)| path.is_absolute()) {
            shown = shown.replace(&*path.to_string_lossy(), name);
        }
        shown
    }
}

/// What the supervisor tells a running trainer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// End within one step; nothing of the run is needed any more.
    Cancel,
    /// Write a checkpoint within one micro-batch and end; another trainer will continue from it.
    Stop,
    /// Requests are being answered on the device: pause between micro-batches. One runs now and then, so
    /// that the run never stops for good.
    PauseMicroBatches,
    /// They are answered: resume.
    ResumeMicroBatches,
    /// The files of an announced checkpoint have been copied: the trainer may remove its folder.
    Published {
        /// Its step.
        step: u64,
    },
}

/// What the trainer tells its supervisor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Progress {
    /// Something the user should read.
    Note {
        /// How severe it is.
        level: EventLevel,
        /// A sentence.
        message: String,
        /// Numbers that belong to it.
        data: Option<serde_json::Value>,
    },
    /// The data has been read and every `auto` is a number.
    Resolved {
        /// The values.
        hyperparameters: ResolvedHyperparameters,
        /// Optimiser steps in all.
        total_steps: u64,
        /// Why each value that was left open is what it is, a sentence each.
        explanations: Vec<String>,
    },
    /// Training continues from a checkpoint.
    Resumed {
        /// Optimiser steps done before.
        step: u64,
    },
    /// One optimiser step is done.
    Step {
        /// Its numbers.
        metrics: StepMetrics,
        /// Real tokens of the step per second.
        tokens_per_second: f64,
        /// Seconds that the rest of the run should take.
        seconds_left: f64,
        /// Seconds that this trainer has yielded to serving, after [`Control::PauseMicroBatches`].
        #[serde(default)]
        yielded_seconds: f64,
    },
    /// A checkpoint for the user lies complete in `directory`, until [`Control::Published`].
    Checkpoint {
        /// Numbers of its step, with the validation over the whole file where there is one.
        metrics: StepMetrics,
        /// Holds `adapter_config.json` and `adapter_model.safetensors` among others or, where the
        /// model's own weights train, the folder `model`.
        directory: PathBuf,
        /// Steps whose checkpoints are retained for the user, this one among them.
        retained: Vec<u64>,
        /// Optimiser steps done: checkpoints of later ones are those of an earlier trainer.
        through: u64,
    },
    /// Training is done.
    Finished {
        /// The checkpoint that is the result.
        directory: PathBuf,
        /// The results CSV.
        metrics_csv: PathBuf,
        /// The report.
        report: PathBuf,
        /// The certificate.
        certificate: PathBuf,
        /// Optimiser steps done.
        trained_steps: u64,
        /// Real tokens that went through training, every epoch counted.
        trained_tokens: u64,
    },
    /// It ended as [`Control::Cancel`] asked.
    Cancelled {
        /// Optimiser steps done.
        step: u64,
    },
    /// It ended as [`Control::Stop`] asked; a checkpoint of this step lies in the work folder.
    Stopped {
        /// Optimiser steps done.
        step: u64,
    },
    /// What the run would be, where that alone is asked for; nothing comes after it.
    DryRunDone {
        /// All of it.
        dry_run: Box<DryRun>,
    },
    /// The process lives; it says so again and again.
    Pulse {
        /// How often the run has asked for controls, which it does between micro-batches.
        asked: u64,
    },
    /// Others hold now what the run lacks: another trainer may continue later.
    Short {
        /// For the job, should it not wait any longer.
        error: JobError,
        /// Bytes of the machine's memory that the run needs, where that is what it lacks.
        memory: Option<u64>,
    },
    /// The run failed, and another attempt would not help.
    Failed {
        /// For the job.
        error: JobError,
    },
}

impl Progress {
    /// The same for clients: texts, which hold what templates and files say, have a bounded length and no
    /// paths of this machine.
    pub fn for_clients(self, spec: &RunSpec) -> Self {
        let shown = |error: JobError| {
            JobError { message: spec.without_paths(&error.message), ..error }.shortened()
        };
        match self {
            Self::Note { level, message, data } => {
                let event = NewEvent::message(level, spec.without_paths(&message));
                Self::Note { level, message: event.message, data }
            }
            Self::Failed { error } => Self::Failed { error: shown(error) },
            Self::Short { error, memory } => Self::Short { error: shown(error), memory },
            Self::DryRunDone { mut dry_run } => {
                dry_run.error = dry_run.error.map(shown);
                for note in &mut dry_run.notes {
                    note.message = spec.without_paths(&note.message);
                }
                Self::DryRunDone { dry_run }
            }
            other => other,
        }
    }

    /// Whether nothing comes after it.
    pub fn is_last(&self) -> bool {
        match self {
            Self::Finished { .. }
            | Self::Cancelled { .. }
            | Self::Stopped { .. }
            | Self::DryRunDone { .. }
            | Self::Short { .. }
            | Self::Failed { .. } => true,
            Self::Note { .. }
            | Self::Resolved { .. }
            | Self::Resumed { .. }
            | Self::Step { .. }
            | Self::Checkpoint { .. }
            | Self::Pulse { .. } => false,
        }
    }
}

/// What a run would be, as far as it would come.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DryRun {
    /// Why it would fail.
    pub error: Option<JobError>,
    /// What is wrong with the training file.
    pub training_problems: Diagnostics,
    /// The same of the validation file.
    pub validation_problems: Diagnostics,
    /// What it would say before it begins.
    pub notes: Vec<NewEvent>,
    /// The training file.
    pub training: Option<DataCount>,
    /// The validation file.
    pub validation: Option<DataCount>,
    /// Values and steps.
    pub plan: Option<PlannedRun>,
    /// What it would hold in memory.
    pub memory: Option<MemoryNeed>,
    /// Seconds that its steps and evaluations would take, at the speed that the CPU has now; `None` where
    /// the CPU's kernels do not compute.
    pub seconds: Option<f64>,
}

/// Values and steps of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedRun {
    /// Every value.
    pub hyperparameters: ResolvedHyperparameters,
    /// Optimiser steps of one epoch.
    pub steps_per_epoch: u64,
    /// Optimiser steps in all, unless training ends early.
    pub total_steps: u64,
    /// Tokens of all epochs, unless training ends early.
    pub trained_tokens: u64,
    /// Why each value that was left open is what it is.
    pub explanations: Vec<String>,
}

/// What a run holds in memory at its peak, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryNeed {
    /// All of it.
    pub total: u64,
    /// Frozen weights.
    pub weights: u64,
    /// What trains, its gradients, moments and copies.
    pub trained: u64,
    /// What the blocks keep and work with.
    pub activations: u64,
    /// The head's logits.
    pub logits: u64,
    /// What is free on the device now; `None` where the device does not tell.
    pub free: Option<u64>,
    /// Whether it fits into that.
    pub fits: bool,
}

/// What a file holds for a run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DataCount {
    /// Examples that fit into the context.
    pub examples: u64,
    /// Their tokens, of both answers where they have two.
    pub tokens: u64,
    /// How many of these are supervised.
    pub loss_tokens: u64,
    /// Tokens of the longest of them, of both answers where it has two.
    pub longest: u64,
    /// Examples that are left out because they do not fit.
    pub left_out: u64,
    /// The first of these: line and tokens.
    pub left_out_lines: Vec<(u64, u64)>,
}
