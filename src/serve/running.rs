//! One text in progress: the answer that it becomes and what the model has read of it.

use std::sync::Arc;

use super::answer::Answer;
use super::kept::Kind;
use super::loaded::LoadedBase;
use super::prepare::NamedAdapter;
use crate::train::engine::{Advance, TextCache};

/// A text that the model reads or writes.
pub(super) struct Text {
    pub base: Arc<LoadedBase>,
    pub adapter: Option<NamedAdapter>,
    /// The prompt and what has been written.
    pub tokens: Vec<u32>,
    /// What the model has read of `tokens`.
    pub cache: TextCache,
    /// In the order of arrival.
    pub number: u64,
    answer: Answer,
    /// Other answers to the same prompt, which begin when it has been read.
    siblings: Vec<Answer>,
    /// Positions of the prompt whose logits the answers have got, where they want them.
    scored: usize,
}

impl Text {
    /// Begins the first of `answers`, all of them to one prompt; `None` of none.
    pub fn begin(
        base: Arc<LoadedBase>,
        adapter: Option<NamedAdapter>,
        mut answers: Vec<Answer>,
        cache: TextCache,
        number: u64,
    ) -> Option<Self> {
        if answers.is_empty() {
            return None;
        }
        let answer = answers.remove(0);
        let tokens = answer.prompt().to_vec();
        Some(Self { base, adapter, tokens, cache, number, answer, siblings: answers, scored: 0 })
    }

    /// What it is computed with.
    pub fn kind(&self) -> Kind {
        Kind::of(&self.base, self.adapter.as_ref().map(|adapter| adapter.id.clone()))
    }

    /// Answers that it stands for.
    pub fn answers(&self) -> usize {
        1 + self.siblings.len()
    }

    /// Tokens that the model has yet to read.
    pub fn unread(&self) -> usize {
        self.tokens.len() - self.cache.length()
    }

    /// Whether the logits of every position of the prompt are wanted.
    pub fn is_scored(&self) -> bool {
        self.answer.wants_prompt()
    }

    /// Whether the client is still there, which all answers to a prompt have in common.
    pub fn is_wanted(&self) -> bool {
        self.answer.is_wanted()
    }

    /// Its part in a pass of `count` tokens.
    pub fn advance(&mut self, count: usize) -> Advance<'_> {
        let read = self.cache.length();
        let wants_prompt = self.is_scored() && self.scored < self.answer.prompt().len();
        let wanted = if wants_prompt {
            (read + count).saturating_sub(self.scored).min(count)
        } else {
            usize::from(read + count == self.tokens.len())
        };
        Advance {
            adapter: self.adapter.as_ref().map(|adapter| &*adapter.attached),
            cache: &mut self.cache,
            input_ids: &self.tokens[read..read + count],
            wanted,
        }
    }

    /// Takes what a pass made; texts that begin with it, and whether this one has ended.
    pub fn take(&mut self, mut logits: Vec<f32>) -> (Vec<Text>, bool) {
        let vocabulary = self.base.responder().vocabulary();
        let read = self.cache.length();
        if self.is_scored() && self.scored < self.answer.prompt().len() {
            let first = read - logits.len() / vocabulary.max(1);
            for answer in std::iter::once(&mut self.answer).chain(&mut self.siblings) {
                answer.take_prompt(first, &logits, vocabulary);
            }
            self.scored = read;
        }
        if read < self.tokens.len() {
            return (Vec::new(), false);
        }
        let mut last = logits.split_off(logits.len().saturating_sub(vocabulary));
        let mut begun = Vec::new();
        for mut answer in std::mem::take(&mut self.siblings) {
            let Some(token) = answer.take(&mut last.clone()) else { continue };
            let mut tokens = self.tokens.clone();
            tokens.push(token);
            begun.push(Self {
                base: Arc::clone(&self.base),
                adapter: self.adapter.clone(),
                tokens,
                cache: self.cache.beginning(read),
                number: self.number,
                answer,
                siblings: Vec::new(),
                scored: self.scored,
            });
        }
        match self.answer.take(&mut last) {
            Some(token) => {
                self.tokens.push(token);
                (begun, false)
            }
            None => (begun, true),
        }
    }

    /// Ends its answers because of a fault.
    pub fn fail(&mut self, mut error: impl FnMut() -> super::ServeError) {
        for answer in std::iter::once(&mut self.answer).chain(&mut self.siblings) {
            answer.fail(error());
        }
    }
}
