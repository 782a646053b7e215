//! One sentence for the values that clients rarely state.

use crate::domain::job::{FineTuneMode, ResolvedHyperparameters, Schedule};

/// The values that clients rarely state, in one sentence.
pub(super) fn describe_rest(values: &ResolvedHyperparameters) -> String {
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
