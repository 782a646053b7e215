//! Safetensors: one file or shards, and what is wrong with either is said before memory is taken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use ::safetensors::tensor::{TensorView, serialize};
use hone::train::model::error::LoadError;
use hone::train::model::weights::{TensorData, safetensors};
use proptest::prelude::*;
use serde_json::{Value, json};

/// A folder with a model in it.
struct Model(tempfile::TempDir);

impl Model {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes tensors of one number.
    fn write(&self, file: &str, names: &[&str]) {
        let bytes = 0.5f32.to_le_bytes();
        let view = || TensorView::new(Dtype::F32, vec![1], &bytes).unwrap();
        let tensors: BTreeMap<&str, TensorView<'_>> =
            names.iter().map(|name| (*name, view())).collect();
        std::fs::write(self.path(file), serialize(&tensors, None).unwrap()).unwrap();
    }

    fn write_index(&self, map: &Value) {
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        std::fs::write(self.path(safetensors::INDEX_NAME), index).unwrap();
    }

    /// Writes a file whose header is this text.
    fn write_header(&self, header: &str, data: &[u8]) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        std::fs::write(self.path(safetensors::FILE_NAME), bytes).unwrap();
    }

    /// Opens it and reads every tensor.
    fn read(&self) -> Result<Vec<String>, LoadError> {
        let source = safetensors::open(self.0.path())?;
        let mut names = Vec::new();
        for (name, _) in source.shapes() {
            source.tensor(&name)?;
            names.push(name);
        }
        Ok(names)
    }

    fn error(&self) -> String {
        self.read().unwrap_err().to_string()
    }
}

#[test]
fn shards_are_read_as_one_model() {
    let model = Model::new();
    model.write("one.safetensors", &["a", "b"]);
    model.write("two.safetensors", &["c"]);
    model.write_index(
        &json!({"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}),
    );
    assert_eq!(model.read().unwrap(), ["a", "b", "c"]);
}

#[test]
fn shards_that_do_not_fit_their_index_are_named() {
    let model = Model::new();
    let map = json!({"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"});
    model.write_index(&map);
    let message = model.error();
    assert!(message.contains("2 of 2 shards that it names are missing"), "{message}");
    assert!(message.contains("\"one.safetensors\", \"two.safetensors\""), "{message}");

    model.write("one.safetensors", &["a"]);
    model.write("two.safetensors", &["b"]);
    let message = model.error();
    assert!(message.contains("1 of 3 tensors are not where it says"), "{message}");
    assert!(message.contains("\"c\" is not in \"two.safetensors\""), "{message}");

    model.write("two.safetensors", &["a", "b", "c"]);
    let message = model.error();
    assert!(message.contains("tensor \"a\" stands in") && message.contains("one.saf"), "{message}");

    model.write("one.safetensors", &["b"]);
    model.write("two.safetensors", &["a", "c"]);
    let message = model.error();
    assert!(message.contains("\"a\" is not in \"one.safetensors\" but in"), "{message}");
}

#[test]
fn an_index_that_leads_out_of_its_folder_or_says_nothing_is_refused() {
    let model = Model::new();
    for name in ["../one.safetensors", "/etc/one.safetensors", "one.bin"] {
        model.write_index(&json!({"a": name}));
        assert!(model.error().contains("is not the name of a shard"));
    }
    model.write_index(&json!({"a": 1}));
    assert!(model.error().contains("the shard of \"a\""));
    std::fs::write(model.path(safetensors::INDEX_NAME), "{}").unwrap();
    assert!(model.error().contains("no \"weight_map\""));
    std::fs::write(model.path(safetensors::INDEX_NAME), "{").unwrap();
    assert!(model.error().contains("not JSON"));
}

#[test]
fn floats_of_32_and_16_bits_are_read_and_other_types_are_named() {
    let model = Model::new();
    let header = |dtype: &str, bytes: usize| {
        json!({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, bytes]}}).to_string()
    };
    // 1.5 and -2, which every type holds exactly.
    let values: [(&str, &[u8]); 3] = [
        ("F32", &[0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0]),
        ("F16", &[0, 0x3e, 0, 0xc0]),
        ("BF16", &[0xc0, 0x3f, 0, 0xc0]),
    ];
    for (dtype, bytes) in values {
        model.write_header(&header(dtype, bytes.len()), bytes);
        let tensor = safetensors::open(model.0.path()).unwrap().tensor("a").unwrap();
        let is_kept = matches!(
            (dtype, &tensor.data),
            ("F32", TensorData::F32(_))
                | ("F16", TensorData::F16(_))
                | ("BF16", TensorData::Bf16(_))
        );
        assert!(is_kept, "{dtype}");
        assert_eq!(tensor.into_f32(), [1.5, -2.0], "{dtype}");
    }
    for (dtype, bytes) in [("F64", 16), ("I64", 16), ("I8", 2), ("BOOL", 2), ("F8_E4M3", 2)] {
        model.write_header(&header(dtype, bytes), &vec![0; bytes]);
        // It opens, since checkpoints carry masks beside their weights.
        let message = model.error();
        assert!(message.contains("tensor \"a\" is of type"), "{message}");
        assert!(message.contains("F32, F16 and BF16"), "{message}");
    }
}

#[test]
fn headers_and_places_that_cannot_be_right_are_refused() {
    let model = Model::new();
    let path = model.path(safetensors::FILE_NAME);
    std::fs::write(&path, b"short").unwrap();
    assert!(model.error().contains("too short"));
    for length in [16 * 1024 * 1024 + 1, 1u64 << 40, u64::MAX] {
        std::fs::write(&path, length.to_le_bytes()).unwrap();
        assert!(model.error().contains("cannot be right"));
    }
    model.write_header("{", &[]);
    assert!(model.error().contains("the header is not valid"));

    let two = |first: [u64; 2], second: [u64; 2], data: usize| {
        let header = json!({
            "a": {"dtype": "F32", "shape": [1], "data_offsets": first},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": second},
        });
        model.write_header(&header.to_string(), &vec![0; data]);
        model.read()
    };
    assert!(two([0, 4], [4, 8], 8).is_ok());
    for (first, second, data) in [
        // Overlapping, with a gap, backwards, out of the file, longer than the shape, shorter, huge.
        ([0, 4], [2, 6], 6),
        ([0, 4], [0, 4], 4),
        ([0, 4], [8, 12], 12),
        ([4, 0], [4, 8], 8),
        ([0, 4], [4, 8], 7),
        ([0, 4], [4, 8], 9),
        ([0, 4], [4, 12], 12),
        ([0, 4], [4, 6], 6),
        ([0, 4], [4, u64::MAX], 8),
    ] {
        let error = two(first, second, data).unwrap_err().to_string();
        assert!(error.contains("model.safetensors"), "{error}");
    }
    let sizes =
        json!({"a": {"dtype": "F32", "shape": [1u64 << 40, 1u64 << 40], "data_offsets": [0, 4]}});
    model.write_header(&sizes.to_string(), &[0; 4]);
    assert!(model.read().is_err());
}

fn golden_header() -> (String, Vec<u8>) {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/llama/model.safetensors");
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(bytes[8..8 + length].to_vec()).unwrap();
    (header, bytes[8 + length..].to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_random_header_never_panics(header in prop::collection::vec(any::<u8>(), 0..200)) {
        let model = Model::new();
        std::fs::write(model.path(safetensors::FILE_NAME), &header).unwrap();
        prop_assert!(model.read().is_err());
        // And behind a length that fits.
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(&header);
        std::fs::write(model.path(safetensors::FILE_NAME), &bytes).unwrap();
        let _said = model.read();
    }

    #[test]
    fn a_damaged_header_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 32u8..127), 1..6),
    ) {
        let (header, data) = golden_header();
        let mut bytes = header.into_bytes();
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let model = Model::new();
        model.write_header(&String::from_utf8(bytes).unwrap(), &data);
        let _said = model.read();
    }
}
