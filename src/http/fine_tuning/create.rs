//! Creates a job. Everything that can be checked at once is checked; what is found later fails the job.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Serialize;
use serde_json::Value;

use super::dry_run::DryRunObject;
use super::object::JobObject;
use super::validated_job::ValidatedJob;
use super::{dry_run, idempotency_key};
use crate::domain::error_code::ErrorCode;
use crate::domain::job::JobStatus;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::{JsonObject, Query};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::store::{IdempotencyKey, ReplayedRequest};
use crate::util::excerpt::excerpt;

/// Creates a fine-tuning job.
///
/// Extension of hone: with `dry_run=true` no job is created. The request is checked as it would be, and the
/// reply describes the job: every problem of the files by line, examples and tokens, every value, steps,
/// memory and seconds. An `Idempotency-Key` is ignored then.
#[utoipa::path(
    post, path = "/fine_tuning/jobs", tag = "fine-tuning", operation_id = "createFineTuningJob",
    params(
        (
            "Idempotency-Key" = Option<String>, Header,
            description = "A name for this request: a repetition of it returns the job that it created"
        ),
        (
            "dry_run" = Option<bool>, Query,
            description = "Extension of hone: describe the job, and create none"
        )
    ),
    request_body(content = CreateJob, content_type = "application/json"),
    responses(
        (status = 200, body = CreateJobReply), (status = 400, body = ErrorBody),
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
) -> ApiResult<Json<CreateJobReply>> {
    if query.switch("dry_run")? {
        let job = ValidatedJob::new(&state, caller, &body).await?;
        return Ok(Json(CreateJobReply::DryRun(Box::new(dry_run::dry_run(&state, job).await?))));
    }
    let key = idempotency_key::read(&caller.project, &headers, &body)?;
    if let Some(key) = &key
        && let Some(earlier) = state.store.earlier_request(key).await?
    {
        return replay(earlier, key);
    }
    let ValidatedJob { job, events, .. } = ValidatedJob::new(&state, caller, &body).await?;
    let most_queued = state.most_queued_jobs;
    match &key {
        None => state.store.insert_job(&job, &events, most_queued).await?,
        Some(key) => {
            // Another request with this key may have come in between.
            if let Some(earlier) =
                state.store.insert_job_once(&job, &events, key, most_queued).await?
            {
                return replay(earlier, key);
            }
        }
    }
    // Nothing below may fail: clients repeat a failed request.
    if job.status == JobStatus::Queued {
        state.queue.announce_work();
    }
    Ok(Json(CreateJobReply::Job(Box::new((&job).into()))))
}

/// The reply: the job, or what it would be.
#[derive(Serialize, utoipa::ToSchema)]
#[schema(as = Created)]
#[serde(untagged)]
pub enum CreateJobReply {
    /// The job.
    Job(Box<JobObject>),
    /// With `dry_run=true`.
    DryRun(Box<DryRunObject>),
}

/// The reply to a repeated request: the job of the first one, as it is now.
fn replay(earlier: ReplayedRequest, key: &IdempotencyKey) -> ApiResult<Json<CreateJobReply>> {
    match earlier {
        ReplayedRequest::Same(job) => Ok(Json(CreateJobReply::Job(Box::new(job.as_ref().into())))),
        ReplayedRequest::Other => {
            let message = format!(
                "the key {:?} was used for a request with another body: a new request needs a new \
                 key",
                excerpt(&key.key)
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
    /// Base model, or a fine-tuned model or checkpoint to continue from.
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
    /// The older place of hyperparameters; a value in both places must be the same in both.
    #[schema(value_type = Option<Object>)]
    hyperparameters: Option<Value>,
    /// Empty or left out: hone sends nothing to other services and refuses a job that asks for it.
    #[schema(value_type = Option<Vec<Object>>)]
    integrations: Option<Value>,
    /// Up to 16 pairs of texts.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Value>,
    /// Extension of hone: a chat template (Jinja) in the place of the model's, or the name of one of the
    /// model's.
    chat_template: Option<String>,
    /// Extension of hone: variables of the chat template, in training and for the answers of the model,
    /// such as `{"enable_thinking": false}`.
    #[schema(value_type = Option<Object>)]
    chat_template_kwargs: Option<Value>,
    /// Extension of hone: the day that a template writes as today's, `YYYY-MM-DD`, in training and for
    /// answers; without it the day on which the job was created, and for answers the day of the request.
    chat_template_date: Option<String>,
    /// Extension of hone: what becomes of texts that are spelled like control tokens of the model. `text`, the
    /// default, trains their letters and names the line in a warning; `refuse` makes them problems.
    control_tokens: Option<String>,
}
