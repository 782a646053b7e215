//! Answers a conversation with a base model, a fine-tuned model or a checkpoint.

use axum::extract::State;
use axum::response::Response;

use super::body::CreateChatCompletion;
use super::format::ChatFormat;
use super::object::ChatCompletion;
use super::request;
use crate::http::error::{ApiResult, ErrorBody};
use crate::http::extract::ExactJsonObject;
use crate::http::generation::fields::GenerationFields;
use crate::http::generation::respond::respond;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::validate::fields::BodyFields;

/// Answers a conversation, whole or as a stream of server-sent events.
#[utoipa::path(
    post, path = "/chat/completions", tag = "chat", operation_id = "createChatCompletion",
    request_body(content = CreateChatCompletion, content_type = "application/json"),
    responses(
        (
            status = 200,
            content((ChatCompletion = "application/json"), (Object = "text/event-stream"))
        ),
        (status = 400, body = ErrorBody), (status = 404, body = ErrorBody),
        (status = 429, body = ErrorBody), (status = 503, body = ErrorBody)
    )
)]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller,
    body: ExactJsonObject,
) -> ApiResult<Response> {
    let fields = GenerationFields(BodyFields::new(&body.fields, request::FIELDS));
    let model_and_stream = fields.model_and_stream()?;
    let (request, options) = request::read(&fields, &body)?;
    respond(&state, &caller, model_and_stream, request, ChatFormat::new(options)).await
}
