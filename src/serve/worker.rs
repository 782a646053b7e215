//! The thread that owns the models: takes one request after the other, loads what it names, answers.
//!
//! Started by [`super::ModelServer`]. A standard thread, because decoding computes for seconds and
//! must not hold up the async threads.

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::generate::{Plan, engine_failed, generate};
use super::loaded::LoadedBase;
use super::{ChatReply, ChatRequest, ModelSource, ServeError};
use crate::error_code::ErrorCode;

/// One request and where its answer goes.
pub(super) struct Work {
    pub source: ModelSource,
    pub request: ChatRequest,
    pub reply: oneshot::Sender<Result<ChatReply, ServeError>>,
}

/// Serves `inbox` until it closes. `runtime` runs the futures that fetch models.
pub(super) fn run(mut inbox: mpsc::Receiver<Work>, runtime: &Handle) {
    let mut base: Option<LoadedBase> = None;
    while let Some(work) = inbox.blocking_recv() {
        let Work { source, request, reply } = work;
        if reply.is_closed() {
            continue;
        }
        let wanted = || !reply.is_closed();
        let answer = answer(&mut base, runtime, source, &request, &wanted);
        if let Some(answer) = answer.transpose() {
            // A client that has gone by now needs no answer.
            let _gone = reply.send(answer);
        }
    }
}

/// Answers one request; `None` when nobody wants the answer any more.
fn answer(
    base: &mut Option<LoadedBase>,
    runtime: &Handle,
    source: ModelSource,
    request: &ChatRequest,
    wanted: &dyn Fn() -> bool,
) -> Result<Option<ChatReply>, ServeError> {
    let loaded = LoadedBase::ensure(base, source.base, runtime)?;
    let adapter = match source.adapter {
        Some(adapter) => Some(loaded.attach(adapter, runtime)?),
        None => None,
    };
    let prompt = loaded.encode_prompt(request)?;
    let room = loaded.context_length().saturating_sub(prompt.len());
    if room == 0 {
        return Err(ServeError {
            code: ErrorCode::ContextLengthExceeded,
            message: format!(
                "the messages are {} tokens long and the model's context is {} tokens: shorten \
                 the conversation",
                prompt.len(),
                loaded.context_length()
            ),
        });
    }
    let max_tokens = request.max_tokens.map_or(room, |most| room.min(most as usize));
    let seed = request.seed.unwrap_or_else(random_seed);

    let mut reply =
        ChatReply { choices: Vec::new(), prompt_tokens: prompt.len() as u64, completion_tokens: 0 };
    for index in 0..request.n {
        let plan = Plan {
            prompt: &prompt,
            max_tokens,
            temperature: request.temperature,
            top_p: request.top_p,
            seed: seed.wrapping_add(u64::from(index)),
            stop: &request.stop,
        };
        let mut session = loaded.new_session(adapter.as_deref()).map_err(engine_failed)?;
        let mut next_logits = |ids: &[u32]| session.extend(ids);
        let made = generate(&plan, loaded.tokenizer(), &mut next_logits, wanted)?;
        let Some((choice, tokens)) = made else {
            return Ok(None);
        };
        reply.choices.push(choice);
        reply.completion_tokens += tokens;
    }
    Ok(Some(reply))
}

/// A seed for a request that states none.
fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}
