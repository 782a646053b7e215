//! The model of a job as one streamed archive, in the format of another program.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use tempfile::TempDir;
use tokio::fs::File;
use tokio_util::io::ReaderStream;

use crate::artifacts::archive;
use crate::artifacts::model::WeightType;
use crate::domain::error_code::ErrorCode;
use crate::domain::job::{Job, JobStatus};
use crate::domain::model::checkpoint_name;
use crate::export::fetch::{self, ExportSources, FetchError};
use crate::export::{ExportError, ExportFormat, ExportOptions, Quantization};
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::{PathId, Query};
use crate::http::middleware::authenticate::Caller;
use crate::http::reply::attachment;
use crate::http::state::AppState;
use crate::util::excerpt::excerpt;

/// Size of the pieces in which a file is read.
const CHUNK: usize = 1024 * 1024;

/// The model of a job as a tar archive, in the format of another program.
///
/// Extension of hone. `peft` holds `adapter_config.json` and `adapter_model.safetensors`, which
/// `PeftModel.from_pretrained(base, folder)` and vLLM load, and `certificate.json`; `merged` a whole
/// model in Hugging Face's layout; `gguf-lora` an adapter for llama.cpp's `--lora`; `gguf` a whole
/// model for llama.cpp and Ollama.
#[utoipa::path(
    get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/adapter", tag = "extensions",
    operation_id = "downloadFineTuningJobAdapter",
    params(
        ("fine_tuning_job_id" = String, Path, description = "ftjob-…"),
        (
            "format" = Option<String>, Query,
            description = "peft, merged, gguf-lora or gguf; peft without it"
        ),
        (
            "quantization" = Option<String>, Query,
            description = "how the matrices of gguf are stored, f16 or q8_0; f16 without it"
        ),
        (
            "dtype" = Option<String>, Query,
            description = "type of the weights of merged: bfloat16, float16 or float32; without it that of the \
                           base model, and float32 of a model that was trained in whole"
        ),
        (
            "base_model_name" = Option<String>, Query,
            description = "`base_model_name_or_path` of peft, such as the base model's repository on the \
                           Hugging Face Hub; without it the one that hone knows"
        ),
        (
            "step" = Option<u64>, Query,
            description = "`step_number` of a checkpoint, whose model it is then; without it that of the \
                           finished job"
        )
    ),
    responses(
        (status = 200, content_type = "application/x-tar", body = Vec<u8>),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody)
    )
)]
pub async fn adapter(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
    query: Query,
) -> ApiResult<Response> {
    let job = super::find(&state, &caller, &id).await?;
    let options = options(&query)?;
    let format = options.format;
    let step = step(query.get("step"))?;
    if job.makes_whole_model() && !format.is_whole() {
        return Err(export_error(ExportError::no_adapter(&job.model_name(), format).into()));
    }
    let name = match step {
        Some(step) => checkpoint_name(&job.model_name(), step),
        None => job.model_name(),
    };
    let Some(model) = state.store.model(&name).await? else {
        return Err(no_model(&job, step));
    };
    let work = tempfile::Builder::new().prefix(".export-").tempdir_in(state.blobs.spool_dir());
    let work = work.map_err(|error| export_error(FetchError::Io(error)))?;
    let sources = ExportSources {
        store: state.store.as_ref(),
        blobs: &state.blobs,
        base_models: &state.base_models,
    };
    let exported = fetch::export(sources, &model, &options, work.path()).await;
    let exported = exported.map_err(export_error)?;
    for remark in &exported.remarks {
        tracing::info!(job.id = %id, model = %model.id, %remark, "a model was exported");
    }
    let files = open(&exported.folder).await.map_err(|error| export_error(error.into()))?;

    let length = archive::length(files.iter().map(|file| file.size));
    let mut pieces = Vec::with_capacity(files.len() + 1);
    for file in files {
        let header = archive::header(&file.name, file.size, model.created_at);
        let header = Bytes::from_owner(header.map_err(ApiError::internal)?);
        let padding = Bytes::from_static(archive::padding(file.size));
        let bytes = ReaderStream::with_capacity(file.file, CHUNK);
        pieces.push(once(header).chain(bytes).chain(once(padding)).boxed());
    }
    pieces.push(once(Bytes::from_static(archive::END)));
    let archive = stream::iter(pieces).flatten().boxed();

    let mut response = Response::new(Body::from_stream(TempArchive { archive, _work: work }));
    let filename = match step {
        Some(step) => format!("{id}-step-{step}.tar"),
        None => format!("{id}.tar"),
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::CONTENT_DISPOSITION, attachment::disposition(&filename)?);
    Ok(response)
}

/// What is requested of the export.
fn options(query: &Query) -> ApiResult<ExportOptions> {
    let format = one_of(query, "format", ExportFormat::ALL, ExportFormat::as_str)?;
    let format = format.unwrap_or(ExportFormat::Peft);
    let quantization = one_of(query, "quantization", Quantization::ALL, Quantization::as_str)?;
    let dtype = one_of(query, "dtype", WeightType::ALL, WeightType::as_str)?;
    let name = query.get("base_model_name").filter(|name| !name.is_empty()).map(str::to_owned);
    ExportOptions::requested(format, quantization, dtype, name)
        .map_err(|error| ApiError::field(error.option, error.to_string()))
}

/// The value of a field that has names; `None` without one.
fn one_of<T: Copy>(
    query: &Query,
    field: &str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> ApiResult<Option<T>> {
    let Some(text) = query.get(field).filter(|text| !text.is_empty()) else { return Ok(None) };
    let found = all.iter().copied().find(|one| name(*one) == text);
    found.map(Some).ok_or_else(|| {
        let known: Vec<&str> = all.iter().map(|one| name(*one)).collect();
        unknown(field, text, &known)
    })
}

fn unknown(field: &str, text: &str, known: &[&str]) -> ApiError {
    let known: Vec<String> = known.iter().map(|name| format!("{name:?}")).collect();
    ApiError::field(
        field,
        format!("{field} is {:?}; it can be {}", excerpt(text), known.join(", ")),
    )
}

fn step(text: Option<&str>) -> ApiResult<Option<u64>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match text.parse() {
        Ok(step) => Ok(Some(step)),
        Err(_not_a_number) => {
            let text = excerpt(text);
            let message = format!("step is {text:?}; it must be the step_number of a checkpoint");
            Err(ApiError::field("step", message))
        }
    }
}

/// The error of a job without a model. It says where or when there is one.
fn no_model(job: &Job, step: Option<u64>) -> ApiError {
    let checkpoints = format!("/v1/fine_tuning/jobs/{}/checkpoints", job.id);
    let message = match (step, job.status) {
        (Some(step), _) => {
            format!("the job has no checkpoint of step {step}: {checkpoints} lists those there are")
        }
        (None, JobStatus::Succeeded) => "the job's model was deleted".to_owned(),
        (None, status) if status.is_terminal() => format!(
            "the job ended as {:?} and has no model; {checkpoints} lists the checkpoints that it \
             left, which can be had with step",
            status.as_str()
        ),
        (None, _) => format!(
            "the job {}: its model is there as soon as it has succeeded; {checkpoints} lists the \
             checkpoints so far, which can be had with step",
            super::describe_status(job)
        ),
    };
    ApiError::new(ErrorCode::ModelNotFound, message)
        .with_param(step.map_or("fine_tune_id", |_| "step"))
}

/// The error of a failed export.
fn export_error(error: FetchError) -> ApiError {
    match error {
        FetchError::Export(ExportError::Unsupported(message)) => {
            ApiError::new(ErrorCode::Unsupported, message).with_param("format")
        }
        FetchError::MissingBaseModel(_) => {
            ApiError::new(ErrorCode::ModelNotFound, error.to_string()).with_param("model")
        }
        FetchError::Store(error) => error.into(),
        FetchError::Blobs(error) => error.into(),
        FetchError::Io(error) | FetchError::Export(ExportError::Io(error))
            if error.kind() == std::io::ErrorKind::StorageFull =>
        {
            ApiError::new(ErrorCode::InsufficientStorage, "the server's disk is full")
        }
        other => ApiError::internal(other),
    }
}

type ArchiveBytes = BoxStream<'static, std::io::Result<Bytes>>;

/// An archive over files of a temporary folder, which is removed with it.
struct TempArchive {
    archive: ArchiveBytes,
    _work: TempDir,
}

impl Stream for TempArchive {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.archive.poll_next_unpin(context)
    }
}

/// A file of the archive, open.
struct ArchiveEntry {
    name: String,
    size: u64,
    file: File,
}

/// Opens the files of a folder, by name. A missing file is an error before the reply begins.
async fn open(folder: &Path) -> std::io::Result<Vec<ArchiveEntry>> {
    let mut entries = Vec::new();
    let mut listed = tokio::fs::read_dir(folder).await?;
    while let Some(entry) = listed.next_entry().await? {
        let file = File::open(entry.path()).await?;
        let size = file.metadata().await?.len();
        entries.push(ArchiveEntry {
            name: entry.file_name().to_string_lossy().into_owned(),
            size,
            file,
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Bytes as a stream of one piece.
fn once(bytes: Bytes) -> ArchiveBytes {
    stream::once(async { Ok(bytes) }).boxed()
}
