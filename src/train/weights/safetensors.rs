//! Weights of a Hugging Face folder: `model.safetensors`, or the shards that
//! `model.safetensors.index.json` names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::{HostTensor, LoadError, TensorData, WeightSource};

/// Longest header that is read into memory.
const MAX_HEADER_BYTES: u64 = 16 * 1024 * 1024;

/// One tensor's place.
struct Place {
    file: usize,
    /// From the start of the file.
    start: u64,
    bytes: usize,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// The tensors of one model.
struct Safetensors {
    files: Vec<PathBuf>,
    places: BTreeMap<String, Place>,
}

/// Opens the weights in `folder`: reads the headers, checks every tensor's place against the file's
/// length, and leaves the tensors on disk until they are asked for.
///
/// # Errors
/// A file that is missing, truncated, not safetensors, or of a type other than F32, F16 and BF16.
pub fn open(folder: &Path) -> Result<Box<dyn WeightSource>, LoadError> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    let files = if index.exists() { shards(folder, &index)? } else { vec![single] };
    let mut places = BTreeMap::new();
    for (number, file) in files.iter().enumerate() {
        read_header(file, number, &mut places)?;
    }
    Ok(Box::new(Safetensors { files, places }))
}

fn io_error(path: &Path, source: std::io::Error) -> LoadError {
    LoadError::Io { path: path.display().to_string(), source }
}

fn malformed(path: &Path, reason: impl Into<String>) -> LoadError {
    LoadError::Malformed { path: path.display().to_string(), reason: reason.into() }
}

/// The files that an index names, each once, in order.
fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let bytes = std::fs::read(index).map_err(|error| io_error(index, error))?;
    let parsed: serde_json::Value = serde_json::from_slice(&bytes)
        .map_err(|error| malformed(index, format!("not JSON: {error}")))?;
    let Some(map) = parsed["weight_map"].as_object() else {
        return Err(malformed(index, "it has no \"weight_map\""));
    };
    let mut names: Vec<&str> = Vec::new();
    for (tensor, name) in map {
        let Some(name) = name.as_str() else {
            return Err(malformed(index, format!("the shard of {tensor:?} is not a file name")));
        };
        // A shard lies beside its index; a path that leads elsewhere is not followed.
        if name.contains(['/', '\\']) || !name.ends_with(".safetensors") {
            return Err(malformed(index, format!("{name:?} is not the name of a shard")));
        }
        names.push(name);
    }
    names.sort_unstable();
    names.dedup();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn read_header(
    path: &Path,
    number: usize,
    places: &mut BTreeMap<String, Place>,
) -> Result<(), LoadError> {
    let mut file = File::open(path).map_err(|error| io_error(path, error))?;
    let length = file.metadata().map_err(|error| io_error(path, error))?.len();
    let mut prefix = [0u8; 8];
    file.read_exact(&mut prefix).map_err(|error| io_error(path, error))?;
    let header = u64::from_le_bytes(prefix);
    if header > MAX_HEADER_BYTES || 8 + header > length {
        return Err(malformed(path, format!("a header of {header} bytes cannot be right")));
    }
    let mut text = vec![0u8; header as usize];
    file.read_exact(&mut text).map_err(|error| io_error(path, error))?;
    let metadata: Metadata = serde_json::from_slice(&text)
        .map_err(|error| malformed(path, format!("the header is not valid: {error}")))?;
    for (name, info) in metadata.tensors() {
        let (start, end) = info.data_offsets;
        let elements: usize = info.shape.iter().product();
        let width = match info.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            // Masks and the like, which are never read.
            _ => {
                places.insert(name, place(number, 8 + header, (start, end), info));
                continue;
            }
        };
        let is_inside = 8 + header + end as u64 <= length;
        if end < start || end - start != elements * width || !is_inside {
            return Err(malformed(
                path,
                format!("tensor {name:?} does not fit: the file is truncated or damaged"),
            ));
        }
        if places.contains_key(&name) {
            return Err(malformed(path, format!("tensor {name:?} stands in two shards")));
        }
        places.insert(name, place(number, 8 + header, (start, end), info));
    }
    Ok(())
}

fn place(
    file: usize,
    data_start: u64,
    (start, end): (usize, usize),
    info: &safetensors::tensor::TensorInfo,
) -> Place {
    Place {
        file,
        start: data_start + start as u64,
        bytes: end.saturating_sub(start),
        dtype: info.dtype,
        shape: info.shape.clone(),
    }
}

impl WeightSource for Safetensors {
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.places.iter().map(|(name, place)| (name.clone(), place.shape.clone())).collect()
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, LoadError> {
        let Some(place) = self.places.get(name) else {
            return Err(LoadError::Tensors(format!("{name:?} is missing")));
        };
        let path = &self.files[place.file];
        let mut file = File::open(path).map_err(|error| io_error(path, error))?;
        file.seek(SeekFrom::Start(place.start)).map_err(|error| io_error(path, error))?;
        let mut bytes = vec![0u8; place.bytes];
        file.read_exact(&mut bytes).map_err(|error| io_error(path, error))?;
        let pairs = || bytes.as_chunks::<2>().0.iter();
        let data = match place.dtype {
            Dtype::F32 => TensorData::F32(
                bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            ),
            Dtype::F16 => {
                TensorData::F16(pairs().map(|bytes| f16::from_le_bytes(*bytes)).collect())
            }
            Dtype::BF16 => {
                TensorData::Bf16(pairs().map(|bytes| bf16::from_le_bytes(*bytes)).collect())
            }
            other => {
                return Err(malformed(
                    path,
                    format!("tensor {name:?} is of type {other:?}; hone reads F32, F16 and BF16"),
                ));
            }
        };
        Ok(HostTensor { shape: place.shape.clone(), data })
    }
}
