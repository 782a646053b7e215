//! PyTorch checkpoints are read as data: the same model as in safetensors, and nothing that such a
//! file names is ever executed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use hone::train::engine::{BackendKind, InferenceEngine};
use hone::train::model::error::LoadError;
use hone::train::model::weights::{TensorData, WeightSource, folder, pytorch, safetensors};
use proptest::prelude::*;
use serde_json::{Value, json};
use zip::CompressionMethod;

use crate::support::pytorch_writer::{
    Saved, bytes_of, global, pickle, saved, text, write, write_with,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn golden(family: &str) -> PathBuf {
    root().join("tests/data/golden").join(family)
}

fn config_of(family: &str) -> Value {
    serde_json::from_slice(&std::fs::read(golden(family).join("config.json")).unwrap()).unwrap()
}

fn logits(family: &str, weights: &dyn WeightSource) -> Vec<f32> {
    let responder =
        InferenceEngine::load(&config_of(family), weights, BackendKind::CpuF32).unwrap();
    responder.logits(None, &[1, 5, 211, 17, 90, 300, 4]).unwrap()
}

/// Every tensor of a golden model.
pub fn tensors_of(family: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let source = safetensors::open(&golden(family)).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, shape) in source.shapes() {
        tensors.insert(name.clone(), (shape, source.tensor(&name).unwrap().into_f32()));
    }
    tensors
}

/// Writes some tensors as one file of a class of storages.
pub fn write_tensors(
    path: &Path,
    class: &'static str,
    tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
) {
    let list: Vec<Saved> =
        tensors.iter().map(|(name, (shape, _))| saved(name, class, shape)).collect();
    let storages =
        tensors.iter().map(|(name, (_, values))| (name.clone(), bytes_of(values, class)));
    write(path, &pickle(&list, &[]), &storages.collect());
}

fn open_error(path: &Path) -> String {
    match pytorch::open_file(path) {
        Ok(_) => panic!("it opens"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_checkpoint_that_pytorch_saved_is_read_value_for_value() {
    let source = pytorch::open_file(&root().join("tests/data/pytorch/small.bin")).unwrap();
    let quarters = |from: usize, count: usize| -> Vec<f32> {
        (from..from + count).map(|index| index as f32 / 4.0).collect()
    };
    for (name, shape, wanted) in [
        ("embedding", vec![5, 4], quarters(0, 20)),
        ("head", vec![5, 4], quarters(0, 20)),
        ("short", vec![2, 3], quarters(0, 6)),
        ("brain", vec![2, 3], quarters(0, 6)),
        ("part", vec![2, 3], quarters(3, 6)),
    ] {
        let tensor = source.tensor(name).unwrap();
        assert_eq!(tensor.shape, shape, "{name}");
        match (name, &tensor.data) {
            ("short", data) => assert!(matches!(data, TensorData::F16(_))),
            ("brain", data) => assert!(matches!(data, TensorData::Bf16(_))),
            (_, data) => assert!(matches!(data, TensorData::F32(_))),
        }
        assert_eq!(tensor.into_f32(), wanted, "{name}");
    }
    assert_eq!(source.shapes().len(), 6);
    let error = source.tensor("mask").unwrap_err().to_string();
    assert!(error.contains("\"mask\" is of type BoolStorage; hone reads F32"), "{error}");
}

#[test]
fn a_pytorch_checkpoint_computes_what_the_same_safetensors_compute() {
    let target = tempfile::tempdir().unwrap();
    for family in ["gpt2", "llama"] {
        let tensors = tensors_of(family);
        let wanted = logits(family, safetensors::open(&golden(family)).unwrap().as_ref());
        let path = target.path().join("pytorch_model.bin");
        write_tensors(&path, "FloatStorage", &tensors);
        assert_eq!(
            logits(family, folder::open(target.path()).unwrap().as_ref()),
            wanted,
            "{family}"
        );
        std::fs::remove_file(path).unwrap();

        // In two shards, under the names that Hugging Face gives them.
        let names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
        let mut halves = [BTreeMap::new(), BTreeMap::new()];
        let mut map = serde_json::Map::new();
        for (number, (name, tensor)) in tensors.into_iter().enumerate() {
            map.insert(name.clone(), names[number % 2].into());
            halves[number % 2].insert(name, tensor);
        }
        for (name, half) in names.iter().zip(&halves) {
            write_tensors(&target.path().join(name), "FloatStorage", half);
        }
        let index = target.path().join(pytorch::INDEX_NAME);
        std::fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
        assert_eq!(
            logits(family, folder::open(target.path()).unwrap().as_ref()),
            wanted,
            "{family}"
        );
        for name in names.iter().chain([&pytorch::INDEX_NAME]) {
            std::fs::remove_file(target.path().join(name)).unwrap();
        }
    }
}

#[test]
fn a_gpt2_checkpoint_may_leave_out_the_leading_transformer() {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("model.pt");
    let bare: BTreeMap<_, _> = tensors_of("gpt2")
        .into_iter()
        .map(|(name, tensor)| (name.trim_start_matches("transformer.").to_owned(), tensor))
        .collect();
    assert!(bare.contains_key("wte.weight"));
    write_tensors(&path, "FloatStorage", &bare);
    let wanted = logits("gpt2", safetensors::open(&golden("gpt2")).unwrap().as_ref());
    assert_eq!(logits("gpt2", folder::open(target.path()).unwrap().as_ref()), wanted);
}

#[test]
fn storages_of_16_bits_are_read_as_they_are() {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("model.pth");
    for (class, tolerance) in [("HalfStorage", 1e-3), ("BFloat16Storage", 1e-2)] {
        let tensors = tensors_of("llama");
        write_tensors(&path, class, &tensors);
        let source = pytorch::open_file(&path).unwrap();
        for (name, (shape, wanted)) in tensors {
            let read = source.tensor(&name).unwrap();
            assert_eq!(read.shape, shape);
            assert!(!matches!(read.data, TensorData::F32(_)));
            let read = read.into_f32();
            let apart = read.iter().zip(&wanted).map(|(a, b)| (a - b).abs());
            let most = wanted.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            assert!(apart.fold(0.0, f32::max) <= tolerance * most, "{class} {name}");
        }
    }
}

#[test]
fn tied_tensors_and_a_training_checkpoint_are_read() {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("pytorch_model.bin");
    let mut tensors = tensors_of("llama");
    let embedding = tensors["model.embed_tokens.weight"].clone();
    let mut list: Vec<Saved> =
        tensors.iter().map(|(name, (shape, _))| saved(name, "FloatStorage", shape)).collect();
    let mut head = saved("lm_head.weight", "FloatStorage", &embedding.0);
    head.storage = "model.embed_tokens.weight".to_owned();
    list.push(head);
    let storages = tensors
        .iter()
        .map(|(name, (_, values))| (name.clone(), bytes_of(values, "FloatStorage")))
        .collect();
    // {"epoch": 3, "state_dict": {…}}
    let inner = pickle(&list, &[]);
    let mut outer = vec![0x80, 2, b'}', b'('];
    text(&mut outer, "epoch");
    outer.extend([b'K', 3]);
    text(&mut outer, "state_dict");
    outer.extend(&inner[2..inner.len() - 1]);
    outer.extend(b"u.");
    write(&path, &outer, &storages);
    let source = folder::open(target.path()).unwrap();
    let wanted = logits("llama", safetensors::open(&golden("llama")).unwrap().as_ref());
    assert_eq!(logits("llama", source.as_ref()), wanted, "the tied head is left out");
    tensors.insert("lm_head.weight".to_owned(), embedding.clone());
    assert_eq!(source.shapes().len(), tensors.len());
    assert_eq!(source.tensor("lm_head.weight").unwrap().into_f32(), embedding.1);
}

#[test]
fn safetensors_are_read_where_both_are_there() {
    let target = tempfile::tempdir().unwrap();
    std::fs::write(target.path().join("pytorch_model.bin"), b"never opened").unwrap();
    std::fs::copy(
        golden("llama").join("model.safetensors"),
        target.path().join("model.safetensors"),
    )
    .unwrap();
    assert!(folder::open(target.path()).is_ok());
    std::fs::remove_file(target.path().join("model.safetensors")).unwrap();
    let error = folder::open(target.path()).err().unwrap().to_string();
    assert!(error.contains("not a checkpoint of PyTorch"), "{error}");
}

#[test]
fn a_folder_without_weights_or_with_several_files_says_so() {
    let target = tempfile::tempdir().unwrap();
    let said = || folder::open(target.path()).err().unwrap().to_string();
    let message = said();
    for word in ["model.safetensors", "pytorch_model.bin", ".pth"] {
        assert!(message.contains(word), "{message}");
    }
    for name in ["a.pt", "b.bin", "training_args.bin"] {
        std::fs::write(target.path().join(name), b"x").unwrap();
    }
    assert!(said().contains("2 files could hold the weights: \"a.pt\", \"b.bin\""), "{}", said());
}

#[test]
fn a_pickle_that_runs_a_program_is_refused_and_the_program_does_not_run() {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("pytorch_model.bin");
    let proof = target.path().join("proof");
    for (module, function) in [("os", "system"), ("posix", "system"), ("builtins", "exec")] {
        let mut evil = vec![0x80, 2];
        global(&mut evil, module, function);
        text(&mut evil, &format!("touch {}", proof.display()));
        evil.extend([0x85, b'R', b'.']);
        write(&path, &evil, &BTreeMap::new());
        let message = open_error(&path);
        assert!(message.contains(&format!("\"{module}.{function}\"")), "{message}");
        assert!(message.contains("hone calls nothing"), "{message}");

        // Hidden among tensors.
        let mut more = Vec::new();
        text(&mut more, "extra");
        more.extend(&evil[2..evil.len() - 1]);
        let values = BTreeMap::from([("a".to_owned(), bytes_of(&[1.0], "FloatStorage"))]);
        write(&path, &pickle(&[saved("a", "FloatStorage", &[1])], &more), &values);
        assert!(open_error(&path).contains(&format!("\"{module}.{function}\"")));
    }
    assert!(!proof.exists());
}

#[test]
fn a_pickle_that_would_take_all_memory_or_stack_is_refused() {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("pytorch_model.bin");
    let refused = |pickle: Vec<u8>, wanted: &str| {
        write(&path, &pickle, &BTreeMap::new());
        let message = open_error(&path);
        assert!(message.contains(wanted), "{message}");
    };
    // A text of four gigabytes in ten bytes.
    refused(vec![0x80, 2, b'X', 0xff, 0xff, 0xff, 0xff, b'.'], "ends in the middle");
    // Tuple in tuple in tuple.
    let mut deep = vec![0x80, 2, b')'];
    deep.extend(vec![0x85; 1_000_000]);
    deep.push(b'.');
    refused(deep, "deep");
    // Twice itself, forty times.
    let mut laughs = vec![0x80, 2];
    text(&mut laughs, &"ha".repeat(1000));
    for place in 0..40u8 {
        laughs.extend([b'q', place, b'h', place, 0x86]);
    }
    laughs.push(b'.');
    refused(laughs, "MiB");
    // A list of itself, again and again.
    let mut grown = vec![0x80, 2, b']'];
    for _ in 0..60 {
        grown.extend([b'q', 0, b'h', 0, b'a']);
    }
    grown.push(b'.');
    refused(grown, "its pickle");
    refused(vec![0x80, 2, 0x8a, 200, b'.'], "a number of 200 bytes");
    // FRAME, of protocol 4.
    refused(vec![0x80, 4, 0x95, 0, 0, 0, 0, 0, 0, 0, 0, b'.'], "instruction 0x95");
    refused(vec![0x80, 2, b'h', 7, b'.'], "did not keep");
    refused(vec![0x80, 2, b't', b'.'], "lacks a mark");
    refused(vec![0x80, 2, 0x87, b'.'], "takes a value where there is none");
    refused(vec![0x80, 2, b'N', b'.'], "does not hold a dictionary");
}

#[test]
fn tensors_that_do_not_lie_in_their_storages_are_named() {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("pytorch_model.bin");
    let good = saved("a.weight", "FloatStorage", &[2, 3]);
    let bytes = || bytes_of(&[0.0; 6], "FloatStorage");
    let fails = |change: &dyn Fn(&mut Saved, &mut Vec<u8>), wanted: &str| {
        let (mut tensor, mut bytes) = (good.clone(), bytes());
        change(&mut tensor, &mut bytes);
        let storages = BTreeMap::from([("a.weight".to_owned(), bytes)]);
        write(&path, &pickle(&[tensor], &[]), &storages);
        let message = open_error(&path);
        assert!(message.contains("\"a.weight\"") && message.contains(wanted), "{message}");
    };
    fails(&|tensor, _| tensor.shape = vec![3, 3], "truncated or damaged");
    fails(&|tensor, _| tensor.offset = 1, "truncated or damaged");
    fails(&|_, bytes| bytes.truncate(20), "truncated or damaged");
    fails(&|tensor, _| tensor.storage = "b".to_owned(), "its storage");
    fails(&|tensor, _| tensor.strides = vec![1, 2], "do not lie side by side");
    fails(
        &|tensor, _| {
            tensor.shape = vec![u32::MAX >> 1; 3];
            tensor.strides = vec![0; 3];
        },
        "do not lie side by side",
    );
    fails(
        &|tensor, _| {
            tensor.shape = vec![u32::MAX >> 1; 2];
            tensor.strides = vec![u32::MAX >> 1, 1];
        },
        "truncated or damaged",
    );
    let storages = BTreeMap::from([("a.weight".to_owned(), bytes())]);
    write_with(
        &path,
        &pickle(std::slice::from_ref(&good), &[]),
        &storages,
        CompressionMethod::Deflated,
    );
    assert!(open_error(&path).contains("compressed"));

    let mut more = Vec::new();
    text(&mut more, "steps");
    more.extend([b'K', 3]);
    write(&path, &pickle(std::slice::from_ref(&good), &more), &storages);
    assert!(open_error(&path).contains("1 entries are not tensors: \"steps\""));
    write(&path, &pickle(&[good.clone(), good.clone()], &[]), &storages);
    assert!(open_error(&path).contains("\"a.weight\" stands in it twice"));

    // A tensor that is neither float of 32 nor of 16 bits opens, and is named when it is wanted.
    let double = saved("a.weight", "DoubleStorage", &[3]);
    write(&path, &pickle(&[double], &[]), &storages);
    let error = pytorch::open_file(&path).unwrap().tensor("a.weight").unwrap_err().to_string();
    assert!(error.contains("\"a.weight\" is of type DoubleStorage"), "{error}");
}

#[test]
fn a_file_that_is_no_checkpoint_or_an_old_one_says_so() {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("pytorch_model.bin");
    std::fs::write(&path, b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.").unwrap();
    assert!(open_error(&path).contains("before version 1.6"));
    std::fs::write(&path, b"").unwrap();
    assert!(open_error(&path).contains("not a checkpoint"));
    let whole = std::fs::read(root().join("tests/data/pytorch/small.bin")).unwrap();
    for length in (0..whole.len() - 1).step_by(61) {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(open_error(&path).contains("pytorch_model.bin"));
    }
}

#[test]
fn a_shard_that_is_missing_or_lacks_its_tensors_is_named() {
    let target = tempfile::tempdir().unwrap();
    let index = target.path().join(pytorch::INDEX_NAME);
    let map = json!({"weight_map": {"a": "one.bin", "b": "two.bin"}});
    std::fs::write(&index, map.to_string()).unwrap();
    let one = |name: &str| BTreeMap::from([(name.to_owned(), (vec![1], vec![0.5]))]);
    write_tensors(&target.path().join("one.bin"), "FloatStorage", &one("a"));
    let said = || pytorch::open_sharded(&index).err().unwrap().to_string();
    assert!(said().contains("1 of 2 shards that it names are missing: \"two.bin\""), "{}", said());
    write_tensors(&target.path().join("two.bin"), "FloatStorage", &one("c"));
    assert!(said().contains("\"b\" is not in \"two.bin\""), "{}", said());
    write_tensors(&target.path().join("two.bin"), "FloatStorage", &one("a"));
    assert!(said().contains("\"a\" stands in"), "{}", said());
}

/// What opening a checkpoint with this pickle says.
fn open_pickle(bytes: &[u8]) -> Result<(), LoadError> {
    let target = tempfile::tempdir().unwrap();
    let path = target.path().join("pytorch_model.bin");
    let storages = BTreeMap::from([("a".to_owned(), bytes_of(&[1.0; 6], "FloatStorage"))]);
    write(&path, bytes, &storages);
    let source = pytorch::open_file(&path)?;
    for (name, _) in source.shapes() {
        source.tensor(&name)?;
    }
    Ok(())
}

/// Instructions that PyTorch writes, and a few others.
const INSTRUCTIONS: &[u8] = b"cqr)R(XJtQKM\x85\x86\x87\x88\x89Nhjsu}db\x81]Gae\x8a.I";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_damaged_pickle_never_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = pickle(&[saved("a", "FloatStorage", &[2, 3])], &[]);
        for (place, byte) in changes {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let _said = open_pickle(&bytes);
    }

    #[test]
    fn random_instructions_never_panic(
        codes in prop::collection::vec(prop::sample::select(INSTRUCTIONS), 0..60),
    ) {
        let _said = open_pickle(&codes);
    }
}
