//! What a run trains on or measures itself by: examples of either method, by their place in the file.

use crate::train::backend::BackendError;
use crate::train::data::sequence::Sequence;
use crate::train::data::tokenize::EncodedFile;
use crate::train::engine::{BatchPart, Engine, LossSums, Preference, PreferenceOutcome};
use crate::train::model::flops::Cost;

/// The examples of one file, ready for the engine.
pub(super) struct Material<'a> {
    file: &'a EncodedFile,
    cost: Cost,
    /// For preferences.
    preferences: Option<References>,
}

/// What preferences are measured against.
struct References {
    beta: f64,
    /// Log-probabilities of the answers of each example under the model that the run begins with.
    log_probabilities: Vec<[f64; 2]>,
}

/// What an example came to, or several together.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Measured {
    /// Sum of the losses, in nats.
    pub loss: f64,
    /// What they are the sum over: loss-bearing tokens, or preferences.
    pub units: u64,
    /// How many of these are right: the likeliest token is the target, the preferred answer has the
    /// larger reward.
    pub correct: u64,
    /// Sum of the margins between the rewards of two answers; zero without preferences.
    pub margin: f64,
}

impl Measured {
    /// Adds another one.
    pub(super) fn add(&mut self, more: &Measured) {
        self.loss += more.loss;
        self.units += more.units;
        self.correct += more.correct;
        self.margin += more.margin;
    }

    /// Mean loss.
    pub(super) fn mean_loss(&self) -> f64 {
        self.loss / self.units.max(1) as f64
    }

    /// Share that is right, 0..=1.
    pub(super) fn accuracy(&self) -> f64 {
        self.correct as f64 / self.units.max(1) as f64
    }

    /// Mean margin.
    pub(super) fn mean_margin(&self) -> f64 {
        self.margin / self.units.max(1) as f64
    }
}

impl From<LossSums> for Measured {
    fn from(sums: LossSums) -> Self {
        Self { loss: sums.loss, units: sums.tokens, correct: sums.correct, margin: 0.0 }
    }
}

impl From<PreferenceOutcome> for Measured {
    fn from(outcome: PreferenceOutcome) -> Self {
        let margin = outcome.margin();
        Self { loss: outcome.loss(), units: 1, correct: u64::from(margin > 0.0), margin }
    }
}

impl<'a> Material<'a> {
    /// The examples of `file`; with `beta` they are preferences, whose answers the model as it is now
    /// is asked for here, once, as it is or as its base alone.
    pub(super) fn new(
        file: &'a EncodedFile,
        beta: Option<f64>,
        trained: bool,
        engine: &mut dyn Engine,
    ) -> Result<Self, BackendError> {
        let Some(beta) = beta else {
            return Ok(Self { file, cost: engine.cost(), preferences: None });
        };
        let mut log_probabilities = Vec::with_capacity(file.sequences.len());
        for pair in file.sequences.iter().zip(&file.rejected) {
            let made = engine.log_probabilities(&[pair.0, pair.1], trained)?;
            log_probabilities.extend_from_slice(made.as_chunks::<2>().0);
        }
        let preferences = Some(References { beta, log_probabilities });
        Ok(Self { file, cost: engine.cost(), preferences })
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

    /// Floating-point operations of a training step over an example; without those of frozen blocks
    /// where what they made of it `is_kept`.
    pub(super) fn cost(&self, index: usize, is_kept: bool) -> f64 {
        let rejected = self.file.rejected.get(index);
        let mut sum = 0.0;
        for sequence in std::iter::once(&self.file.sequences[index]).chain(rejected) {
            sum += self.cost.of_training(sequence.length()) - self.spared(sequence, is_kept);
        }
        sum
    }

    /// The same of measuring all examples.
    pub(super) fn cost_of_evaluation(&self, is_kept: bool) -> f64 {
        let mut sum = 0.0;
        for sequence in self.file.all() {
            sum += self.cost.of_evaluation(sequence.length()) - self.spared(sequence, is_kept);
        }
        sum
    }

    fn spared(&self, sequence: &Sequence, is_kept: bool) -> f64 {
        if is_kept { self.cost.of_frozen(sequence.length()) } else { 0.0 }
    }

    /// What the loss of `examples` together is the mean over.
    pub(super) fn units(&self, examples: &[usize]) -> u64 {
        match self.preferences {
            Some(_) => examples.len() as u64,
            None => examples.iter().map(|index| self.file.sequences[*index].targets()).sum(),
        }
    }

    /// Forward and backward over `examples`, what each came to.
    pub(super) fn accumulate(
        &self,
        engine: &mut dyn Engine,
        examples: &[usize],
        part: BatchPart,
    ) -> Result<Vec<Measured>, BackendError> {
        match &self.preferences {
            None => Ok(into(engine.accumulate(&self.sequences(examples), part)?)),
            Some(references) => {
                let pairs = self.pairs(references, examples);
                Ok(into(engine.accumulate_preferences(&pairs, references.beta, part)?))
            }
        }
    }

    /// Forward over all examples, what each came to.
    pub(super) fn evaluate(&self, engine: &mut dyn Engine) -> Result<Vec<Measured>, BackendError> {
        let examples: Vec<usize> = (0..self.len()).collect();
        let mut measured = Vec::with_capacity(examples.len());
        for part in self.micro_batches(engine, &examples) {
            measured.extend(match &self.preferences {
                None => into(engine.evaluate(&self.sequences(part))?),
                Some(references) => {
                    let pairs = self.pairs(references, part);
                    into(engine.evaluate_preferences(&pairs, references.beta)?)
                }
            });
        }
        Ok(measured)
    }

    /// Cuts examples into runs that the engine takes at once.
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
        engine.cut(&items).into_iter().map(|run| &examples[run]).collect()
    }

    fn sequences(&self, examples: &[usize]) -> Vec<&Sequence> {
        examples.iter().map(|index| &self.file.sequences[*index]).collect()
    }

    fn pairs(&self, references: &References, examples: &[usize]) -> Vec<Preference<'a>> {
        let pair = |index: &usize| Preference {
            chosen: &self.file.sequences[*index],
            rejected: &self.file.rejected[*index],
            reference: references.log_probabilities[*index],
        };
        examples.iter().map(pair).collect()
    }
}

fn into<T: Into<Measured>>(made: Vec<T>) -> Vec<Measured> {
    made.into_iter().map(Into::into).collect()
}
