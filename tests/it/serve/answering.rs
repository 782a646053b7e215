//! Texts that go through a model together get what each would get alone, to the last bit: whatever
//! stands beside them, however their prompts are cut, and whatever they take over from others.

use std::path::Path;

use hone::train::engine::{
    AttachedAdapter, BackendKind, DecodeStep, InferenceEngine, SequenceCache,
};
use hone::train::model::base_model::BaseModel;
use hone::train::model::lora::LoraSettings;
use hone::train::model::tensors::NamedTensors;
use hone::train::rng::Stream;

use crate::train::golden::argmax;

/// The tiny model.
fn responder(kind: BackendKind) -> InferenceEngine {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    let base = BaseModel::open(&folder).expect("opens");
    InferenceEngine::load(&base.config, base.weights.as_ref(), kind).expect("loads")
}

/// An adapter of every layer that changes what the model says.
fn adapter(responder: &InferenceEngine, rank: usize, seed: u64) -> AttachedAdapter {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    let base = BaseModel::open(&folder).expect("opens");
    let mut tensors = NamedTensors::new();
    for (name, shape) in base.weights.shapes() {
        let Some(module) = name.strip_suffix("_proj.weight") else { continue };
        let [outputs, inputs] = shape[..] else { panic!("{name}") };
        for (matrix, shape) in [("A", [rank, inputs]), ("B", [outputs, rank])] {
            let stream = Stream::new(seed, &name, u64::from(matrix == "B"));
            let count = (shape[0] * shape[1]) as u64;
            let values = (0..count).map(|index| stream.unit(index) - 0.5).collect();
            let key = format!("base_model.model.{module}_proj.lora_{matrix}.weight");
            tensors.insert(key, (shape.to_vec(), values));
        }
    }
    responder.attach(&LoraSettings::new(rank, 4.0), &tensors).expect("attaches")
}

fn prompt(responder: &InferenceEngine, length: usize, seed: u64) -> Vec<u32> {
    let stream = Stream::new(seed, "prompt", 0);
    let vocabulary = responder.vocabulary() as u64;
    (0..length as u64).map(|index| (stream.bits(index) % vocabulary) as u32).collect()
}

/// Reads tokens in pieces of `piece`, alone; the logits behind each token.
fn read(
    responder: &InferenceEngine,
    adapter: Option<&AttachedAdapter>,
    cache: &mut SequenceCache,
    tokens: &[u32],
    piece: usize,
) -> Vec<f32> {
    let mut logits = Vec::new();
    for input_ids in tokens.chunks(piece) {
        let wanted = input_ids.len();
        let text = DecodeStep { adapter, cache, input_ids, wanted };
        logits.extend(responder.advance(&mut [text]).expect("computes").swap_remove(0));
    }
    logits
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

const KINDS: [BackendKind; 2] = [BackendKind::Cpu, BackendKind::CpuF32];

#[test]
fn a_prompt_gives_the_same_bits_however_it_is_cut() {
    for kind in KINDS {
        let responder = responder(kind);
        let adapter = adapter(&responder, 3, 1);
        let tokens = prompt(&responder, 150, 7);
        for adapter in [None, Some(&adapter)] {
            let mut cache = responder.new_cache().expect("a cache");
            let whole = read(&responder, adapter, &mut cache, &tokens, 150);
            for piece in [1, 2, 7, 48, 97, 149] {
                let mut cache = responder.new_cache().expect("a cache");
                let pieces = read(&responder, adapter, &mut cache, &tokens, piece);
                assert!(bits(&pieces) == bits(&whole), "{kind:?} in pieces of {piece}");
            }
        }
    }
}

#[test]
fn texts_with_adapters_of_their_own_get_in_company_what_they_get_alone() {
    for kind in KINDS {
        let responder = responder(kind);
        let adapters = [adapter(&responder, 3, 1), adapter(&responder, 8, 2)];
        // One that writes, prompts in the middle of being read, adapters all mixed up.
        let beside = [None, Some(0), Some(1), None, Some(0), Some(1), Some(1)];
        let lengths = [60, 130, 3, 49, 48, 20, 9];
        let mut texts = Vec::new();
        for (index, (length, which)) in lengths.into_iter().zip(beside).enumerate() {
            let adapter: Option<&AttachedAdapter> = which.map(|which: usize| &adapters[which]);
            let tokens = prompt(&responder, length, index as u64);
            let mut cache = responder.new_cache().expect("a cache");
            let alone = read(&responder, adapter, &mut cache, &tokens, length);
            texts.push((adapter, tokens, alone, responder.new_cache().expect("a cache")));
        }
        let mut got = vec![Vec::new(); texts.len()];
        // Passes in which each text has another share: none, one token, many.
        for pass in 0.. {
            let mut which = Vec::new();
            let mut parts = Vec::new();
            for (index, (adapter, tokens, _, cache)) in texts.iter_mut().enumerate() {
                let start = cache.length();
                let count = [1, 17, 0, 2, 33][(index + pass) % 5].min(tokens.len() - start);
                if count == 0 {
                    continue;
                }
                let input_ids = &tokens[start..start + count];
                which.push(index);
                parts.push(DecodeStep { adapter: *adapter, cache, input_ids, wanted: count });
            }
            let is_over = parts.is_empty();
            for (index, logits) in which.into_iter().zip(responder.advance(&mut parts).unwrap()) {
                got[index].extend(logits);
            }
            if is_over && texts.iter().all(|(_, tokens, _, cache)| cache.length() == tokens.len()) {
                break;
            }
        }
        for (index, ((_, _, alone, _), got)) in texts.iter().zip(&got).enumerate() {
            assert!(bits(alone) == bits(got), "{kind:?} text {index}");
        }
    }
}

#[test]
fn a_text_that_begins_like_another_goes_on_from_there_to_the_same_bits() {
    for kind in KINDS {
        let responder = responder(kind);
        let tokens = prompt(&responder, 120, 3);
        let mut first = responder.new_cache().expect("a cache");
        read(&responder, None, &mut first, &tokens, 120);
        for same in [1, 47, 48, 49, 95, 96, 119, 120] {
            let mut other = tokens[..same].to_vec();
            other.extend(prompt(&responder, 30, 9));
            let mut cold = responder.new_cache().expect("a cache");
            let wanted = read(&responder, None, &mut cold, &other, 64);
            let mut warm = first.beginning(same);
            let got = read(&responder, None, &mut warm, &other[same..], 64);
            let wanted = &wanted[same * responder.vocabulary()..];
            assert!(bits(&got) == bits(wanted), "{kind:?} after {same}");
        }
        // What others did with its beginning left the first text alone.
        let more = prompt(&responder, 20, 11);
        let got = read(&responder, None, &mut first, &more, 20);
        let mut cold = responder.new_cache().expect("a cache");
        let wanted = read(&responder, None, &mut cold, &[tokens, more].concat(), 140);
        assert!(bits(&got) == bits(&wanted[120 * responder.vocabulary()..]), "{kind:?}");
    }
}

#[test]
fn texts_that_begin_alike_have_their_beginning_in_memory_once() {
    let responder = responder(BackendKind::Cpu);
    let mut first = responder.new_cache().expect("a cache");
    read(&responder, None, &mut first, &prompt(&responder, 96, 3), 96);
    let alone = responder.cached_bytes();
    assert_eq!(alone, responder.bytes_of_text(96));
    let others: Vec<SequenceCache> = (0..10).map(|_| first.beginning(96)).collect();
    assert_eq!(responder.cached_bytes(), alone);
    drop(first);
    assert_eq!(responder.cached_bytes(), alone);
    drop(others);
    assert_eq!(responder.cached_bytes(), 0);
}

#[test]
fn a_text_that_cannot_go_on_is_named_before_anything_is_computed() {
    let responder = responder(BackendKind::Cpu);
    let mut caches = [responder.new_cache().unwrap(), responder.new_cache().unwrap()];
    let [good, bad] = &mut caches;
    let unknown = [responder.vocabulary() as u32];
    let mut parts = [
        DecodeStep { adapter: None, cache: good, input_ids: &[3, 4], wanted: 1 },
        DecodeStep { adapter: None, cache: bad, input_ids: &unknown, wanted: 1 },
    ];
    let error = responder.advance(&mut parts).expect_err("there is no such token").to_string();
    assert!(error.contains("outside of the model's vocabulary"), "{error}");
    assert_eq!(caches[0].length(), 0);
}

#[test]
fn greedy_texts_are_written_together_as_alone() {
    let responder = responder(BackendKind::CpuF32);
    let adapter = adapter(&responder, 4, 5);
    let write_alone = |adapter: Option<&AttachedAdapter>, prompt: &[u32]| {
        let mut session = responder.begin(adapter).expect("begins");
        let mut logits = session.extend(prompt).expect("computes");
        let mut written = Vec::new();
        for _ in 0..20 {
            written.push(argmax(&logits));
            logits = session.extend(&written[written.len() - 1..]).expect("computes");
        }
        written
    };
    let prompts: Vec<Vec<u32>> = (0..8).map(|seed| prompt(&responder, 10, seed)).collect();
    let of = |index: usize| index.is_multiple_of(2).then_some(&adapter);
    let mut caches: Vec<SequenceCache> =
        prompts.iter().map(|_| responder.new_cache().expect("a cache")).collect();
    let mut next = prompts.clone();
    let mut written = vec![Vec::new(); prompts.len()];
    for _ in 0..20 {
        let parts = caches.iter_mut().zip(&next).enumerate().map(|(index, (cache, input_ids))| {
            DecodeStep { adapter: of(index), cache, input_ids, wanted: 1 }
        });
        let made = responder.advance(&mut parts.collect::<Vec<_>>()).expect("computes");
        for (index, logits) in made.iter().enumerate() {
            let token = argmax(logits);
            written[index].push(token);
            next[index] = vec![token];
        }
    }
    for (index, prompt) in prompts.iter().enumerate() {
        assert_eq!(written[index], write_alone(of(index), prompt), "text {index}");
    }
}
