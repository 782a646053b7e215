//! Why a run cannot go on, as its job says it: each fault of the stages below as a code of the public
//! table, with what to do. Called by [`super`].

use super::checkpoint_error::CheckpointError;
use crate::dataset::MIN_EXAMPLES;
use crate::domain::error_code::ErrorCode;
use crate::domain::job::{DataFile, JobError};
use crate::train::backend::BackendError;
use crate::train::data::tokenize::EncodeError;
use crate::train::device::DeviceError;
use crate::train::model::error::LoadError;
use crate::train::model::error::LoadModelError;

pub(super) fn internal(message: String) -> JobError {
    JobError { code: ErrorCode::InternalError, message, param: None }
}

/// A loss or gradient that is not a number ends the run; `lines` are those of the step's examples.
pub(super) fn not_finite(step: u64, what: &str, lines: Vec<u64>) -> JobError {
    let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
    JobError {
        code: ErrorCode::NanLoss,
        message: format!(
            "the {what} of step {step} is not a finite number; its batch holds the examples of lines \
             {} of the training file. Lower the learning rate, or check these examples",
            lines.join(", ")
        ),
        param: None,
    }
}

pub(super) fn invalid_model(error: LoadError) -> JobError {
    JobError {
        code: ErrorCode::InvalidModel,
        message: format!("the base model cannot be used: {error}"),
        param: Some("model".to_owned()),
    }
}

/// What the job says of the chat template cannot be used.
pub(super) fn invalid_template(error: &dyn std::fmt::Display) -> JobError {
    JobError {
        code: ErrorCode::InvalidRequest,
        message: format!("chat_template cannot be used: {error}"),
        param: Some("chat_template".to_owned()),
    }
}

pub(super) fn cannot_load(error: LoadModelError) -> JobError {
    match error {
        LoadModelError::Model(error) => invalid_model(error),
        LoadModelError::Target(message) => no_such_target(message),
        LoadModelError::Device(error) => cannot_open(error),
        LoadModelError::Engine(error) => engine_failed(error),
    }
}

pub(super) fn cannot_open(error: DeviceError) -> JobError {
    let code = match error {
        DeviceError::OutOfMemory { .. } => ErrorCode::OutOfMemory,
        DeviceError::NotBuilt { .. } | DeviceError::Unusable { .. } => ErrorCode::InternalError,
    };
    JobError { code, message: error.to_string(), param: None }
}

pub(super) fn no_such_target(message: String) -> JobError {
    JobError {
        code: ErrorCode::InvalidHyperparameter,
        message,
        param: Some("hyperparameters".to_owned()),
    }
}

pub(super) fn engine_failed(error: BackendError) -> JobError {
    match error {
        BackendError::OutOfMemory { .. } => JobError {
            code: ErrorCode::OutOfMemory,
            message: format!(
                "{error}; a shorter context_length or a smaller base model needs less"
            ),
            param: None,
        },
        other => internal(other.to_string()),
    }
}

pub(super) fn checkpoint_failed(error: CheckpointError) -> JobError {
    internal(format!("a checkpoint cannot be written or read: {error}"))
}

pub(super) fn invalid_file(error: EncodeError, which: DataFile) -> JobError {
    let message = match error {
        EncodeError::Diagnostics(problems) => {
            let listed: Vec<String> = problems.listed.iter().map(ToString::to_string).collect();
            format!("{} problems in the file. {}", problems.total, listed.join(". "))
        }
        other => other.to_string(),
    };
    JobError { code: which.code(), message, param: Some(which.param().to_owned()) }
}

pub(super) fn too_few(examples: u64, left_out: u64, context: usize) -> JobError {
    let left_out = match left_out {
        0 => String::new(),
        count => format!(" ({count} more are longer than {context} tokens)"),
    };
    JobError {
        code: ErrorCode::InvalidNExamples,
        message: format!(
            "the training file has {examples} usable examples{left_out}; at least {MIN_EXAMPLES} are \
             needed"
        ),
        param: Some("training_file".to_owned()),
    }
}

pub(super) fn no_validation_example(context: usize) -> JobError {
    JobError {
        code: ErrorCode::InvalidValidationFile,
        message: format!("every validation example is longer than {context} tokens"),
        param: Some("validation_file".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;

    #[test]
    fn a_device_that_is_full_when_the_run_opens_it_is_out_of_memory_and_a_broken_one_is_not() {
        let (device, reason) = (Device::Cuda(0), "CUDA_ERROR_OUT_OF_MEMORY".to_owned());
        let full = DeviceError::OutOfMemory { device, reason: reason.clone() };
        let error = cannot_load(LoadModelError::Device(full));
        assert_eq!(error.code, ErrorCode::OutOfMemory);
        assert!(error.message.contains("cuda:0") && error.message.contains(&reason), "{error:?}");
        let broken = DeviceError::Unusable { device, reason: "CUDA_ERROR_NO_DEVICE".to_owned() };
        assert_eq!(cannot_open(broken).code, ErrorCode::InternalError);
    }
}
