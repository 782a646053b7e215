//! One answer, token by token. Whoever runs the model gives it the logits and gets the token that
//! goes on; the answer tells its client what may be shown.
//!
//! The order: if [`Answer::wants_prompt`], the logits of every position of the prompt through
//! [`Answer::take_prompt`]; then [`Answer::take`] with the logits of the position after everything
//! so far, until it returns `None`. An answer owns what it needs, so that a scheduler may hold many
//! for different models and drop one at any time.

use std::collections::VecDeque;
use std::sync::Arc;

use super::ServeError;
use super::events::{Event, EventSender, FinishReason, LikelyToken, ScoredToken};
use super::sample::{LogProbabilities, Sampler};
use super::text::TextWriter;
use super::tools::{Piece, ToolReader};
use crate::train::model::tokenizer::Tokenizer;

/// What is known of an answer before its first token.
pub(super) struct Plan {
    /// Which of the request's answers it is.
    pub index: usize,
    /// What it continues; answers to the same prompt share it.
    pub prompt: Arc<[u32]>,
    /// How many tokens at the beginning of the prompt are not part of its text.
    pub before_text: usize,
    /// Whether the answer is a text of its own, as in a chat, or goes on with the prompt's.
    pub is_own_text: bool,
    /// Whether it begins with its prompt.
    pub echo: bool,
    /// Most tokens of it.
    pub max_tokens: usize,
    /// Texts that end it.
    pub stop: Vec<String>,
    /// As [`super::Request::log_probabilities`].
    pub log_probabilities: Option<usize>,
}

/// An answer that is being made.
pub(super) struct Answer {
    plan: Plan,
    sampler: Sampler,
    tokenizer: Arc<Tokenizer>,
    events: EventSender,
    writer: TextWriter,
    /// Finds calls in the text, where there may be some.
    tools: Option<ToolReader>,
    /// Tokens written, without the one that ends it.
    written: usize,
    /// Tokens whose text is not shown yet, and where in the text each begins, in bytes.
    waiting: VecDeque<(usize, ScoredToken)>,
}

impl Answer {
    /// Begins it.
    pub fn new(
        plan: Plan,
        sampler: Sampler,
        tools: Option<ToolReader>,
        tokenizer: Arc<Tokenizer>,
        events: EventSender,
    ) -> Self {
        let writer = TextWriter::new(plan.stop.clone());
        let waiting = VecDeque::new();
        Self { plan, sampler, tokenizer, events, writer, tools, written: 0, waiting }
    }

    /// What the model reads first.
    pub fn prompt(&self) -> &Arc<[u32]> {
        &self.plan.prompt
    }

    /// Whether its client is still there. One that is not needs no more tokens: drop it.
    pub fn is_wanted(&self) -> bool {
        self.events.is_wanted()
    }

    /// Whether the logits of every position of the prompt are needed, so that none of it may be
    /// taken from what was read before.
    pub fn wants_prompt(&self) -> bool {
        self.plan.echo && self.plan.log_probabilities.is_some()
    }

    /// Takes the logits of positions of the prompt from `first_position` on, `[rows, vocabulary]`
    /// row-major: the row of a position is about the token after it. Pieces come in order; the last
    /// position's row may be among them and is given to [`Answer::take`] as well.
    pub fn take_prompt(&mut self, first_position: usize, logits: &[f32], vocabulary: usize) {
        let mut text = String::new();
        if first_position == 0 {
            text += &self.take_prompt_token(0, None);
        }
        for (row, logits) in logits.chunks_exact(vocabulary).enumerate() {
            let position = first_position + row + 1;
            if position < self.prompt().len() {
                text += &self.take_prompt_token(position, Some(logits));
            }
        }
        self.send(text);
    }

    /// Takes the logits of the position after everything so far, which sampling changes. The token
    /// that goes on; `None` when the answer has ended, of which its client knows then.
    pub fn take(&mut self, logits: &mut [f32]) -> Option<u32> {
        if self.plan.echo && !self.wants_prompt() && self.written == 0 {
            // Not before: until the model has read the prompt, the answer may still be an error.
            self.echo_prompt();
        }
        if self.plan.max_tokens == 0 {
            return self.finish(FinishReason::Length);
        }
        // Scored before sampling changes them.
        let model_logits = self.plan.log_probabilities.map(|_| logits.to_vec());
        let token = match self.sampler.choose(logits) {
            Ok(token) => token,
            Err(error) => {
                self.fail(error.into());
                return None;
            }
        };
        let is_end = self.tokenizer.stop_ids().contains(&token);
        if let Some(logits) = &model_logits {
            self.score(token, Some(logits), is_end);
        }
        if is_end {
            return self.finish(FinishReason::Stop);
        }
        self.written += 1;
        let bytes = self.bytes_in_text(token);
        let released = self.writer.push(&bytes);
        self.send(released.text);
        if released.is_stopped {
            self.send_end(FinishReason::Stop);
            return None;
        }
        if self.tools.as_ref().is_some_and(ToolReader::is_full) {
            return self.finish(FinishReason::Stop);
        }
        if self.written >= self.plan.max_tokens {
            return self.finish(FinishReason::Length);
        }
        Some(token)
    }

    /// So many tokens of its prompt, which it shares with other answers, were read before.
    pub fn reuses(&self, prompt_tokens: usize) {
        self.events.send(Event::Reused { prompt_tokens: prompt_tokens as u64 });
    }

    /// Ends it because of a fault.
    pub fn fail(&mut self, error: ServeError) {
        self.events.send(Event::Failed(error));
    }

    fn echo_prompt(&mut self) {
        let mut text = String::new();
        for position in 0..self.prompt().len() {
            text += &self.echo_token(position);
        }
        self.send(text);
    }

    fn take_prompt_token(&mut self, position: usize, logits: Option<&[f32]>) -> String {
        let Some(token) = self.prompt().get(position).copied() else {
            return String::new();
        };
        self.score(token, logits, false);
        self.echo_token(position)
    }

    /// What of the text can be shown with the prompt's token at `position`.
    fn echo_token(&mut self, position: usize) -> String {
        if position < self.plan.before_text {
            return String::new();
        }
        let token = self.plan.prompt[position];
        let bytes = match position == self.plan.before_text {
            true => self.tokenizer.bytes_of_first(token),
            false => self.tokenizer.bytes_of(token),
        };
        self.writer.push_prompt(&bytes)
    }

    /// What a token of the model's adds to the text: control tokens nothing, unless they mark a call.
    fn bytes_in_text(&self, token: u32) -> Vec<u8> {
        if self.tokenizer.is_control(token) {
            let mut bytes = self.tokenizer.bytes_of(token);
            if !self.tools.as_ref().is_some_and(|tools| tools.is_mark(&bytes)) {
                bytes.clear();
            }
            bytes
        } else if self.plan.is_own_text && self.writer.end() == 0 {
            self.tokenizer.bytes_of_first(token)
        } else {
            self.tokenizer.bytes_of(token)
        }
    }

    /// Notes a token that comes next in the text, with what `logits` say of its place.
    fn score(&mut self, token: u32, logits: Option<&[f32]>, is_end: bool) {
        let count = self.plan.log_probabilities.unwrap_or_default();
        let probabilities = logits.map(LogProbabilities::of);
        let likeliest = probabilities.as_ref().map(|all| all.likeliest(count)).unwrap_or_default();
        let likeliest = likeliest.into_iter().map(|(token, log_probability)| LikelyToken {
            bytes: self.tokenizer.bytes_of(token),
            log_probability,
        });
        let scored = ScoredToken {
            bytes: self.tokenizer.bytes_of(token),
            log_probability: probabilities.map(|all| all.of_token(token)),
            likeliest: likeliest.collect(),
            offset: self.writer.end_in_characters(),
            is_end,
        };
        self.waiting.push_back((self.writer.end(), scored));
    }

    /// Ends it with what is left of it.
    fn finish(&mut self, reason: FinishReason) -> Option<u32> {
        let rest = self.writer.finish();
        let reason = if rest.is_stopped { FinishReason::Stop } else { reason };
        if rest.is_stopped {
            self.send(rest.text);
        } else {
            let tokens = self.waiting.drain(..).map(|(_, token)| token).collect();
            self.send_delta(rest.text, tokens);
        }
        self.send_end(reason);
        None
    }

    /// Sends text, and the tokens that begin in the text sent so far.
    fn send(&mut self, text: String) {
        let mut tokens = Vec::new();
        while let Some((start, _)) = self.waiting.front()
            && *start < self.writer.released()
        {
            tokens.extend(self.waiting.pop_front().map(|(_, token)| token));
        }
        self.send_delta(text, tokens);
    }

    fn send_delta(&mut self, text: String, tokens: Vec<ScoredToken>) {
        let index = self.plan.index;
        let Some(tools) = &mut self.tools else {
            if !text.is_empty() || !tokens.is_empty() {
                self.events.send(Event::Delta { index, text, tokens });
            }
            return;
        };
        let pieces = tools.push(&text);
        if !tokens.is_empty() {
            self.events.send(Event::Delta { index, text: String::new(), tokens });
        }
        self.send_pieces(pieces);
    }

    fn send_pieces(&self, pieces: Vec<Piece>) {
        let index = self.plan.index;
        for piece in pieces {
            self.events.send(match piece {
                Piece::Text(text) => Event::Delta { index, text, tokens: Vec::new() },
                Piece::Call(call) => Event::ToolCall { index, call },
            });
        }
    }

    fn send_end(&mut self, reason: FinishReason) {
        let (index, completion_tokens) = (self.plan.index, self.written as u64);
        let rest = self.tools.as_mut().map(ToolReader::finish).unwrap_or_default();
        self.send_pieces(rest);
        let has_called = self.tools.as_ref().is_some_and(|tools| tools.calls() > 0);
        let reason = match reason {
            FinishReason::Stop if has_called => FinishReason::ToolCalls,
            reason => reason,
        };
        self.events.send(Event::Finished { index, reason, completion_tokens });
    }
}
