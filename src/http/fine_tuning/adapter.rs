//! A job's adapter as one archive, streamed: the files that can be had one by one as result files.

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::stream::{self, BoxStream, StreamExt};

use crate::artifacts::{archive, peft};
use crate::blobs::BlobError;
use crate::error_code::ErrorCode;
use crate::http::attachment;
use crate::http::authenticate::Caller;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::{PathId, Query};
use crate::http::state::AppState;
use crate::job::{Job, JobStatus};
use crate::model::{TunedModel, checkpoint_name};

/// The one layout in which adapters are handed out.
const PEFT: &str = "peft";

/// A job's adapter as a tar archive.
///
/// Extension of hone. The archive holds `adapter_config.json` and `adapter_model.safetensors`, the
/// layout of Hugging Face PEFT: unpacked into a folder, `PeftModel.from_pretrained(base, folder)`
/// loads it.
#[utoipa::path(
    get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/adapter", tag = "extensions",
    operation_id = "downloadFineTuningJobAdapter",
    params(
        ("fine_tuning_job_id" = String, Path, description = "ftjob-…"),
        ("format" = Option<String>, Query, description = "peft, which is also the default"),
        (
            "step" = Option<u64>, Query,
            description = "`step_number` of a checkpoint, whose adapter it is then; without it the \
                           adapter is that of the finished model"
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
    check_format(query.get("format"))?;
    let step = step(query.get("step"))?;
    if job.makes_whole_model() {
        let message = "the job trains the model's own weights, so there is no adapter: the model's \
                       files are the result_files of the job and of its checkpoints";
        return Err(ApiError::new(ErrorCode::Unsupported, message).with_param("format"));
    }
    let name = match step {
        Some(step) => checkpoint_name(&job.model_name(), step),
        None => job.model_name(),
    };
    let Some(model) = state.store.model(&name).await? else {
        return Err(no_adapter(&job, step));
    };
    let files = open(&state, &model).await?;
    let length = archive::length(files.iter().map(|file| file.size));
    let mut pieces = Vec::with_capacity(files.len() + 1);
    for file in files {
        let header = archive::header(file.name, file.size, model.created_at);
        let header = Bytes::from_owner(header.map_err(ApiError::internal)?);
        let padding = Bytes::from_static(archive::padding(file.size));
        pieces.push(piece(header).chain(file.bytes).chain(piece(padding)).boxed());
    }
    pieces.push(piece(Bytes::from_static(archive::END)));

    let mut response = Response::new(Body::from_stream(stream::iter(pieces).flatten()));
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

fn check_format(format: Option<&str>) -> ApiResult<()> {
    match format {
        None | Some("" | PEFT) => Ok(()),
        Some(other) => {
            let message = format!("format is {other:?}; an adapter can be had as {PEFT:?}");
            Err(ApiError::field("format", message))
        }
    }
}

fn step(text: Option<&str>) -> ApiResult<Option<u64>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    match text.parse() {
        Ok(step) => Ok(Some(step)),
        Err(_not_a_number) => {
            let message = format!("step is {text:?}; it must be the step_number of a checkpoint");
            Err(ApiError::field("step", message))
        }
    }
}

/// Why there is no adapter, and where or when there is one.
fn no_adapter(job: &Job, step: Option<u64>) -> ApiError {
    let checkpoints = format!("/v1/fine_tuning/jobs/{}/checkpoints", job.id);
    let message = match (step, job.status) {
        (Some(step), _) => {
            format!("the job has no checkpoint of step {step}: {checkpoints} lists those there are")
        }
        (None, JobStatus::Succeeded) => "the job's model was deleted".to_owned(),
        (None, status) if status.is_terminal() => format!(
            "the job ended as {:?} and has no model; {checkpoints} lists the checkpoints that it \
             left, whose adapters can be had with step",
            status.as_str()
        ),
        (None, _) => format!(
            "the job {}: its adapter is there as soon as it has succeeded; {checkpoints} lists the \
             checkpoints so far, whose adapters can be had with step",
            super::where_it_stands(job)
        ),
    };
    ApiError::new(ErrorCode::ModelNotFound, message)
        .with_param(step.map_or("fine_tune_id", |_| "step"))
}

type Bits = BoxStream<'static, Result<Bytes, BlobError>>;

/// A file of the archive, open.
struct Entry {
    name: &'static str,
    size: u64,
    bytes: Bits,
}

/// Opens both files of an adapter: what is missing is said before the reply begins.
async fn open(state: &AppState, model: &TunedModel) -> ApiResult<Vec<Entry>> {
    let mut entries = Vec::with_capacity(2);
    let named =
        [(peft::CONFIG_FILE, &model.config_file), (peft::WEIGHTS_FILE, &model.weights_file)];
    for (name, id) in named {
        let Some(file) = state.store.file(id).await? else {
            return Err(ApiError::internal(format!("the file {id} of {} is gone", model.id)));
        };
        let (size, bytes) = state.blobs.stream(&file.blob_key, None).await?;
        entries.push(Entry { name, size, bytes });
    }
    Ok(entries)
}

/// Bytes as a stream of one piece.
fn piece(bytes: Bytes) -> Bits {
    stream::once(async { Ok(bytes) }).boxed()
}
