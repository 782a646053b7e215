//! One step of a model: which tokens it computes, within the token budget, and the run itself.
//!
//! Decode comes first: each sequence that decodes gets one token. Prompts are prefilled in chunks with the
//! rest of the step's token budget, of which each project gets its share. So a long prompt delays the streams beside it by a chunk at most.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::loaded_model::LoadedModel;
use super::sequence::GenerationSequence;
use crate::domain::project::Project;
use crate::train::engine::{DecodeStep, PREFILL_CHUNK};

/// Token budget for prefill in a step in which sequences decode: they wait for it.
const PREFILL_BESIDE_DECODE: usize = 64;

/// Most rows of prompt logits in a step. Each row is as long as the vocabulary.
const MAX_PROMPT_LOGITS: usize = 64;

/// What a step computes of one sequence.
#[derive(Clone, Copy)]
pub(super) struct ScheduledTokens {
    /// Index of the sequence among the running ones.
    pub sequence: usize,
    /// Number of its tokens.
    pub count: usize,
}

/// The tokens that the next step of `model` computes.
pub(super) fn schedule_tokens(
    running: &[GenerationSequence],
    model: &Arc<LoadedModel>,
) -> Vec<ScheduledTokens> {
    let of_model = || {
        let all = running.iter().enumerate();
        all.filter(|(_, sequence)| Arc::ptr_eq(&sequence.model, model))
    };
    let mut scheduled: Vec<ScheduledTokens> = of_model()
        .filter(|(_, sequence)| sequence.uncomputed_tokens() == 1)
        .map(|(index, _)| ScheduledTokens { sequence: index, count: 1 })
        .collect();
    let mut budget = if scheduled.is_empty() { PREFILL_CHUNK } else { PREFILL_BESIDE_DECODE };
    let mut logits_budget = MAX_PROMPT_LOGITS;
    let prefilled = of_model().filter(|(_, sequence)| sequence.uncomputed_tokens() > 1);
    let mut prefilled: Vec<Prefill<'_>> =
        prefilled.map(|(index, sequence)| Prefill { index, sequence, count: 0 }).collect();
    let mut projects: Vec<&Project> = Vec::new();
    for prefill in &prefilled {
        if !projects.contains(&prefill.project()) {
            projects.push(prefill.project());
        }
    }
    // First each project's share, then what others have left of theirs, oldest first.
    for project in &projects {
        let (mut share, mut logits_share) =
            (budget.div_ceil(projects.len()), logits_budget.div_ceil(projects.len()));
        for prefill in prefilled.iter_mut().filter(|prefill| prefill.project() == *project) {
            prefill.take(&mut share, &mut logits_share);
        }
    }
    let counted = |prefilled: &[Prefill<'_>], only_logits: bool| -> usize {
        let all = prefilled.iter();
        let counted = all.filter(|one| !only_logits || one.sequence.needs_prompt_logits());
        counted.map(|prefill| prefill.count).sum()
    };
    budget = budget.saturating_sub(counted(&prefilled, false));
    logits_budget = logits_budget.saturating_sub(counted(&prefilled, true));
    for prefill in &mut prefilled {
        prefill.take(&mut budget, &mut logits_budget);
    }
    let taken = prefilled.iter().filter(|prefill| prefill.count > 0);
    scheduled.extend(taken.map(|one| ScheduledTokens { sequence: one.index, count: one.count }));
    scheduled
}

/// A sequence in prefill, and how many of its tokens a step computes.
struct Prefill<'a> {
    index: usize,
    sequence: &'a GenerationSequence,
    count: usize,
}

impl<'a> Prefill<'a> {
    fn project(&self) -> &'a Project {
        &self.sequence.tenant.project
    }

    /// Takes tokens out of the budgets, as many as it has left.
    fn take(&mut self, budget: &mut usize, logits_budget: &mut usize) {
        let needs_prompt_logits = self.sequence.needs_prompt_logits();
        let most = if needs_prompt_logits { (*budget).min(*logits_budget) } else { *budget };
        let count = (self.sequence.uncomputed_tokens() - self.count).min(most);
        self.count += count;
        *budget -= count;
        if needs_prompt_logits {
            *logits_budget -= count;
        }
    }
}

/// Runs the model: the logits of each scheduled sequence. When the run of all together fails, each runs
/// alone, so that only the sequence at fault fails.
pub(super) fn run_model(
    model: &LoadedModel,
    running: &mut [GenerationSequence],
    scheduled: &[ScheduledTokens],
) -> Vec<Result<Vec<f32>, String>> {
    match try_run_model(model, running, scheduled) {
        Ok(outputs) => outputs.into_iter().map(Ok).collect(),
        Err(reason) if scheduled.len() == 1 => vec![Err(reason)],
        Err(reason) => {
            tracing::error!(reason, "a step failed; its sequences run one by one");
            let alone = |one: &ScheduledTokens| {
                let outputs = try_run_model(model, running, std::slice::from_ref(one))?;
                outputs.into_iter().next().ok_or_else(|| "the step has no output".to_owned())
            };
            scheduled.iter().map(alone).collect()
        }
    }
}

fn try_run_model(
    model: &LoadedModel,
    running: &mut [GenerationSequence],
    scheduled: &[ScheduledTokens],
) -> Result<Vec<Vec<f32>>, String> {
    let mut counts = vec![0; running.len()];
    let mut positions = vec![usize::MAX; running.len()];
    for (position, tokens) in scheduled.iter().enumerate() {
        counts[tokens.sequence] = tokens.count;
        positions[tokens.sequence] = position;
    }
    let mut inputs: Vec<(usize, DecodeStep<'_>)> = Vec::with_capacity(scheduled.len());
    for (index, sequence) in running.iter_mut().enumerate() {
        if counts[index] > 0 {
            inputs.push((positions[index], sequence.step_input(counts[index])));
        }
    }
    inputs.sort_by_key(|(position, _)| *position);
    let mut inputs: Vec<DecodeStep<'_>> = inputs.into_iter().map(|(_, input)| input).collect();
    let responder = model.responder();
    match catch_unwind(AssertUnwindSafe(|| responder.advance(&mut inputs))) {
        Ok(outputs) => outputs.map_err(|error| error.to_string()),
        Err(_panic) => Err("the engine panicked".to_owned()),
    }
}
