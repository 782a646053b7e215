//! Weights in PyTorch's own format: `pytorch_model.bin`, the shards that
//! `pytorch_model.bin.index.json` names, or one `.bin`, `.pt` or `.pth` file.
//!
//! Such a file is a zip archive: a pickle that says where each tensor lies, and the tensors'
//! storages, uncompressed. Tensors may share a storage, as tied ones do.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::pickle::Object;
use zip::{CompressionMethod, ZipArchive};

use super::tensor_index::{ElementKind, TensorEntry, TensorIndex};
use super::{FloatType, WeightSource, listed, pickle, shards};
use crate::train::model::error::LoadError;
use crate::util::regular_file;

/// The file of weights that are in one piece.
pub const FILE_NAME: &str = "pytorch_model.bin";
/// The file that says where each tensor of sharded weights lies.
pub const INDEX_NAME: &str = "pytorch_model.bin.index.json";

/// Longest pickle that is read into memory.
const MAX_PICKLE_BYTES: u64 = 64 * 1024 * 1024;

/// Most tensors in a file.
const MAX_TENSORS: usize = 1 << 16;

/// How the first pickle of PyTorch's format before version 1.6 begins.
const OLD_FORMAT: &[u8] = &[0x80, 0x02, 0x8a, 0x0a];

/// Opens the one file of weights.
///
/// # Errors
/// As [`open_sharded`].
pub fn open_file(path: &Path) -> Result<Box<dyn WeightSource>, LoadError> {
    Ok(Box::new(TensorIndex::gather(vec![path.to_owned()], read_entries)?))
}

/// Opens the shards that an index names: reads the pickles, checks every tensor's place, and leaves
/// the tensors on disk until they are asked for.
///
/// # Errors
/// A file that is missing, damaged, not a checkpoint of PyTorch 1.6 or later, or that names anything
/// but tensors; an index that does not fit its shards.
pub fn open_sharded(index: &Path) -> Result<Box<dyn WeightSource>, LoadError> {
    let shards = shards::read(index, ".bin")?;
    let entries = TensorIndex::gather(shards.files.clone(), read_entries)?;
    shards.check(|name| entries.file_of(name))?;
    Ok(Box::new(entries))
}

/// The tensors of one file.
fn read_entries(path: &Path) -> Result<Vec<(String, TensorEntry)>, LoadError> {
    let malformed = |reason: String| LoadError::malformed(path, reason);
    let mut archive = TorchArchive::open(path)?;
    let value = pickle::read(&archive.pickle()?).map_err(malformed)?;
    let entries = state_dictionary(value).map_err(malformed)?;
    if entries.len() > MAX_TENSORS {
        return Err(malformed(format!("it holds more than {MAX_TENSORS} tensors")));
    }
    let mut tensors = Vec::with_capacity(entries.len());
    let mut strangers = Vec::new();
    for (name, value) in entries {
        let Object::Unicode(name) = name else {
            return Err(malformed(format!("{name:?} is not the name of a tensor")));
        };
        // What PyTorch keeps of the versions of modules.
        if name == "_metadata" {
            continue;
        }
        let Some(view) = TensorView::of(value) else {
            strangers.push(format!("{name:?}"));
            continue;
        };
        let entry = archive
            .entry(&view)
            .map_err(|reason| malformed(format!("tensor {name:?}: {reason}")))?;
        tensors.push((name, entry));
    }
    if !strangers.is_empty() {
        let reason = format!(
            "{} entries are not tensors: {}; save the model's state_dict alone",
            strangers.len(),
            listed(&strangers, ", ")
        );
        return Err(malformed(reason));
    }
    Ok(tensors)
}

/// The entries of the dictionary of tensors: the value itself, or what a training checkpoint has
/// under `state_dict`.
fn state_dictionary(value: Object) -> Result<Vec<(Object, Object)>, String> {
    let Object::Dict(mut entries) = value else {
        return Err("it does not hold a dictionary of tensors".to_owned());
    };
    let inner = entries.iter().position(|(name, value)| {
        *name == Object::Unicode("state_dict".to_owned()) && matches!(value, Object::Dict(_))
    });
    if let Some(inner) = inner
        && let Object::Dict(tensors) = entries.swap_remove(inner).1
    {
        return Ok(tensors);
    }
    Ok(entries)
}

/// A tensor as the pickle describes it.
struct TensorView {
    /// Name of the storage's class.
    class: String,
    /// Name of the storage's entry in the archive.
    storage: String,
    /// Of its first element, in elements.
    offset: u64,
    shape: Vec<u64>,
    strides: Vec<u64>,
}

impl TensorView {
    /// `None` when the value is no tensor.
    fn of(value: Object) -> Option<Self> {
        let Object::Reduce { callable, args } = value else { return None };
        let (Object::Class { class_name, .. }, Object::Tuple(args)) = (*callable, *args) else {
            return None;
        };
        let mut args = args.into_iter();
        match class_name.as_str() {
            // (tensor, requires_grad, hooks)
            "_rebuild_parameter" => {
                let tensor = args.next()?;
                let is_tensor = matches!(&tensor, Object::Reduce { callable, .. }
                    if matches!(&**callable, Object::Class { class_name, .. }
                        if class_name == "_rebuild_tensor_v2"));
                if is_tensor { Self::of(tensor) } else { None }
            }
            // (storage, offset, sizes, strides, requires_grad, hooks)
            "_rebuild_tensor_v2" => {
                let Object::PersistentLoad(storage) = args.next()? else { return None };
                let offset = natural(&args.next()?)?;
                let shape = naturals(&args.next()?)?;
                let strides = naturals(&args.next()?)?;
                // ("storage", class, entry, device, elements)
                let Object::Tuple(storage) = *storage else { return None };
                let [_, Object::Class { class_name, .. }, Object::Unicode(entry), ..] =
                    &storage[..]
                else {
                    return None;
                };
                let (class, storage) = (class_name.clone(), entry.clone());
                Some(Self { class, storage, offset, shape, strides })
            }
            _ => None,
        }
    }

    /// Whether the elements lie row after row, without gaps.
    fn is_contiguous(&self) -> bool {
        let mut wanted: u64 = 1;
        if self.shape.len() != self.strides.len() {
            return false;
        }
        for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *size != 1 && *stride != wanted {
                return false;
            }
            wanted = wanted.saturating_mul(*size);
        }
        true
    }
}

fn natural(value: &Object) -> Option<u64> {
    match value {
        Object::Int(number) => u64::try_from(*number).ok(),
        Object::Long(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

fn naturals(value: &Object) -> Option<Vec<u64>> {
    match value {
        Object::Tuple(values) => values.iter().map(natural).collect(),
        _ => None,
    }
}

/// An open file.
struct TorchArchive<'a> {
    path: &'a Path,
    zip: ZipArchive<File>,
    /// What stands before `data.pkl` in the names of its entries.
    prefix: String,
    length: u64,
}

impl<'a> TorchArchive<'a> {
    fn open(path: &'a Path) -> Result<Self, LoadError> {
        let io_error = |error| LoadError::io(path, error);
        let mut file = regular_file::open(path).map_err(io_error)?;
        let length = file.metadata().map_err(io_error)?.len();
        let mut begin = [0u8; OLD_FORMAT.len()];
        if length >= begin.len() as u64 {
            file.read_exact(&mut begin).map_err(io_error)?;
        }
        if begin == OLD_FORMAT {
            let reason = "it is in PyTorch's format before version 1.6: load it with PyTorch and save \
                          it again, best as safetensors";
            return Err(LoadError::malformed(path, reason));
        }
        let zip = ZipArchive::new(file).map_err(|error| {
            LoadError::malformed(path, format!("not a checkpoint of PyTorch, or damaged: {error}"))
        })?;
        let pickles: Vec<String> = zip
            .file_names()
            .filter_map(Result::ok)
            .filter(|name| name == "data.pkl" || name.ends_with("/data.pkl"))
            .map(|name| name.into_owned())
            .collect();
        let [pickle] = &pickles[..] else {
            let reason = format!(
                "not a checkpoint of PyTorch: it holds {} entries called data.pkl instead of one",
                pickles.len()
            );
            return Err(LoadError::malformed(path, reason));
        };
        let prefix = pickle.trim_end_matches("data.pkl").to_owned();
        let mut archive = Self { path, zip, prefix, length };
        if let Some(order) = archive.small_entry("byteorder", 16)?
            && order != b"little"
        {
            let reason = "its numbers are not little-endian: save it again on another machine";
            return Err(LoadError::malformed(path, reason));
        }
        Ok(archive)
    }

    /// The bytes of an entry if it is there, at most `limit`.
    fn small_entry(&mut self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, LoadError> {
        let malformed = |reason: String| LoadError::malformed(self.path, reason);
        let name = format!("{}{name}", self.prefix);
        if self.zip.index_for_name(&name).is_none() {
            return Ok(None);
        }
        let entry = self.zip.by_name(&name);
        let entry = entry.map_err(|error| malformed(format!("its entry {name:?}: {error}")))?;
        let mut bytes = Vec::new();
        let read = entry.take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|error| malformed(format!("its entry {name:?}: {error}")))?;
        if bytes.len() as u64 > limit {
            return Err(malformed(format!("its entry {name:?} is longer than {limit} bytes")));
        }
        Ok(Some(bytes))
    }

    fn pickle(&mut self) -> Result<Vec<u8>, LoadError> {
        Ok(self.small_entry("data.pkl", MAX_PICKLE_BYTES)?.unwrap_or_default())
    }

    /// Where the elements of a tensor lie.
    fn entry(&mut self, view: &TensorView) -> Result<TensorEntry, String> {
        if !view.is_contiguous() {
            return Err(format!(
                "its elements do not lie side by side (sizes {:?}, strides {:?}); save it contiguous",
                view.shape, view.strides
            ));
        }
        let (elements, width) = match view.class.as_str() {
            "FloatStorage" => (ElementKind::Floats(FloatType::F32), FloatType::F32.width()),
            "HalfStorage" => (ElementKind::Floats(FloatType::F16), FloatType::F16.width()),
            "BFloat16Storage" => (ElementKind::Floats(FloatType::Bf16), FloatType::Bf16.width()),
            "DoubleStorage" | "LongStorage" => (ElementKind::Other(view.class.clone()), 8),
            "IntStorage" => (ElementKind::Other(view.class.clone()), 4),
            "ShortStorage" => (ElementKind::Other(view.class.clone()), 2),
            "CharStorage" | "ByteStorage" | "BoolStorage" => {
                (ElementKind::Other(view.class.clone()), 1)
            }
            other => return Err(format!("its storage is of the unknown class {other:?}")),
        };
        let name = format!("{}data/{}", self.prefix, view.storage);
        let entry = self.zip.by_name(&name);
        let entry = entry.map_err(|error| format!("its storage {name:?}: {error}"))?;
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(format!("its storage {name:?} is compressed, which PyTorch never does"));
        }
        let Some(data_start) = entry.data_start() else {
            return Err(format!("its storage {name:?} has no place in the file"));
        };
        let width = width as u64;
        let count = view.shape.iter().try_fold(1u64, |count, size| count.checked_mul(*size));
        let bytes = count.and_then(|count| count.checked_mul(width));
        let skipped = view.offset.checked_mul(width);
        let end = skipped.zip(bytes).and_then(|(skipped, bytes)| skipped.checked_add(bytes));
        let file_end = end.and_then(|end| data_start.checked_add(end));
        let (Some(bytes), Some(skipped), Some(end), Some(file_end)) =
            (bytes, skipped, end, file_end)
        else {
            return Err(format!("sizes {:?} are too large", view.shape));
        };
        if end > entry.size() || file_end > self.length {
            return Err(format!(
                "it ends at byte {end} of its storage, which has {}: the file is truncated or damaged",
                entry.size()
            ));
        }
        Ok(TensorEntry {
            start: data_start + skipped,
            bytes: bytes as usize,
            elements,
            shape: view.shape.iter().map(|size| *size as usize).collect(),
        })
    }
}
