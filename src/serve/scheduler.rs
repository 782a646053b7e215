//! Which sequences run, and in which order: continuous batching.
//!
//! Sequences are waiting, running or preempted. [`Scheduler::step`] is one step of the device, for the
//! sequences of one model, whatever their adapters:
//!
//! 1. sequences whose clients have disconnected are dropped;
//! 2. waiting sequences are admitted while there is room and memory for them, those of the project with the
//!    fewest running sequences first; a project that has none running gets the place of another one's;
//! 3. the model computes the scheduled tokens ([`super::step`]: decode first, then prefill);
//! 4. the outputs go to the sequences; what a finished sequence has computed goes to the prefix cache.
//!
//! Models take turns. A sequence computes the same bits whatever runs beside it, so it can be preempted
//! when memory is short, and computed again later.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::error::ServeError;
use super::loaded_model::LoadedModel;
use super::prefix_cache::{PrefixCache, PrefixCacheKey, common_prefix};
use super::sequence::GenerationSequence;
use super::sequence_group::SequenceGroup;
use super::sequence_output::SequenceOutput;
use super::statistics::Statistics;
use super::step::{ScheduledTokens, run_model, schedule_tokens};
use crate::domain::project::Project;
use crate::train::engine::SequenceCache;

/// Most sequences that run at once.
const MAX_SEQUENCES: usize = 64;

/// Generated tokens for which there must be memory before a sequence is admitted.
const RESERVED_TOKENS: usize = 64;

/// The memory of key/value caches.
pub(super) struct KvCacheMemory<'a> {
    /// Bytes that they may take.
    pub limit: u64,
    /// Bytes that they take now.
    pub used: &'a dyn Fn() -> u64,
}

impl KvCacheMemory<'_> {
    /// Whether so many more bytes are within the limit.
    fn has_room(&self, bytes: u64) -> bool {
        (self.used)() + bytes <= self.limit
    }
}

/// Sequences that may be admitted, by their index.
#[derive(Clone, Copy)]
enum NextSequences {
    Preempted(usize),
    Waiting(usize),
}

/// All sequences on the device.
pub(super) struct Scheduler {
    waiting: VecDeque<SequenceGroup>,
    /// Sequences that lost their cache for want of memory, with the tokens that they have generated.
    preempted: VecDeque<GenerationSequence>,
    running: Vec<GenerationSequence>,
    prefix_cache: PrefixCache,
    /// Arrivals so far.
    arrived: u64,
    /// The model of the last step.
    last_model: Option<*const LoadedModel>,
    statistics: Arc<Statistics>,
}

impl Scheduler {
    pub fn new(statistics: Arc<Statistics>) -> Self {
        Self {
            waiting: VecDeque::new(),
            preempted: VecDeque::new(),
            running: Vec::new(),
            prefix_cache: PrefixCache::default(),
            arrived: 0,
            last_model: None,
            statistics,
        }
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.preempted.is_empty() && self.running.is_empty()
    }

    /// Number of prompts that wait and of sequences that are preempted.
    pub fn waiting(&self) -> usize {
        self.waiting.len() + self.preempted.len()
    }

    /// The same of one project.
    pub fn waiting_of(&self, project: &Project) -> usize {
        let waiting = self.waiting.iter().filter(|group| group.tenant.project == *project);
        let preempted = self.preempted.iter().filter(|one| one.tenant.project == *project);
        waiting.count() + preempted.count()
    }

    /// Adds the sequences of a request to those that wait.
    pub fn enqueue(&mut self, groups: Vec<SequenceGroup>) {
        self.waiting.extend(groups);
    }

    /// Evicts prefixes until all caches are within the limit, those of unloaded models first.
    pub fn trim_prefix_cache(&mut self, memory: &KvCacheMemory<'_>) {
        self.prefix_cache.evict_unloaded();
        while !memory.has_room(0) && self.prefix_cache.evict_one() {}
    }

    /// One step of the device.
    pub fn step(&mut self, memory: &KvCacheMemory<'_>) {
        self.drop_disconnected();
        self.admit(memory);
        self.statistics.set_queue(self.running.len(), self.waiting());
        let Some(model) = self.next_model() else { return };
        let scheduled = schedule_tokens(&self.running, &model);
        self.preempt_for(&scheduled, &model, memory);
        // Preempted sequences are not scheduled any more.
        let scheduled = schedule_tokens(&self.running, &model);
        let outputs = run_model(&model, &mut self.running, &scheduled);
        self.accept_outputs(&scheduled, outputs);
    }

    /// Drops sequences whose clients have disconnected.
    fn drop_disconnected(&mut self) {
        self.waiting.retain_mut(|group| {
            group.outputs.retain(SequenceOutput::is_connected);
            !group.outputs.is_empty()
        });
        self.preempted.retain(GenerationSequence::is_connected);
        let mut index = 0;
        while let Some(sequence) = self.running.get(index) {
            if sequence.is_connected() {
                index += 1;
            } else {
                // Its computed tokens may be the prefix of another sequence.
                let sequence = self.running.remove(index);
                self.cache_prefix(sequence);
            }
        }
    }

    /// Admits sequences while there is room. One sequence may always run.
    fn admit(&mut self, memory: &KvCacheMemory<'_>) {
        self.waiting.retain(|group| !group.outputs.is_empty());
        while let Some(next) = self.next_to_admit() {
            let (project, count, needs) = match next {
                NextSequences::Preempted(index) => {
                    let sequence = &self.preempted[index];
                    let tokens = sequence.tokens.len() + RESERVED_TOKENS;
                    let needs = sequence.model.responder().bytes_of_text(tokens);
                    (sequence.tenant.project.clone(), 1, needs)
                }
                NextSequences::Waiting(index) => {
                    let group = &self.waiting[index];
                    let prompt = group.outputs.first().map_or(0, |first| first.prompt().len());
                    let needs = group.model.responder().bytes_of_text(prompt + RESERVED_TOKENS);
                    (group.tenant.project.clone(), group.outputs.len(), needs)
                }
            };
            while !self.has_room(count, needs, memory) {
                if self.running_of(&project) > 0 || !self.preempt_of_the_busiest(&project) {
                    return;
                }
            }
            match next {
                NextSequences::Preempted(index) => {
                    let Some(sequence) = self.preempted.remove(index) else { return };
                    self.resume(sequence);
                }
                NextSequences::Waiting(index) => {
                    let Some(group) = self.waiting.remove(index) else { return };
                    self.start(group);
                }
            }
        }
    }

    /// The sequences that are admitted next: of the project with the fewest running ones, preempted ones
    /// first, then the oldest.
    fn next_to_admit(&self) -> Option<NextSequences> {
        let preempted = self.preempted.iter().enumerate();
        let preempted =
            preempted.map(|(index, one)| (&one.tenant.project, NextSequences::Preempted(index)));
        let waiting = self.waiting.iter().enumerate();
        let waiting =
            waiting.map(|(index, group)| (&group.tenant.project, NextSequences::Waiting(index)));
        // The first of the smallest ones.
        let next = preempted.chain(waiting).min_by_key(|(project, _)| self.running_of(project));
        next.map(|(_, next)| next)
    }

    /// Number of running sequences of a project.
    fn running_of(&self, project: &Project) -> usize {
        let of_project = self.running.iter().filter(|one| one.tenant.project == *project);
        of_project.map(GenerationSequence::sequences).sum()
    }

    /// Preempts the youngest sequence of the project that has most of them, beside `project`; whether
    /// there was one. No project loses its last one.
    fn preempt_of_the_busiest(&mut self, project: &Project) -> bool {
        let others = self.running.iter().map(|one| &one.tenant.project);
        let others = others.filter(|other| *other != project);
        let Some(busiest) = others.max_by_key(|other| self.running_of(other)) else { return false };
        let of_busiest = self.running.iter().enumerate();
        let of_busiest = of_busiest.filter(|(_, one)| one.tenant.project == *busiest);
        let (count, youngest) =
            (of_busiest.clone().count(), of_busiest.max_by_key(|(_, one)| one.arrival));
        let Some((index, _)) = youngest.filter(|_| count > 1) else { return false };
        self.preempt(index);
        true
    }

    /// Takes a running sequence out. What it has computed stays in the prefix cache as long as there is
    /// memory.
    fn preempt(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        match sequence.model.responder().new_cache() {
            Ok(cache) => {
                tracing::debug!(tokens = sequence.tokens.len(), "sequence preempted");
                let cache = std::mem::replace(&mut sequence.cache, cache);
                let computed = sequence.tokens[..cache.length()].to_vec();
                self.prefix_cache.insert(sequence.prefix_cache_key(), computed, cache);
                self.preempted.push_front(sequence);
            }
            Err(error) => sequence.fail(|| ServeError::engine_failed(error.to_string())),
        }
    }

    /// Lets a preempted sequence run again, from its longest prefix that is computed already.
    fn resume(&mut self, mut sequence: GenerationSequence) {
        let key = sequence.prefix_cache_key();
        let prefix = self.longest_prefix(&key, &sequence.tokens);
        if let Some(cache) = prefix.filter(|_| !sequence.needs_prompt_logits()) {
            sequence.cache = cache;
        }
        self.running.push(sequence);
    }

    /// Starts the sequences of a prompt, from its longest prefix that is computed already.
    fn start(&mut self, mut group: SequenceGroup) {
        let Some(first) = group.outputs.first() else { return };
        let prompt = Arc::clone(first.prompt());
        let key = PrefixCacheKey::new(&group.model, group.adapter.as_ref(), &group.tenant);
        let prefix = match first.needs_prompt_logits() {
            true => None,
            false => self.longest_prefix(&key, &prompt),
        };
        let cache = match prefix.map_or_else(|| group.model.responder().new_cache(), Ok) {
            Ok(cache) => cache,
            Err(error) => {
                for output in &mut group.outputs {
                    output.fail(ServeError::engine_failed(error.to_string()));
                }
                return;
            }
        };
        self.statistics.count_prompt(prompt.len(), cache.length());
        if let Some(first) = group.outputs.first().filter(|_| cache.length() > 0) {
            first.report_cached_tokens(cache.length());
        }
        self.arrived += 1;
        self.running.extend(GenerationSequence::new(group, cache, self.arrived));
    }

    /// The longest computed prefix of `tokens`, in the prefix cache or in a running sequence.
    fn longest_prefix(&mut self, key: &PrefixCacheKey, tokens: &[u32]) -> Option<SequenceCache> {
        let cached = self.prefix_cache.longest_prefix(key, tokens);
        let mut best = cached.as_ref().map_or(0, SequenceCache::length);
        let mut of_running = None;
        for sequence in self.running.iter().filter(|one| one.prefix_cache_key().is(key)) {
            let computed = &sequence.tokens[..sequence.computed_tokens()];
            let common = common_prefix(computed, tokens);
            if common > best {
                best = common;
                of_running = Some(sequence.cache.beginning(common));
            }
        }
        of_running.or(cached)
    }

    /// Whether so many more sequences that need so many bytes may run. Evicts prefixes to make room.
    fn has_room(&mut self, sequences: usize, needs: u64, memory: &KvCacheMemory<'_>) -> bool {
        if self.running.is_empty() {
            return true;
        }
        let running: usize = self.running.iter().map(GenerationSequence::sequences).sum();
        if running + sequences > MAX_SEQUENCES {
            return false;
        }
        while !memory.has_room(needs) {
            if !self.prefix_cache.evict_one() {
                return false;
            }
        }
        true
    }

    /// The model of the next step: models with running sequences take turns.
    fn next_model(&mut self) -> Option<Arc<LoadedModel>> {
        let mut models: Vec<&Arc<LoadedModel>> = Vec::new();
        for sequence in &self.running {
            if !models.iter().any(|model| Arc::ptr_eq(model, &sequence.model)) {
                models.push(&sequence.model);
            }
        }
        models.sort_by_key(|model| Arc::as_ptr(model));
        let last = self.last_model;
        let next = models.iter().find(|model| last.is_none_or(|last| Arc::as_ptr(model) > last));
        let model = Arc::clone(next.or(models.first())?);
        self.last_model = Some(Arc::as_ptr(&model));
        Some(model)
    }

    /// Makes room for the tokens of a step: evicts prefixes first, then preempts the youngest sequence, as
    /// long as another one runs.
    fn preempt_for(
        &mut self,
        scheduled: &[ScheduledTokens],
        model: &LoadedModel,
        memory: &KvCacheMemory<'_>,
    ) {
        let tokens: usize = scheduled.iter().map(|scheduled| scheduled.count).sum();
        let responder = model.responder();
        let needs = responder.bytes_of_text(tokens) + responder.bytes_of_text(scheduled.len());
        while !memory.has_room(needs) {
            if self.prefix_cache.evict_one() {
                continue;
            }
            let youngest = self.running.iter().enumerate().max_by_key(|(_, one)| one.arrival);
            let Some((index, _)) = youngest.filter(|_| self.running.len() > 1) else { return };
            self.preempt(index);
        }
    }

    /// Gives the outputs of a step to its sequences.
    fn accept_outputs(
        &mut self,
        scheduled: &[ScheduledTokens],
        outputs: Vec<Result<Vec<f32>, String>>,
    ) {
        let mut ended = Vec::new();
        let mut all_forked = Vec::new();
        let mut generated = 0;
        for (tokens, output) in scheduled.iter().zip(outputs) {
            let sequence = &mut self.running[tokens.sequence];
            let before = sequence.tokens.len();
            let accepted = output
                .map(|logits| catch_unwind(AssertUnwindSafe(|| sequence.accept_logits(logits))));
            match accepted {
                Ok(Ok(outcome)) => {
                    generated += sequence.tokens.len() - before + outcome.forked.len();
                    all_forked.extend(outcome.forked);
                    if outcome.is_finished {
                        ended.push((tokens.sequence, true));
                    }
                }
                Ok(Err(_panic)) => {
                    sequence.fail(|| ServeError::engine_failed("a sequence panicked".to_owned()));
                    ended.push((tokens.sequence, false));
                }
                Err(reason) => {
                    sequence.fail(|| ServeError::engine_failed(reason.clone()));
                    ended.push((tokens.sequence, false));
                }
            }
        }
        ended.sort_unstable_by_key(|(index, _)| std::cmp::Reverse(*index));
        for (index, is_finished) in ended {
            let sequence = self.running.remove(index);
            if is_finished {
                self.cache_prefix(sequence);
            }
        }
        self.running.extend(all_forked);
        let computed = scheduled.iter().map(|scheduled| scheduled.count).sum();
        self.statistics.count_step(computed, generated);
        self.statistics.set_queue(self.running.len(), self.waiting());
    }

    /// Puts the computed tokens of a sequence into the prefix cache.
    fn cache_prefix(&mut self, sequence: GenerationSequence) {
        let key = sequence.prefix_cache_key();
        let GenerationSequence { mut tokens, cache, .. } = sequence;
        tokens.truncate(cache.length());
        self.prefix_cache.insert(key, tokens, cache);
    }
}
