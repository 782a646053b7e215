//! A base model in one `.gguf` file: weights, configuration, tokenizer and template.
//!
//! llama.cpp's names and layouts are translated to Hugging Face's: [`architecture`] knows each
//! family's, [`vocabulary`] makes a tokenizer of the lists that the file keeps. Quantised blocks
//! become floats tensor by tensor.

mod architecture;
mod metadata;
pub mod pre_tokenizer;
mod transform;
mod vocabulary;
mod write_layout;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use candle_core::CpuStorage;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};

use self::architecture::Architecture;
use self::metadata::Metadata;
use self::transform::TensorTransform;
pub use self::write_layout::{GgufLayout, StoredTensor};
use super::{FloatType, HostTensor, TensorData, WeightSource, read_range};
use crate::train::model::chat_template::DEFAULT;
use crate::train::model::error::LoadError;
use crate::train::model::template_sources::TemplateSources;
use crate::train::model::tokenizer::SpecialIds;
use crate::util::regular_file;

/// The key of a chat template.
pub const TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// What one file holds.
pub struct Gguf {
    /// The configuration as `config.json` would have it.
    pub config: serde_json::Value,
    /// The weights.
    pub weights: Box<dyn WeightSource>,
    /// The tokenizer as `tokenizer.json` would have it.
    pub tokenizer_json: Vec<u8>,
    /// What the file says of special tokens.
    pub special: SpecialIds,
    /// The chat templates.
    pub templates: TemplateSources,
}

/// Longest header that is read into memory; that of a model with 262,144 tokens has 16 MiB. Candle
/// takes up to 32 times as much for it.
const MAX_HEADER_BYTES: u64 = 32 * 1024 * 1024;

/// The types of tensors that hone reads, for messages.
const TYPES: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K to Q6_K and Q8_K";

/// Opens a file: reads the header and checks every tensor's place; weights stay on disk until they
/// are asked for.
///
/// # Errors
/// A file that is damaged, or of an architecture, a tokenizer or a type of tensors that hone does not
/// read from GGUF.
pub fn open(path: &Path) -> Result<Gguf, LoadError> {
    let content = read_header(path)?;
    let metadata = Metadata::new(&content.metadata, path);
    let (config, weights) = open_weights(path, &content, &metadata)?;
    let (tokenizer_json, special) = vocabulary::read(&metadata)?;
    let templates = templates(&content.metadata);
    Ok(Gguf { config, weights: Box::new(weights), tokenizer_json, special, templates })
}

/// The chat templates: the default one under a key of its own, others with their names behind it.
fn templates(metadata: &HashMap<String, Value>) -> TemplateSources {
    let mut templates = TemplateSources::default();
    for (key, value) in metadata {
        let (Some(rest), Value::String(text)) = (key.strip_prefix(TEMPLATE_KEY), value) else {
            continue;
        };
        match rest.strip_prefix('.') {
            Some(name) => templates.insert(name, text),
            None if rest.is_empty() => templates.insert(DEFAULT, text),
            None => {}
        }
    }
    templates
}

/// Lists of rotary divisors by their names in a file.
pub type RopeFactors = BTreeMap<String, Vec<f32>>;

/// The keys of a file as they stand in it, and its lists of rotary divisors.
pub fn keys(path: &Path) -> Result<(HashMap<String, Value>, RopeFactors), LoadError> {
    let content = read_header(path)?;
    let length = std::fs::metadata(path).map_err(|error| LoadError::io(path, error))?.len();
    let mut factors = BTreeMap::new();
    for (name, info) in &content.tensor_infos {
        if architecture::is_rope_factors(name) {
            let place = place(info, content.tensor_data_offset, length)
                .map_err(|reason| LoadError::malformed(path, reason))?;
            factors.insert(name.clone(), place.read(path, name)?.into_f32());
        }
    }
    Ok((content.metadata, factors))
}

/// Metadata and the list of tensors.
fn read_header(path: &Path) -> Result<Content, LoadError> {
    let io_error = |error| LoadError::io(path, error);
    let file = regular_file::open(path).map_err(io_error)?;
    let mut header = Vec::new();
    file.take(MAX_HEADER_BYTES).read_to_end(&mut header).map_err(io_error)?;
    // Candle divides by the alignment that the file says.
    let reason = if has_no_alignment(&header) {
        "its alignment is zero".to_owned()
    } else {
        match Content::read(&mut Cursor::new(&header)) {
            Ok(content) => return Ok(content),
            Err(error) => error.to_string(),
        }
    };
    let reason = format!(
        "not a GGUF file, damaged, or with tensors of an unknown type (hone reads {TYPES}): {reason}"
    );
    Err(LoadError::malformed(path, reason))
}

/// Whether a header says that tensors are aligned to zero bytes.
fn has_no_alignment(header: &[u8]) -> bool {
    const KEY: &[u8] = b"general.alignment";
    // Behind the key stand the type of its value, four bytes, and the value.
    const TYPE_BYTES: usize = 4;
    let key = header.windows(KEY.len()).position(|window| window == KEY);
    let Some(rest) = key.map(|at| &header[at + KEY.len()..]) else { return false };
    let Some((kind, value)) = rest.split_at_checked(TYPE_BYTES) else { return false };
    let width = match kind {
        [0 | 1, 0, 0, 0] => 1,
        [2 | 3, 0, 0, 0] => 2,
        [4 | 5, 0, 0, 0] => 4,
        _ => return false,
    };
    value.get(..width).is_some_and(|value| value.iter().all(|byte| *byte == 0))
}

/// The configuration, and the weights under Hugging Face's names.
fn open_weights(
    path: &Path,
    content: &Content,
    metadata: &Metadata<'_>,
) -> Result<(serde_json::Value, GgufWeights), LoadError> {
    let length = std::fs::metadata(path).map_err(|error| LoadError::io(path, error))?.len();
    let mut stored = HashMap::new();
    for (name, info) in &content.tensor_infos {
        let place = place(info, content.tensor_data_offset, length)
            .map_err(|reason| LoadError::malformed(path, format!("tensor {name:?}: {reason}")))?;
        stored.insert(name.clone(), place);
    }
    refuse_overlaps(path, &stored)?;
    let architecture = Architecture::of(metadata)?;
    let mut factors = BTreeMap::new();
    let mut tensors = HashMap::new();
    for (name, place) in &stored {
        if architecture::is_rope_factors(name) {
            let values = place.read(path, name)?.into_f32();
            factors.insert(name.clone(), values);
            continue;
        }
        let Some((known, change)) = architecture.hugging_face_name(name) else {
            let reason = format!("tensor {name:?} is not part of {}", architecture.name());
            return Err(LoadError::malformed(path, reason));
        };
        if !change.fits(&place.shape) {
            let heads = architecture.heads();
            let reason = format!("tensor {name:?} of shape {:?} does not fit {heads}", place.shape);
            return Err(LoadError::malformed(path, reason));
        }
        tensors.insert(known, (name.clone(), place.clone(), change));
    }
    let shape_of = |name: &str| stored.get(name).map(|place| place.shape.as_slice());
    let config = architecture.configuration(metadata, &factors, shape_of)?;
    Ok((config, GgufWeights { path: path.to_owned(), tensors }))
}

/// One tensor's place.
#[derive(Debug, Clone)]
struct GgufTensorEntry {
    /// From the start of the file.
    start: u64,
    bytes: usize,
    kind: GgmlDType,
    /// Outermost first.
    shape: Vec<usize>,
}

fn place(info: &TensorInfo, data_start: u64, length: u64) -> Result<GgufTensorEntry, String> {
    let shape = info.shape.dims().to_vec();
    let (block, block_bytes) = (info.ggml_dtype.block_size(), info.ggml_dtype.type_size());
    let row = shape.last().copied().unwrap_or(1);
    if !row.is_multiple_of(block) {
        return Err(format!(
            "its rows of {row} are not whole blocks of {block}, which {:?} has",
            info.ggml_dtype
        ));
    }
    let count = shape.iter().try_fold(1usize, |count, size| count.checked_mul(*size));
    let bytes = count.and_then(|count| (count / block).checked_mul(block_bytes));
    let start = data_start.checked_add(info.offset);
    let end = start.zip(bytes).and_then(|(start, bytes)| start.checked_add(bytes as u64));
    match (start, bytes, end) {
        (Some(start), Some(bytes), Some(end)) if end <= length => {
            Ok(GgufTensorEntry { start, bytes, kind: info.ggml_dtype, shape })
        }
        _ => Err(format!(
            "with the shape {shape:?} it reaches beyond the file's {length} bytes: the file is \
             truncated or damaged"
        )),
    }
}

fn refuse_overlaps(
    path: &Path,
    stored: &HashMap<String, GgufTensorEntry>,
) -> Result<(), LoadError> {
    let mut by_start: Vec<(&String, &GgufTensorEntry)> = stored.iter().collect();
    by_start.sort_by_key(|(_, place)| place.start);
    for pair in by_start.windows(2) {
        let [(first, before), (second, after)] = [pair[0], pair[1]];
        if before.start + before.bytes as u64 > after.start {
            let reason = format!("tensors {first:?} and {second:?} overlap: the file is damaged");
            return Err(LoadError::malformed(path, reason));
        }
    }
    Ok(())
}

impl GgufTensorEntry {
    /// The tensor as it is stored, its blocks as floats.
    fn read(&self, path: &Path, name: &str) -> Result<HostTensor, LoadError> {
        let bytes = read_range(path, self.start, self.bytes)?;
        let data = match self.kind {
            GgmlDType::F32 => FloatType::F32.read(&bytes),
            GgmlDType::F16 => FloatType::F16.read(&bytes),
            GgmlDType::BF16 => FloatType::Bf16.read(&bytes),
            kind => {
                let blocks = kind.from_data(Cow::Borrowed(&bytes));
                match blocks.dequantize(self.shape.iter().product()) {
                    Ok(CpuStorage::F32(values)) => TensorData::F32(values),
                    Ok(_) => {
                        let reason = format!("tensor {name:?} of {kind:?} has no floats");
                        return Err(LoadError::malformed(path, reason));
                    }
                    Err(error) => {
                        let reason = format!("tensor {name:?} of {kind:?}: {error}");
                        return Err(LoadError::malformed(path, reason));
                    }
                }
            }
        };
        Ok(HostTensor { shape: self.shape.clone(), data })
    }
}

struct GgufWeights {
    path: PathBuf,
    /// By Hugging Face's name: the file's name, the place, what is to be undone.
    tensors: HashMap<String, (String, GgufTensorEntry, TensorTransform)>,
}

impl WeightSource for GgufWeights {
    fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let mut shapes = Vec::with_capacity(self.tensors.len());
        for (name, (_, place, change)) in &self.tensors {
            shapes.push((name.clone(), change.shape(&place.shape)));
        }
        shapes
    }

    fn tensor(&self, name: &str) -> Result<HostTensor, LoadError> {
        let Some((stored, place, change)) = self.tensors.get(name) else {
            return Err(LoadError::no_tensor(name));
        };
        Ok(change.undo(place.read(&self.path, stored)?))
    }
}
