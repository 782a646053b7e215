//! How a job trains: what was asked for, and every value as it is resolved.

use serde::{Deserialize, Serialize};

use crate::dataset::Format;
use crate::util::excerpt::excerpt;

/// A value that the client gives, or leaves to the server with `"auto"` (or by absence).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Auto<T> {
    /// The server chooses.
    #[default]
    Auto,
    /// The client chose.
    Value(T),
}

impl<T> Auto<T> {
    /// Whether the server chooses.
    pub fn is_auto(&self) -> bool {
        matches!(self, Self::Auto)
    }
}

impl<T: Copy> Auto<T> {
    /// The client's value, or `otherwise` for `auto`.
    pub fn unwrap_or(self, otherwise: T) -> T {
        match self {
            Self::Auto => otherwise,
            Self::Value(value) => value,
        }
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Value(value) => value.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Auto<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum ValueOrWord<T> {
            Value(T),
            Word(String),
        }
        match ValueOrWord::<T>::deserialize(deserializer)? {
            ValueOrWord::Value(value) => Ok(Self::Value(value)),
            ValueOrWord::Word(word) if word == "auto" => Ok(Self::Auto),
            ValueOrWord::Word(word) => Err(serde::de::Error::custom(format!(
                "expected \"auto\" or a number, got {:?}",
                excerpt(&word)
            ))),
        }
    }
}

/// How the learning rate changes after warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Falls in a straight line, to zero one step after the last.
    #[default]
    Linear,
    /// Falls along a half cosine, to zero one step after the last.
    Cosine,
    /// Stays.
    Constant,
}

/// How a job trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// On answers (supervised fine-tuning).
    #[default]
    Supervised,
    /// On preferences between two answers (direct preference optimisation).
    Dpo,
}

impl Method {
    /// The spelling on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Supervised => "supervised",
            Self::Dpo => "dpo",
        }
    }

    /// Whether files of this format are for this method.
    pub fn takes(self, format: Format) -> bool {
        match self {
            Self::Supervised => matches!(format, Format::Chat | Format::PromptCompletion),
            Self::Dpo => format == Format::Preference,
        }
    }
}

/// What of a model trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FineTuneMode {
    /// A LoRA adapter beside it.
    #[default]
    Lora,
    /// Every weight.
    Full,
    /// The last blocks, the final norm, and the head where it is not the embedding.
    LastLayers,
}

impl FineTuneMode {
    /// The spelling on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lora => "lora",
            Self::Full => "full",
            Self::LastLayers => "last_layers",
        }
    }
}

/// Blocks of a model, as a client names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LoraLayers {
    /// The last so many.
    Last(u32),
    /// Their indexes, from 0.
    These(Vec<u32>),
}

/// Hyperparameters as a client asks for them, every one optional. Ranges are checked by
/// `validate`; the engine resolves what is left open.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hyperparameters {
    /// How the job trains; on the wire the hyperparameters are inside of it.
    pub method: Method,
    /// How strongly preferences hold the model to its base, 0 < beta <= 2; with [`Method::Dpo`].
    #[serde(skip_serializing_if = "Auto::is_auto")]
    pub beta: Auto<f64>,
    /// Passes over the training file, 1..=50.
    pub n_epochs: Auto<u32>,
    /// Examples in one optimiser step, 1..=256.
    pub batch_size: Auto<u32>,
    /// Factor on the default learning rate, > 0.
    pub learning_rate_multiplier: Auto<f64>,
    /// Absolute peak learning rate; excludes the multiplier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// What trains: a LoRA adapter when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuning: Option<FineTuneMode>,
    /// How many of the last blocks train, with [`FineTuneMode::LastLayers`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tuning_layers: Option<u32>,
    /// Modules that train in full beside LoRA, such as `lm_head`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modules_to_save: Option<Vec<String>>,
    /// Rank of the LoRA matrices, 1..=256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_r: Option<u32>,
    /// LoRA's alpha: the adapter's output is scaled by alpha / r.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_alpha: Option<f64>,
    /// Share of each adapted layer's input that LoRA does not see in a training step, 0..1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_dropout: Option<f64>,
    /// Names of the linear layers that are adapted, such as `q_proj`; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_target_modules: Option<Vec<String>>,
    /// Blocks that are adapted; all when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_layers: Option<LoraLayers>,
    /// Whether LoRA's output is scaled by alpha / √r instead of alpha / r.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_rslora: Option<bool>,
    /// Share of the steps over which the learning rate rises from zero, 0..=1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_ratio: Option<f64>,
    /// AdamW's decoupled weight decay, >= 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Global gradient norm above which gradients are scaled down, > 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// How the learning rate changes after warm-up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_scheduler_type: Option<Schedule>,
    /// Share of the peak to which the learning rate falls, 0..=1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr_ratio: Option<f64>,
    /// Whether the client wants short examples to share sequences, which hone's batches need not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packing: Option<bool>,
    /// Longest example in tokens; longer ones are left out, counted and named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_length: Option<u32>,
    /// Steps between evaluations over the whole validation file, beside those at the ends of epochs.
    #[serde(skip_serializing_if = "Auto::is_auto")]
    pub eval_steps: Auto<u32>,
    /// Evaluations in all instead, evenly spread; excludes `eval_steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_evals: Option<u32>,
    /// Evaluations without improvement after which training ends early; 0 for never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping_patience: Option<u32>,
    /// Least fall of the validation loss that is an improvement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping_threshold: Option<f64>,
    /// Steps between checkpoints, beside those at the ends of epochs and of the best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_steps: Option<u32>,
    /// Checkpoints in all instead, evenly spread, beside the best; excludes `save_steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_checkpoints: Option<u32>,
    /// Newest checkpoints that are retained, beside the best.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_total_limit: Option<u32>,
}

/// Every hyperparameter with its value: what the engine runs with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResolvedHyperparameters {
    /// How the job trains.
    #[serde(default)]
    pub method: Method,
    /// How strongly preferences hold the model to its base; with [`Method::Dpo`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Passes over the training examples.
    pub n_epochs: u32,
    /// Examples in one optimiser step.
    pub batch_size: u32,
    /// Factor on the default learning rate.
    pub learning_rate_multiplier: f64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// What trains. The values of LoRA, from here on, are there with [`FineTuneMode::Lora`] alone.
    #[serde(default)]
    pub tuning: FineTuneMode,
    /// How many of the last blocks train, with [`FineTuneMode::LastLayers`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning_layers: Option<u32>,
    /// Modules that train in full beside LoRA; absent for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules_to_save: Option<Vec<String>>,
    /// Rank of the LoRA matrices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_r: Option<u32>,
    /// LoRA's alpha.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_alpha: Option<f64>,
    /// Share of each adapted layer's input that LoRA does not see in a training step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_dropout: Option<f64>,
    /// Names of the linear layers that are adapted; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_target_modules: Option<Vec<String>>,
    /// Indexes of the blocks that are adapted, from 0, in order; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_layers: Option<Vec<u32>>,
    /// Whether LoRA's output is scaled by alpha / √r.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_rslora: Option<bool>,
    /// Share of the steps that warm up.
    pub warmup_ratio: f64,
    /// AdamW's decoupled weight decay.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down.
    pub max_grad_norm: f64,
    /// How the learning rate changes after warm-up.
    pub lr_scheduler_type: Schedule,
    /// Share of the peak to which the learning rate falls; absent for zero.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_lr_ratio: Option<f64>,
    /// Longest example in tokens.
    pub context_length: u32,
    /// Steps between evaluations over the whole validation file; absent without one, and with `n_evals`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_steps: Option<u32>,
    /// Evaluations over the whole validation file in all, evenly spread.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_evals: Option<u32>,
    /// Evaluations without improvement after which training ends early; 0 for never.
    #[serde(default)]
    pub early_stopping_patience: u32,
    /// Least fall of the validation loss that is an improvement.
    #[serde(default)]
    pub early_stopping_threshold: f64,
    /// Steps between checkpoints; absent for those at the ends of epochs and of the best alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub save_steps: Option<u32>,
    /// Checkpoints in all, evenly spread, instead of those at the ends of epochs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_checkpoints: Option<u32>,
    /// Newest checkpoints that are retained, beside the best.
    #[serde(default)]
    pub save_total_limit: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_reads_the_word_and_the_number() {
        let read: Hyperparameters =
            serde_json::from_str(r#"{"n_epochs":"auto","batch_size":4}"#).expect("both forms");
        assert_eq!(read.n_epochs, Auto::Auto);
        assert_eq!(read.batch_size, Auto::Value(4));
        assert!(serde_json::from_str::<Hyperparameters>(r#"{"n_epochs":"four"}"#).is_err());
        assert!(serde_json::from_str::<Hyperparameters>(r#"{"nepochs":4}"#).is_err());
    }
}
