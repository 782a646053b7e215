//! What training costs: the arithmetic of a step, from the model's shape and the lengths of its
//! sequences. Measured speed times what is left says how long a job still takes, though batches
//! differ in length; `hone bench` tells its figures in the same measure.

use super::config::ModelConfig;
use crate::train::model::modules::AdaptedModule;

/// Forward and backward of attention, in passes over its pairs forward: the backward pass computes
/// the scores again and has four more products of their size.
const ATTENTION_PASSES: f64 = 3.5;

/// How long a sequence is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceLength {
    /// Its tokens.
    pub tokens: usize,
    /// Those of them that bear loss.
    pub supervised: usize,
}

/// What trains of a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerTraining {
    /// Nothing.
    Frozen,
    /// A LoRA pair.
    Adapted {
        /// Its rank.
        rank: usize,
    },
    /// Its own weight.
    Whole,
}

/// What trains of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainableLayers {
    /// Of each of its linear layers.
    pub modules: Vec<LayerTraining>,
    /// Index of the lowest block that the backward pass runs through.
    pub lowest_block: usize,
    /// Whether the head's weight does.
    pub head: bool,
}

/// The arithmetic of a model, in floating-point operations; a multiply-add counts as two.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFlops {
    /// Of the blocks' linear layers, for each token forward.
    linear: f64,
    /// The same for the blocks that the backward pass runs through, backward.
    linear_backward: f64,
    /// Of the adapter, for each token forward and backward.
    adapter: f64,
    /// Of the gradients of the blocks' own weights, for each token.
    weights: f64,
    /// How often the head's product is computed backward: once for its input, once for its weight.
    head_backward: f64,
    /// Of the head, for each loss-bearing token forward; backward takes as much again.
    head: f64,
    /// Of attention in one block, for each pair of a query and a key that it sees, forward.
    pair: f64,
    /// Window of each block, and whether the backward pass runs through it.
    blocks: Vec<(Option<usize>, bool)>,
}

impl ModelFlops {
    /// The arithmetic of a model whose linear layers are `modules`, of which `trains` says what
    /// trains.
    pub fn new(config: &ModelConfig, modules: &[AdaptedModule], trains: &TrainableLayers) -> Self {
        let lowest = trains.lowest_block;
        let mut cost = Self {
            linear: 0.0,
            linear_backward: 0.0,
            adapter: 0.0,
            weights: 0.0,
            head_backward: if trains.head { 2.0 } else { 1.0 },
            head: 2.0 * (config.vocabulary * config.hidden) as f64,
            pair: 4.0 * (config.heads * config.head_dim) as f64,
            blocks: Vec::with_capacity(config.layers),
        };
        for (module, trains) in modules.iter().zip(&trains.modules) {
            let size = (module.outputs * module.inputs) as f64;
            cost.linear += 2.0 * size;
            if module.layer as usize >= lowest {
                cost.linear_backward += 2.0 * size;
            }
            match trains {
                LayerTraining::Frozen => {}
                // Two products forward, four backward.
                LayerTraining::Adapted { rank } => {
                    cost.adapter += 6.0 * (rank * (module.outputs + module.inputs)) as f64;
                }
                LayerTraining::Whole => cost.weights += 2.0 * size,
            }
        }
        for layer in 0..config.layers {
            let window = config.windows.get(layer).copied().flatten();
            cost.blocks.push((window, layer >= lowest));
        }
        cost
    }

    /// Of one training step over a sequence of this length.
    pub fn of_training(&self, length: SequenceLength) -> f64 {
        let tokens = length.tokens;
        let targets = length.supervised;
        let mut sum = tokens as f64
            * (self.linear + self.linear_backward + self.adapter + self.weights)
            + targets as f64 * (1.0 + self.head_backward) * self.head;
        for (window, is_backward) in &self.blocks {
            let passes = if *is_backward { ATTENTION_PASSES } else { 1.0 };
            sum += passes * self.pair * pairs(tokens, *window);
        }
        sum
    }

    /// Of the frozen blocks over a sequence of this length, part of both: what is spared where the engine has kept
    /// what they made of it.
    pub fn of_frozen(&self, length: SequenceLength) -> f64 {
        let tokens = length.tokens;
        let mut sum = tokens as f64 * (self.linear - self.linear_backward);
        for (window, is_backward) in &self.blocks {
            if !is_backward {
                sum += self.pair * pairs(tokens, *window);
            }
        }
        sum
    }

    /// Of measuring the loss of a sequence of this length.
    pub fn of_evaluation(&self, length: SequenceLength) -> f64 {
        let tokens = length.tokens;
        let targets = length.supervised;
        let attention: f64 =
            self.blocks.iter().map(|(window, _)| self.pair * pairs(tokens, *window)).sum();
        tokens as f64 * (self.linear + self.adapter / 3.0) + targets as f64 * self.head + attention
    }
}

/// Pairs of a query and a key that it sees, among `tokens`.
fn pairs(tokens: usize, window: Option<usize>) -> f64 {
    let window = window.unwrap_or(tokens).min(tokens);
    // The first `window` queries see 1, 2, …, window keys; the others see `window`.
    (window * (window + 1) / 2 + (tokens - window) * window) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_those_that_a_causal_window_shows() {
        for (tokens, window) in [(1, None), (7, None), (7, Some(3)), (3, Some(9)), (5, Some(1))] {
            let mut wanted = 0;
            for query in 0..tokens {
                for key in 0..=query {
                    wanted += usize::from(window.is_none_or(|window| query - key < window));
                }
            }
            assert_eq!(pairs(tokens, window), wanted as f64, "{tokens} {window:?}");
        }
    }
}
