//! Collects the events of a request into whole completions.

use super::events::next_event;
use super::usage::Usage;
use crate::http::error::ApiResult;
use crate::serve::{CalledTool, Event, Events, FinishReason, ScoredToken};

/// Every completion of a request.
pub(in crate::http) struct GeneratedCompletions {
    /// In the order of their indexes.
    pub completions: Vec<Completion>,
    /// Their token counts.
    pub usage: Usage,
}

/// One completion.
pub(in crate::http) struct Completion {
    /// Its text.
    pub text: String,
    /// What the model thought before it.
    pub reasoning: String,
    /// Its tokens, if log-probabilities were requested.
    pub tokens: Vec<ScoredToken>,
    /// Its tool calls.
    pub calls: Vec<CalledTool>,
    /// Why it ended.
    pub reason: FinishReason,
}

/// Waits until all `count` completions have ended.
pub(super) async fn collect(mut events: Events, count: usize) -> ApiResult<GeneratedCompletions> {
    let empty = || Completion {
        text: String::new(),
        reasoning: String::new(),
        tokens: Vec::new(),
        calls: Vec::new(),
        reason: FinishReason::Stop,
    };
    let mut completions: Vec<Completion> = (0..count).map(|_| empty()).collect();
    let (mut unfinished, mut usage) = (count, Usage::default());
    while unfinished > 0 {
        let event = next_event(&mut events).await?;
        usage.count(&event);
        match event {
            Event::Started { .. } | Event::PrefixCacheHit { .. } | Event::Failed(_) => {}
            Event::Delta { index, text, tokens } => {
                completions[index].text += &text;
                completions[index].tokens.extend(tokens);
            }
            Event::Reasoning { index, text } => completions[index].reasoning += &text,
            Event::ToolCall { index, call } => completions[index].calls.push(call),
            Event::Finished { index, reason, .. } => {
                completions[index].reason = reason;
                unfinished -= 1;
            }
        }
    }
    Ok(GeneratedCompletions { completions, usage })
}
