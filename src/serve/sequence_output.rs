//! The output of one sequence, token by token: samples the next token from the logits and sends the client
//! the text that can be shown.
//!
//! The order of calls: if [`SequenceOutput::needs_prompt_logits`], the logits of every position of the prompt
//! go to [`SequenceOutput::accept_prompt_logits`]. Then the logits of the last position go to
//! [`SequenceOutput::next_token`], again for each token, until it returns `None`. An output owns all that it
//! needs, so the scheduler can hold outputs of several models and drop one at any time.

use std::collections::VecDeque;
use std::sync::Arc;

use super::detokenizer::Detokenizer;
use super::error::ServeError;
use super::events::{Event, EventSender, FinishReason, LikelyToken, ScoredToken};
use super::reasoning_parser::{ReasoningParser, SplitText};
use super::sample::{LogProbabilities, Sampler};
use super::tool_call_parser::{OutputPart, ToolCallParser};
use crate::train::model::tokenizer::Tokenizer;

/// The parameters of an output, known before its first token.
pub(super) struct OutputParameters {
    /// Index among the outputs of the request.
    pub index: usize,
    /// The prompt, shared by its sequences.
    pub prompt: Arc<[u32]>,
    /// How many tokens at the beginning of the prompt are not part of its text.
    pub before_text: usize,
    /// Whether the output is a new text, as in a chat, or continues the text of the prompt.
    pub starts_new_text: bool,
    /// Whether the output begins with the prompt.
    pub echo: bool,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Stop strings.
    pub stop: Vec<String>,
    /// Tokens beside the tokenizer's that end the output.
    pub stop_tokens: Arc<[u32]>,
    /// As [`super::Request::log_probabilities`].
    pub log_probabilities: Option<usize>,
}

/// The output of one sequence.
pub(super) struct SequenceOutput {
    parameters: OutputParameters,
    sampler: Sampler,
    tokenizer: Arc<Tokenizer>,
    events: EventSender,
    detokenizer: Detokenizer,
    parsers: OutputParsers,
    /// Generated tokens, without the stop token.
    generated: usize,
    /// Those of them that are reasoning, tags among them.
    reasoning: usize,
    /// Scored tokens that are not sent yet, and where in the text each begins, in bytes.
    unsent: VecDeque<(usize, ScoredToken)>,
}

/// What an output is taken apart by.
#[derive(Default)]
pub(super) struct OutputParsers {
    /// Finds reasoning in the text, if the model reasons.
    pub reasoning: Option<ReasoningParser>,
    /// Finds tool calls in the rest of it, if there are tools.
    pub tools: Option<ToolCallParser>,
}

impl SequenceOutput {
    /// An output without tokens.
    pub fn new(
        parameters: OutputParameters,
        sampler: Sampler,
        parsers: OutputParsers,
        tokenizer: Arc<Tokenizer>,
        events: EventSender,
    ) -> Self {
        let detokenizer = Detokenizer::new(parameters.stop.clone());
        let unsent = VecDeque::new();
        Self {
            parameters,
            sampler,
            tokenizer,
            events,
            detokenizer,
            parsers,
            generated: 0,
            reasoning: 0,
            unsent,
        }
    }

    /// The prompt.
    pub fn prompt(&self) -> &Arc<[u32]> {
        &self.parameters.prompt
    }

    /// Whether the client is still connected. Otherwise the sequence can be dropped.
    pub fn is_connected(&self) -> bool {
        self.events.is_connected()
    }

    /// Whether the logits of every position of the prompt are needed, so that no cached prefix can be
    /// used.
    pub fn needs_prompt_logits(&self) -> bool {
        self.parameters.echo && self.parameters.log_probabilities.is_some()
    }

    /// Receives the logits of the prompt's positions from `first_position` on, `[rows, vocabulary]`
    /// row-major: the row of a position is about the token after it. Chunks come in order. The row of the
    /// last position may be among them and goes to [`SequenceOutput::next_token`] as well.
    pub fn accept_prompt_logits(
        &mut self,
        first_position: usize,
        logits: &[f32],
        vocabulary: usize,
    ) {
        let mut text = String::new();
        if first_position == 0 {
            text += &self.accept_prompt_token(0, None);
        }
        for (row, logits) in logits.chunks_exact(vocabulary).enumerate() {
            let position = first_position + row + 1;
            if position < self.prompt().len() {
                text += &self.accept_prompt_token(position, Some(logits));
            }
        }
        self.send(text);
    }

    /// Samples the next token from the logits of the last position, and changes them by that. `None` when
    /// the output has ended, which its client has been told.
    pub fn next_token(&mut self, logits: &mut [f32]) -> Option<u32> {
        if self.parameters.echo && !self.needs_prompt_logits() && self.generated == 0 {
            // Not earlier: until the prompt is computed, the request may still fail.
            self.echo_prompt();
        }
        if self.parameters.max_tokens == 0 {
            return self.finish(FinishReason::Length);
        }
        // Tokens are scored by the logits before sampling changes them.
        let model_logits = self.parameters.log_probabilities.map(|_| logits.to_vec());
        let token = match self.sampler.choose(logits) {
            Ok(token) => token,
            Err(error) => {
                self.fail(error.into());
                return None;
            }
        };
        let is_end = self.tokenizer.stop_ids().contains(&token)
            || self.parameters.stop_tokens.contains(&token);
        if let Some(logits) = &model_logits {
            self.score(token, Some(logits), is_end);
        }
        if is_end {
            return self.finish(FinishReason::Stop);
        }
        self.generated += 1;
        let bytes = self.bytes_in_text(token);
        let decoded = self.detokenizer.push(&bytes);
        let was_reasoning = self.is_reasoning();
        self.send(decoded.text);
        if was_reasoning || self.is_reasoning() {
            self.reasoning += 1;
        }
        if decoded.is_stopped {
            self.send_end(FinishReason::Stop);
            return None;
        }
        if self.parsers.tools.as_ref().is_some_and(ToolCallParser::is_full) {
            return self.finish(FinishReason::Stop);
        }
        if self.generated >= self.parameters.max_tokens {
            return self.finish(FinishReason::Length);
        }
        Some(token)
    }

    fn is_reasoning(&self) -> bool {
        self.parsers.reasoning.as_ref().is_some_and(ReasoningParser::is_reasoning)
    }

    /// Tells the client how many tokens of the prompt came from the prefix cache.
    pub fn report_cached_tokens(&self, prompt_tokens: usize) {
        self.events.send(Event::PrefixCacheHit { prompt_tokens: prompt_tokens as u64 });
    }

    /// Ends the output because of a fault.
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

    fn accept_prompt_token(&mut self, position: usize, logits: Option<&[f32]>) -> String {
        let Some(token) = self.prompt().get(position).copied() else {
            return String::new();
        };
        self.score(token, logits, false);
        self.echo_token(position)
    }

    /// The text that can be shown with the prompt's token at `position`.
    fn echo_token(&mut self, position: usize) -> String {
        if position < self.parameters.before_text {
            return String::new();
        }
        let token = self.parameters.prompt[position];
        let bytes = match position == self.parameters.before_text {
            true => self.tokenizer.bytes_of_first(token),
            false => self.tokenizer.bytes_of(token),
        };
        self.detokenizer.push_prompt(&bytes)
    }

    /// What a generated token adds to the text. A control token adds nothing, unless it marks a tool call or
    /// reasoning.
    fn bytes_in_text(&self, token: u32) -> Vec<u8> {
        if self.tokenizer.is_control(token) {
            let mut bytes = self.tokenizer.bytes_of(token);
            let OutputParsers { reasoning, tools } = &self.parsers;
            let is_read = tools.as_ref().is_some_and(|tools| tools.is_mark(&bytes))
                || reasoning.as_ref().is_some_and(|reasoning| reasoning.is_tag(&bytes));
            if !is_read {
                bytes.clear();
            }
            bytes
        } else if self.parameters.starts_new_text && self.detokenizer.end() == 0 {
            self.tokenizer.bytes_of_first(token)
        } else {
            self.tokenizer.bytes_of(token)
        }
    }

    /// Scores the token that comes next in the text by the `logits` of its position.
    fn score(&mut self, token: u32, logits: Option<&[f32]>, is_end: bool) {
        let count = self.parameters.log_probabilities.unwrap_or_default();
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
            offset: self.detokenizer.end_in_characters(),
            is_end,
        };
        self.unsent.push_back((self.detokenizer.end(), scored));
    }

    /// Ends the output and sends the rest of it.
    fn finish(&mut self, reason: FinishReason) -> Option<u32> {
        let rest = self.detokenizer.finish();
        let reason = if rest.is_stopped { FinishReason::Stop } else { reason };
        if rest.is_stopped {
            self.send(rest.text);
        } else {
            let tokens = self.unsent.drain(..).map(|(_, token)| token).collect();
            self.send_delta(rest.text, tokens);
        }
        self.send_end(reason);
        None
    }

    /// Sends text, and the tokens that begin in the text sent so far.
    fn send(&mut self, text: String) {
        let mut tokens = Vec::new();
        while let Some((start, _)) = self.unsent.front()
            && *start < self.detokenizer.shown()
        {
            tokens.extend(self.unsent.pop_front().map(|(_, token)| token));
        }
        self.send_delta(text, tokens);
    }

    fn send_delta(&mut self, text: String, tokens: Vec<ScoredToken>) {
        let index = self.parameters.index;
        let OutputParsers { reasoning, tools } = &mut self.parsers;
        if reasoning.is_none() && tools.is_none() {
            if !text.is_empty() || !tokens.is_empty() {
                self.events.send(Event::Delta { index, text, tokens });
            }
            return;
        }
        let split = match reasoning {
            Some(reasoning) => reasoning.push(&text),
            None => SplitText { answer: text, ..SplitText::default() },
        };
        if !tokens.is_empty() {
            self.events.send(Event::Delta { index, text: String::new(), tokens });
        }
        self.send_split(split);
    }

    fn send_split(&mut self, split: SplitText) {
        let index = self.parameters.index;
        if !split.reasoning.is_empty() {
            self.events.send(Event::Reasoning { index, text: split.reasoning });
        }
        if split.answer.is_empty() {
            return;
        }
        let parts = match &mut self.parsers.tools {
            Some(tools) => tools.push(&split.answer),
            None => vec![OutputPart::Text(split.answer)],
        };
        self.send_parts(parts);
    }

    fn send_parts(&self, parts: Vec<OutputPart>) {
        let index = self.parameters.index;
        for part in parts {
            self.events.send(match part {
                OutputPart::Text(text) => Event::Delta { index, text, tokens: Vec::new() },
                OutputPart::Call(call) => Event::ToolCall { index, call },
            });
        }
    }

    fn send_end(&mut self, reason: FinishReason) {
        let index = self.parameters.index;
        let (completion_tokens, reasoning_tokens) = (self.generated as u64, self.reasoning as u64);
        if let Some(reasoning) = &mut self.parsers.reasoning {
            let rest = reasoning.finish();
            self.send_split(rest);
        }
        let tools = self.parsers.tools.as_mut();
        let rest = tools.map(ToolCallParser::finish).unwrap_or_default();
        self.send_parts(rest);
        let has_called = self.parsers.tools.as_ref().is_some_and(|tools| tools.calls() > 0);
        let reason = match reason {
            FinishReason::Stop if has_called => FinishReason::ToolCalls,
            reason => reason,
        };
        self.events.send(Event::Finished { index, reason, completion_tokens, reasoning_tokens });
    }
}
