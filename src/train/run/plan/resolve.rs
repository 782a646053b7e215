//! Resolves the values that a client left open, and says why each is what it is.

use super::describe::describe_rest;
use super::{DataSize, ModelSize, Plan};
use crate::domain::job::{
    Auto, FineTuneMode, Hyperparameters, LoraLayers, Method, ResolvedHyperparameters,
};

/// Learning rate when none is requested.
pub const DEFAULT_LEARNING_RATE: f64 = 2e-4;

/// Longest example when none is requested, in tokens; shorter where the model's own context is.
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

/// Learning rate for preferences when none is requested: their loss asks for answers to become less
/// likely, which too large steps overdo.
pub const DEFAULT_DPO_LEARNING_RATE: f64 = 5e-5;

/// Evaluations without improvement after which training stops early, by default.
pub const DEFAULT_PATIENCE: u32 = 5;

const DEFAULT_BETA: f64 = 0.1;
const DEFAULT_THRESHOLD: f64 = 0.001;
const DEFAULT_SAVE_TOTAL_LIMIT: u32 = 10;

/// The same for whole models, which are large.
const DEFAULT_WHOLE_MODELS_LIMIT: u32 = 2;

/// Most evaluations of the whole validation file in an epoch when the client does not say.
const MOST_EVALUATIONS: f64 = 4.0;

/// Most time that these evaluations should take, as a share of the epoch's training.
const TIME_FOR_EVALUATIONS: f64 = 0.1;

/// Time for a token forward, as a share of that forward and backward.
const FORWARD_SHARE: f64 = 1.0 / 3.0;

/// Longest example of a run in tokens: as requested, else the default, never more than the model's
/// own context.
pub fn context_length(requested: &Hyperparameters, model_context: usize) -> u32 {
    let model = u32::try_from(model_context).unwrap_or(u32::MAX);
    requested.context_length.unwrap_or(DEFAULT_CONTEXT_LENGTH).min(model)
}

/// Plans a run.
///
/// - epochs: ⌈100 / examples⌉, at least 3 and at most 10: tiny sets need more passes to show at all;
/// - batch size: the largest power of two in examples / 50, at least 1 and at most 16: about fifty
///   steps an epoch, until the batch is as large as one device takes well;
/// - evaluations: so many in an epoch that they take about a tenth of its training, at least one and
///   at most four;
/// - blocks: the last so many become their indexes. Blocks that the model does not have are dropped:
///   [`super::unknown_layer`] has refused them.
pub fn resolve(requested: &Hyperparameters, data: &DataSize, model: &ModelSize) -> Plan {
    let mut resolver = PlanResolver { requested, data, model, explanations: Vec::new() };
    let n_epochs = resolver.n_epochs();
    let batch_size = resolver.batch_size();
    let (learning_rate, learning_rate_multiplier) = resolver.learning_rate();
    let steps_per_epoch = data.examples.div_ceil(u64::from(batch_size).max(1));
    let n_evals = requested.n_evals.filter(|_| data.validation_share.is_some());
    let eval_steps = resolver.eval_steps(steps_per_epoch, n_evals.is_some());
    let tuning_layers = resolver.tuning_layers();
    let save_total_limit = resolver.save_total_limit();
    let context_length = resolver.context_length();

    let tuning = requested.tuning.unwrap_or_default();
    let is_lora = tuning == FineTuneMode::Lora;
    let lora_r = is_lora.then(|| requested.lora_r.unwrap_or(DEFAULT_RANK));
    let is_dpo = requested.method == Method::Dpo;
    let hyperparameters = ResolvedHyperparameters {
        method: requested.method,
        beta: is_dpo.then(|| requested.beta.unwrap_or(DEFAULT_BETA)),
        n_epochs,
        batch_size,
        learning_rate_multiplier,
        learning_rate,
        tuning,
        tuning_layers,
        modules_to_save: requested.modules_to_save.clone(),
        lora_r,
        lora_alpha: lora_r.map(|rank| requested.lora_alpha.unwrap_or(2.0 * f64::from(rank))),
        lora_dropout: is_lora.then(|| requested.lora_dropout.unwrap_or(0.0)),
        lora_target_modules: requested.lora_target_modules.clone(),
        lora_layers: requested
            .lora_layers
            .as_ref()
            .map(|layers| layer_indexes(layers, model.layers)),
        use_rslora: is_lora.then(|| requested.use_rslora.unwrap_or(false)),
        warmup_ratio: requested.warmup_ratio.unwrap_or(DEFAULT_WARMUP_RATIO),
        weight_decay: requested.weight_decay.unwrap_or(DEFAULT_WEIGHT_DECAY),
        max_grad_norm: requested.max_grad_norm.unwrap_or(DEFAULT_MAX_GRAD_NORM),
        lr_scheduler_type: requested.lr_scheduler_type.unwrap_or_default(),
        min_lr_ratio: requested.min_lr_ratio,
        context_length,
        eval_steps,
        n_evals,
        early_stopping_patience: requested.early_stopping_patience.unwrap_or(DEFAULT_PATIENCE),
        early_stopping_threshold: requested.early_stopping_threshold.unwrap_or(DEFAULT_THRESHOLD),
        save_steps: requested.save_steps,
        n_checkpoints: requested.n_checkpoints,
        save_total_limit,
    };
    resolver.explain_what_has_no_effect();
    let mut explanations = resolver.explanations;
    explanations.push(describe_rest(&hyperparameters));
    let total_steps = steps_per_epoch * u64::from(n_epochs);
    Plan { hyperparameters, steps_per_epoch, total_steps, explanations }
}

/// Resolves one value after the other.
struct PlanResolver<'a> {
    requested: &'a Hyperparameters,
    data: &'a DataSize,
    model: &'a ModelSize,
    /// A sentence for each value that was left open.
    explanations: Vec<String>,
}

impl PlanResolver<'_> {
    fn n_epochs(&mut self) -> u32 {
        if let Auto::Value(epochs) = self.requested.n_epochs {
            return epochs;
        }
        let examples = self.data.examples;
        let epochs = 100u64.div_ceil(examples.max(1)).clamp(3, 10) as u32;
        self.explanations.push(format!(
            "n_epochs is {epochs}: 100 examples' worth of passes over {examples} examples, at least 3 \
             and at most 10"
        ));
        epochs
    }

    fn batch_size(&mut self) -> u32 {
        if let Auto::Value(size) = self.requested.batch_size {
            return size;
        }
        let examples = self.data.examples;
        let mut size = 1u64;
        while size < 16 && 2 * size <= examples / 50 {
            size *= 2;
        }
        self.explanations.push(format!(
            "batch_size is {size}: the largest power of two up to a fiftieth of {examples} examples, \
             at most 16"
        ));
        size as u32
    }

    /// The learning rate and its multiplier.
    fn learning_rate(&mut self) -> (f64, f64) {
        let (rates, reason) = match self.requested.tuning.unwrap_or_default() {
            FineTuneMode::Lora => {
                ([DEFAULT_LEARNING_RATE, DEFAULT_DPO_LEARNING_RATE], "hone's default for LoRA")
            }
            FineTuneMode::Full | FineTuneMode::LastLayers => (
                DEFAULT_WEIGHTS_LEARNING_RATES,
                "a tenth of LoRA's, because pretrained weights move,",
            ),
        };
        let default_rate = match self.requested.method {
            Method::Supervised => rates[0],
            Method::Dpo => rates[1],
        };
        match (self.requested.learning_rate, self.requested.learning_rate_multiplier) {
            (Some(rate), _) => (rate, rate / default_rate),
            (None, Auto::Value(multiplier)) => (default_rate * multiplier, multiplier),
            (None, Auto::Auto) => {
                self.explanations.push(format!(
                    "learning_rate_multiplier is 1: the learning rate rises to {default_rate:e}, \
                     {reason} with the method {:?}",
                    self.requested.method.as_str()
                ));
                (default_rate, 1.0)
            }
        }
    }

    /// Steps between evaluations; `None` without a validation file, or where their number is stated.
    fn eval_steps(&mut self, steps_per_epoch: u64, is_number_stated: bool) -> Option<u32> {
        let share = self.data.validation_share.filter(|_| !is_number_stated)?;
        if let Auto::Value(steps) = self.requested.eval_steps {
            return Some(steps);
        }
        let evaluations =
            (TIME_FOR_EVALUATIONS / (share * FORWARD_SHARE)).floor().clamp(1.0, MOST_EVALUATIONS);
        let steps = steps_per_epoch.div_ceil(evaluations as u64) as u32;
        self.explanations.push(format!(
            "eval_steps is {steps}: the whole validation file is evaluated about {evaluations} times \
             an epoch, as often as takes about a tenth of the time, at most four times"
        ));
        Some(steps)
    }

    fn tuning_layers(&mut self) -> Option<u32> {
        if self.requested.tuning.unwrap_or_default() != FineTuneMode::LastLayers {
            return None;
        }
        if let Some(blocks) = self.requested.tuning_layers {
            return Some(blocks);
        }
        let blocks = self.model.layers.div_ceil(BLOCKS_FOR_ONE);
        self.explanations.push(format!(
            "tuning_layers is {blocks}: a quarter of the model's {} blocks",
            self.model.layers
        ));
        Some(blocks)
    }

    fn save_total_limit(&mut self) -> u32 {
        if let Some(limit) = self.requested.save_total_limit {
            return limit;
        }
        let is_lora = self.requested.tuning.unwrap_or_default() == FineTuneMode::Lora;
        let limit = if is_lora { DEFAULT_SAVE_TOTAL_LIMIT } else { DEFAULT_WHOLE_MODELS_LIMIT };
        let n_checkpoints = self.requested.n_checkpoints;
        if !is_lora && n_checkpoints.is_none() {
            self.explanations
                .push(format!("save_total_limit is {limit}: every checkpoint is a whole model"));
        }
        // A stated number of checkpoints is retained whole.
        n_checkpoints.map_or(limit, |count| count.max(limit))
    }

    fn context_length(&mut self) -> u32 {
        let context_length = context_length(self.requested, self.model.context);
        if self.requested.context_length.is_some_and(|length| length > context_length) {
            self.explanations.push(format!(
                "context_length is {context_length}: the model itself takes no more tokens"
            ));
        }
        context_length
    }

    fn explain_what_has_no_effect(&mut self) {
        let requested = self.requested;
        if requested.packing.is_some() {
            self.explanations.push(
                "packing changes nothing: a batch holds no padding in any case, and each example \
                 sees itself alone"
                    .to_owned(),
            );
        }
        let states_evaluations = !requested.eval_steps.is_auto()
            || requested.n_evals.is_some()
            || requested.early_stopping_patience.is_some()
            || requested.early_stopping_threshold.is_some();
        if self.data.validation_share.is_none() && states_evaluations {
            self.explanations.push(
                "eval_steps, n_evals and early stopping have no effect without a validation file: the \
                 model is that of the last step"
                    .to_owned(),
            );
        }
    }
}

/// The blocks that are meant, in order.
fn layer_indexes(requested: &LoraLayers, layers: u32) -> Vec<u32> {
    match requested {
        LoraLayers::Last(count) => (layers.saturating_sub(*count)..layers).collect(),
        LoraLayers::These(list) => (0..layers).filter(|layer| list.contains(layer)).collect(),
    }
}
