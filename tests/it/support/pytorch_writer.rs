//! Writes PyTorch checkpoints for tests, instruction by instruction, good ones and bad ones.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use half::{bf16, f16};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// A tensor of a checkpoint.
#[derive(Clone)]
pub struct Saved {
    pub name: String,
    /// PyTorch's class of storage.
    pub class: &'static str,
    /// Name of the storage's entry.
    pub storage: String,
    pub offset: u32,
    pub shape: Vec<u32>,
    pub strides: Vec<u32>,
}

/// A contiguous tensor with a storage of its own.
pub fn saved(name: &str, class: &'static str, shape: &[usize]) -> Saved {
    let shape: Vec<u32> = shape.iter().map(|size| *size as u32).collect();
    let mut strides = vec![1; shape.len()];
    for place in (1..shape.len()).rev() {
        strides[place - 1] = strides[place] * shape[place];
    }
    Saved { name: name.to_owned(), class, storage: name.to_owned(), offset: 0, shape, strides }
}

/// The bytes of floats in a storage of a class.
pub fn bytes_of(values: &[f32], class: &str) -> Vec<u8> {
    let each = values.iter();
    match class {
        "FloatStorage" => each.flat_map(|value| value.to_le_bytes()).collect(),
        "HalfStorage" => each.flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        "BFloat16Storage" => each.flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        other => panic!("{other}"),
    }
}

pub fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.as_bytes());
}

pub fn global(pickle: &mut Vec<u8>, module: &str, name: &str) {
    pickle.extend(format!("c{module}\n{name}\n").bytes());
}

fn number(pickle: &mut Vec<u8>, number: u32) {
    pickle.push(b'J');
    pickle.extend(number.to_le_bytes());
}

fn numbers(pickle: &mut Vec<u8>, all: &[u32]) {
    pickle.push(b'(');
    for one in all {
        number(pickle, *one);
    }
    pickle.push(b't');
}

/// The pickle of a dictionary of tensors; `more` is put into the dictionary behind them.
pub fn pickle(tensors: &[Saved], more: &[u8]) -> Vec<u8> {
    let mut pickle = vec![0x80, 2];
    global(&mut pickle, "collections", "OrderedDict");
    pickle.extend(b")R(");
    for tensor in tensors {
        text(&mut pickle, &tensor.name);
        global(&mut pickle, "torch._utils", "_rebuild_tensor_v2");
        pickle.extend(b"((");
        text(&mut pickle, "storage");
        global(&mut pickle, "torch", tensor.class);
        text(&mut pickle, &tensor.storage);
        text(&mut pickle, "cpu");
        number(&mut pickle, tensor.shape.iter().fold(1, |count, size| count.wrapping_mul(*size)));
        pickle.extend(b"tQ");
        number(&mut pickle, tensor.offset);
        numbers(&mut pickle, &tensor.shape);
        numbers(&mut pickle, &tensor.strides);
        pickle.push(0x89);
        global(&mut pickle, "collections", "OrderedDict");
        pickle.extend(b")RtR");
    }
    pickle.extend(more);
    pickle.extend(b"u.");
    pickle
}

/// Writes the archive of a pickle and its storages.
pub fn write(path: &Path, pickle: &[u8], storages: &BTreeMap<String, Vec<u8>>) {
    write_with(path, pickle, storages, CompressionMethod::Stored);
}

/// The same, the storages compressed in this way.
pub fn write_with(
    path: &Path,
    pickle: &[u8],
    storages: &BTreeMap<String, Vec<u8>>,
    method: CompressionMethod,
) {
    let mut zip = ZipWriter::new(std::fs::File::create(path).unwrap());
    let plain = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", plain).unwrap();
    zip.write_all(pickle).unwrap();
    for (name, bytes) in storages {
        zip.start_file(format!("archive/data/{name}"), plain.compression_method(method)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}
