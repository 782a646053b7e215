//! Turns what a client asked for into numbers, and says why each number is what it is.

use crate::domain::job::{
    Auto, FineTuneMode, Hyperparameters, LoraLayers, Method, ResolvedHyperparameters, Schedule,
};
use crate::train::protocol::Progress;

/// Learning rate when none is asked for.
pub const DEFAULT_LEARNING_RATE: f64 = 2e-4;

/// Longest example when none is asked for, in tokens; shorter where the model's own context is.
pub const DEFAULT_CONTEXT_LENGTH: u32 = 2048;

/// Learning rates where the model's own weights train, for answers and for preferences: a tenth of
/// LoRA's, whose pairs begin at zero and have far to go, while a pretrained weight is almost where it
/// should be.
pub const DEFAULT_WEIGHTS_LEARNING_RATES: [f64; 2] = [2e-5, 5e-6];

/// How many of the last blocks train when the client does not say: one in so many, at least one.
const BLOCKS_FOR_ONE: u32 = 4;

const DEFAULT_RANK: u32 = 8;
const DEFAULT_WARMUP_RATIO: f64 = 0.03;
const DEFAULT_WEIGHT_DECAY: f64 = 0.01;
const DEFAULT_MAX_GRAD_NORM: f64 = 1.0;

/// Learning rate for preferences when none is asked for: their loss asks for answers to become less
/// likely, which too large steps overdo.
pub const DEFAULT_DPO_LEARNING_RATE: f64 = 5e-5;

/// Looks without improvement after which training ends early, when nothing else is asked for.
pub const DEFAULT_PATIENCE: u32 = 5;

const DEFAULT_BETA: f64 = 0.1;
const DEFAULT_THRESHOLD: f64 = 0.001;
const DEFAULT_SAVE_TOTAL_LIMIT: u32 = 10;

/// The same for whole models, which are large.
const DEFAULT_WHOLE_MODELS_LIMIT: u32 = 2;

/// Most looks at the whole validation file in an epoch when the client does not say.
const MOST_LOOKS: f64 = 4.0;

/// Most time that these looks should take, as a share of the epoch's training.
const TIME_FOR_LOOKS: f64 = 0.1;

/// Time for a token forward, as a share of that forward and backward.
const FORWARD_SHARE: f64 = 1.0 / 3.0;

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

    /// Whether the validation file is measured after a step.
    pub fn looks_after(&self, step: u64) -> bool {
        if let Some(count) = self.hyperparameters.n_evals {
            return is_one_of(step, count, self.total_steps);
        }
        self.hyperparameters.eval_steps.is_some_and(|every| {
            step.is_multiple_of(self.steps_per_epoch) || step.is_multiple_of(u64::from(every))
        })
    }

    /// Whether there is a checkpoint after a step, be the model better than before or not.
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

/// The longest example that a run takes: as asked, else the default, never more than the model's
/// own context.
pub fn context_length(asked: &Hyperparameters, model_context: usize) -> u32 {
    let model = u32::try_from(model_context).unwrap_or(u32::MAX);
    asked.context_length.unwrap_or(DEFAULT_CONTEXT_LENGTH).min(model)
}

/// Plans a run.
///
/// - epochs: ⌈100 / examples⌉, at least 3 and at most 10: tiny sets need more passes to show at all;
/// - batch size: the largest power of two in examples / 50, at least 1 and at most 16: about fifty
///   steps an epoch, until the batch is as large as one device takes well.
/// - looks at the validation file: so many in an epoch that they take about a tenth of its training,
///   at least one and at most four;
/// - blocks: the last so many become their indexes; those that the model does not have are dropped,
///   for [`unknown_layer`] has refused them.
pub fn resolve(asked: &Hyperparameters, data: &DataSize, model: &ModelSize) -> Plan {
    let examples = data.examples;
    let mut explanations = Vec::new();
    let n_epochs = match asked.n_epochs {
        Auto::Value(epochs) => epochs,
        Auto::Auto => {
            let epochs = 100u64.div_ceil(examples.max(1)).clamp(3, 10) as u32;
            explanations.push(format!(
                "n_epochs is {epochs}: 100 examples' worth of passes over {examples} examples, at \
                 least 3 and at most 10"
            ));
            epochs
        }
    };
    let batch_size = match asked.batch_size {
        Auto::Value(size) => size,
        Auto::Auto => {
            let mut size = 1u64;
            while size < 16 && 2 * size <= examples / 50 {
                size *= 2;
            }
            explanations.push(format!(
                "batch_size is {size}: the largest power of two up to a fiftieth of {examples} \
                 examples, at most 16"
            ));
            size as u32
        }
    };
    let tuning = asked.tuning.unwrap_or_default();
    let (rates, whose) = match tuning {
        FineTuneMode::Lora => {
            ([DEFAULT_LEARNING_RATE, DEFAULT_DPO_LEARNING_RATE], "hone's default for LoRA")
        }
        FineTuneMode::Full | FineTuneMode::LastLayers => {
            (DEFAULT_WEIGHTS_LEARNING_RATES, "a tenth of LoRA's, because pretrained weights move,")
        }
    };
    let default_rate = match asked.method {
        Method::Supervised => rates[0],
        Method::Dpo => rates[1],
    };
    let (learning_rate, learning_rate_multiplier) =
        match (asked.learning_rate, asked.learning_rate_multiplier) {
            (Some(rate), _) => (rate, rate / default_rate),
            (None, Auto::Value(multiplier)) => (default_rate * multiplier, multiplier),
            (None, Auto::Auto) => {
                explanations.push(format!(
                    "learning_rate_multiplier is 1: the learning rate rises to {default_rate:e}, \
                     {whose} with the method {:?}",
                    asked.method.as_str()
                ));
                (default_rate, 1.0)
            }
        };
    let steps_per_epoch = examples.div_ceil(u64::from(batch_size).max(1));
    let n_evals = asked.n_evals.filter(|_| data.validation_share.is_some());
    let validation_share = data.validation_share.filter(|_| n_evals.is_none());
    let eval_steps = validation_share.map(|share| match asked.eval_steps {
        Auto::Value(steps) => steps,
        Auto::Auto => {
            let looks = (TIME_FOR_LOOKS / (share * FORWARD_SHARE)).floor().clamp(1.0, MOST_LOOKS);
            let steps = steps_per_epoch.div_ceil(looks as u64) as u32;
            explanations.push(format!(
                "eval_steps is {steps}: the whole validation file is looked at about {looks} times \
                 an epoch, as often as takes about a tenth of the time, at most four times"
            ));
            steps
        }
    });
    let beta = (asked.method == Method::Dpo).then(|| asked.beta.unwrap_or(DEFAULT_BETA));
    let tuning_layers = (tuning == FineTuneMode::LastLayers).then(|| {
        asked.tuning_layers.unwrap_or_else(|| {
            let blocks = model.layers.div_ceil(BLOCKS_FOR_ONE);
            explanations.push(format!(
                "tuning_layers is {blocks}: a quarter of the model's {} blocks",
                model.layers
            ));
            blocks
        })
    });
    let is_lora = tuning == FineTuneMode::Lora;
    let save_total_limit = asked.save_total_limit.unwrap_or_else(|| {
        let limit = if is_lora { DEFAULT_SAVE_TOTAL_LIMIT } else { DEFAULT_WHOLE_MODELS_LIMIT };
        if !is_lora && asked.n_checkpoints.is_none() {
            explanations
                .push(format!("save_total_limit is {limit}: every checkpoint is a whole model"));
        }
        // Whoever says how many there shall be wants all of them.
        asked.n_checkpoints.map_or(limit, |count| count.max(limit))
    });
    let lora_r = is_lora.then(|| asked.lora_r.unwrap_or(DEFAULT_RANK));
    let context_length = context_length(asked, model.context);
    if asked.context_length.is_some_and(|length| length > context_length) {
        explanations.push(format!(
            "context_length is {context_length}: the model itself takes no more tokens"
        ));
    }
    let hyperparameters = ResolvedHyperparameters {
        method: asked.method,
        beta,
        n_epochs,
        batch_size,
        learning_rate_multiplier,
        learning_rate,
        tuning,
        tuning_layers,
        modules_to_save: asked.modules_to_save.clone(),
        lora_r,
        lora_alpha: lora_r.map(|rank| asked.lora_alpha.unwrap_or(2.0 * f64::from(rank))),
        lora_dropout: is_lora.then(|| asked.lora_dropout.unwrap_or(0.0)),
        lora_target_modules: asked.lora_target_modules.clone(),
        lora_layers: asked.lora_layers.as_ref().map(|layers| layer_indexes(layers, model.layers)),
        use_rslora: is_lora.then(|| asked.use_rslora.unwrap_or(false)),
        warmup_ratio: asked.warmup_ratio.unwrap_or(DEFAULT_WARMUP_RATIO),
        weight_decay: asked.weight_decay.unwrap_or(DEFAULT_WEIGHT_DECAY),
        max_grad_norm: asked.max_grad_norm.unwrap_or(DEFAULT_MAX_GRAD_NORM),
        lr_scheduler_type: asked.lr_scheduler_type.unwrap_or_default(),
        min_lr_ratio: asked.min_lr_ratio,
        context_length,
        eval_steps,
        n_evals,
        early_stopping_patience: asked.early_stopping_patience.unwrap_or(DEFAULT_PATIENCE),
        early_stopping_threshold: asked.early_stopping_threshold.unwrap_or(DEFAULT_THRESHOLD),
        save_steps: asked.save_steps,
        n_checkpoints: asked.n_checkpoints,
        save_total_limit,
    };
    if asked.packing.is_some() {
        explanations.push(
            "packing changes nothing: a batch holds no padding in any case, and each example sees \
             itself alone"
                .to_owned(),
        );
    }
    let states_looks = !asked.eval_steps.is_auto()
        || asked.n_evals.is_some()
        || asked.early_stopping_patience.is_some()
        || asked.early_stopping_threshold.is_some();
    if data.validation_share.is_none() && states_looks {
        explanations.push(
            "eval_steps, n_evals and what is about early stopping have no effect without a \
             validation file: the model is that of the last step"
                .to_owned(),
        );
    }
    explanations.push(describe_rest(&hyperparameters));
    let total_steps = steps_per_epoch * u64::from(n_epochs);
    Plan { hyperparameters, steps_per_epoch, total_steps, explanations }
}

/// The blocks that are meant, in order.
fn layer_indexes(asked: &LoraLayers, layers: u32) -> Vec<u32> {
    match asked {
        LoraLayers::Last(count) => (layers.saturating_sub(*count)..layers).collect(),
        LoraLayers::These(list) => (0..layers).filter(|layer| list.contains(layer)).collect(),
    }
}

/// What is wrong with the blocks that a client names.
pub fn unknown_layer(asked: &Hyperparameters, layers: u32) -> Option<String> {
    if let Some(count) = asked.tuning_layers.filter(|count| *count > layers) {
        return Some(format!("tuning_layers is {count}, and the model has {layers} blocks"));
    }
    match asked.lora_layers.as_ref()? {
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

/// The values that clients rarely state, in one sentence.
fn describe_rest(values: &ResolvedHyperparameters) -> String {
    let schedule = match values.lr_scheduler_type {
        Schedule::Linear => "falls in a straight line",
        Schedule::Cosine => "falls along a cosine",
        Schedule::Constant => "stays",
    };
    let least = match values.min_lr_ratio {
        Some(ratio) => format!(" to {} % of its peak", ratio * 100.0),
        None => String::new(),
    };
    let what = match values.tuning {
        FineTuneMode::Lora => describe_lora(values),
        FineTuneMode::Full => "All weights train".to_owned(),
        FineTuneMode::LastLayers => format!(
            "The last {} blocks, the final norm and the head train",
            values.tuning_layers.unwrap_or_default()
        ),
    };
    format!(
        "{what}; AdamW with weight decay {}, gradients clipped at norm {}; the learning rate warms up \
         over {} % of the steps and {schedule}{least}; examples of up to {} tokens",
        values.weight_decay,
        values.max_grad_norm,
        values.warmup_ratio * 100.0,
        values.context_length
    )
}

fn describe_lora(values: &ResolvedHyperparameters) -> String {
    let modules = match &values.lora_target_modules {
        None => "all linear layers".to_owned(),
        Some(names) => names.join(", "),
    };
    let blocks = match &values.lora_layers {
        None => String::new(),
        Some(layers) => format!(" of {} blocks", layers.len()),
    };
    let scale = if values.use_rslora == Some(true) { ", scaled by alpha/√r," } else { "" };
    let dropout = match values.lora_dropout.unwrap_or_default() {
        0.0 => String::new(),
        rate => format!(" and dropout {rate}"),
    };
    let saved = match &values.modules_to_save {
        None => String::new(),
        Some(names) => format!(", and {} in full", names.join(" and ")),
    };
    format!(
        "LoRA with r={} and alpha={}{scale}{dropout} on {modules}{blocks}{saved}",
        values.lora_r.unwrap_or_default(),
        values.lora_alpha.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let asked = Hyperparameters {
            n_epochs: Auto::Value(2),
            batch_size: Auto::Value(4),
            ..Default::default()
        };
        let plan = resolve(&asked, &data(10), &SIZE);
        assert_eq!((plan.steps_per_epoch, plan.total_steps), (3, 6));
    }

    #[test]
    fn a_long_validation_file_is_looked_at_less_often() {
        let steps = |share: Option<f64>| {
            let asked = Hyperparameters { batch_size: Auto::Value(1), ..Default::default() };
            let data = DataSize { examples: 100, validation_share: share };
            resolve(&asked, &data, &SIZE).hyperparameters.eval_steps
        };
        let found = [Some(0.01), Some(0.075), Some(0.1), Some(0.2), Some(3.0), None].map(steps);
        assert_eq!(found, [Some(25), Some(25), Some(34), Some(100), Some(100), None]);
    }

    #[test]
    fn so_many_looks_and_checkpoints_as_are_asked_for_are_spread_over_the_run() {
        let plan = |n_evals, n_checkpoints, share| {
            let asked = Hyperparameters {
                n_epochs: Auto::Value(2),
                batch_size: Auto::Value(1),
                n_evals,
                n_checkpoints,
                ..Default::default()
            };
            resolve(&asked, &DataSize { examples: 10, validation_share: share }, &SIZE)
        };
        let steps = |is_one: &dyn Fn(u64) -> bool| -> Vec<u64> {
            (1..=20).filter(|step| is_one(*step)).collect()
        };
        let some = plan(Some(3), Some(4), Some(0.1));
        assert_eq!(steps(&|step| some.looks_after(step)), [7, 14, 20]);
        assert_eq!(steps(&|step| some.saves_after(step)), [5, 10, 15, 20]);
        assert_eq!(some.hyperparameters.eval_steps, None);
        let many = plan(Some(0), Some(50), Some(0.1));
        assert!(steps(&|step| many.looks_after(step)).is_empty());
        assert_eq!(steps(&|step| many.saves_after(step)).len(), 20);
        assert_eq!(many.hyperparameters.save_total_limit, 50, "all of them are kept");
        let none = plan(Some(3), None, None);
        assert!(steps(&|step| none.looks_after(step)).is_empty(), "there is no validation file");
        assert_eq!(steps(&|step| none.saves_after(step)), [10, 20], "the ends of epochs");
    }

    #[test]
    fn preferences_have_a_smaller_rate_and_a_beta() {
        let asked = Hyperparameters { method: Method::Dpo, ..Default::default() };
        let values = resolve(&asked, &data(100), &SIZE).hyperparameters;
        assert_eq!((values.learning_rate, values.beta), (5e-5, Some(0.1)));
        assert_eq!((auto(100).learning_rate, auto(100).beta), (2e-4, None));
    }

    #[test]
    fn a_stated_learning_rate_or_multiplier_is_kept() {
        let asked = Hyperparameters { learning_rate: Some(1e-3), ..Default::default() };
        let values = resolve(&asked, &data(100), &SIZE).hyperparameters;
        assert_eq!(values.learning_rate, 1e-3);
        assert!((values.learning_rate_multiplier - 5.0).abs() < 1e-12);
        let asked =
            Hyperparameters { learning_rate_multiplier: Auto::Value(0.5), ..Default::default() };
        assert_eq!(resolve(&asked, &data(100), &SIZE).hyperparameters.learning_rate, 1e-4);
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
            let asked = Hyperparameters { tuning: Some(tuning), method, ..Default::default() };
            resolve(&asked, &data(100), &SIZE)
        };
        let full = ask(FineTuneMode::Full, Method::Supervised);
        assert_eq!(full.hyperparameters.learning_rate, 2e-5);
        assert!(full.explanations.iter().any(|text| text.contains("a tenth of LoRA's")));
        let values = ask(FineTuneMode::LastLayers, Method::Dpo).hyperparameters;
        assert_eq!(values.learning_rate, 5e-6);
        assert_eq!((values.tuning_layers, values.lora_r, values.lora_alpha), (Some(8), None, None));
        let asked = Hyperparameters { tuning_layers: Some(31), ..Default::default() };
        let refusal = unknown_layer(&asked, 30).expect("there are 30");
        assert!(refusal.contains("tuning_layers is 31"), "{refusal}");
    }

    #[test]
    fn no_example_is_longer_than_the_models_context() {
        let asked = Hyperparameters { context_length: Some(9000), ..Default::default() };
        let plan = resolve(&asked, &data(100), &ModelSize { context: 512, ..SIZE });
        assert_eq!(plan.hyperparameters.context_length, 512);
        assert!(plan.explanations.iter().any(|text| text.contains("takes no more tokens")));
        assert_eq!(auto(100).context_length, DEFAULT_CONTEXT_LENGTH);
    }
}
