//! Which weights of a folder in Hugging Face layout are read: safetensors where they are there, else
//! PyTorch's.

use std::path::Path;

use super::{WeightSource, pytorch, safetensors};
use crate::train::model::error::LoadError;

/// Endings of PyTorch's files.
const PYTORCH_ENDINGS: &[&str] = &["bin", "pt", "pth"];

/// Files with such an ending that training leaves beside the weights.
const NO_WEIGHTS: &[&str] = &["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"];

/// Opens the weights in `folder`.
///
/// # Errors
/// No weights there, or more than one file that could hold them; what the readers say.
pub fn open(folder: &Path) -> Result<Box<dyn WeightSource>, LoadError> {
    let has = |name: &str| folder.join(name).exists();
    if has(safetensors::FILE_NAME) || has(safetensors::INDEX_NAME) {
        return safetensors::open(folder);
    }
    if has(pytorch::FILE_NAME) {
        return pytorch::open_file(&folder.join(pytorch::FILE_NAME));
    }
    if has(pytorch::INDEX_NAME) {
        return pytorch::open_sharded(&folder.join(pytorch::INDEX_NAME));
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| LoadError::io(folder, error))? {
        let path = entry.map_err(|error| LoadError::io(folder, error))?.path();
        if path.is_file() && may_hold_weights(&path) {
            files.push(path);
        }
    }
    files.sort();
    match &files[..] {
        [one] => pytorch::open_file(one),
        [] => Err(LoadError::malformed(
            folder,
            format!(
                "it holds no weights: neither {}, {}, {}, {} nor another .bin, .pt or .pth file",
                safetensors::FILE_NAME,
                safetensors::INDEX_NAME,
                pytorch::FILE_NAME,
                pytorch::INDEX_NAME
            ),
        )),
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|path| path.file_name().unwrap_or_default())
                .map(|name| format!("{name:?}"))
                .collect();
            Err(LoadError::malformed(
                folder,
                format!(
                    "{} files could hold the weights: {}; name the right one {}",
                    names.len(),
                    super::listed(&names, ", "),
                    pytorch::FILE_NAME
                ),
            ))
        }
    }
}

/// Whether a file is PyTorch's and not known to be something else.
fn may_hold_weights(path: &Path) -> bool {
    let is_pytorch = path
        .extension()
        .and_then(|ending| ending.to_str())
        .is_some_and(|ending| PYTORCH_ENDINGS.contains(&ending));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    is_pytorch && !NO_WEIGHTS.contains(&name)
}
