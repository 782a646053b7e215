//! A job's metrics, a row for each step.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::domain::job::JobEvent;
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::{Limit, PathId, Query};
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::util::excerpt::excerpt;

/// Most steps of a page.
const MOST: u32 = 1000;

/// Steps of a page when the client does not say.
const DEFAULT: u32 = 100;

/// A page of steps.
#[derive(Debug, Serialize, ToSchema)]
pub struct MetricsList {
    /// `list`.
    object: &'static str,
    /// The steps, in order.
    data: Vec<StepObject>,
    /// Whether there is another page: `after` is the step of the last one here.
    has_more: bool,
}

/// `object: "fine_tuning.job.metrics"`: what one optimiser step came to. Numbers that a step does
/// not have are null.
#[derive(Debug, Serialize, ToSchema)]
pub struct StepObject {
    /// `fine_tuning.job.metrics`.
    object: &'static str,
    /// Unix seconds.
    created_at: i64,
    /// Optimiser step, from 1.
    step: u64,
    /// Optimiser steps in all.
    total_steps: Option<u64>,
    /// Epochs done after the step, as a fraction.
    epoch: Option<f64>,
    /// Mean loss over the supervised tokens of the step.
    train_loss: Option<f64>,
    /// Share of them whose most likely prediction is right, 0 to 1.
    train_mean_token_accuracy: Option<f64>,
    /// The same over one validation batch.
    valid_loss: Option<f64>,
    /// See `valid_loss`.
    valid_mean_token_accuracy: Option<f64>,
    /// The same over the whole validation file.
    full_valid_loss: Option<f64>,
    /// See `full_valid_loss`.
    full_valid_mean_token_accuracy: Option<f64>,
    /// Learning rate of the step.
    learning_rate: Option<f64>,
    /// Global gradient norm before clipping.
    grad_norm: Option<f64>,
    /// Mean margin between the rewards of the two answers, with the method `dpo`.
    reward_margin: Option<f64>,
    /// Tokens of the step per second, the time that it waited for answers not counted.
    tokens_per_second: Option<f64>,
    /// Seconds that the job has waited so far while requests were answered, since its trainer began.
    yielded_seconds: Option<f64>,
}

impl From<JobEvent> for StepObject {
    fn from(stored: JobEvent) -> Self {
        let data = stored.event.data.unwrap_or_default();
        let whole = |key: &str| data.get(key).and_then(Value::as_u64);
        let number = |key: &str| data.get(key).and_then(Value::as_f64);
        Self {
            object: "fine_tuning.job.metrics",
            created_at: stored.created_at,
            step: whole("step").unwrap_or_default(),
            total_steps: whole("total_steps"),
            epoch: number("epoch"),
            train_loss: number("train_loss"),
            train_mean_token_accuracy: number("train_mean_token_accuracy"),
            valid_loss: number("valid_loss"),
            valid_mean_token_accuracy: number("valid_mean_token_accuracy"),
            full_valid_loss: number("full_valid_loss"),
            full_valid_mean_token_accuracy: number("full_valid_mean_token_accuracy"),
            learning_rate: number("learning_rate"),
            grad_norm: number("grad_norm"),
            reward_margin: number("reward_margin"),
            tokens_per_second: number("tokens_per_second"),
            yielded_seconds: number("yielded_seconds"),
        }
    }
}

/// Lists a job's metrics, a row for each step.
///
/// Extension of hone. Rows are in the order of steps and are there while the job trains: a request with the
/// last step seen as `after` returns the newer ones. There is a row for each event of the type `metrics`:
/// every step of a short run, a few hundred of a long one, whose `step_metrics.csv` has all. A step that
/// ran again after a crash has one row.
#[utoipa::path(
    get, path = "/fine_tuning/jobs/{fine_tuning_job_id}/metrics", tag = "extensions",
    operation_id = "listFineTuningJobMetrics",
    params(
        ("fine_tuning_job_id" = String, Path, description = "ftjob-…"),
        ("after" = Option<u64>, Query, description = "Only later steps than this one"),
        ("limit" = inline(Option<Limit>), Query, description = "1 to 1000, default 100")
    ),
    responses(
        (status = 200, body = MetricsList), (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody)
    )
)]
pub async fn metrics(
    State(state): State<AppState>,
    caller: Caller,
    PathId(id): PathId,
    query: Query,
) -> ApiResult<Json<MetricsList>> {
    super::find(&state, &caller, &id).await?;
    let page = query.page(DEFAULT, MOST)?;
    let after = match page.after {
        None => 0,
        // The document says a whole number of 64 bits, which has a sign.
        Some(text) => {
            text.parse().ok().and_then(|step: i64| step.try_into().ok()).ok_or_else(|| {
                let message =
                    format!("after is {:?}; it must be a step, such as 12", excerpt(&text));
                ApiError::field("after", message)
            })?
        }
    };
    let page = state.store.list_metrics(&id, after, page.limit).await?;
    let data = page.items.into_iter().map(StepObject::from).collect();
    Ok(Json(MetricsList { object: "list", data, has_more: page.has_more }))
}
