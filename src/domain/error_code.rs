//! The one table of public error codes: what HTTP replies and failed jobs say when something
//! goes wrong. A code, once published, keeps its meaning.

use serde::{Deserialize, Serialize};

/// `error.type` of OpenAI's error envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorType {
    /// The request cannot be fulfilled as it stands; a retry of the same request is pointless.
    InvalidRequest,
    /// The client asks for more than it may have at the moment.
    RateLimit,
    /// The fault is ours.
    Server,
}

impl ErrorType {
    /// The spelling on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request_error",
            Self::RateLimit => "rate_limit_error",
            Self::Server => "server_error",
        }
    }
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident => $code:literal, $kind:ident, $status:literal;)*) => {
        /// Every public error: its code, its type and the HTTP status it travels with.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum ErrorCode {
            $($(#[$doc])* #[serde(rename = $code)] $variant,)*
        }

        impl ErrorCode {
            /// Every code, in the order of the table.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant,)*];

            /// The spelling on the wire, in `error.code`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// `error.type` of the envelope.
            pub fn error_type(self) -> ErrorType {
                match self { $(Self::$variant => ErrorType::$kind,)* }
            }

            /// What `error.code` of an HTTP reply says: OpenAI leaves it null for some.
            pub fn on_the_wire(self) -> Option<&'static str> {
                match self {
                    Self::MissingApiKey
                    | Self::FileNotFound
                    | Self::MethodNotAllowed
                    | Self::UnsupportedMediaType
                    | Self::InternalError => None,
                    code => Some(code.as_str()),
                }
            }

            /// The HTTP status of a reply with this code.
            pub fn http_status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }
        }
    };
}

// A macro because the table is the documentation: one line for each public error.
error_codes! {
    /// The request is malformed, or a value is missing, unknown or out of range.
    InvalidRequest => "invalid_request", InvalidRequest, 400;
    /// The body is not the JSON it should be.
    InvalidJson => "invalid_json", InvalidRequest, 400;
    /// A hyperparameter is unknown, or its value is out of range.
    InvalidHyperparameter => "invalid_hyperparameter", InvalidRequest, 400;
    /// The feature is part of OpenAI's surface, and hone does not offer it.
    Unsupported => "unsupported", InvalidRequest, 400;
    /// A list cursor that names nothing.
    InvalidCursor => "invalid_cursor", InvalidRequest, 400;
    /// The file cannot be used for this purpose, or is still used by a job.
    InvalidFile => "invalid_file", InvalidRequest, 400;
    /// The upload takes no parts any more: it is completed, was cancelled, or has expired.
    UploadNotPending => "upload_not_pending", InvalidRequest, 400;
    /// The sample event could not be brought to the webhook endpoint: nothing answered there.
    WebhookUnreachable => "webhook_unreachable", InvalidRequest, 400;
    /// The key of the request was used for another request.
    IdempotencyKeyReused => "idempotency_key_reused", InvalidRequest, 400;
    /// The job has ended already.
    JobNotCancellable => "job_not_cancellable", InvalidRequest, 400;
    /// The job has ended already, or is about to.
    JobNotPausable => "job_not_pausable", InvalidRequest, 400;
    /// The same.
    JobNotResumable => "job_not_resumable", InvalidRequest, 400;
    /// A message holds the text of one of the model's control tokens.
    ControlTokenInContent => "control_token_in_content", InvalidRequest, 400;
    /// The prompt does not fit into the model's context.
    ContextLengthExceeded => "context_length_exceeded", InvalidRequest, 400;
    /// The request has no key.
    MissingApiKey => "missing_api_key", InvalidRequest, 401;
    /// The key in the request is not known, or is revoked.
    InvalidApiKey => "invalid_api_key", InvalidRequest, 401;
    /// The resource may not be changed by this client.
    PermissionDenied => "permission_denied", InvalidRequest, 403;
    /// No such route.
    RouteNotFound => "route_not_found", InvalidRequest, 404;
    /// No such file.
    FileNotFound => "file_not_found", InvalidRequest, 404;
    /// No such upload.
    UploadNotFound => "upload_not_found", InvalidRequest, 404;
    /// No such fine-tuning job.
    FineTuneNotFound => "fine_tune_not_found", InvalidRequest, 404;
    /// No such webhook endpoint.
    WebhookEndpointNotFound => "webhook_endpoint_not_found", InvalidRequest, 404;
    /// No such model, neither base nor fine-tuned.
    ModelNotFound => "model_not_found", InvalidRequest, 404;
    /// No such permission of this checkpoint.
    PermissionNotFound => "permission_not_found", InvalidRequest, 404;
    /// The route exists, the method does not.
    MethodNotAllowed => "method_not_allowed", InvalidRequest, 405;
    /// The upload or body is larger than the server takes.
    FileTooLarge => "file_too_large", InvalidRequest, 413;
    /// The body is of a kind that the route does not take.
    UnsupportedMediaType => "unsupported_media_type", InvalidRequest, 415;
    /// The range of bytes lies outside of the file.
    InvalidRange => "invalid_range", InvalidRequest, 416;
    /// Too many requests or queued jobs.
    RateLimitExceeded => "rate_limit_exceeded", RateLimit, 429;
    /// A fault of the server.
    InternalError => "internal_error", Server, 500;
    /// The model is being loaded, or the server is shutting down.
    ModelLoading => "model_loading", Server, 503;
    /// The server took too long to answer.
    TimedOut => "timed_out", Server, 504;
    /// The disk is full.
    InsufficientStorage => "insufficient_storage", Server, 507;

    /// Job: the training file is not what the method needs; the message names the lines.
    InvalidTrainingFile => "invalid_training_file", InvalidRequest, 400;
    /// Job: the same for the validation file.
    InvalidValidationFile => "invalid_validation_file", InvalidRequest, 400;
    /// Job: fewer than ten examples.
    InvalidNExamples => "invalid_n_examples", InvalidRequest, 400;
    /// Job: the base model cannot be loaded or is of an unknown architecture.
    InvalidModel => "invalid_model", InvalidRequest, 400;
    /// Job: the trainer ran out of memory, or the estimate says that it would.
    OutOfMemory => "out_of_memory", Server, 500;
    /// Job: the loss became NaN or infinite.
    NanLoss => "nan_loss", Server, 500;
    /// Job: what was read back from the model's files does not compute what was trained.
    ExportCheckFailed => "export_check_failed", Server, 500;
    /// Job: the trainer process died again and again at the same place.
    WorkerCrashed => "worker_crashed", Server, 500;
    /// Job: the trainer process stood still again and again at the same place.
    StepStalled => "step_stalled", Server, 500;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_unique_and_serialises_as_it_is_written() {
        let mut seen = std::collections::HashSet::new();
        for code in ErrorCode::ALL {
            assert!(seen.insert(code.as_str()), "{} stands twice in the table", code.as_str());
            let json = serde_json::to_string(code).expect("a code serialises");
            assert_eq!(json, format!("\"{}\"", code.as_str()));
        }
    }
}
