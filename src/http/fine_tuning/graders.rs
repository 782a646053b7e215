//! Validates a grader, or runs it on one sample.

use std::time::Instant;

use axum::Json;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::domain::error_code::ErrorCode;
use crate::graders::run::{Grade, GradeErrors, run as grade};
use crate::graders::{Grader, GraderError, read};
use crate::http::error::{ApiError, ApiResult, ErrorBody};
use crate::http::extract::JsonObject;
use crate::util::excerpt::excerpt_of;
use crate::validate::fields::BodyFields;

/// A grader, for the OpenAPI document and as the reply.
#[derive(Debug, Serialize, ToSchema)]
pub struct GraderObject {
    /// `string_check`, `text_similarity` or `multi`, as OpenAI describes them.
    #[schema(value_type = Object)]
    grader: Value,
}

/// The fields of a request to validate a grader.
pub(in crate::http) const VALIDATE_FIELDS: &[&str] = &["grader"];

/// The fields of a request to run a grader.
pub(in crate::http) const RUN_FIELDS: &[&str] = &["grader", "model_sample", "item"];

/// What a client sends, for the OpenAPI document.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes the body for the OpenAPI document")]
struct RunGrader {
    /// The grader.
    #[schema(value_type = Object)]
    grader: Value,
    /// The sample.
    model_sample: String,
    /// The row of the data set: `item` in the grader's templates.
    #[schema(value_type = Option<Object>)]
    item: Option<Value>,
}

/// The grade of a sample.
#[derive(Debug, Serialize, ToSchema)]
pub struct GradeObject {
    /// The number; 0 when something went wrong.
    reward: f64,
    metadata: GradeMetadata,
    /// The numbers that a `multi` combined, by name.
    #[schema(value_type = Object)]
    sub_rewards: Value,
    /// Always empty.
    #[schema(value_type = Object)]
    model_grader_token_usage_per_model: Value,
}

/// How the grade was computed.
#[derive(Debug, Serialize, ToSchema)]
pub struct GradeMetadata {
    /// Of the grader.
    name: String,
    /// Of the grader.
    #[serde(rename = "type")]
    kind: &'static str,
    /// OpenAI's fourteen keys: which of the things that can go wrong did.
    #[schema(value_type = Object)]
    errors: Value,
    /// Seconds.
    execution_time: f64,
    /// The numbers that a `multi` combined, by name.
    #[schema(value_type = Object)]
    scores: Value,
    /// Always null.
    token_usage: Option<i64>,
    /// Always null.
    sampled_model_name: Option<String>,
}

/// Validates a grader.
#[utoipa::path(
    post, path = "/fine_tuning/alpha/graders/validate", tag = "fine-tuning",
    operation_id = "validateGrader",
    request_body(content = GraderObject, content_type = "application/json"),
    responses((status = 200, body = GraderObject), (status = 400, body = ErrorBody))
)]
pub async fn validate(JsonObject(body): JsonObject) -> ApiResult<Json<GraderObject>> {
    let grader = grader(BodyFields::new(&body, VALIDATE_FIELDS))?;
    read(grader, "grader")?;
    Ok(Json(GraderObject { grader: grader.clone() }))
}

/// Runs a grader on one sample.
#[utoipa::path(
    post, path = "/fine_tuning/alpha/graders/run", tag = "fine-tuning", operation_id = "runGrader",
    request_body(content = RunGrader, content_type = "application/json"),
    responses((status = 200, body = GradeObject), (status = 400, body = ErrorBody))
)]
pub async fn run(JsonObject(body): JsonObject) -> ApiResult<Json<GradeObject>> {
    let fields = BodyFields::new(&body, RUN_FIELDS);
    let grader = read(grader(fields)?, "grader")?;
    let Some(sample) = fields.get("model_sample").and_then(Value::as_str).map(str::to_owned) else {
        return Err(ApiError::field("model_sample", "model_sample must be a text: the sample"));
    };
    let item = match fields.get("item") {
        None => Map::new(),
        Some(Value::Object(item)) => item.clone(),
        Some(other) => {
            let other = excerpt_of(other);
            let message = format!("item is {other}; it must be an object");
            return Err(ApiError::field("item", message));
        }
    };
    // Comparing long texts takes a while.
    let graded = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        let made = grade(&grader, &sample, &item);
        as_object(&grader, made, started.elapsed().as_secs_f64())
    });
    Ok(Json(graded.await.map_err(ApiError::internal)?))
}

fn grader(fields: BodyFields<'_>) -> ApiResult<&Value> {
    fields.get("grader").ok_or_else(|| ApiError::field("grader", "grader is missing"))
}

fn as_object(grader: &Grader, made: Grade, execution_time: f64) -> GradeObject {
    let parts: Map<String, Value> =
        made.parts.into_iter().map(|(name, reward)| (name, json!(reward))).collect();
    GradeObject {
        reward: made.reward,
        metadata: GradeMetadata {
            name: grader.name.clone(),
            kind: grader.kind.as_str(),
            errors: errors(made.errors),
            execution_time,
            scores: Value::Object(parts.clone()),
            token_usage: None,
            sampled_model_name: None,
        },
        sub_rewards: Value::Object(parts),
        model_grader_token_usage_per_model: json!({}),
    }
}

fn errors(errors: GradeErrors) -> Value {
    json!({
        "formula_parse_error": errors.formula,
        "sample_parse_error": errors.sample,
        "truncated_observation_error": false,
        "unresponsive_reward_error": false,
        "invalid_variable_error": errors.variable,
        "other_error": errors.too_long,
        "python_grader_server_error": false,
        "python_grader_server_error_type": null,
        "python_grader_runtime_error": false,
        "python_grader_runtime_error_details": null,
        "model_grader_server_error": false,
        "model_grader_refusal_error": false,
        "model_grader_parse_error": false,
        "model_grader_server_error_details": null,
    })
}

impl From<GraderError> for ApiError {
    fn from(error: GraderError) -> Self {
        let code = match error.is_unsupported {
            true => ErrorCode::Unsupported,
            false => ErrorCode::InvalidRequest,
        };
        Self::new(code, error.message).with_param(error.path)
    }
}
