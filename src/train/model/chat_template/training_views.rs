//! Training views: the texts to train on, each as serving renders it at its supervised turns.
//!
//! The rule: a supervised span begins exactly where the prompt ends that serving would send for this turn, and ends
//! with the token at which serving stops. Most templates write a conversation as a beginning of its
//! continuations; then one text holds every turn. Others write the last turn unlike earlier ones: they keep
//! reasoning in the last answer alone, or put the system message before the last user message. There each such
//! turn has a text of its own.

use std::ops::Range;

use super::ChatTemplate;
use super::error::TemplateError;
use super::jinja::{self, Limits};
use super::markers::STAND_IN;
use super::omissions::{refuse_incomplete_turn, refuse_reserved};
use super::reasoning::{self, OpenedReasoning};
use crate::dataset::{Message, Role};
use crate::train::model::tokenizer::{escape, unescape};
use crate::util::exact_json::ExactJson;

/// Characters of a text that an error shows.
const SHOWN: usize = 40;

/// A text to train on. What is spelled like a control token in it and comes from the conversation carries a mark,
/// see [`escape`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingView {
    /// The text.
    pub text: String,
    /// Byte ranges that carry loss, in order: each from where serving's prompt ends through the end-of-turn token.
    pub supervised: Vec<Range<usize>>,
}

/// A supervised turn: the text through it, and where the prompt ends in it.
struct Turn {
    text: String,
    span: Range<usize>,
}

impl ChatTemplate {
    /// For training: the texts in which every trained assistant turn stands as serving would see it, in the order of
    /// the turns; none for a conversation without a trained turn.
    ///
    /// # Errors
    /// What the template refuses, leaves out or changes, and turns whose prompt and text do not meet, by message.
    pub fn render_for_training(
        &self,
        messages: &[Message],
        tools: &[ExactJson],
    ) -> Result<Vec<TrainingView>, TemplateError> {
        jinja::within(Limits::CONVERSATION, || self.views(messages, tools))
    }

    fn views(
        &self,
        messages: &[Message],
        tools: &[ExactJson],
    ) -> Result<Vec<TrainingView>, TemplateError> {
        refuse_reserved(messages, tools)?;
        let whole = self
            .render(messages, tools, false)
            .map_err(|error| self.name_message(messages, tools, error))?;
        // Each with its first turn so far. The whole conversation comes first: it may hold all.
        let mut views = vec![(0, TrainingView { text: whole, supervised: Vec::new() })];
        let mut is_checked = false;
        for (index, message) in messages.iter().enumerate().rev() {
            if message.role != Role::Assistant || !message.trained {
                continue;
            }
            if !is_checked && index > 0 {
                // Earlier prompts are parts of this one.
                self.render_prompt(&messages[..index], tools)?;
                is_checked = true;
            }
            let turn = self.turn(messages, tools, index)?;
            let through = &turn.text[..turn.span.end];
            match views.iter_mut().find(|(_, view)| view.text.starts_with(through)) {
                Some((first, view)) => {
                    view.supervised.insert(0, turn.span);
                    *first = index;
                }
                None => {
                    let supervised = vec![turn.span];
                    views.push((index, TrainingView { text: turn.text, supervised }));
                }
            }
        }
        views.retain(|(_, view)| !view.supervised.is_empty());
        views.sort_by_key(|(first, _)| *first);
        Ok(views.into_iter().map(|(_, view)| view).collect())
    }

    /// One trained turn as serving would see it.
    fn turn(
        &self,
        messages: &[Message],
        tools: &[ExactJson],
        index: usize,
    ) -> Result<Turn, TemplateError> {
        let through = &messages[..=index];
        let written = self
            .render(through, tools, false)
            .map_err(|error| self.name_message(through, tools, error))?;
        self.refuse_changed_content(through, tools, &written)?;
        let prompt = match self.render(&messages[..index], tools, true) {
            Ok(prompt) => prompt,
            // No prompt comes before an answer that begins a conversation.
            Err(_) if index == 0 => self.before_content(through, tools).unwrap_or_default(),
            Err(error) => return Err(self.name_message(&messages[..index], tools, error)),
        };
        let text = if written.starts_with(&prompt) {
            written.clone()
        } else {
            self.join(through, tools, &prompt, &written)
                .ok_or_else(|| parted(index, &prompt, &written))?
        };
        let answer = &text[prompt.len()..];
        let message = &messages[index];
        let Some((end, stop)) = self.end_of_answer(answer) else {
            return Err(no_end(index, message, answer));
        };
        refuse_incomplete_turn(index, message, answer, (end, stop), &self.control)?;
        Ok(Turn { span: prompt.len()..prompt.len() + end, text })
    }

    /// Looks that the content of the last message stands in `written` exactly once and changes nothing around it: the
    /// same conversation with a stand-in in its place must be the same text around it. Reasoning in a content is
    /// written in lines of its own, so that only what stands there can be compared.
    fn refuse_changed_content(
        &self,
        messages: &[Message],
        tools: &[ExactJson],
        written: &str,
    ) -> Result<(), TemplateError> {
        let Some((message, before)) = messages.split_last() else { return Ok(()) };
        let content = message.content.as_deref().unwrap_or_default();
        let is_apart = !message.content_parts.is_empty() || reasoning::split(content).is_some();
        if content.trim().is_empty() || is_apart {
            return Ok(());
        }
        let stand_in = Message { content: Some(STAND_IN.to_owned()), ..message.clone() };
        let Ok(text) = self.render(&[before, &[stand_in]].concat(), tools, false) else {
            return Ok(());
        };
        let changed = |reason: &str| Err(TemplateError::message(before.len(), reason));
        let mut parts = text.split(STAND_IN);
        let (Some(head), Some(tail), None) = (parts.next(), parts.next(), parts.next()) else {
            return changed(
                "the chat template does not write the assistant's message exactly once",
            );
        };
        let middle = written.strip_prefix(head).and_then(|rest| rest.strip_suffix(tail));
        match middle {
            Some(middle) if middle.trim() == escape(content.trim(), &self.control) => Ok(()),
            Some(_) => changed("the chat template changes the assistant's message itself"),
            None => changed(
                "the chat template changes the text around the assistant's message with its content",
            ),
        }
    }

    /// Where an answer ends: behind the first token at which serving stops. The token.
    fn end_of_answer(&self, answer: &str) -> Option<(usize, &str)> {
        let ends = self.stops.iter().filter_map(|stop| Some((answer.find(stop.as_str())?, stop)));
        // Of two that begin at one place the longer one is meant.
        let first = ends.min_by_key(|(start, stop)| (*start, usize::MAX - stop.len()));
        first.map(|(start, stop)| (start + stop.len(), stop.as_str()))
    }

    /// The prompt with the last message's turn behind it, where the template writes the conversation before the turn
    /// otherwise than the prompt; `None` where the two do not meet.
    fn join(
        &self,
        messages: &[Message],
        tools: &[ExactJson],
        prompt: &str,
        written: &str,
    ) -> Option<String> {
        let message = messages.last()?;
        if let Some(opened) = OpenedReasoning::at_end_of(prompt)
            && let Some(turn) = written.strip_prefix(opened.before)
        {
            return Some(format!("{prompt}{}", self.continue_reasoning(message, &opened, turn)));
        }
        if let Some(turn) = written.strip_prefix(prompt.trim_end()) {
            // The prompt ends with spaces that the turn does not begin with.
            return Some(format!("{prompt}{}", turn.trim_start()));
        }
        let start = turn_start(messages, prompt, written)
            .or_else(|| self.content_start(messages, tools, written))?;
        Some(format!("{prompt}{}", &written[start..]))
    }

    /// What the model writes behind a prompt that opens a block of reasoning. `turn` is the turn as the template
    /// writes it, most often without reasoning.
    fn continue_reasoning(
        &self,
        message: &Message,
        opened: &OpenedReasoning<'_>,
        turn: &str,
    ) -> String {
        if let Some((_, rest)) =
            turn.split_once(opened.begin).filter(|(before, _)| before.trim().is_empty())
        {
            return rest.trim_start_matches('\n').to_owned();
        }
        let in_content = message.content.as_deref().and_then(reasoning::split);
        let thought = message.reasoning.as_deref().or(in_content.map(|(thought, _)| thought));
        let thought = escape(thought.unwrap_or_default(), &self.control);
        opened.continuation(&thought, turn)
    }

    /// Where the last message's turn begins in `written`: where a content would stand in its place. Some templates
    /// (Mistral's) put a space before a content, and none before a call.
    fn content_start(
        &self,
        messages: &[Message],
        tools: &[ExactJson],
        written: &str,
    ) -> Option<usize> {
        let head = self.before_content(messages, tools)?;
        let heads = [head.as_str(), head.trim_end()];
        heads.into_iter().find(|head| written.starts_with(head)).map(str::len)
    }

    /// What the template writes before the content of the last message.
    fn before_content(&self, messages: &[Message], tools: &[ExactJson]) -> Option<String> {
        let (last, before) = messages.split_last()?;
        let mut changed = before.to_vec();
        changed
            .push(Message { name: last.name.clone(), ..Message::text(Role::Assistant, STAND_IN) });
        let text = self.render(&changed, tools, false).ok()?;
        Some(text.split_once(STAND_IN)?.0.to_owned())
    }
}

/// Where the last message's turn begins in `written`: behind the longest text that is also the end of the prompt, if
/// that holds the message before it.
fn turn_start(messages: &[Message], prompt: &str, written: &str) -> Option<usize> {
    let before =
        messages.len().checked_sub(2).and_then(|index| messages[index].content.as_deref())?;
    let tail_start = prompt.char_indices().rev().nth(3).map_or(0, |(at, _)| at);
    let tail = &prompt[tail_start..];
    let shared = |end: usize| {
        let pairs = prompt.chars().rev().zip(written[..end].chars().rev());
        pairs.take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum::<usize>()
    };
    let ends = written.match_indices(tail).map(|(at, _)| at + tail.len());
    let (length, end) = ends.map(|end| (shared(end), end)).max()?;
    let common = unescape(&prompt[prompt.len() - length..]);
    common.contains(before.trim()).then_some(end)
}

/// What is said of a turn whose prompt and text do not meet.
fn parted(index: usize, prompt: &str, written: &str) -> TemplateError {
    let pairs = prompt.chars().zip(written.chars());
    let common: usize = pairs.take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    let show = |text: &str| unescape(text).chars().take(SHOWN).collect::<String>();
    let reason = format!(
        "the chat template writes this turn unlike the prompt that serving sends for it, so that it cannot be \
         trained: behind {:?} the prompt has {:?} and the training text {:?}",
        last_characters(&prompt[..common]),
        show(&prompt[common..]),
        show(&written[common..])
    );
    TemplateError::message(index, reason)
}

/// What is said of a turn without an end.
fn no_end(index: usize, message: &Message, answer: &str) -> TemplateError {
    let content = message.content.as_deref().unwrap_or_default().trim();
    let shown = unescape(answer);
    let after = match shown.rsplit_once(content) {
        Some((_, after)) if !content.is_empty() => after,
        _ => &shown,
    };
    let found: String = after.chars().take(20).collect();
    let reason = format!(
        "no end-of-turn token follows the assistant's message in the rendered conversation, but {found:?}: the \
         model would never learn to stop"
    );
    TemplateError::message(index, reason)
}

/// The end of a text, for an error.
fn last_characters(text: &str) -> String {
    let start = text.char_indices().rev().nth(SHOWN - 1).map_or(0, |(at, _)| at);
    unescape(&text[start..]).into_owned()
}
