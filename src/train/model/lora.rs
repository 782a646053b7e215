//! What a LoRA adapter adapts, and how strongly (Hu et al. 2021).

use std::collections::BTreeSet;

use crate::artifacts::peft::AdapterConfig;
use crate::train::model::modules::AdaptedModule;

/// A LoRA adapter's shape.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSettings {
    /// Rank r.
    pub rank: usize,
    /// Alpha.
    pub alpha: f64,
    /// Whether the output is scaled by alpha / √r (rsLoRA, Kalajdzievski 2023) instead of alpha / r.
    pub is_rank_stabilised: bool,
    /// Share of each adapted layer's input that LoRA does not see in a training step, 0..1.
    pub dropout: f64,
    /// What is adapted.
    pub target: LoraTarget,
    /// Modules that train in full beside the adapter, by the last parts of their paths: the embedding
    /// and the head (PEFT's `modules_to_save`).
    pub saved_modules: Vec<String>,
}

/// Which linear layers of the blocks are adapted; all of them by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoraTarget {
    /// Last parts of their paths, such as `q_proj`; `None` for all.
    pub modules: Option<Vec<String>>,
    /// Indexes of their blocks, from 0; `None` for all.
    pub layers: Option<Vec<u32>>,
}

impl LoraSettings {
    /// Plain LoRA on all linear layers.
    pub fn new(rank: usize, alpha: f64) -> Self {
        let target = LoraTarget::default();
        let saved_modules = Vec::new();
        Self { rank, alpha, is_rank_stabilised: false, dropout: 0.0, target, saved_modules }
    }

    /// The shape of a finished adapter; which layers it adapts, its tensors say.
    pub fn of_peft(config: &AdapterConfig) -> Self {
        let is_rank_stabilised = config.use_rslora;
        Self { is_rank_stabilised, ..Self::new(config.r, config.lora_alpha) }
    }

    /// Factor on the adapter's output.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        let divisor = if self.is_rank_stabilised { rank.sqrt() } else { rank };
        (self.alpha / divisor) as f32
    }
}

impl LoraTarget {
    /// Whether each of `modules` is adapted.
    ///
    /// # Errors
    /// A name that no module has, with those that there are; a choice that leaves nothing.
    pub fn select(&self, modules: &[AdaptedModule]) -> Result<Vec<bool>, String> {
        let names: BTreeSet<&str> = modules.iter().map(AdaptedModule::name).collect();
        for wanted in self.modules.iter().flatten() {
            if !names.contains(wanted.as_str()) {
                let known: Vec<&str> = names.into_iter().collect();
                return Err(format!(
                    "the model has no layer called {wanted:?}; it has {}",
                    known.join(", ")
                ));
            }
        }
        let is_adapted = |module: &AdaptedModule| {
            let by_name = self
                .modules
                .as_ref()
                .is_none_or(|names| names.iter().any(|name| name == module.name()));
            by_name && self.layers.as_ref().is_none_or(|layers| layers.contains(&module.layer))
        };
        let selected: Vec<bool> = modules.iter().map(is_adapted).collect();
        if !selected.contains(&true) {
            return Err("no layer of the model is left to be adapted".to_owned());
        }
        Ok(selected)
    }
}
