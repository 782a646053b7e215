//! A whole model in Hugging Face's layout, the weights merged with the adapter.

use std::path::Path;

use super::error::ExportError;
use super::opened_model::OpenedModel;
use crate::artifacts::model::{self, CONFIG_FILE, WEIGHTS_FILE};
use crate::train::run::export;
use crate::util::atomic_file;

/// Writes configuration, tokenizer, template and weights. The weights are 32-bit floats, whatever the base
/// model has: in 16 bits most of the adapter's change would be lost by rounding.
pub(super) fn write(opened: &OpenedModel, folder: &Path) -> Result<(), ExportError> {
    for (name, bytes) in opened.base.companions()? {
        atomic_file::write(&folder.join(name), &bytes)?;
    }
    let mut config = serde_json::to_vec_pretty(&export::config_of(&opened.base))
        .map_err(std::io::Error::other)?;
    config.push(b'\n');
    atomic_file::write(&folder.join(CONFIG_FILE), &config)?;

    let shapes: Vec<_> =
        opened.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
    let mut tensors = opened.tensors.iter();
    // `write_weights` follows the order of `shapes`, so the next tensor is the requested one.
    model::write_weights(&folder.join(WEIGHTS_FILE), &shapes, |_name| match tensors.next() {
        Some(tensor) => opened.merged_values(tensor),
        None => Ok(Vec::new()),
    })
}
