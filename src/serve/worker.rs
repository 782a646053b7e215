//! The thread that owns the models: takes one request after the other, loads what it names, answers.
//!
//! Started by [`super::ModelServer`]. A standard thread, because decoding computes for seconds and
//! must not hold up the async threads.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::answer::Answer;
use super::events::{Event, EventSender};
use super::loaded::LoadedBase;
use super::request::Request;
use super::{ModelSource, ServeError};
use crate::error_code::ErrorCode;
use crate::train::engine::{AttachedAdapter, EngineError};

/// One request and who hears of its answers.
pub(super) struct Work {
    pub source: ModelSource,
    pub request: Request,
    pub events: EventSender,
}

/// Serves `inbox` until it closes. `runtime` runs the futures that fetch models.
pub(super) fn run(mut inbox: mpsc::Receiver<Work>, runtime: &Handle) {
    let mut base: Option<LoadedBase> = None;
    while let Some(work) = inbox.blocking_recv() {
        let Work { source, request, events } = work;
        if !events.is_wanted() {
            continue;
        }
        if let Err(error) = answer(&mut base, runtime, source, request, &events) {
            events.send(Event::Failed(error));
        }
    }
}

/// Answers one request.
fn answer(
    base: &mut Option<LoadedBase>,
    runtime: &Handle,
    source: ModelSource,
    request: Request,
    events: &EventSender,
) -> Result<(), ServeError> {
    let loaded = LoadedBase::ensure(base, source.base, runtime)?;
    let adapter = match source.adapter {
        Some(adapter) => Some(loaded.attach(adapter, runtime)?),
        None => None,
    };
    for mut answer in loaded.answers(request, events)? {
        make(loaded, adapter.as_deref(), &mut answer).map_err(engine_failed)?;
    }
    Ok(())
}

/// Makes one answer, as long as it is wanted.
fn make(
    loaded: &LoadedBase,
    adapter: Option<&AttachedAdapter>,
    answer: &mut Answer,
) -> Result<(), EngineError> {
    let mut session = loaded.new_session(adapter)?;
    let prompt = Arc::clone(answer.prompt());
    let mut logits = Vec::new();
    if answer.wants_prompt() {
        // One position at a time: the logits of all of them are too many at once.
        for (position, token) in prompt.iter().enumerate() {
            if !answer.is_wanted() {
                return Ok(());
            }
            logits = session.extend(&[*token])?;
            answer.take_prompt(position, &logits, loaded.vocabulary());
        }
    } else if answer.is_wanted() {
        logits = session.extend(&prompt)?;
    }
    while answer.is_wanted() {
        let Some(token) = answer.take(&mut logits) else {
            break;
        };
        logits = session.extend(&[token])?;
    }
    Ok(())
}

/// An engine fault is ours: the client hears that it failed, the log hears why.
fn engine_failed(error: EngineError) -> ServeError {
    ServeError { code: ErrorCode::InternalError, message: error.to_string() }
}
