//! Which texts go through a model together: continuous batching.
//!
//! [`Scheduler::pass`] is one turn of the device, for the texts of one base model, whatever their
//! adapters:
//!
//! 1. texts whose clients have gone end;
//! 2. texts that wait begin, oldest first, as long as there is room and memory for them;
//! 3. every text that writes gets its next token, and those that are still being read get what is
//!    left of the pass, so that nobody who reads along waits for a long prompt;
//! 4. what the pass made goes to the answers; texts that end are kept for those that begin alike.
//!
//! Base models take turns. What a text gets does not depend on what goes beside it, so a text may
//! also be set aside when memory is short, and read again later to the same bits.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::ServeError;
use super::answer::Answer;
use super::kept::{Kept, Kind, shared};
use super::loaded::LoadedBase;
use super::prepare::{NamedAdapter, Prepared};
use super::running::Text;
use super::statistics::Statistics;
use crate::domain::error_code::ErrorCode;
use crate::train::engine::{Advance, PROMPT_CHUNK, TextCache};

/// Most texts that are written at once.
const MOST_TEXTS: usize = 64;

/// Most tokens of prompts in a pass beside texts that are being written: they wait for it.
const BESIDE_WRITING: usize = 64;

/// Most rows of logits in a pass, of prompts that are scored: each is as long as the vocabulary.
const SCORED_ROWS: usize = 64;

/// Tokens of an answer for which there must be memory before it begins.
const FIRST_TOKENS: usize = 64;

/// Answers to one prompt that wait.
struct Waiting {
    base: Arc<LoadedBase>,
    adapter: Option<NamedAdapter>,
    answers: Vec<Answer>,
}

/// A text's share of a pass.
#[derive(Clone, Copy)]
struct Share {
    /// Its index among those that run.
    text: usize,
    /// Tokens.
    count: usize,
}

/// All texts on the device.
pub(super) struct Scheduler {
    waiting: VecDeque<Waiting>,
    /// Texts that had to make room, with what they have written.
    aside: VecDeque<Text>,
    running: Vec<Text>,
    kept: Kept,
    /// Arrivals so far.
    arrived: u64,
    /// The base whose turn was last.
    last: Option<*const LoadedBase>,
    statistics: Arc<Statistics>,
}

impl Scheduler {
    pub fn new(statistics: Arc<Statistics>) -> Self {
        Self {
            waiting: VecDeque::new(),
            aside: VecDeque::new(),
            running: Vec::new(),
            kept: Kept::default(),
            arrived: 0,
            last: None,
            statistics,
        }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.aside.is_empty() && self.running.is_empty()
    }

    /// Texts that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.aside.len()
    }

    /// Takes a request's answers in; those to the same prompt begin together.
    pub fn enqueue(&mut self, prepared: Prepared) {
        let Prepared { base, adapter, answers } = prepared;
        let mut group: Vec<Answer> = Vec::new();
        for answer in answers {
            if group.last().is_some_and(|last| !Arc::ptr_eq(last.prompt(), answer.prompt())) {
                let answers = std::mem::take(&mut group);
                self.wait(&base, &adapter, answers);
            }
            group.push(answer);
        }
        self.wait(&base, &adapter, group);
    }

    fn wait(
        &mut self,
        base: &Arc<LoadedBase>,
        adapter: &Option<NamedAdapter>,
        answers: Vec<Answer>,
    ) {
        let (base, adapter) = (Arc::clone(base), adapter.clone());
        self.waiting.push_back(Waiting { base, adapter, answers });
    }

    /// Gives up kept texts until the caches of all bases take no more than `memory`, those of models
    /// that have gone first.
    pub fn keep_within(&mut self, memory: u64, cached: impl Fn() -> u64) {
        self.kept.sweep();
        while cached() > memory && self.kept.give_up_one() {}
    }

    /// One turn of the device. `memory` is what caches may take, in bytes, and `cached` what they do.
    pub fn pass(&mut self, memory: u64, cached: &dyn Fn() -> u64) {
        self.drop_unwanted();
        self.admit(memory, cached);
        self.statistics.stands(self.running.len(), self.waiting());
        let Some(base) = self.next_base() else { return };
        let shares = self.shares(&base);
        self.make_room(&base, &shares, memory, cached);
        // Texts that were set aside have no share any more.
        let shares = self.shares(&base);
        let made = self.run(&base, &shares);
        self.give(&shares, made);
    }

    /// Ends texts whose clients have gone.
    fn drop_unwanted(&mut self) {
        self.waiting.retain_mut(|waiting| {
            waiting.answers.retain(Answer::is_wanted);
            !waiting.answers.is_empty()
        });
        self.aside.retain(Text::is_wanted);
        let mut index = 0;
        while let Some(text) = self.running.get(index) {
            if text.is_wanted() {
                index += 1;
            } else {
                // What it has read may serve the next.
                let text = self.running.remove(index);
                self.keep(text);
            }
        }
    }

    /// Lets texts begin, as long as there is room; one may always run.
    fn admit(&mut self, memory: u64, cached: &dyn Fn() -> u64) {
        while let Some(text) = self.aside.front() {
            let needs = text.base.responder().bytes_of_text(text.tokens.len() + FIRST_TOKENS);
            if !self.has_room(1, needs, memory, cached) {
                return;
            }
            let Some(mut text) = self.aside.pop_front() else { return };
            let kind = text.kind();
            if let Some(cache) = self.beginning(&kind, &text.tokens).filter(|_| !text.is_scored()) {
                text.cache = cache;
            }
            self.running.push(text);
        }
        while let Some(waiting) = self.waiting.front() {
            let Some(first) = waiting.answers.first() else {
                self.waiting.pop_front();
                continue;
            };
            let prompt = Arc::clone(first.prompt());
            let wants_prompt = first.wants_prompt();
            let needs = waiting.base.responder().bytes_of_text(prompt.len() + FIRST_TOKENS);
            if !self.has_room(waiting.answers.len(), needs, memory, cached) {
                return;
            }
            let Some(Waiting { base, adapter, mut answers }) = self.waiting.pop_front() else {
                return;
            };
            let kind = Kind::of(&base, adapter.as_ref().map(|adapter| adapter.id.clone()));
            let kept = if wants_prompt { None } else { self.beginning(&kind, &prompt) };
            let cache = match kept.map_or_else(|| base.responder().new_cache(), Ok) {
                Ok(cache) => cache,
                Err(error) => {
                    for answer in &mut answers {
                        answer.fail(engine_failed(error.to_string()));
                    }
                    continue;
                }
            };
            self.statistics.began(prompt.len(), cache.length());
            if let Some(first) = answers.first().filter(|_| cache.length() > 0) {
                first.reuses(cache.length());
            }
            self.arrived += 1;
            self.running.extend(Text::begin(base, adapter, answers, cache, self.arrived));
        }
    }

    /// The longest beginning of a text that is kept, or that a text in progress has read.
    fn beginning(&mut self, kind: &Kind, tokens: &[u32]) -> Option<TextCache> {
        let kept = self.kept.beginning(kind, tokens);
        let mut best = kept.as_ref().map_or(0, TextCache::length);
        let mut of_running = None;
        for text in self.running.iter().filter(|text| text.kind().is(kind)) {
            let same = shared(&text.tokens[..text.cache.length()], tokens);
            if same > best {
                best = same;
                of_running = Some(text.cache.beginning(same));
            }
        }
        of_running.or(kept)
    }

    /// Whether so many texts that need so many bytes may begin; kept texts make room for them.
    fn has_room(
        &mut self,
        texts: usize,
        needs: u64,
        memory: u64,
        cached: &dyn Fn() -> u64,
    ) -> bool {
        if self.running.is_empty() {
            return true;
        }
        let answers: usize = self.running.iter().map(Text::answers).sum();
        if answers + texts > MOST_TEXTS {
            return false;
        }
        while cached() + needs > memory {
            if !self.kept.give_up_one() {
                return false;
            }
        }
        true
    }

    /// The base whose turn is next: the one after the last, in the order of their oldest texts.
    fn next_base(&mut self) -> Option<Arc<LoadedBase>> {
        let mut bases: Vec<&Arc<LoadedBase>> = Vec::new();
        for text in &self.running {
            if !bases.iter().any(|base| Arc::ptr_eq(base, &text.base)) {
                bases.push(&text.base);
            }
        }
        bases.sort_by_key(|base| Arc::as_ptr(base));
        let last = self.last;
        let next = bases.iter().find(|base| last.is_none_or(|last| Arc::as_ptr(base) > last));
        let base = Arc::clone(next.or(bases.first())?);
        self.last = Some(Arc::as_ptr(&base));
        Some(base)
    }

    /// What each text of a base does in a pass.
    fn shares(&self, base: &Arc<LoadedBase>) -> Vec<Share> {
        let of_base = || {
            let all = self.running.iter().enumerate();
            all.filter(|(_, text)| Arc::ptr_eq(&text.base, base))
        };
        let mut shares: Vec<Share> = of_base()
            .filter(|(_, text)| text.unread() == 1)
            .map(|(text, _)| Share { text, count: 1 })
            .collect();
        let mut left = if shares.is_empty() { PROMPT_CHUNK } else { BESIDE_WRITING };
        let mut scored = SCORED_ROWS;
        for (text, of) in of_base().filter(|(_, text)| text.unread() > 1) {
            let most = if of.is_scored() { left.min(scored) } else { left };
            let count = of.unread().min(most);
            if count == 0 {
                continue;
            }
            left -= count;
            if of.is_scored() {
                scored -= count;
            }
            shares.push(Share { text, count });
        }
        shares
    }

    /// Makes memory for what a pass adds: kept texts go first, then the youngest text steps aside, as
    /// long as another one runs.
    fn make_room(
        &mut self,
        base: &Arc<LoadedBase>,
        shares: &[Share],
        memory: u64,
        cached: &dyn Fn() -> u64,
    ) {
        let more: usize = shares.iter().map(|share| share.count).sum();
        let needs =
            base.responder().bytes_of_text(more) + base.responder().bytes_of_text(shares.len());
        while cached() + needs > memory {
            if self.kept.give_up_one() {
                continue;
            }
            let youngest = self.running.iter().enumerate().max_by_key(|(_, text)| text.number);
            let Some((index, _)) = youngest.filter(|_| self.running.len() > 1) else { return };
            let mut text = self.running.remove(index);
            match text.base.responder().new_cache() {
                Ok(cache) => {
                    tracing::debug!(tokens = text.tokens.len(), "a text steps aside");
                    text.cache = cache;
                    self.aside.push_front(text);
                }
                Err(error) => text.fail(|| engine_failed(error.to_string())),
            }
        }
    }

    /// Runs the model. Where that fails for all together, each goes alone, so that the one at fault
    /// takes no other down.
    fn run(&mut self, base: &LoadedBase, shares: &[Share]) -> Vec<Result<Vec<f32>, String>> {
        match self.try_run(base, shares) {
            Ok(made) => made.into_iter().map(Ok).collect(),
            Err(reason) if shares.len() == 1 => vec![Err(reason)],
            Err(reason) => {
                tracing::error!(reason, "a pass failed; its texts go one by one");
                let alone = |share: &Share| {
                    let made = self.try_run(base, std::slice::from_ref(share))?;
                    made.into_iter().next().ok_or_else(|| "there is no result".to_owned())
                };
                shares.iter().map(alone).collect()
            }
        }
    }

    fn try_run(&mut self, base: &LoadedBase, shares: &[Share]) -> Result<Vec<Vec<f32>>, String> {
        let mut counts = vec![0; self.running.len()];
        for share in shares {
            counts[share.text] = share.count;
        }
        let mut places = vec![usize::MAX; self.running.len()];
        for (place, share) in shares.iter().enumerate() {
            places[share.text] = place;
        }
        let mut parts: Vec<(usize, Advance<'_>)> = Vec::with_capacity(shares.len());
        for (index, text) in self.running.iter_mut().enumerate() {
            if counts[index] > 0 {
                parts.push((places[index], text.advance(counts[index])));
            }
        }
        parts.sort_by_key(|(place, _)| *place);
        let mut parts: Vec<Advance<'_>> = parts.into_iter().map(|(_, part)| part).collect();
        let responder = base.responder();
        match catch_unwind(AssertUnwindSafe(|| responder.advance(&mut parts))) {
            Ok(made) => made.map_err(|error| error.to_string()),
            Err(_panic) => Err("the engine panicked".to_owned()),
        }
    }

    /// Gives texts what a pass made.
    fn give(&mut self, shares: &[Share], made: Vec<Result<Vec<f32>, String>>) {
        let mut ended = Vec::new();
        let mut begun = Vec::new();
        let mut written = 0;
        for (share, made) in shares.iter().zip(made) {
            let text = &mut self.running[share.text];
            let before = text.tokens.len();
            let taken = made.map(|logits| catch_unwind(AssertUnwindSafe(|| text.take(logits))));
            match taken {
                Ok(Ok((more, is_over))) => {
                    written += text.tokens.len() - before + more.len();
                    begun.extend(more);
                    if is_over {
                        ended.push((share.text, true));
                    }
                }
                Ok(Err(_panic)) => {
                    text.fail(|| engine_failed("an answer panicked".to_owned()));
                    ended.push((share.text, false));
                }
                Err(reason) => {
                    text.fail(|| engine_failed(reason.clone()));
                    ended.push((share.text, false));
                }
            }
        }
        ended.sort_unstable_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, is_good) in ended {
            let text = self.running.remove(index);
            if is_good {
                self.keep(text);
            }
        }
        self.running.extend(begun);
        let read = shares.iter().map(|share| share.count).sum();
        self.statistics.passed(read, written);
        self.statistics.stands(self.running.len(), self.waiting());
    }

    /// Keeps what was read of a text.
    fn keep(&mut self, text: Text) {
        let kind = text.kind();
        let Text { mut tokens, cache, .. } = text;
        tokens.truncate(cache.length());
        self.kept.put(kind, tokens, cache);
    }
}

/// An engine fault is ours: the client hears that it failed, the log hears why.
fn engine_failed(message: String) -> ServeError {
    ServeError::new(ErrorCode::InternalError, message)
}
