//! The events of a request collected into whole answers.

use super::Usage;
use super::stream::ended_early;
use crate::http::error::ApiResult;
use crate::serve::{CalledTool, Event, Events, FinishReason, ScoredToken};

/// Every answer to a request.
pub(in crate::http) struct Whole {
    /// In the order of their indexes.
    pub answers: Vec<WholeAnswer>,
    /// What they cost.
    pub usage: Usage,
}

/// One answer.
pub(in crate::http) struct WholeAnswer {
    /// Its text.
    pub text: String,
    /// The tokens behind it, if log-probabilities are wanted.
    pub tokens: Vec<ScoredToken>,
    /// The calls in it.
    pub calls: Vec<CalledTool>,
    /// Why it ended.
    pub reason: FinishReason,
}

/// Waits for all `count` of them.
pub(in crate::http) async fn collect(mut events: Events, count: usize) -> ApiResult<Whole> {
    let empty = || WholeAnswer {
        text: String::new(),
        tokens: Vec::new(),
        calls: Vec::new(),
        reason: FinishReason::Stop,
    };
    let mut answers: Vec<WholeAnswer> = (0..count).map(|_| empty()).collect();
    let (mut unfinished, mut usage) = (count, Usage::default());
    while unfinished > 0 {
        let event = events.next().await.ok_or_else(ended_early)?;
        usage.count(&event);
        match event {
            Event::Started { .. } | Event::Reused { .. } => {}
            Event::Delta { index, text, tokens } => {
                answers[index].text += &text;
                answers[index].tokens.extend(tokens);
            }
            Event::ToolCall { index, call } => answers[index].calls.push(call),
            Event::Finished { index, reason, .. } => {
                answers[index].reason = reason;
                unfinished -= 1;
            }
            Event::Failed(error) => return Err(error.into()),
        }
    }
    Ok(Whole { answers, usage })
}
