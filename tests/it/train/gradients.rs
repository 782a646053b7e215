//! However a batch is cut into passes, its gradients are the same: those of the mean over all
//! loss-bearing tokens of the whole batch.

use std::path::Path;

use hone::train::data::sequence::Sequence;
use hone::train::data::tokenize::encode_file;
use hone::train::engine::{BackendKind, Engine, LossSums, MicroBatch, load, load_for_training};
use hone::train::model::base_model::BaseModel;
use hone::train::model::lora::{LoraSettings, LoraTarget};
use hone::train::model::tensors::NamedTensors;
use hone::train::model::trainable::Trainable;
use hone::train::model::weights::safetensors;

use crate::support::server::chat_lines;

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
    let adapter = shaken(engine.trainable_tensors().expect("reads"));
    engine.set_trainable_tensors(&adapter).expect("fits");
    engine
}

/// A fresh adapter's B is zero, which would leave the gradient of A zero too.
pub fn shaken(mut adapter: NamedTensors) -> NamedTensors {
    for (key, (_, values)) in &mut adapter {
        for (place, value) in values.iter_mut().enumerate() {
            *value += (((key.len() * 31 + place) % 17) as f32 - 8.0) / 400.0;
        }
    }
    adapter
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
    let encoded = |file: &Path| -> Vec<Sequence> {
        encode_file(file, &base, 512).expect("encodes").all().cloned().collect()
    };
    let mut sequences = encoded(&file);
    std::fs::write(&file, lines.lines().nth(7).expect("the last")).expect("writes");
    sequences.extend(encoded(&file));
    let all: Vec<&Sequence> = sequences.iter().collect();
    let counted = |sequence: &&Sequence| sequence.loss_mask[1..].iter().filter(|on| **on).count();
    let tokens = all.iter().map(counted).sum::<usize>() as u64;

    for kind in [BackendKind::CpuF32, BackendKind::Candle] {
        let mut made = Vec::new();
        for size in [8, 4, 1] {
            let mut engine = engine(&base, kind, LoraTarget::default());
            let mut loss = 0.0;
            let mut here = MicroBatch::whole(3, tokens);
            for part in all.chunks(size) {
                loss += accumulate(engine.as_mut(), part, here).loss;
                here.first += part.len();
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
            let adapter = chosen.trainable_tensors().expect("reads");
            assert_eq!(adapter.len(), 2 * chosen.adapted_modules().len());

            // The whole adapter with the same tensors where chosen, and no effect elsewhere.
            let mut whole = engine(&base, kind, LoraTarget::default());
            let mut all = whole.trainable_tensors().expect("reads");
            for (key, (_, values)) in &mut all {
                match adapter.get(key) {
                    Some((_, chosen)) => values.clone_from(chosen),
                    None => values.fill(0.0),
                }
            }
            whole.set_trainable_tensors(&all).expect("fits");
            let tokens = sequence.input_ids.len() as u64 - 1;
            let found = accumulate(chosen.as_mut(), &[&sequence], MicroBatch::whole(1, tokens));
            let wanted = accumulate(whole.as_mut(), &[&sequence], MicroBatch::whole(1, tokens));
            assert!((found.loss - wanted.loss).abs() < 1e-5 * wanted.loss);
            let found = chosen.gradients().expect("reads");
            let mut wanted = whole.gradients().expect("reads");
            wanted.retain(|key, _| adapter.contains_key(key));
            let apart = difference(&found, &wanted);
            assert!(apart < 1e-5, "{kind:?}: {apart:.1e}");
        }
    }
}

/// Forward and backward, the sums of all sequences together.
fn accumulate(engine: &mut dyn Engine, batch: &[&Sequence], part: MicroBatch) -> LossSums {
    LossSums::total(&engine.accumulate(batch, part).expect("computes"))
}

/// Sequences of different lengths, most of whose tokens bear loss.
fn sequences() -> Vec<Sequence> {
    let of = |first: u32, length: u32| {
        let input_ids: Vec<u32> = (first..first + length).collect();
        let loss_mask = input_ids.iter().map(|id| id % 4 != 0).collect();
        Sequence { input_ids, loss_mask }
    };
    vec![of(3, 21), of(90, 7), of(40, 33), of(200, 12)]
}

#[test]
fn dropout_is_the_same_however_a_step_is_cut_and_its_gradients_are_those_of_the_loss() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    let base = BaseModel::open(&model).expect("opens");
    let sequences = sequences();
    let all: Vec<&Sequence> = sequences.iter().collect();
    let plain = LoraSettings::new(4, 8.0);
    let dropping = LoraSettings { dropout: 0.3, ..plain.clone() };
    let mut of_backends = Vec::new();
    for kind in [BackendKind::CpuF32, BackendKind::Candle] {
        let made = |lora: &LoraSettings| {
            let mut engine =
                load(&base.config, base.weights.as_ref(), lora, 3, kind).expect("loads");
            let adapter = shaken(engine.trainable_tensors().expect("reads"));
            engine.set_trainable_tensors(&adapter).expect("fits");
            engine
        };
        let mut engine = made(&dropping);
        let without = LossSums::total(&made(&plain).evaluate(&all).expect("computes"));
        let seen = LossSums::total(&engine.evaluate(&all).expect("computes"));
        assert!((seen.loss - without.loss).abs() < 1e-9, "evaluation drops nothing");

        let part = MicroBatch::whole(7, seen.tokens);
        let loss = accumulate(engine.as_mut(), &all, part).loss;
        let whole = engine.gradients().expect("reads");
        assert!((loss - without.loss).abs() > 1e-3, "training drops: {loss} {}", without.loss);
        let mut again = made(&dropping);
        for (first, one) in all.iter().enumerate() {
            again.accumulate(&[one], MicroBatch { first, ..part }).expect("computes");
        }
        let apart = difference(&again.gradients().expect("reads"), &whole);
        assert!(apart < 1e-5, "{kind:?}: {apart:.1e}");
        let mut another = made(&dropping);
        let other = accumulate(another.as_mut(), &all, MicroBatch { step: 8, ..part }).loss;
        assert!((other - loss).abs() > 1e-3, "each step drops others");

        // Along the gradient the loss rises by the gradient's squared length.
        let square: f64 =
            whole.values().flat_map(|(_, values)| values).map(|x| f64::from(*x).powi(2)).sum();
        let distance = 3e-2 / square.sqrt();
        let mut moved = [0.0, 0.0];
        for (moved, sign) in moved.iter_mut().zip([1.0, -1.0]) {
            let mut engine = made(&dropping);
            let mut adapter = engine.trainable_tensors().expect("reads");
            for (key, (_, values)) in &mut adapter {
                for (value, slope) in values.iter_mut().zip(&whole[key].1) {
                    *value += (sign * distance) as f32 * slope;
                }
            }
            engine.set_trainable_tensors(&adapter).expect("fits");
            let sums = accumulate(engine.as_mut(), &all, part);
            *moved = sums.loss / sums.tokens as f64;
        }
        let slope = (moved[0] - moved[1]) / (2.0 * distance);
        assert!((slope - square).abs() < 0.01 * square, "{kind:?}: {slope} {square}");
        of_backends.push(whole);
    }
    let apart = difference(&of_backends[0], &of_backends[1]);
    assert!(apart < 1e-4, "both backends drop the same: {apart:.1e}");
}

#[test]
fn a_shared_beginning_changes_no_loss_and_no_gradient() {
    let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden");
    for family in ["llama", "gemma2", "gpt2", "phi3"] {
        let folder = families.join(family);
        let text = std::fs::read_to_string(folder.join("config.json")).expect("reads");
        let config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let weights = safetensors::open(&folder).expect("opens");
        // Two answers to one prompt, a third that leaves it early, one of its own.
        let of = |beginning: u32, shared: u32, own: u32, length: u32| {
            let mut input_ids: Vec<u32> = (0..shared).map(|i| (beginning + 7 * i) % 90).collect();
            input_ids.extend((0..length).map(|i| (own + 11 * i) % 90));
            let learnt = shared as usize + 2;
            let loss_mask = (0..input_ids.len()).map(|index| index >= learnt).collect();
            Sequence { input_ids, loss_mask }
        };
        let sequences = [of(3, 24, 40, 9), of(3, 24, 41, 12), of(3, 18, 50, 7), of(60, 5, 61, 8)];
        let all: Vec<&Sequence> = sequences.iter().collect();
        let total: u64 = sequences.iter().map(Sequence::targets).sum();
        let lora = Trainable::Lora(LoraSettings::new(4, 8.0));
        for (kind, tuning) in [
            (BackendKind::CpuF32, &lora),
            (BackendKind::Candle, &lora),
            (BackendKind::Candle, &Trainable::Full),
        ] {
            let made = || {
                let mut engine =
                    load_for_training(&config, weights.as_ref(), tuning, 3, kind).expect("loads");
                let trained = shaken(engine.trainable_tensors().expect("reads"));
                engine.set_trainable_tensors(&trained).expect("fits");
                engine
            };
            let mut plain = made();
            let mut wanted = Vec::new();
            for (first, one) in all.iter().enumerate() {
                let part = MicroBatch { step: 1, first, total };
                wanted.extend(plain.accumulate(&[one], part).expect("computes"));
            }
            let mut sharing = made();
            let found = sharing.accumulate(&all, MicroBatch::whole(1, total)).expect("computes");
            for (found, wanted) in found.iter().zip(&wanted) {
                assert!(
                    (found.loss - wanted.loss).abs() <= 1e-5 * wanted.loss,
                    "{family} {kind:?}"
                );
                assert_eq!((found.tokens, found.correct), (wanted.tokens, wanted.correct));
            }
            let [found, wanted] =
                [&sharing, &plain].map(|engine| engine.gradients().expect("reads"));
            let apart = difference(&found, &wanted);
            assert!(apart <= 1e-5, "{family} {kind:?} {tuning:?}: {apart:.1e}");
        }
    }
}
