//! A whole model in Hugging Face's layout, the weights merged with the adapter.

use std::path::Path;

use super::error::ExportError;
use super::opened_model::OpenedModel;
use crate::artifacts::model::{self, WEIGHTS_FILE, WeightType};
use crate::train::model::model_files::ModelFiles;
use crate::util::atomic_file;

/// Writes configuration, tokenizer, template and weights; what is left out of the base's files, a sentence each.
/// Without a type the weights have the base's. The merged sums are computed in 32 bits and rounded once.
pub(super) fn write(
    opened: &OpenedModel,
    weight_type: Option<WeightType>,
    folder: &Path,
) -> Result<Vec<String>, ExportError> {
    let weight_type = match weight_type {
        Some(requested) => requested,
        None => opened.weight_type()?,
    };
    let made = ModelFiles::of(&opened.base, weight_type)?;
    for (name, bytes) in made.files {
        atomic_file::write(&folder.join(name), &bytes)?;
    }
    let shapes: Vec<_> =
        opened.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
    let mut tensors = opened.tensors.iter();
    // `write_weights` follows the order of `shapes`, so the next tensor is the requested one.
    model::write_weights(&folder.join(WEIGHTS_FILE), &shapes, weight_type, |name| {
        let Some(tensor) = tensors.next() else { return Ok(Vec::new()) };
        let values = opened.merged_values(tensor)?;
        match weight_type.first_beyond(&values) {
            None => Ok(values),
            Some(value) => Err(ExportError::Unsupported(format!(
                "{name:?} holds {value:e}, which {} cannot: export it with the dtype {:?}",
                weight_type.as_str(),
                WeightType::Float32.as_str()
            ))),
        }
    })?;
    Ok(made.omissions)
}
