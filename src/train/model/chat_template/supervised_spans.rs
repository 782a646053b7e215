//! Supervised spans: where each trained assistant turn stands in the rendered text.

use std::ops::Range;

use super::error::TemplateError;
use super::markers::{GENERATION_BEGINS, GENERATION_ENDS, STAND_IN};
use super::{ChatTemplate, Rendered};
use crate::dataset::{Message, Role};

impl ChatTemplate {
    /// Where a message's content stands: the same conversation with a stand-in in its place must be
    /// the same text around it.
    pub(super) fn locate_content(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        index: usize,
        text: &str,
    ) -> Result<Range<usize>, TemplateError> {
        let content = messages[index].content.as_deref().unwrap_or_default();
        let not_located = |reason: &str| Err(TemplateError::message(index, reason));
        let mut changed = messages.to_vec();
        changed[index].content = Some(STAND_IN.to_owned());
        let stand_in = self.render(&changed, tools, false)?;
        let mut parts = stand_in.split(STAND_IN);
        let (Some(before), Some(after), None) = (parts.next(), parts.next(), parts.next()) else {
            return not_located(
                "the chat template does not write the assistant's message exactly once",
            );
        };
        let fits = text.len() >= before.len() + after.len()
            && text.starts_with(before)
            && text.ends_with(after);
        if !fits {
            // A template may take a part of the message for something else, such as reasoning; the
            // turn as a whole may still be the message.
            if let Ok(turn) = self.locate_turn(messages, tools, index, text)
                && let Some(written) = self.without_end(&text[turn.clone()])
                && written.trim() == content.trim()
            {
                return Ok(turn);
            }
            return not_located(
                "the chat template changes the text around the assistant's message with its content",
            );
        }
        let end = text.len() - after.len();
        let written = &text[before.len()..end];
        if written != content && written != content.trim() {
            return not_located("the chat template changes the assistant's message itself");
        }
        Ok(before.len()..end + self.end_of_turn_at(index, after)?)
    }

    /// Where a whole turn stands: between what the conversation before it renders to, with the
    /// beginning of an answer, and the last control token of what it renders to with it. Where the
    /// template writes shorter conversations otherwise, a message without tool calls in the turn's
    /// place shows what stands around it.
    pub(super) fn locate_turn(
        &self,
        messages: &[Message],
        tools: &[serde_json::Value],
        index: usize,
        text: &str,
    ) -> Result<Range<usize>, TemplateError> {
        let before = self.render(&messages[..index], tools, true);
        let through = self.render(&messages[..=index], tools, false);
        if let (Ok(before), Ok(through)) = (before, through)
            && text.starts_with(&before)
            && text.starts_with(&through)
            && through.len() > before.len()
            && let Some(end) = self.last_control_token(&through[before.len()..])
        {
            return Ok(before.len()..before.len() + end);
        }
        let mut changed = messages.to_vec();
        changed[index].content = Some(STAND_IN.to_owned());
        changed[index].tool_calls.clear();
        if let Ok(stand_in) = self.render(&changed, tools, false)
            && let Some((before, after)) = stand_in.split_once(STAND_IN)
        {
            // Some templates (Mistral's) put a space before a text, and none before a call.
            let before = if text.starts_with(before) { before } else { before.trim_end() };
            let fits = text.len() >= before.len() + after.len();
            if fits && text.starts_with(before) && text.ends_with(after) {
                let end = text.len() - after.len() + self.end_of_turn_at(index, after)?;
                return Ok(before.len()..end);
            }
        }
        let reason = "the assistant's turn cannot be located in the rendered conversation";
        Err(TemplateError::message(index, reason))
    }

    /// Where the last control token of a text ends.
    fn last_control_token(&self, text: &str) -> Option<usize> {
        let ends = self
            .control
            .iter()
            .filter_map(|token| text.rfind(token.as_str()).map(|start| start + token.len()));
        ends.max()
    }

    /// A turn without the control token that ends it.
    fn without_end<'a>(&self, turn: &'a str) -> Option<&'a str> {
        self.control.iter().find_map(|token| turn.strip_suffix(token.as_str()))
    }

    /// Length of the control token with which `after` begins, and of the spaces that some templates
    /// (Llama 2's) put before it.
    fn end_of_turn_at(&self, index: usize, after: &str) -> Result<usize, TemplateError> {
        let token = after.trim_start_matches(' ');
        let spaces = after.len() - token.len();
        let end = self.control.iter().find(|end| token.starts_with(end.as_str()));
        end.map(|end| spaces + end.len()).ok_or_else(|| {
            let found: String = after.chars().take(20).collect();
            TemplateError::message(
                index,
                format!(
                    "no end-of-turn token follows the assistant's message in the rendered \
                     conversation, but {found:?}: the model would never learn to stop"
                ),
            )
        })
    }

    /// The spans that the template itself marks, one for each assistant message, through the control
    /// token that ends the turn.
    pub(super) fn marked_spans(
        &self,
        messages: &[Message],
        marked: &str,
    ) -> Result<Rendered, TemplateError> {
        let mut text = String::with_capacity(marked.len());
        let mut spans = Vec::new();
        let mut begin = 0;
        for character in marked.chars() {
            match character {
                GENERATION_BEGINS => begin = text.len(),
                GENERATION_ENDS => spans.push(begin..text.len()),
                _ => text.push(character),
            }
        }
        let turns: Vec<(usize, &Message)> = messages
            .iter()
            .enumerate()
            .filter(|(_, message)| message.role == Role::Assistant)
            .collect();
        if turns.len() != spans.len() {
            let reason = format!(
                "the chat template marks {} spans for {} assistant messages",
                spans.len(),
                turns.len()
            );
            return Err(TemplateError::message(
                turns.last().map_or(0, |(index, _)| *index),
                reason,
            ));
        }
        let mut supervised = Vec::new();
        for ((index, message), mut span) in turns.into_iter().zip(spans) {
            if !message.trained {
                continue;
            }
            let written = &text[span.clone()];
            let content = message.content.as_deref().unwrap_or_default();
            if !written.contains(content.trim()) {
                let reason = "the span that the chat template marks does not hold the message";
                return Err(TemplateError::message(index, reason));
            }
            if self.without_end(written.trim_end()).is_none() {
                span.end += self.end_of_turn_at(index, &text[span.end..])?;
            }
            supervised.push(span);
        }
        Ok(Rendered { text, supervised })
    }
}
