//! However a batch is cut into passes, its gradients are the same: those of the mean over all
//! loss-bearing tokens of the whole batch.

use std::path::Path;

use hone::train::base_model::BaseModel;
use hone::train::encode::encode_file;
use hone::train::engine::{
    BackendKind, Engine, LoraSettings, LoraTarget, NamedTensors, Sequence, load,
};

use crate::server::chat_lines;

/// Norm of the difference over the norm, of all tensors together.
fn difference(found: &NamedTensors, wanted: &NamedTensors) -> f64 {
    let (mut apart, mut whole) = (0.0, 0.0);
    for (key, (_, values)) in wanted {
        for (found, wanted) in found[key].1.iter().zip(values) {
            apart += f64::from(found - wanted).powi(2);
            whole += f64::from(*wanted).powi(2);
        }
    }
    (apart / whole).sqrt()
}

fn engine(base: &BaseModel, kind: BackendKind, target: LoraTarget) -> Box<dyn Engine> {
    let lora = LoraSettings { target, ..LoraSettings::new(4, 8.0) };
    let mut engine = load(&base.config, base.weights.as_ref(), &lora, 3, kind).expect("loads");
    // A fresh adapter's B is zero, which would leave the gradient of A zero too.
    let mut adapter = engine.adapter().expect("reads");
    for (key, (_, values)) in &mut adapter {
        for (place, value) in values.iter_mut().enumerate() {
            *value += (((key.len() * 31 + place) % 17) as f32 - 8.0) / 400.0;
        }
    }
    engine.set_adapter(&adapter).expect("fits");
    engine
}

#[test]
fn a_batch_of_eight_is_two_of_four_and_eight_of_one() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    let base = BaseModel::open(&model).expect("opens");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("train.jsonl");
    // Examples of different lengths, with different numbers of learnt tokens.
    let lines = chat_lines(7)
        + "{\"prompt\": \"a long way to go before the answer comes\", \"completion\": \" x\"}\n";
    let chats: String = lines.lines().take(7).map(|line| format!("{line}\n")).collect();
    std::fs::write(&file, chats).expect("writes");
    let mut sequences = encode_file(&file, &base, 512).expect("encodes").sequences;
    std::fs::write(&file, lines.lines().nth(7).expect("the last")).expect("writes");
    sequences.extend(encode_file(&file, &base, 512).expect("encodes").sequences);
    let all: Vec<&Sequence> = sequences.iter().collect();
    let counted = |sequence: &&Sequence| sequence.loss_mask[1..].iter().filter(|on| **on).count();
    let tokens = all.iter().map(counted).sum::<usize>() as u64;

    for kind in [BackendKind::CpuF32, BackendKind::Candle] {
        let mut made = Vec::new();
        for size in [8, 4, 1] {
            let mut engine = engine(&base, kind, LoraTarget::default());
            let mut loss = 0.0;
            for part in all.chunks(size) {
                loss += engine.accumulate(part, tokens).expect("computes").loss;
            }
            made.push((loss / tokens as f64, engine.gradients().expect("reads")));
        }
        for (loss, gradients) in &made[1..] {
            assert!((loss - made[0].0).abs() < 1e-6 * made[0].0, "{kind:?}: {loss} {}", made[0].0);
            let apart = difference(gradients, &made[0].1);
            assert!(apart < 1e-5, "{kind:?}: {apart:.1e}");
        }
    }
}

#[test]
fn only_chosen_layers_are_adapted_and_their_gradients_are_those_of_the_whole() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    let base = BaseModel::open(&model).expect("opens");
    let ids: Vec<u32> = (3..40).collect();
    let sequence = Sequence { loss_mask: vec![true; ids.len()], input_ids: ids };
    for kind in [BackendKind::CpuF32, BackendKind::Candle] {
        for (names, layers) in [
            (Some(vec!["q_proj", "down_proj"]), None),
            (None, Some(vec![1])),
            (Some(vec!["o_proj"]), Some(vec![0])),
            (Some(vec!["up_proj"]), Some(vec![1])),
        ] {
            let modules = names.map(|names| names.into_iter().map(str::to_owned).collect());
            let mut chosen = engine(&base, kind, LoraTarget { modules, layers });
            let adapter = chosen.adapter().expect("reads");
            assert_eq!(adapter.len(), 2 * chosen.adapted_modules().len());

            // The whole adapter with the same tensors where chosen, and no effect elsewhere.
            let mut whole = engine(&base, kind, LoraTarget::default());
            let mut all = whole.adapter().expect("reads");
            for (key, (_, values)) in &mut all {
                match adapter.get(key) {
                    Some((_, chosen)) => values.clone_from(chosen),
                    None => values.fill(0.0),
                }
            }
            whole.set_adapter(&all).expect("fits");
            let tokens = sequence.input_ids.len() as u64 - 1;
            let found = chosen.accumulate(&[&sequence], tokens).expect("computes");
            let wanted = whole.accumulate(&[&sequence], tokens).expect("computes");
            assert!((found.loss - wanted.loss).abs() < 1e-5 * wanted.loss);
            let found = chosen.gradients().expect("reads");
            let mut wanted = whole.gradients().expect("reads");
            wanted.retain(|key, _| adapter.contains_key(key));
            let apart = difference(&found, &wanted);
            assert!(apart < 1e-5, "{kind:?}: {apart:.1e}");
        }
    }
}
