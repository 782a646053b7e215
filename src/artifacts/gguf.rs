//! Writes GGUF files, llama.cpp's format: metadata, a list of tensors, their elements. The tensors are
//! requested one after the other, so that only one is in memory.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use half::f16;

/// The metadata of a file: keys with values, in file order.
pub type GgufMetadata = Vec<(String, Value)>;

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;

/// The elements of every tensor begin at a multiple of this.
const ALIGNMENT: usize = 32;

/// Elements of a block of [`GgufType::Q8_0`].
const BLOCK: usize = 32;

/// The type of the elements of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// Blocks of 32 elements of 8 bits with a 16-bit scale.
    Q8_0,
}

impl GgufType {
    /// Its number in the file.
    fn code(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
        }
    }

    /// Whether rows of so many elements can have this type.
    pub fn fits(self, row: usize) -> bool {
        self != Self::Q8_0 || row.is_multiple_of(BLOCK)
    }

    fn bytes(self, elements: usize) -> usize {
        match self {
            Self::F32 => 4 * elements,
            Self::F16 => 2 * elements,
            Self::Q8_0 => elements / BLOCK * (2 + BLOCK),
        }
    }
}

/// The name, shape and type of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// llama.cpp's name.
    pub name: String,
    /// Outermost dimension first; the file has the innermost first.
    pub shape: Vec<usize>,
    /// Type of the elements.
    pub kind: GgufType,
}

impl GgufTensor {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Writes a file; durable when this returns. `values` returns the elements of the tensor with an index,
/// row-major.
///
/// # Errors
/// Elements that do not match the shape or do not fit into the type; a row that is no whole number of
/// blocks.
pub fn write<E: From<io::Error>>(
    path: &Path,
    metadata: &GgufMetadata,
    tensors: &[GgufTensor],
    mut values: impl FnMut(usize) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let header = header(metadata, tensors)?;
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&header)?;
    for (index, tensor) in tensors.iter().enumerate() {
        let values = values(index)?;
        if values.len() != tensor.elements() {
            let (name, shape) = (&tensor.name, &tensor.shape);
            return Err(invalid(format!(
                "{name:?} has {} elements, not those of {shape:?}",
                values.len()
            ))
            .into());
        }
        let mut bytes = encode(tensor, &values)?;
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        file.write_all(&bytes)?;
    }
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(file.sync_all()?)
}

/// Everything before the elements of the tensors.
fn header(metadata: &GgufMetadata, tensors: &[GgufTensor]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        write_text(&mut out, key);
        out.extend(code(value).to_le_bytes());
        write_value(&mut out, value)?;
    }
    let mut offset = 0;
    for tensor in tensors {
        let row = tensor.shape.last().copied().unwrap_or(1);
        if !tensor.kind.fits(row) {
            let (name, kind) = (&tensor.name, tensor.kind);
            return Err(invalid(format!(
                "{name:?} has rows of {row}, no whole blocks of {kind:?}"
            )));
        }
        write_text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            out.extend((*size as u64).to_le_bytes());
        }
        out.extend(tensor.kind.code().to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += tensor.kind.bytes(tensor.elements()).next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    Ok(out)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The number of a value's type in the file.
fn code(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn write_value(out: &mut Vec<u8>, value: &Value) -> io::Result<()> {
    match value {
        Value::U8(number) => out.extend(number.to_le_bytes()),
        Value::I8(number) => out.extend(number.to_le_bytes()),
        Value::U16(number) => out.extend(number.to_le_bytes()),
        Value::I16(number) => out.extend(number.to_le_bytes()),
        Value::U32(number) => out.extend(number.to_le_bytes()),
        Value::I32(number) => out.extend(number.to_le_bytes()),
        Value::F32(number) => out.extend(number.to_le_bytes()),
        Value::U64(number) => out.extend(number.to_le_bytes()),
        Value::I64(number) => out.extend(number.to_le_bytes()),
        Value::F64(number) => out.extend(number.to_le_bytes()),
        Value::Bool(flag) => out.push(u8::from(*flag)),
        Value::String(text) => write_text(out, text),
        Value::Array(list) => {
            // An empty list has no type. It is written as a list of texts.
            let of = list.first().map_or(8, code);
            if list.iter().any(|value| code(value) != of) {
                return Err(invalid("a list holds values of several types".to_owned()));
            }
            out.extend(of.to_le_bytes());
            out.extend((list.len() as u64).to_le_bytes());
            for value in list {
                write_value(out, value)?;
            }
        }
    }
    Ok(())
}

fn encode(tensor: &GgufTensor, values: &[f32]) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(tensor.kind.bytes(values.len()));
    let half = |value: f32| {
        let rounded = f16::from_f32(value);
        match rounded.is_finite() {
            true => Ok(rounded),
            false => Err(invalid(format!(
                "{:?} has the element {value}, which 16 bits cannot hold",
                tensor.name
            ))),
        }
    };
    match tensor.kind {
        GgufType::F32 => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        GgufType::F16 => {
            for value in values {
                out.extend(half(*value)?.to_le_bytes());
            }
        }
        GgufType::Q8_0 => {
            for block in values.chunks_exact(BLOCK) {
                let most = block.iter().fold(0.0f32, |most, value| most.max(value.abs()));
                let factor = most / 127.0;
                let inverse = if factor == 0.0 { 0.0 } else { 1.0 / factor };
                out.extend(half(factor)?.to_le_bytes());
                out.extend(block.iter().map(|value| (value * inverse).round() as i8 as u8));
            }
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::quantized::gguf_file::Content;

    use super::*;

    fn tensor(name: &str, shape: &[usize], kind: GgufType) -> GgufTensor {
        GgufTensor { name: name.to_owned(), shape: shape.to_vec(), kind }
    }

    #[test]
    fn a_file_reads_back_with_its_metadata_and_tensors() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        let list = ["a", "", "ü"].map(|text| Value::String(text.to_owned())).to_vec();
        let keys = vec![
            ("general.architecture".to_owned(), Value::String("llama".to_owned())),
            ("a.list".to_owned(), Value::Array(list)),
            ("a.number".to_owned(), Value::U32(7)),
            ("a.flag".to_owned(), Value::Bool(true)),
        ];
        let tensors = [
            tensor("norm", &[3], GgufType::F32),
            tensor("half", &[2, 5], GgufType::F16),
            tensor("blocks", &[4, 64], GgufType::Q8_0),
        ];
        let element = |index: usize| ((index * 37 % 101) as f32 - 50.0) / 16.0;
        let values = |index: usize| -> Result<Vec<f32>, io::Error> {
            Ok((0..tensors[index].elements()).map(element).collect())
        };
        write(&path, &keys, &tensors, values).expect("it writes");

        let mut file = File::open(&path).expect("opens");
        let content = Content::read(&mut file).expect("candle reads it");
        assert!(matches!(content.metadata["a.number"], Value::U32(7)));
        let texts = content.metadata["a.list"].to_vec().expect("a list");
        assert_eq!(texts[2].to_string().expect("a text"), "ü");
        for (index, tensor) in tensors.iter().enumerate() {
            let read = content.tensor(&mut file, &tensor.name, &Device::Cpu).expect("is there");
            assert_eq!(read.shape().dims(), tensor.shape);
            let read = read.dequantize(&Device::Cpu).expect("floats");
            let read: Vec<f32> = read.flatten_all().and_then(|all| all.to_vec1()).expect("values");
            let allowed = [0.0, 2e-3, 2e-2][index];
            for (read, wanted) in read.iter().zip(values(index).expect("values")) {
                assert!((read - wanted).abs() <= allowed, "{}: {read} {wanted}", tensor.name);
            }
        }
    }

    #[test]
    fn what_a_type_cannot_hold_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.gguf");
        let fails = |tensor: GgufTensor, values: Vec<f32>, wanted: &str| {
            let error = write(&path, &GgufMetadata::new(), &[tensor], |_| {
                Ok::<_, io::Error>(values.clone())
            });
            let message = error.expect_err("refused").to_string();
            assert!(message.contains(wanted), "{message}");
        };
        fails(tensor("a", &[2], GgufType::F16), vec![1.0, 1e5], "16 bits cannot hold");
        fails(tensor("a", &[2], GgufType::F32), vec![1.0], "1 elements");
        fails(tensor("a", &[2, 31], GgufType::Q8_0), vec![0.0; 62], "no whole blocks");
    }
}
