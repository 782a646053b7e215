//! Generates the completions of a request and replies with them, whole or as a stream.

use axum::Json;
use axum::response::{IntoResponse, Response};

use super::collect::collect;
use super::fields::ModelAndStream;
use super::format::{CompletionFormat, CompletionMetadata};
use super::source::source;
use super::stream::CompletionStream;
use crate::config::PrefixCacheScope;
use crate::http::error::ApiResult;
use crate::http::middleware::authenticate::Caller;
use crate::http::state::AppState;
use crate::serve::{Prompt, Request, Tenant};

/// The reply to a request for completions.
pub(in crate::http) async fn respond<F: CompletionFormat>(
    state: &AppState,
    caller: &Caller,
    model_and_stream: ModelAndStream<'_>,
    request: Request,
    format: F,
) -> ApiResult<Response> {
    let ModelAndStream { model, cache_key, stream } = model_and_stream;
    let source = source(state, caller, model).await?;
    let count = count(&request);
    let metadata = CompletionMetadata {
        id: F::new_id(),
        object: if stream.is_some() { F::CHUNK_OBJECT } else { F::OBJECT },
        created: state.clock.now(),
        model: model.to_owned(),
    };
    let tenant = Tenant {
        project: caller.project.clone(),
        api_key: match state.prefix_cache_scope {
            PrefixCacheScope::Project => None,
            PrefixCacheScope::Key => caller.key_id.clone(),
        },
        cache_key: cache_key.map(str::to_owned),
    };
    let events = state.models.answer(tenant, source, request)?;
    if let Some(options) = stream {
        let includes_usage = options.includes_usage;
        let stream = CompletionStream::new(events, count, metadata, format, includes_usage);
        return stream.respond().await;
    }
    let generated = collect(events, count).await?;
    Ok(Json(format.reply(metadata, generated)).into_response())
}

/// How many completions a request asks for.
fn count(request: &Request) -> usize {
    let prompts = match &request.prompt {
        Prompt::Chat { .. } => 1,
        Prompt::Texts(texts) => texts.len(),
    };
    prompts * request.n as usize
}
