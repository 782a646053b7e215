//! The objective of a run over a data file: its examples, by their index, and the loss of the method
//! (supervised or DPO), for training and for evaluation.

use crate::train::backend::BackendError;
use crate::train::data::example::EncodedExample;
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

/// What the engine computes as one: a view of an example, or a preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    /// The example, by index.
    pub example: usize,
    view: usize,
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
        let mut log_probabilities = Vec::with_capacity(file.examples.len());
        for example in &file.examples {
            let answers: Vec<&Sequence> = example.sequences().collect();
            let made = engine.log_probabilities(&answers, trained)?;
            log_probabilities.extend_from_slice(made.as_chunks::<2>().0);
        }
        let preferences = Some(References { beta, log_probabilities });
        Ok(Self { file, flops: engine.cost(), preferences })
    }

    /// Number of examples.
    pub(super) fn len(&self) -> usize {
        self.file.examples.len()
    }

    /// The file that they are from.
    pub(super) fn file(&self) -> &'a EncodedFile {
        self.file
    }

    /// Whether they are preferences.
    pub(super) fn is_preferences(&self) -> bool {
        self.preferences.is_some()
    }

    /// Tokens of an example, of all its sequences.
    pub(super) fn tokens(&self, index: usize) -> usize {
        self.file.examples[index].tokens()
    }

    /// Tokens of all examples.
    pub(super) fn all_tokens(&self) -> usize {
        self.file.tokens()
    }

    /// Floating-point operations of a training step over an example, and those of them that the frozen
    /// blocks take.
    pub(super) fn flops(&self, index: usize) -> (f64, f64) {
        let (mut all, mut frozen) = (0.0, 0.0);
        for sequence in self.file.examples[index].sequences() {
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
            None => examples.iter().map(|index| self.file.examples[*index].targets()).sum(),
        }
    }

    /// Forward and backward over `items`; the losses of each.
    pub(super) fn accumulate(
        &self,
        engine: &mut dyn Engine,
        items: &[Item],
        part: MicroBatch,
    ) -> Result<Vec<LossStatistics>, BackendError> {
        match &self.preferences {
            None => Ok(into(engine.accumulate(&self.sequences(items), part)?)),
            Some(references) => {
                let pairs = self.pairs(references, items);
                Ok(into(engine.accumulate_preferences(&pairs, references.beta, part)?))
            }
        }
    }

    /// Forward over `items`; adds the losses of each to those of its example.
    pub(super) fn evaluate(
        &self,
        engine: &mut dyn Engine,
        items: &[Item],
        losses: &mut [LossStatistics],
    ) -> Result<(), BackendError> {
        let made: Vec<LossStatistics> = match &self.preferences {
            None => into(engine.evaluate(&self.sequences(items))?),
            Some(references) => {
                let pairs = self.pairs(references, items);
                into(engine.evaluate_preferences(&pairs, references.beta)?)
            }
        };
        for (item, one) in items.iter().zip(&made) {
            losses[item.example].add(one);
        }
        Ok(())
    }

    /// Splits examples into the micro-batches that the engine takes at once.
    pub(super) fn micro_batches(&self, engine: &dyn Engine, examples: &[usize]) -> Vec<Vec<Item>> {
        let mut items = Vec::with_capacity(examples.len());
        let mut sequences: Vec<Vec<&Sequence>> = Vec::with_capacity(examples.len());
        for &index in examples {
            for (view, together) in self.file.examples[index].items().into_iter().enumerate() {
                items.push(Item { example: index, view });
                sequences.push(together);
            }
        }
        let sequences: Vec<&[&Sequence]> = sequences.iter().map(Vec::as_slice).collect();
        let parts = engine.split_into_micro_batches(&sequences).into_iter();
        parts.map(|part| items[part].to_vec()).collect()
    }

    fn sequences(&self, items: &[Item]) -> Vec<&'a Sequence> {
        items.iter().map(|item| &self.file.examples[item.example].views[item.view]).collect()
    }

    fn pairs(&self, references: &References, items: &[Item]) -> Vec<PreferencePair<'a>> {
        let pair = |item: &Item| {
            let EncodedExample { views, rejected, .. } = &self.file.examples[item.example];
            Some(PreferencePair {
                chosen: views.first()?,
                rejected: rejected.as_ref()?,
                reference: references.log_probabilities[item.example],
            })
        };
        items.iter().filter_map(pair).collect()
    }
}

fn into<T: Into<LossStatistics>>(made: Vec<T>) -> Vec<LossStatistics> {
    made.into_iter().map(Into::into).collect()
}
