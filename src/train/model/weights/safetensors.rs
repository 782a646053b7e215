//! Weights in safetensors: `model.safetensors`, or the shards that `model.safetensors.index.json`
//! names.

use std::io::Read;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::tensor_index::{ElementKind, TensorEntry, TensorIndex};
use super::{FloatType, WeightSource, shards};
use crate::train::model::error::LoadError;
use crate::util::regular_file;

/// The file of weights that are in one piece.
pub const FILE_NAME: &str = "model.safetensors";
/// The file that says where each tensor of sharded weights lies.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// Longest header that is read into memory.
const MAX_HEADER_BYTES: u64 = 16 * 1024 * 1024;

/// Length of the number before the header.
const PREFIX_BYTES: u64 = 8;

/// Opens the weights in `folder`: reads the headers, checks every tensor's entry against the file's
/// length, and leaves the tensors on disk until they are asked for.
///
/// # Errors
/// A file that is missing, truncated or not safetensors; an index that does not fit its shards.
pub fn open(folder: &Path) -> Result<Box<dyn WeightSource>, LoadError> {
    let single = folder.join(FILE_NAME);
    // As transformers chooses where both are there.
    if single.exists() {
        return Ok(Box::new(TensorIndex::gather(vec![single], read_header)?));
    }
    let shards = shards::read(&folder.join(INDEX_NAME), ".safetensors")?;
    let entries = TensorIndex::gather(shards.files.clone(), read_header)?;
    shards.check(|name| entries.file_of(name))?;
    Ok(Box::new(entries))
}

/// The tensors of one file. The `safetensors` library checks that they lie side by side and that
/// each is as long as its shape and type say; here the header's own length and the file's are
/// checked.
fn read_header(path: &Path) -> Result<Vec<(String, TensorEntry)>, LoadError> {
    let io_error = |error| LoadError::io(path, error);
    let mut file = regular_file::open(path).map_err(io_error)?;
    let length = file.metadata().map_err(io_error)?.len();
    if length < PREFIX_BYTES {
        return Err(LoadError::malformed(path, "it is too short for a safetensors file"));
    }
    let mut prefix = [0u8; PREFIX_BYTES as usize];
    file.read_exact(&mut prefix).map_err(io_error)?;
    let header = u64::from_le_bytes(prefix);
    if header > MAX_HEADER_BYTES || PREFIX_BYTES + header > length {
        let reason = format!("a header of {header} bytes cannot be right: it is not safetensors");
        return Err(LoadError::malformed(path, reason));
    }
    let mut text = vec![0u8; header as usize];
    file.read_exact(&mut text).map_err(io_error)?;
    let metadata: Metadata = serde_json::from_slice(&text)
        .map_err(|error| LoadError::malformed(path, format!("the header is not valid: {error}")))?;
    let data_start = PREFIX_BYTES + header;
    let wanted = data_start.checked_add(metadata.data_len() as u64);
    if wanted != Some(length) {
        let reason = format!(
            "its tensors end at byte {} and the file at byte {length}: it is truncated or damaged",
            wanted.map_or("(too large)".to_owned(), |end| end.to_string())
        );
        return Err(LoadError::malformed(path, reason));
    }
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let (start, end) = info.data_offsets;
        let elements = match info.dtype {
            Dtype::F32 => ElementKind::Floats(FloatType::F32),
            Dtype::F16 => ElementKind::Floats(FloatType::F16),
            Dtype::BF16 => ElementKind::Floats(FloatType::Bf16),
            other => ElementKind::Other(format!("{other:?}")),
        };
        let entry = TensorEntry {
            start: data_start + start as u64,
            bytes: end - start,
            elements,
            shape: info.shape.clone(),
        };
        (name, entry)
    });
    Ok(tensors.collect())
}
