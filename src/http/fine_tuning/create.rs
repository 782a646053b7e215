//! Creates a job: everything that can be known now is checked now; the rest is the job's to say.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Serialize;
use serde_json::{Map, Value};

use super::dry_run::DryRunObject;
use super::object::JobObject;
use super::{dry_run, idempotency_key};
use crate::domain::error_code::ErrorCode;
use crate::domain::file::{FilePurpose, FileRecord};
use crate::domain::job::{
    DataFile, EventLevel, FineTuneMode, Job, JobError, JobStatus, Method, NewEvent, NewJob,
};
use crate::domain::project::Project;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::{JsonObject, Query};
use crate::http::middleware::authenticate::Caller;
use crate::http::models::{find_usable, no_such_model};
use crate::http::state::AppState;
use crate::store::{IdempotencyKey, ReplayedRequest};
use crate::validate::job_request::{self, JobRequest};
use crate::validate::upload::job_error_for;

/// Most ignored fields that are named, and most characters of each: a client may send any number.
const MOST_NAMED: usize = 50;

/// Creates a fine-tuning job.
///
/// Extension of hone: with `dry_run=true` no job is made. The request is checked as it would be, and the
/// reply says what the job would be: every problem of the files by line, examples and tokens, every value,
/// steps, memory and seconds. An `Idempotency-Key` means nothing then.
#[utoipa::path(
    post, path = "/fine_tuning/jobs", tag = "fine-tuning", operation_id = "createFineTuningJob",
    params(
        (
            "Idempotency-Key" = Option<String>, Header,
            description = "A name for this request: a repetition of it returns the job that it made"
        ),
        (
            "dry_run" = Option<bool>, Query,
            description = "Extension of hone: say what the job would be, and make none"
        )
    ),
    request_body(content = CreateJob, content_type = "application/json"),
    responses(
        (status = 200, body = Created), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody), (status = 413, body = ErrorBody),
        (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)
    )
)]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    query: Query,
    JsonObject(body): JsonObject,
) -> ApiResult<Json<Created>> {
    if query.switch("dry_run")? {
        let checked = check(&state, caller, &body).await?;
        return Ok(Json(Created::DryRun(Box::new(dry_run::dry_run(&state, checked).await?))));
    }
    let key = idempotency_key::read(&caller.project, &headers, &body)?;
    if let Some(key) = &key
        && let Some(earlier) = state.store.earlier_request(key).await?
    {
        return of_earlier(earlier, key);
    }
    let Checked { job, events, .. } = check(&state, caller, &body).await?;
    let most_waiting = state.most_queued_jobs;
    match &key {
        None => state.store.insert_job(&job, &events, most_waiting).await?,
        Some(key) => {
            // Another request of this name may have come in between.
            if let Some(earlier) =
                state.store.insert_job_once(&job, &events, key, most_waiting).await?
            {
                return of_earlier(earlier, key);
            }
        }
    }
    // Nothing below may fail: clients repeat a request that did.
    if job.status == JobStatus::Queued {
        state.queue.announce_work();
    }
    Ok(Json(Created::Job(Box::new((&job).into()))))
}

/// The reply: the job, or what it would be.
#[derive(Serialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum Created {
    /// The job.
    Job(Box<JobObject>),
    /// With `dry_run=true`.
    DryRun(Box<DryRunObject>),
}

/// A request that has been checked as far as it can be at once.
pub(super) struct Checked {
    /// The job that it asks for: it waits, or has failed already.
    pub(super) job: Job,
    /// Its first events.
    pub(super) events: Vec<NewEvent>,
    /// What is learnt.
    pub(super) training: FileRecord,
    /// What the learning is measured on.
    pub(super) validation: Option<FileRecord>,
}

/// Checks a request, and what it names; nothing is written.
async fn check(state: &AppState, caller: Caller, body: &Map<String, Value>) -> ApiResult<Checked> {
    let request = job_request::read(body)?;
    let tuning = request.hyperparameters.tuning.unwrap_or_default();
    let origin = origin(state, &caller, &request.model, tuning).await?;
    let training = data_file(state, &caller, &request.training_file, DataFile::Training).await?;
    let validation = match &request.validation_file {
        Some(id) => Some(data_file(state, &caller, id, DataFile::Validation).await?),
        None => None,
    };
    let method = request.hyperparameters.method;
    let verdict = verdict(&training, DataFile::Training, method).or_else(|| {
        validation.as_ref().and_then(|file| verdict(file, DataFile::Validation, method))
    });
    let (job, events) =
        new_job(state, caller.project, request, origin, verdict, &training, validation.as_ref());
    Ok(Checked { job, events, training, validation })
}

/// The reply to a repetition of an earlier request: its job, as it is now.
fn of_earlier(earlier: ReplayedRequest, key: &IdempotencyKey) -> ApiResult<Json<Created>> {
    match earlier {
        ReplayedRequest::Same(job) => Ok(Json(Created::Job(Box::new(job.as_ref().into())))),
        ReplayedRequest::Other => {
            let message = format!(
                "the key {:?} was used for a request with another body: a new request needs a new \
                 key",
                key.key
            );
            Err(ApiError::new(ErrorCode::IdempotencyKeyReused, message)
                .with_param("Idempotency-Key"))
        }
    }
}

/// What a client sends, for the OpenAPI document.
#[derive(utoipa::ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct CreateJob {
    /// Base model, or a fine-tuned model or checkpoint to go on from.
    model: String,
    /// File id.
    training_file: String,
    /// File id.
    validation_file: Option<String>,
    /// Part of the model's name.
    suffix: Option<String>,
    /// 0 to 2147483647.
    seed: Option<u32>,
    /// `{"type": "supervised", "supervised": {"hyperparameters": {…}}}`, or the same with `dpo`.
    #[schema(value_type = Option<Object>)]
    method: Option<Value>,
    /// The older place of hyperparameters; one that stands in both places must be the same in both.
    #[schema(value_type = Option<Object>)]
    hyperparameters: Option<Value>,
    /// Empty or left out: hone sends nothing to other services and refuses a job that asks for it.
    #[schema(value_type = Option<Vec<Object>>)]
    integrations: Option<Value>,
    /// Up to 16 pairs of texts.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Value>,
}

/// What a job trains.
struct Origin {
    /// Id of the base model.
    base_model: String,
    /// Name of the fine-tuned model to go on from.
    continue_from: Option<String>,
}

/// What `model` names: a base model, or a fine-tuned model or checkpoint whose base is there, if it
/// needs one.
async fn origin(
    state: &AppState,
    caller: &Caller,
    model: &str,
    tuning: FineTuneMode,
) -> ApiResult<Origin> {
    let tuned = find_usable(state, caller, model).await?;
    let refused = |message: String| {
        let error = ApiError::new(ErrorCode::InvalidHyperparameter, message);
        Err(error.with_param("hyperparameters.tuning"))
    };
    if let Some(tuned) = &tuned {
        match (tuned.is_whole, tuning) {
            (true, FineTuneMode::Lora) => {
                return refused(format!(
                    "{model:?} is a whole model and no adapter: go on from it with tuning \"full\" \
                     or \"last_layers\""
                ));
            }
            (false, FineTuneMode::Full | FineTuneMode::LastLayers) => {
                return refused(format!(
                    "{model:?} is an adapter beside {:?}: go on from it with tuning \"lora\", or \
                     train the base model itself",
                    tuned.base_model
                ));
            }
            (true, _) => {
                let (base_model, id) = (tuned.base_model.clone(), tuned.id.clone());
                return Ok(Origin { base_model, continue_from: Some(id) });
            }
            (false, FineTuneMode::Lora) => {}
        }
    }
    let base_model = tuned.as_ref().map_or(model, |tuned| &tuned.base_model);
    if state.base_models.find(base_model).map_err(ApiError::internal)?.is_none() {
        return Err(no_such_model(state, caller, base_model).await?);
    }
    let base_model = base_model.to_owned();
    Ok(Origin { base_model, continue_from: tuned.map(|tuned| tuned.id) })
}

/// A file that the caller's project has uploaded as training data.
async fn data_file(
    state: &AppState,
    caller: &Caller,
    id: &str,
    which: DataFile,
) -> ApiResult<FileRecord> {
    let file = state.store.file(id).await?.filter(|file| file.project == caller.project);
    let Some(file) = file else {
        let message = format!("there is no file {id:?}: upload it with purpose \"fine-tune\"");
        return Err(ApiError::new(ErrorCode::InvalidFile, message).with_param(which.param()));
    };
    if file.purpose != FilePurpose::FineTune {
        let message = format!(
            "the file {id:?} has the purpose {:?}: upload it with purpose \"fine-tune\"",
            file.purpose.as_str()
        );
        return Err(ApiError::new(ErrorCode::InvalidFile, message).with_param(which.param()));
    }
    Ok(file)
}

/// Why a job over this file fails, from what was found while it was uploaded.
fn verdict(file: &FileRecord, which: DataFile, method: Method) -> Option<JobError> {
    file.verdict.as_ref().and_then(|verdict| job_error_for(verdict, which, method))
}

/// The job and its first events: queued, or failed at once when its data is bad.
fn new_job(
    state: &AppState,
    project: Project,
    request: JobRequest,
    origin: Origin,
    error: Option<JobError>,
    training: &FileRecord,
    validation: Option<&FileRecord>,
) -> (Job, Vec<NewEvent>) {
    let mut job = Job::queued(
        NewJob {
            project,
            model: origin.base_model,
            continue_from: origin.continue_from,
            training_file: request.training_file,
            validation_file: request.validation_file,
            hyperparameters: request.hyperparameters,
            seed: request.seed.unwrap_or_else(random_seed),
            suffix: request.suffix,
            metadata: request.metadata,
        },
        state.clock.now(),
    );
    let created = format!("Created fine-tuning job: {}", job.id);
    let mut events = vec![NewEvent::message(EventLevel::Info, created)];
    events.extend(ignored(&request.unknown_fields));
    for (file, which) in [(Some(training), "training"), (validation, "validation")] {
        let Some(warnings) = file.and_then(|file| file.verdict.as_ref()).map(|v| &v.warnings)
        else {
            continue;
        };
        if let Some(first) = warnings.listed.first() {
            let message = format!(
                "{} remarks on the {which} file, none of which stops the job; the first: {first}",
                warnings.total
            );
            let data = serde_json::to_value(warnings).ok();
            events.push(NewEvent { data, ..NewEvent::message(EventLevel::Warn, message) });
        }
    }
    events.push(match &error {
        Some(error) => NewEvent::message(EventLevel::Error, error.message.clone()),
        None => {
            let message = "Files validated, moving job to queued state";
            NewEvent::message(EventLevel::Info, message)
        }
    });
    if let Some(error) = error {
        job = job.failed_at_creation(error);
    }
    (job, events)
}

/// Says which fields of the request were ignored.
fn ignored(fields: &[String]) -> Option<NewEvent> {
    let names: Vec<String> = fields
        .iter()
        .take(MOST_NAMED)
        .map(|field| format!("{:?}", field.chars().take(MOST_NAMED).collect::<String>()))
        .collect();
    let message = match (fields.len(), fields.len().saturating_sub(MOST_NAMED)) {
        (0, _) => return None,
        (1, _) => {
            format!(
                "The request's field {} means nothing to hone here and was ignored",
                names.join(", ")
            )
        }
        (_, 0) => {
            format!(
                "The request's fields {} mean nothing to hone here and were ignored",
                names.join(", ")
            )
        }
        (_, more) => format!(
            "The request's fields {} and {more} more mean nothing to hone here and were ignored",
            names.join(", ")
        ),
    };
    Some(NewEvent::message(EventLevel::Warn, message))
}

/// A seed for a client that states none, in OpenAI's range.
fn random_seed() -> u32 {
    (uuid::Uuid::new_v4().as_u128() & 0x7fff_ffff) as u32
}
