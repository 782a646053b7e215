//! Conversations to sequences: each training view tokenised so that every supervised span follows exactly the
//! tokens that serving would send.

use std::ops::Range;

use super::sequence::Sequence;
use crate::dataset::Message;
use crate::train::model::chat_template::{ChatTemplate, TrainingView};
use crate::train::model::tokenizer::{Tokenizer, TokenizerError};
use crate::util::exact_json::ExactJson;

/// Why a conversation cannot be used.
#[derive(Debug)]
pub struct ConversationProblem {
    /// The message that it is about, if it is about one.
    pub message_index: Option<usize>,
    /// The key of the message that it is about, if it is about one.
    pub key: Option<&'static str>,
    /// What is wrong and what to do.
    pub reason: String,
}

impl From<TokenizerError> for ConversationProblem {
    fn from(error: TokenizerError) -> Self {
        Self { message_index: None, key: None, reason: error.to_string() }
    }
}

/// The sequences to train on.
///
/// # Errors
/// What the template or the tokenizer cannot do with the conversation.
pub fn encode_conversation(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    messages: &[Message],
    tools: &[ExactJson],
) -> Result<Vec<Sequence>, ConversationProblem> {
    let views = template.render_for_training(messages, tools).map_err(|error| {
        let (message_index, key, reason) = error.into_parts();
        ConversationProblem { message_index, key, reason }
    })?;
    let mut sequences = Vec::with_capacity(views.len());
    for view in &views {
        encode_view(tokenizer, view, &mut sequences)?;
    }
    Ok(sequences)
}

/// Adds the sequences of one view: one for all turns whose prompt is a beginning of its tokens as well, and one more
/// for each other turn.
fn encode_view(
    tokenizer: &Tokenizer,
    view: &TrainingView,
    sequences: &mut Vec<Sequence>,
) -> Result<(), TokenizerError> {
    let tokens = tokenizer.encode_escaped(&view.text)?;
    let mut loss_mask = vec![false; tokens.len()];
    let mut apart = Vec::new();
    for span in &view.supervised {
        if !is_prompt_in(tokenizer, &view.text, &tokens, span.start)? {
            apart.push(separate(tokenizer, &view.text, span)?);
            continue;
        }
        for ((_, range), counts) in tokens.iter().zip(&mut loss_mask) {
            *counts |= range.start < span.end && range.end > span.start;
        }
    }
    if loss_mask.contains(&true) {
        let input_ids = tokens.into_iter().map(|(id, _)| id).collect();
        sequences.push(Sequence { input_ids, loss_mask });
    }
    sequences.extend(apart);
    Ok(())
}

/// Whether the prompt `text[..end]` is, token by token, a beginning of `tokens`, those of `text`. Letters on both
/// sides of the border may make one token.
fn is_prompt_in(
    tokenizer: &Tokenizer,
    text: &str,
    tokens: &[(u32, Range<usize>)],
    end: usize,
) -> Result<bool, TokenizerError> {
    let count = tokens.partition_point(|(_, range)| range.end <= end);
    if tokens.get(count).is_some_and(|(_, range)| range.start < end) {
        return Ok(false);
    }
    // Tokenizers read what stands between two control tokens by itself: from the last one on is enough.
    let is_control = |id: u32| tokenizer.is_control(id);
    let first = tokens[..count].iter().rposition(|(id, _)| is_control(*id)).unwrap_or(0);
    let start = match tokens.get(first) {
        Some((id, range)) if is_control(*id) => range.start,
        _ => 0,
    };
    let prompt = tokenizer.encode_escaped(&text[start..end])?;
    let ids = |tokens: &[(u32, Range<usize>)]| tokens.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    Ok(ids(&prompt) == ids(&tokens[first..count]))
}

/// A turn by itself: the prompt's tokens as serving makes them, and those of the span behind them.
fn separate(
    tokenizer: &Tokenizer,
    text: &str,
    span: &Range<usize>,
) -> Result<Sequence, TokenizerError> {
    let prompt = tokenizer.encode_escaped(&text[..span.start])?;
    let answer = tokenizer.encode_continuation(&text[span.clone()])?;
    let mut loss_mask = vec![false; prompt.len()];
    loss_mask.resize(prompt.len() + answer.len(), true);
    let input_ids = prompt.into_iter().map(|(id, _)| id).chain(answer).collect();
    Ok(Sequence { input_ids, loss_mask })
}
