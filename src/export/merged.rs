//! A whole model in Hugging Face's layout, the adapter added to the weights.

use std::path::Path;

use super::{ExportError, Tuned};
use crate::artifacts::model::{self, CONFIG_FILE, WEIGHTS_FILE};
use crate::train::run::export;
use crate::util::atomic_file;

/// Writes configuration, tokenizer, template and weights. The weights are 32-bit floats, whatever the
/// base's are: in 16 bits most of what an adapter adds would be rounded away.
pub(super) fn write(tuned: &Tuned, folder: &Path) -> Result<(), ExportError> {
    for (name, bytes) in tuned.base.companions()? {
        atomic_file::write(&folder.join(name), &bytes)?;
    }
    let mut config = serde_json::to_vec_pretty(&export::config_of(&tuned.base))
        .map_err(std::io::Error::other)?;
    config.push(b'\n');
    atomic_file::write(&folder.join(CONFIG_FILE), &config)?;

    let shapes: Vec<_> =
        tuned.tensors.iter().map(|tensor| (tensor.name.clone(), tensor.shape.clone())).collect();
    let mut tensors = tuned.tensors.iter();
    // In the order of `shapes`, so the next tensor is the one that is asked for.
    model::write_weights(&folder.join(WEIGHTS_FILE), &shapes, |_name| match tensors.next() {
        Some(tensor) => tuned.values(tensor),
        None => Ok(Vec::new()),
    })
}
