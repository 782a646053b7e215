//! Sampling: from logits to the next token, and to log-probabilities.
//!
//! Own code, because it must be exact where candle-transformers' `LogitsProcessor` is not: a `top_p`
//! of 0 is greedy there neither with nor without temperature, sums run in 32 bits, and it knows
//! neither OpenAI's penalties nor biases. The tests compare both where they must agree.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::error::ServeError;
use super::request::Sampling;
use crate::domain::error_code::ErrorCode;
use crate::train::rng::Stream;

/// A bias that bans a token, as OpenAI documents it.
const BAN: f32 = -100.0;

/// Samples the tokens of one sequence.
pub(super) struct Sampler {
    sampling: Sampling,
    stream: Stream,
    /// Tokens sampled so far.
    drawn: u64,
    /// How often the output contains each token.
    counts: HashMap<u32, u32>,
}

impl Sampler {
    /// For the output `index` of a request with this seed.
    pub fn new(sampling: Sampling, seed: u64, index: usize) -> Self {
        let stream = Stream::new(seed, "sampling", index as u64);
        Self { sampling, stream, drawn: 0, counts: HashMap::new() }
    }

    /// Samples the next token. Biases and penalties change `logits`.
    ///
    /// # Errors
    /// When the logits are not numbers, or every token is banned.
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<u32, SampleError> {
        if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return Err(SampleError::NotANumber);
        }
        self.penalise(logits);
        for (token, bias) in &self.sampling.logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = if *bias <= BAN { f32::NEG_INFINITY } else { *logit + *bias };
            }
        }
        let best = first_largest(logits).ok_or(SampleError::NothingLeft)?;
        let is_greedy = self.sampling.temperature == 0.0 || self.sampling.top_p == 0.0;
        let token = if is_greedy { best } else { self.draw(logits, logits[best as usize]) };
        self.drawn += 1;
        *self.counts.entry(token).or_insert(0) += 1;
        Ok(token)
    }

    /// OpenAI's formula: a token of the output loses the frequency penalty times its count, and the
    /// presence penalty once.
    fn penalise(&self, logits: &mut [f32]) {
        let Sampling { frequency_penalty, presence_penalty, .. } = self.sampling;
        if frequency_penalty == 0.0 && presence_penalty == 0.0 {
            return;
        }
        for (token, count) in &self.counts {
            let penalty = f64::from(*count) * frequency_penalty + presence_penalty;
            logits[*token as usize] -= penalty as f32;
        }
    }

    /// Draws from the nucleus of the distribution at the temperature.
    fn draw(&self, logits: &[f32], largest: f32) -> u32 {
        let weight = |logit: f32| {
            ((f64::from(logit) - f64::from(largest)) / self.sampling.temperature).exp()
        };
        let total: f64 = logits.iter().map(|logit| weight(*logit)).sum();
        // 53 random bits: every double in [0, 1) that has so many.
        let unit = (self.stream.bits(self.drawn) >> 11) as f64 / (1u64 << 53) as f64;
        if self.sampling.top_p >= 1.0 {
            let all = logits.iter().enumerate();
            let all = all.map(|(token, logit)| (token as u32, weight(*logit)));
            return pick(all, unit * total).unwrap_or_default();
        }
        let nucleus = nucleus(logits, weight, self.sampling.top_p * total);
        let inside: f64 = nucleus.iter().map(|(_, weight)| weight).sum();
        pick(nucleus.into_iter(), unit * inside).unwrap_or_default()
    }
}

/// Why no token can be sampled.
#[derive(Debug, thiserror::Error)]
pub(super) enum SampleError {
    /// The model's arithmetic failed.
    #[error(
        "the model computed logits that are not numbers: its weights hold such values, or its \
         configuration does not fit them"
    )]
    NotANumber,
    /// Biases ban every token.
    #[error("logit_bias bans every token of the model")]
    NothingLeft,
}

impl From<SampleError> for ServeError {
    fn from(error: SampleError) -> Self {
        let message = error.to_string();
        match error {
            SampleError::NotANumber => Self::about("model", ErrorCode::InvalidModel, message),
            SampleError::NothingLeft => {
                Self::about("logit_bias", ErrorCode::InvalidRequest, message)
            }
        }
    }
}

/// The fewest of the likeliest tokens whose weights reach `enough`, with their weights.
fn nucleus(logits: &[f32], weight: impl Fn(f32) -> f64, enough: f64) -> Vec<(u32, f64)> {
    let candidates = logits.iter().enumerate();
    let candidates =
        candidates.map(|(token, logit)| Candidate { logit: *logit, token: token as u32 });
    let mut heap: BinaryHeap<Candidate> = candidates.collect();
    let mut chosen = Vec::new();
    let mut sum = 0.0;
    while let Some(candidate) = heap.pop() {
        let weight = weight(candidate.logit);
        chosen.push((candidate.token, weight));
        sum += weight;
        if sum >= enough {
            break;
        }
    }
    chosen
}

/// The token at which the running sum of weights passes `target`; the last possible one if rounding
/// keeps the sum below it.
fn pick(weights: impl Iterator<Item = (u32, f64)>, target: f64) -> Option<u32> {
    let mut sum = 0.0;
    let mut last = None;
    for (token, weight) in weights {
        if weight <= 0.0 {
            continue;
        }
        sum += weight;
        last = Some(token);
        if sum > target {
            break;
        }
    }
    last
}

/// The first of the largest logits; `None` when every token is banned.
fn first_largest(logits: &[f32]) -> Option<u32> {
    let mut best = None;
    let mut largest = f32::NEG_INFINITY;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > largest {
            largest = *logit;
            best = Some(token as u32);
        }
    }
    best
}

/// A token by its logit; of equal ones the first token is the greater.
#[derive(Clone, Copy)]
struct Candidate {
    logit: f32,
    token: u32,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.logit.total_cmp(&other.logit).then_with(|| other.token.cmp(&self.token))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// The model's own distribution at one position, as logarithms.
pub(super) struct LogProbabilities<'a> {
    logits: &'a [f32],
    /// Logarithm of the sum of the exponentials of the logits.
    log_sum: f64,
}

impl<'a> LogProbabilities<'a> {
    /// Of these logits; sums in 64 bits.
    pub fn of(logits: &'a [f32]) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let largest = f64::from(largest);
        let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
        Self { logits, log_sum: largest + sum.ln() }
    }

    /// Of one token; minus infinity for a token outside of the vocabulary.
    pub fn of_token(&self, token: u32) -> f64 {
        let logit = self.logits.get(token as usize).copied().unwrap_or(f32::NEG_INFINITY);
        f64::from(logit) - self.log_sum
    }

    /// The likeliest tokens, likeliest first; of equal ones the first.
    pub fn likeliest(&self, count: usize) -> Vec<(u32, f64)> {
        let mut best: Vec<Candidate> = Vec::with_capacity(count + 1);
        for (token, logit) in self.logits.iter().enumerate() {
            let candidate = Candidate { logit: *logit, token: token as u32 };
            if best.len() == count && best.last().is_none_or(|last| candidate < *last) {
                continue;
            }
            let place = best.partition_point(|other| *other > candidate);
            best.insert(place, candidate);
            best.truncate(count);
        }
        let scored =
            |candidate: Candidate| (candidate.token, f64::from(candidate.logit) - self.log_sum);
        best.into_iter().map(scored).collect()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use candle_transformers::generation::LogitsProcessor;
    use proptest::prelude::*;

    use super::*;

    fn plain() -> Sampling {
        Sampling {
            temperature: 1.0,
            top_p: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
        }
    }

    fn choose(sampler: &mut Sampler, logits: &[f32]) -> u32 {
        sampler.choose(&mut logits.to_vec()).expect("a token")
    }

    fn some_logits() -> impl Strategy<Value = Vec<f32>> {
        // Few values, so that equal ones are common.
        prop::collection::vec((-8i8..8).prop_map(|half| f32::from(half) / 2.0), 2..40)
    }

    proptest! {
        #[test]
        fn greedy_takes_the_first_of_the_largest(logits in some_logits(), seed: u64) {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let first = logits.iter().position(|logit| *logit == largest).expect("one") as u32;
            for (temperature, top_p) in [(0.0, 1.0), (0.0, 0.3), (1.0, 0.0)] {
                let mut sampler = Sampler::new(Sampling { temperature, top_p, ..plain() }, seed, 0);
                prop_assert_eq!(choose(&mut sampler, &logits), first);
            }
            let mut theirs = LogitsProcessor::new(seed, None, None);
            let tensor = Tensor::from_slice(&logits, logits.len(), &Device::Cpu).expect("made");
            let theirs = theirs.sample(&tensor).expect("a token");
            prop_assert_eq!(logits[theirs as usize], largest);
        }

        #[test]
        fn no_token_comes_from_outside_of_the_nucleus(
            logits in some_logits(), top_p in 0.01f64..1.0, temperature in 0.1f64..2.0, seed: u64,
        ) {
            let scale = |logit: &f32| (f64::from(*logit) / temperature).exp();
            let scaled: Vec<f64> = logits.iter().map(scale).collect();
            let total: f64 = scaled.iter().sum();
            let mut sampler = Sampler::new(Sampling { temperature, top_p, ..plain() }, seed, 0);
            for _ in 0..20 {
                let token = choose(&mut sampler, &logits) as usize;
                // Of the tokens before it, together below `top_p`, it is the next one.
                let is_before = |other: &usize| {
                    logits[*other] > logits[token]
                        || (logits[*other] == logits[token] && *other < token)
                };
                let others = (0..logits.len()).filter(is_before);
                let before: f64 = others.map(|other| scaled[other] / total).sum();
                prop_assert!(before < top_p + 1e-9, "token {token}: {before} before it");
            }
        }

        #[test]
        fn the_same_seed_chooses_the_same_tokens(
            logits in some_logits(), seed: u64, top_p in 0.1f64..1.0,
        ) {
            let run = |seed: u64, index: usize| {
                let mut sampler = Sampler::new(Sampling { top_p, ..plain() }, seed, index);
                (0..30).map(|_| choose(&mut sampler, &logits)).collect::<Vec<u32>>()
            };
            prop_assert_eq!(run(seed, 1), run(seed, 1));
        }

        #[test]
        fn penalties_change_logits_by_openais_formula(
            written in prop::collection::vec(0u32..5, 0..20),
            frequency in -2.0f64..2.0, presence in -2.0f64..2.0,
        ) {
            let sampling = Sampling {
                frequency_penalty: frequency, presence_penalty: presence, ..plain()
            };
            let mut sampler = Sampler::new(sampling, 0, 0);
            for token in &written {
                *sampler.counts.entry(*token).or_insert(0) += 1;
            }
            let mut logits = vec![0.0; 5];
            sampler.penalise(&mut logits);
            for (token, logit) in logits.iter().enumerate() {
                let count = written.iter().filter(|other| **other == token as u32).count() as f64;
                let wanted = -count * frequency - f64::from(u8::from(count > 0.0)) * presence;
                prop_assert!((f64::from(*logit) - wanted).abs() < 1e-4);
            }
        }

        #[test]
        fn log_probabilities_are_those_of_softmax_and_the_likeliest_come_first(
            logits in some_logits(), count in 0usize..6,
        ) {
            let all = LogProbabilities::of(&logits);
            let sum: f64 = (0..logits.len()).map(|token| all.of_token(token as u32).exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-12);
            let mut order: Vec<u32> = (0..logits.len() as u32).collect();
            let logit = |token: u32| logits[token as usize];
            order.sort_by(|a, b| logit(*b).total_cmp(&logit(*a)).then(a.cmp(b)));
            order.truncate(count);
            let likeliest = all.likeliest(count);
            prop_assert_eq!(likeliest.iter().map(|(token, _)| *token).collect::<Vec<_>>(), order);
            for (token, log_probability) in likeliest {
                prop_assert_eq!(log_probability, all.of_token(token));
            }
        }
    }

    #[test]
    fn draws_follow_the_distribution_as_candles_do() {
        let logits = [0.0f32, 1.0, 2.0, -1.0, 0.5];
        let total: f32 = logits.iter().map(|logit| logit.exp()).sum();
        let mut ours = Sampler::new(plain(), 3, 0);
        let mut theirs = LogitsProcessor::new(3, Some(1.0), None);
        let tensor = Tensor::from_slice(&logits, 5, &Device::Cpu).expect("made");
        let mut counts = [[0u32; 5]; 2];
        let draws = 20_000;
        for _ in 0..draws {
            counts[0][choose(&mut ours, &logits) as usize] += 1;
            counts[1][theirs.sample(&tensor).expect("a token") as usize] += 1;
        }
        for counts in counts {
            for (token, count) in counts.iter().enumerate() {
                let wanted = logits[token].exp() / total;
                let found = *count as f32 / draws as f32;
                assert!((found - wanted).abs() < 0.015, "token {token}: {found} for {wanted}");
            }
        }
    }

    #[test]
    fn a_bias_of_minus_100_bans_and_one_of_100_decides() {
        let bias = |token: u32, bias: f32| {
            let sampling = Sampling { logit_bias: vec![(token, bias)], ..plain() };
            let mut sampler = Sampler::new(sampling, 9, 0);
            (0..200).map(|_| choose(&mut sampler, &[500.0, 0.0, 450.0])).collect::<Vec<u32>>()
        };
        assert!(bias(0, -100.0).iter().all(|token| *token == 2), "however likely it was");
        assert!(bias(2, 100.0).iter().all(|token| *token == 2));
        let all = Sampling { logit_bias: vec![(0, -100.0), (1, -100.0)], ..plain() };
        let nothing = Sampler::new(all, 0, 0).choose(&mut [1.0, 2.0]);
        let nothing = ServeError::from(nothing.expect_err("nothing"));
        assert_eq!((nothing.code, nothing.param), (ErrorCode::InvalidRequest, Some("logit_bias")));
        let broken = Sampler::new(plain(), 0, 0).choose(&mut [1.0, f32::NAN]);
        let broken = ServeError::from(broken.expect_err("broken"));
        assert_eq!((broken.code, broken.param), (ErrorCode::InvalidModel, Some("model")));
    }
}
