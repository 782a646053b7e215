//! Which hyperparameters there are.

/// Names that are valid with every fine-tune mode, OpenAI's three first.
pub(super) const KNOWN: &[&str] = &[
    "n_epochs",
    "batch_size",
    "learning_rate_multiplier",
    "learning_rate",
    "tuning",
    "tuning_layers",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "lr_scheduler_type",
    "min_lr_ratio",
    "packing",
    "context_length",
    "eval_steps",
    "n_evals",
    "early_stopping_enabled",
    "early_stopping_patience",
    "early_stopping_threshold",
    "early_stopping_min_delta",
    "save_steps",
    "n_checkpoints",
    "save_total_limit",
];

/// Names that are valid with the method `dpo` only.
pub(super) const KNOWN_WITH_DPO: &[&str] = &["beta"];

/// Names that are valid with the tuning `lora` only.
pub(super) const KNOWN_WITH_LORA: &[&str] = &[
    "modules_to_save",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "lora_layers",
    "use_rslora",
];

/// Whether a hyperparameter of this name exists, with whatever method.
pub fn is_known(name: &str) -> bool {
    [KNOWN, KNOWN_WITH_LORA, KNOWN_WITH_DPO].iter().any(|names| names.contains(&name))
}
