//! What a run trains.

pub use super::lora::{LoraSettings, LoraTarget};
use crate::train::model::tensors::{ModelPart, ModelTensor};

/// What a run trains.
#[derive(Debug, Clone, PartialEq)]
pub enum Trainable {
    /// A LoRA adapter beside the model, and the modules that it names in full.
    Lora(LoraSettings),
    /// Every tensor of the model. A tied matrix trains once, on the sum of what it does as embedding
    /// and as head.
    Full,
    /// The last so many blocks, the final norm, and the head where it is a matrix of its own: a head
    /// that is the embedding stays, for it would change the input of the blocks that are frozen.
    LastLayers(usize),
}

impl Trainable {
    /// Whether tensors of the model itself train, which not every backend does.
    pub fn needs_weights(&self) -> bool {
        match self {
            Self::Full | Self::LastLayers(_) => true,
            Self::Lora(lora) => !lora.saved_modules.is_empty(),
        }
    }

    /// Share of the inputs that training drops, which is LoRA's alone.
    pub fn dropout(&self) -> f64 {
        match self {
            Self::Full | Self::LastLayers(_) => 0.0,
            Self::Lora(lora) => lora.dropout,
        }
    }

    /// Whether each of `tensors` trains itself.
    ///
    /// # Errors
    /// A module that the model does not have, with those that there are; blocks that it does not
    /// have.
    pub fn select(&self, tensors: &[ModelTensor]) -> Result<Vec<bool>, String> {
        match self {
            Self::Full => Ok(vec![true; tensors.len()]),
            Self::LastLayers(count) => {
                let blocks = tensors.iter().map(|tensor| match tensor.part {
                    ModelPart::Block(layer) => layer as usize + 1,
                    _ => 0,
                });
                let blocks = blocks.max().unwrap_or(0);
                if *count == 0 || *count > blocks {
                    return Err(format!(
                        "tuning_layers is {count}, and the model has {blocks} blocks"
                    ));
                }
                let first = blocks - count;
                let is_selected = |tensor: &ModelTensor| match tensor.part {
                    ModelPart::Block(layer) => layer as usize >= first,
                    ModelPart::FinalNorm | ModelPart::Head => true,
                    ModelPart::Embedding | ModelPart::Positions => false,
                };
                Ok(tensors.iter().map(is_selected).collect())
            }
            Self::Lora(lora) => select_saved(&lora.saved_modules, tensors),
        }
    }
}

/// Which tensors belong to the modules that train in full beside LoRA.
fn select_saved(names: &[String], tensors: &[ModelTensor]) -> Result<Vec<bool>, String> {
    let last_part = |tensor: &ModelTensor| {
        let module = tensor.module();
        module.rsplit('.').next().unwrap_or(module).to_owned()
    };
    let can_be =
        |tensor: &&ModelTensor| matches!(tensor.part, ModelPart::Embedding | ModelPart::Head);
    let known: Vec<String> = tensors.iter().filter(can_be).map(last_part).collect();
    let is_tied = !tensors.iter().any(|tensor| tensor.part == ModelPart::Head);
    if is_tied && !names.is_empty() {
        return Err(
            "modules_to_save is stated, and the model's embedding is its head: to train one of them \
             beside LoRA would part them. Leave it out, or choose tuning \"full\", which trains the \
             matrix for both uses"
                .to_owned(),
        );
    }
    for name in names {
        if !known.contains(name) {
            return Err(format!(
                "modules_to_save names {name:?}; of this model {} can be saved",
                known.join(" and ")
            ));
        }
    }
    let is_selected = |tensor: &ModelTensor| can_be(&tensor) && names.contains(&last_part(tensor));
    Ok(tensors.iter().map(is_selected).collect())
}
