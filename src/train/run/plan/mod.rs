//! The plan of a run: every requested value resolved to a number, the steps that follow from it, and the
//! reason for each value that was left open.

mod describe;
mod resolve;

pub use self::resolve::{
    DEFAULT_DPO_LEARNING_RATE, DEFAULT_LEARNING_RATE, DEFAULT_PATIENCE,
    DEFAULT_WEIGHTS_LEARNING_RATES, context_length, resolve,
};
use crate::domain::job::{Hyperparameters, LoraLayers, ResolvedHyperparameters};
use crate::train::protocol::Progress;

/// What a plan needs to know of the data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DataSize {
    /// Training examples.
    pub examples: u64,
    /// Tokens of the validation file over those of the training file; `None` without one.
    pub validation_share: Option<f64>,
}

/// What a plan needs to know of the base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelSize {
    /// Longest text in tokens.
    pub context: usize,
    /// Blocks.
    pub layers: u32,
}

/// The plan of a run: values, steps and a sentence for each value that was left open.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Every value.
    pub hyperparameters: ResolvedHyperparameters,
    /// Optimiser steps of one epoch; the last one takes what is left.
    pub steps_per_epoch: u64,
    /// Optimiser steps in all.
    pub total_steps: u64,
    /// Why each value that was left open is what it is.
    pub explanations: Vec<String>,
}

impl Plan {
    /// What the trainer says of it.
    pub fn progress(&self) -> Progress {
        Progress::Resolved {
            hyperparameters: self.hyperparameters.clone(),
            total_steps: self.total_steps,
            explanations: self.explanations.clone(),
        }
    }

    /// Whether the validation file is evaluated after a step.
    pub fn evaluates_after(&self, step: u64) -> bool {
        if let Some(count) = self.hyperparameters.n_evals {
            return is_one_of(step, count, self.total_steps);
        }
        self.hyperparameters.eval_steps.is_some_and(|every| {
            step.is_multiple_of(self.steps_per_epoch) || step.is_multiple_of(u64::from(every))
        })
    }

    /// Whether there is a checkpoint after a step, whether the model has improved or not.
    pub fn saves_after(&self, step: u64) -> bool {
        if let Some(count) = self.hyperparameters.n_checkpoints {
            return is_one_of(step, count, self.total_steps);
        }
        let every = self.hyperparameters.save_steps.map(u64::from);
        step.is_multiple_of(self.steps_per_epoch)
            || every.is_some_and(|every| step.is_multiple_of(every))
    }
}

/// Whether a step is one of `count` that are evenly spread over `total`, the last of which is the last
/// step; every step where there are fewer.
fn is_one_of(step: u64, count: u32, total: u64) -> bool {
    let passed = |steps: u64| steps * u64::from(count) / total;
    passed(step) > passed(step - 1)
}

/// Names requested blocks that the model does not have; `None` when it has all of them.
pub fn unknown_layer(requested: &Hyperparameters, layers: u32) -> Option<String> {
    if let Some(count) = requested.tuning_layers.filter(|count| *count > layers) {
        return Some(format!("tuning_layers is {count}, and the model has {layers} blocks"));
    }
    match requested.lora_layers.as_ref()? {
        LoraLayers::Last(count) if *count > layers => {
            Some(format!("lora_layers is {count}, and the model has {layers} blocks"))
        }
        LoraLayers::These(list) => {
            let unknown = list.iter().find(|layer| **layer >= layers)?;
            Some(format!(
                "lora_layers names block {unknown}, and the model's blocks are 0 to {}",
                layers.saturating_sub(1)
            ))
        }
        LoraLayers::Last(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::resolve::DEFAULT_CONTEXT_LENGTH;
    use super::*;
    use crate::domain::job::{Auto, FineTuneMode, Method};

    const SIZE: ModelSize = ModelSize { context: 8192, layers: 30 };

    fn data(examples: u64) -> DataSize {
        DataSize { examples, validation_share: None }
    }

    fn auto(examples: u64) -> ResolvedHyperparameters {
        resolve(&Hyperparameters::default(), &data(examples), &SIZE).hyperparameters
    }

    #[test]
    fn tiny_sets_get_more_epochs_and_large_ones_larger_batches() {
        let epochs = [10, 11, 25, 33, 34, 100, 5000].map(|n| auto(n).n_epochs);
        assert_eq!(epochs, [10, 10, 4, 4, 3, 3, 3]);
        let batches = [10, 99, 100, 199, 200, 799, 800, 100_000].map(|n| auto(n).batch_size);
        assert_eq!(batches, [1, 1, 2, 2, 4, 8, 16, 16]);
    }

    #[test]
    fn the_last_step_of_an_epoch_takes_what_is_left() {
        let requested = Hyperparameters {
            n_epochs: Auto::Value(2),
            batch_size: Auto::Value(4),
            ..Default::default()
        };
        let plan = resolve(&requested, &data(10), &SIZE);
        assert_eq!((plan.steps_per_epoch, plan.total_steps), (3, 6));
    }

    #[test]
    fn a_long_validation_file_is_evaluated_less_often() {
        let steps = |share: Option<f64>| {
            let requested = Hyperparameters { batch_size: Auto::Value(1), ..Default::default() };
            let data = DataSize { examples: 100, validation_share: share };
            resolve(&requested, &data, &SIZE).hyperparameters.eval_steps
        };
        let found = [Some(0.01), Some(0.075), Some(0.1), Some(0.2), Some(3.0), None].map(steps);
        assert_eq!(found, [Some(25), Some(25), Some(34), Some(100), Some(100), None]);
    }

    #[test]
    fn requested_numbers_of_evaluations_and_checkpoints_are_spread_over_the_run() {
        let plan = |n_evals, n_checkpoints, share| {
            let requested = Hyperparameters {
                n_epochs: Auto::Value(2),
                batch_size: Auto::Value(1),
                n_evals,
                n_checkpoints,
                ..Default::default()
            };
            resolve(&requested, &DataSize { examples: 10, validation_share: share }, &SIZE)
        };
        let steps = |is_one: &dyn Fn(u64) -> bool| -> Vec<u64> {
            (1..=20).filter(|step| is_one(*step)).collect()
        };
        let some = plan(Some(3), Some(4), Some(0.1));
        assert_eq!(steps(&|step| some.evaluates_after(step)), [7, 14, 20]);
        assert_eq!(steps(&|step| some.saves_after(step)), [5, 10, 15, 20]);
        assert_eq!(some.hyperparameters.eval_steps, None);
        let many = plan(Some(0), Some(50), Some(0.1));
        assert!(steps(&|step| many.evaluates_after(step)).is_empty());
        assert_eq!(steps(&|step| many.saves_after(step)).len(), 20);
        assert_eq!(many.hyperparameters.save_total_limit, 50, "all of them are kept");
        let none = plan(Some(3), None, None);
        assert!(
            steps(&|step| none.evaluates_after(step)).is_empty(),
            "there is no validation file"
        );
        assert_eq!(steps(&|step| none.saves_after(step)), [10, 20], "the ends of epochs");
    }

    #[test]
    fn preferences_have_a_smaller_rate_and_a_beta() {
        let requested = Hyperparameters { method: Method::Dpo, ..Default::default() };
        let values = resolve(&requested, &data(100), &SIZE).hyperparameters;
        assert_eq!((values.learning_rate, values.beta), (5e-5, Some(0.1)));
        assert_eq!((auto(100).learning_rate, auto(100).beta), (2e-4, None));
    }

    #[test]
    fn a_stated_learning_rate_or_multiplier_is_kept() {
        let requested = Hyperparameters { learning_rate: Some(1e-3), ..Default::default() };
        let values = resolve(&requested, &data(100), &SIZE).hyperparameters;
        assert_eq!(values.learning_rate, 1e-3);
        assert!((values.learning_rate_multiplier - 5.0).abs() < 1e-12);
        let requested =
            Hyperparameters { learning_rate_multiplier: Auto::Value(0.5), ..Default::default() };
        assert_eq!(resolve(&requested, &data(100), &SIZE).hyperparameters.learning_rate, 1e-4);
    }

    #[test]
    fn blocks_are_counted_from_the_end_or_named() {
        let ask = |layers| Hyperparameters { lora_layers: Some(layers), ..Default::default() };
        let resolved =
            |layers| resolve(&ask(layers), &data(100), &SIZE).hyperparameters.lora_layers;
        assert_eq!(resolved(LoraLayers::Last(3)), Some(vec![27, 28, 29]));
        assert_eq!(resolved(LoraLayers::These(vec![5, 0, 5])), Some(vec![0, 5]));
        assert_eq!(unknown_layer(&ask(LoraLayers::Last(30)), 30), None);
        let refusal = unknown_layer(&ask(LoraLayers::Last(31)), 30).expect("there are 30");
        assert!(refusal.contains("31") && refusal.contains("30 blocks"), "{refusal}");
        let refusal = unknown_layer(&ask(LoraLayers::These(vec![1, 30])), 30).expect("0 to 29");
        assert!(refusal.contains("names block 30") && refusal.contains("0 to 29"), "{refusal}");
    }

    #[test]
    fn the_models_own_weights_move_at_a_tenth_of_loras_rate() {
        let ask = |tuning, method| {
            let requested = Hyperparameters { tuning: Some(tuning), method, ..Default::default() };
            resolve(&requested, &data(100), &SIZE)
        };
        let full = ask(FineTuneMode::Full, Method::Supervised);
        assert_eq!(full.hyperparameters.learning_rate, 2e-5);
        assert!(full.explanations.iter().any(|text| text.contains("a tenth of LoRA's")));
        let values = ask(FineTuneMode::LastLayers, Method::Dpo).hyperparameters;
        assert_eq!(values.learning_rate, 5e-6);
        assert_eq!((values.tuning_layers, values.lora_r, values.lora_alpha), (Some(8), None, None));
        let requested = Hyperparameters { tuning_layers: Some(31), ..Default::default() };
        let refusal = unknown_layer(&requested, 30).expect("there are 30");
        assert!(refusal.contains("tuning_layers is 31"), "{refusal}");
    }

    #[test]
    fn no_example_is_longer_than_the_models_context() {
        let requested = Hyperparameters { context_length: Some(9000), ..Default::default() };
        let plan = resolve(&requested, &data(100), &ModelSize { context: 512, ..SIZE });
        assert_eq!(plan.hyperparameters.context_length, 512);
        assert!(plan.explanations.iter().any(|text| text.contains("takes no more tokens")));
        assert_eq!(auto(100).context_length, DEFAULT_CONTEXT_LENGTH);
    }
}
