//! The objective of a run over a data file: its examples, by their index, and the loss of the method
//! (supervised or DPO), for training and for evaluation.

use crate::train::backend::BackendError;
use crate::train::data::sequence::Sequence;
use crate::train::data::tokenize::EncodedFile;
use crate::train::engine::{Engine, LossSums, MicroBatch, PreferencePair, PreferenceRewards};
use crate::train::model::flops::ModelFlops;

/// The examples of one file and the loss over them.
pub(super) struct Objective<'a> {
    file: &'a EncodedFile,
    flops: ModelFlops,
    /// For preferences.
    preferences: Option<References>,
}

/// What preferences are measured against.
struct References {
    beta: f64,
    /// Log-probabilities of the answers of each example under the model that the run begins with.
    log_probabilities: Vec<[f64; 2]>,
}

/// The loss of an example, or of several together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct LossStatistics {
    /// Sum of the losses, in nats.
    pub loss: f64,
    /// What they are the sum over: loss-bearing tokens, or preferences.
    pub units: u64,
    /// How many of these are correct: the likeliest token is the target; the preferred answer has the
    /// larger reward.
    pub correct: u64,
    /// Sum of the margins between the rewards of two answers; zero without preferences.
    pub margin: f64,
}

impl LossStatistics {
    /// All of `parts` together.
    pub(super) fn sum(parts: &[LossStatistics]) -> Self {
        let mut sum = Self::default();
        parts.iter().for_each(|part| sum.add(part));
        sum
    }

    /// Adds another one.
    pub(super) fn add(&mut self, more: &LossStatistics) {
        self.loss += more.loss;
        self.units += more.units;
        self.correct += more.correct;
        self.margin += more.margin;
    }

    /// Mean loss.
    pub(super) fn mean_loss(&self) -> f64 {
        self.loss / self.units.max(1) as f64
    }

    /// Share that is correct, 0..=1.
    pub(super) fn accuracy(&self) -> f64 {
        self.correct as f64 / self.units.max(1) as f64
    }

    /// Mean margin.
    pub(super) fn mean_margin(&self) -> f64 {
        self.margin / self.units.max(1) as f64
    }
}

impl From<LossSums> for LossStatistics {
    fn from(sums: LossSums) -> Self {
        Self { loss: sums.loss, units: sums.tokens, correct: sums.correct, margin: 0.0 }
    }
}

impl From<PreferenceRewards> for LossStatistics {
    fn from(outcome: PreferenceRewards) -> Self {
        let margin = outcome.margin();
        Self { loss: outcome.loss(), units: 1, correct: u64::from(margin > 0.0), margin }
    }
}

impl<'a> Objective<'a> {
    /// The examples of `file`. With `beta` they are preferences, whose reference log-probabilities are
    /// computed here, once: by the model as it is now (`trained`) or by its base alone.
    pub(super) fn new(
        file: &'a EncodedFile,
        beta: Option<f64>,
        trained: bool,
        engine: &mut dyn Engine,
    ) -> Result<Self, BackendError> {
        let Some(beta) = beta else {
            return Ok(Self { file, flops: engine.cost(), preferences: None });
        };
        let mut log_probabilities = Vec::with_capacity(file.sequences.len());
        for pair in file.sequences.iter().zip(&file.rejected) {
            let made = engine.log_probabilities(&[pair.0, pair.1], trained)?;
            log_probabilities.extend_from_slice(made.as_chunks::<2>().0);
        }
        let preferences = Some(References { beta, log_probabilities });
        Ok(Self { file, flops: engine.cost(), preferences })
    }

    /// Number of examples.
    pub(super) fn len(&self) -> usize {
        self.file.sequences.len()
    }

    /// The file that they are from.
    pub(super) fn file(&self) -> &'a EncodedFile {
        self.file
    }

    /// Whether they are preferences.
    pub(super) fn is_preferences(&self) -> bool {
        self.preferences.is_some()
    }

    /// Tokens of an example, of both answers where it has two.
    pub(super) fn tokens(&self, index: usize) -> usize {
        let rejected = self.file.rejected.get(index);
        let other = rejected.map_or(0, |sequence| sequence.input_ids.len());
        self.file.sequences[index].input_ids.len() + other
    }

    /// Tokens of all examples.
    pub(super) fn all_tokens(&self) -> usize {
        self.file.tokens()
    }

    /// Floating-point operations of a training step over an example, and those of them that the frozen
    /// blocks take.
    pub(super) fn flops(&self, index: usize) -> (f64, f64) {
        let rejected = self.file.rejected.get(index);
        let (mut all, mut frozen) = (0.0, 0.0);
        for sequence in std::iter::once(&self.file.sequences[index]).chain(rejected) {
            all += self.flops.of_training(sequence.length());
            frozen += self.flops.of_frozen(sequence.length());
        }
        (all, frozen)
    }

    /// The same of one evaluation of all examples.
    pub(super) fn evaluation_flops(&self) -> (f64, f64) {
        let (mut all, mut frozen) = (0.0, 0.0);
        for sequence in self.file.all() {
            all += self.flops.of_evaluation(sequence.length());
            frozen += self.flops.of_frozen(sequence.length());
        }
        (all, frozen)
    }

    /// What the loss of `examples` together is the mean over.
    pub(super) fn units(&self, examples: &[usize]) -> u64 {
        match self.preferences {
            Some(_) => examples.len() as u64,
            None => examples.iter().map(|index| self.file.sequences[*index].targets()).sum(),
        }
    }

    /// Forward and backward over `examples`; the losses of each.
    pub(super) fn accumulate(
        &self,
        engine: &mut dyn Engine,
        examples: &[usize],
        part: MicroBatch,
    ) -> Result<Vec<LossStatistics>, BackendError> {
        match &self.preferences {
            None => Ok(into(engine.accumulate(&self.sequences(examples), part)?)),
            Some(references) => {
                let pairs = self.pairs(references, examples);
                Ok(into(engine.accumulate_preferences(&pairs, references.beta, part)?))
            }
        }
    }

    /// Forward over all examples; the losses of each.
    pub(super) fn evaluate(
        &self,
        engine: &mut dyn Engine,
    ) -> Result<Vec<LossStatistics>, BackendError> {
        let examples: Vec<usize> = (0..self.len()).collect();
        let mut losses = Vec::with_capacity(examples.len());
        for part in self.micro_batches(engine, &examples) {
            losses.extend(match &self.preferences {
                None => into(engine.evaluate(&self.sequences(part))?),
                Some(references) => {
                    let pairs = self.pairs(references, part);
                    into(engine.evaluate_preferences(&pairs, references.beta)?)
                }
            });
        }
        Ok(losses)
    }

    /// Splits examples into the micro-batches that the engine takes at once.
    pub(super) fn micro_batches<'b>(
        &self,
        engine: &dyn Engine,
        examples: &'b [usize],
    ) -> Vec<&'b [usize]> {
        let file = self.file;
        let both = |index: &usize| -> Vec<&Sequence> {
            std::iter::once(&file.sequences[*index]).chain(file.rejected.get(*index)).collect()
        };
        let items: Vec<Vec<&Sequence>> = examples.iter().map(both).collect();
        let items: Vec<&[&Sequence]> = items.iter().map(Vec::as_slice).collect();
        engine.split_into_micro_batches(&items).into_iter().map(|run| &examples[run]).collect()
    }

    fn sequences(&self, examples: &[usize]) -> Vec<&Sequence> {
        examples.iter().map(|index| &self.file.sequences[*index]).collect()
    }

    fn pairs(&self, references: &References, examples: &[usize]) -> Vec<PreferencePair<'a>> {
        let pair = |index: &usize| PreferencePair {
            chosen: &self.file.sequences[*index],
            rejected: &self.file.rejected[*index],
            reference: references.log_probabilities[*index],
        };
        examples.iter().map(pair).collect()
    }
}

fn into<T: Into<LossStatistics>>(made: Vec<T>) -> Vec<LossStatistics> {
    made.into_iter().map(Into::into).collect()
}
