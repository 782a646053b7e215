//! Why a run cannot go on, as its job says it: each fault of the stages below as a code of the public
//! table, with what to do. Called by [`super`].

use std::error::Error;
use std::path::Path;

use super::checkpoint_error::CheckpointError;
use crate::dataset::MIN_EXAMPLES;
use crate::domain::error_code::ErrorCode;
use crate::domain::job::{DataFile, JobError};
use crate::train::backend::BackendError;
use crate::train::data::tokenize::EncodeError;
use crate::train::device::DeviceError;
use crate::train::engine::memory::MemoryRefusal;
use crate::train::model::error::LoadError;
use crate::train::model::error::LoadModelError;
use crate::train::protocol::Progress;
use crate::util::shortage;

/// Why a run cannot go on.
#[derive(Debug, Clone, PartialEq)]
pub struct RunError {
    /// What its job says.
    pub error: JobError,
    /// Set when others hold now what the run lacks, and a later attempt may have it.
    pub shortage: Option<Shortage>,
}

/// Something that a run lacks for the time being.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortage {
    /// Bytes of the machine's memory that the run needs, where that is what it lacks.
    pub memory: Option<u64>,
}

impl RunError {
    /// The last message of a run that ends with it.
    pub fn into_progress(self) -> Progress {
        match self.shortage {
            None => Progress::Failed { error: self.error },
            Some(Shortage { memory }) => Progress::Short { error: self.error, memory },
        }
    }

    /// The same error, which passes when `cause` does: a full disk, no file descriptor, no memory.
    fn because_of(self, cause: &(dyn Error + 'static)) -> Self {
        let Some(lacks) = shortage::of(cause) else { return self };
        let code = match lacks {
            shortage::Kind::Disk => ErrorCode::InsufficientStorage,
            shortage::Kind::Memory => ErrorCode::OutOfMemory,
            shortage::Kind::Descriptors => ErrorCode::InternalError,
        };
        let error = JobError { code, param: None, ..self.error };
        Self { error, shortage: Some(Shortage { memory: None }) }
    }
}

impl From<JobError> for RunError {
    fn from(error: JobError) -> Self {
        Self { error, shortage: None }
    }
}

impl From<RunError> for JobError {
    fn from(error: RunError) -> Self {
        error.error
    }
}

pub(super) fn internal(message: String) -> RunError {
    JobError { code: ErrorCode::InternalError, message, param: None }.into()
}

/// A file of the run that cannot be read or written.
pub(super) fn file_failed(path: &Path, error: &std::io::Error) -> RunError {
    internal(format!("{}: {error}", path.display())).because_of(error)
}

/// A loss or gradient that is not a number ends the run; `lines` are those of the step's examples.
pub(super) fn not_finite(step: u64, what: &str, lines: Vec<u64>) -> RunError {
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    RunError::from(JobError {
        code: ErrorCode::NanLoss,
        message: format!(
            "the {what} of step {step} is not a finite number; its batch holds the examples of lines \
             {} of the training file. Lower the learning rate, or check these examples",
            lines.join(", ")
        ),
        param: None,
    })
}

pub(super) fn invalid_model(error: LoadError) -> RunError {
    let invalid = JobError {
        code: ErrorCode::InvalidModel,
        message: format!("the base model cannot be used: {error}"),
        param: Some("model".to_owned()),
    };
    RunError::from(invalid).because_of(&error)
}

/// What the job says of the chat template cannot be used.
pub(super) fn invalid_template(error: &dyn std::fmt::Display) -> RunError {
    RunError::from(JobError {
        code: ErrorCode::InvalidRequest,
        message: format!("chat_template cannot be used: {error}"),
        param: Some("chat_template".to_owned()),
    })
}

pub(super) fn cannot_load(error: LoadModelError) -> RunError {
    match error {
        LoadModelError::Model(error) => invalid_model(error),
        LoadModelError::Target(message) => no_such_target(message),
        LoadModelError::Device(error) => cannot_open(error),
        // What the run needs was found to be there: others have taken it since.
        LoadModelError::Engine(error @ BackendError::OutOfMemory { .. }) => {
            RunError { shortage: Some(Shortage { memory: None }), ..engine_failed(error) }
        }
        LoadModelError::Engine(error) => engine_failed(error),
    }
}

pub(super) fn cannot_open(error: DeviceError) -> RunError {
    let message = error.to_string();
    match error {
        // The run has not begun: what fills the device is another process.
        DeviceError::OutOfMemory { .. } => RunError {
            error: JobError { code: ErrorCode::OutOfMemory, message, param: None },
            shortage: Some(Shortage { memory: None }),
        },
        DeviceError::NotBuilt { .. } | DeviceError::Unusable { .. } => internal(message),
    }
}

pub(super) fn no_such_target(message: String) -> RunError {
    RunError::from(JobError {
        code: ErrorCode::InvalidHyperparameter,
        message,
        param: Some("hyperparameters".to_owned()),
    })
}

pub(super) fn engine_failed(error: BackendError) -> RunError {
    match error {
        BackendError::OutOfMemory { .. } => RunError::from(JobError {
            code: ErrorCode::OutOfMemory,
            message: format!(
                "{error}; a shorter context_length or a smaller base model needs less"
            ),
            param: None,
        }),
        other => internal(other.to_string()),
    }
}

pub(super) fn checkpoint_failed(error: CheckpointError) -> RunError {
    internal(format!("a checkpoint cannot be written or read: {error}")).because_of(&error)
}

pub(super) fn invalid_file(error: EncodeError, which: DataFile) -> RunError {
    let message = match &error {
        EncodeError::Diagnostics(problems) => {
            let listed: Vec<String> = problems.listed.iter().map(ToString::to_string).collect();
            format!("{} problems in the file. {}", problems.total, listed.join(". "))
        }
        other => other.to_string(),
    };
    let invalid = JobError { code: which.code(), message, param: Some(which.param().to_owned()) };
    RunError::from(invalid).because_of(&error)
}

/// There is too little memory, of the device or of the machine.
pub(super) fn memory_refused(refusal: MemoryRefusal) -> RunError {
    let MemoryRefusal { error, is_lasting, host_bytes } = refusal;
    RunError { error, shortage: (!is_lasting).then_some(Shortage { memory: host_bytes }) }
}

pub(super) fn too_few(examples: u64, left_out: u64, context: usize) -> RunError {
    let left_out = match left_out {
        0 => String::new(),
        count => format!(" ({count} more are longer than {context} tokens)"),
    };
    RunError::from(JobError {
        code: ErrorCode::InvalidNExamples,
        message: format!(
            "the training file has {examples} usable examples{left_out}; at least {MIN_EXAMPLES} are \
             needed"
        ),
        param: Some("training_file".to_owned()),
    })
}

pub(super) fn no_validation_example(context: usize) -> RunError {
    RunError::from(JobError {
        code: ErrorCode::InvalidValidationFile,
        message: format!("every validation example is longer than {context} tokens"),
        param: Some("validation_file".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn a_device_that_is_full_when_the_run_opens_it_is_out_of_memory_and_a_broken_one_is_not() {
        let (device, reason) = (Device::Cuda(0), "CUDA_ERROR_OUT_OF_MEMORY".to_owned());
        let full = DeviceError::OutOfMemory { device, reason: reason.clone() };
        let RunError { error, shortage } = cannot_load(LoadModelError::Device(full));
        assert!(shortage.is_some(), "another process holds it");
        assert_eq!(error.code, ErrorCode::OutOfMemory);
        assert!(error.message.contains("cuda:0") && error.message.contains(&reason), "{error:?}");
        let taken = BackendError::OutOfMemory { backend: "candle", reason };
        assert!(cannot_load(LoadModelError::Engine(taken)).shortage.is_some());
        let broken = DeviceError::Unusable { device, reason: "CUDA_ERROR_NO_DEVICE".to_owned() };
        assert_eq!(cannot_open(broken).error.code, ErrorCode::InternalError);
    }

    #[test]
    fn a_file_that_cannot_be_opened_for_the_moment_does_not_judge_what_it_holds() {
        use std::io::Error;
        let model = |source| invalid_model(LoadError::io(Path::new("model.safetensors"), source));
        // EMFILE, ENFILE, ENOMEM, ENOSPC.
        for number in [24, 23, 12, 28] {
            let error = model(Error::from_raw_os_error(number));
            assert!(error.shortage.is_some(), "{error:?}");
            assert_ne!(error.error.code, ErrorCode::InvalidModel);
        }
        let missing = model(Error::from_raw_os_error(2));
        assert_eq!((missing.error.code, missing.shortage), (ErrorCode::InvalidModel, None));
    }
}
