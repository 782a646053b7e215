//! Blocks below all that trains run over a text once: what they made of it is kept, and nothing that
//! comes out changes.

use std::path::Path;

use hone::train::backend::AdamWStep;
use hone::train::data::sequence::Sequence;
use hone::train::engine::{
    BackendKind, Engine, LossSums, MicroBatch, PreferencePair, load_for_training,
};
use hone::train::model::base_model::BaseModel;
use hone::train::model::lora::{LoraSettings, LoraTarget};
use hone::train::model::tensors::NamedTensors;
use hone::train::model::trainable::Trainable;
use hone::train::model::weights::safetensors;
use hone::train::rng::permutation;

use crate::train::golden::read_json;
use crate::train::real_model::{gguf, models_dir};

/// More than all texts take.
const PLENTY: u64 = 1 << 30;

/// Examples of a step.
const BATCH: usize = 3;

/// Examples of different lengths. Most begin with the same 40 tokens, or 37 of them, and go on alike
/// for a while.
fn examples() -> Vec<Sequence> {
    let of = |beginning: u32, shared: u32, own: u32, length: u32| {
        let mut input_ids: Vec<u32> = (0..shared).map(|at| (beginning + 7 * at) % 90).collect();
        input_ids.extend((0..length).map(|at| (own + 11 * at) % 90));
        let loss_mask = (0..input_ids.len()).map(|at| at > shared as usize + 2).collect();
        Sequence { input_ids, loss_mask }
    };
    let mut all: Vec<Sequence> = (0..6).map(|own| of(3, 40, 10 + own, 5 + 7 * own)).collect();
    all.push(of(3, 37, 70, 12));
    all.extend((0..3).map(|own| of(60 + own, 0, 20 + own, 9 + 16 * own)));
    all
}

fn tokens(sequences: &[Sequence]) -> u64 {
    sequences.iter().map(|sequence| sequence.input_ids.len() as u64).sum()
}

/// LoRA on the last block.
fn lora(config: &serde_json::Value, dropout: f64) -> Trainable {
    let blocks = config["num_hidden_layers"].as_u64().or_else(|| config["n_layer"].as_u64());
    let last = blocks.expect("a number of blocks") as u32 - 1;
    let target = LoraTarget { modules: None, layers: Some(vec![last]) };
    Trainable::Lora(LoraSettings { dropout, target, ..LoraSettings::new(4, 8.0) })
}

/// A small model of `family`, of which `tuning` trains, with so many bytes for what is frozen.
fn engine(
    family: &str,
    tuning: impl FnOnce(&serde_json::Value) -> Trainable,
    kind: BackendKind,
    bytes: u64,
) -> Box<dyn Engine> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden").join(family);
    let config = read_json(&folder.join("config.json"));
    let weights = safetensors::open(&folder).expect("opens");
    let tuning = tuning(&config);
    let mut engine = load_for_training(&config, weights.as_ref(), &tuning, 3, kind).expect("loads");
    engine.set_frozen_cache_budget(bytes);
    engine
}

fn rates(step: u64) -> AdamWStep {
    AdamWStep {
        learning_rate: 1e-2,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
        clip: 1.0,
        step,
    }
}

/// Trains an epoch over shuffled examples and evaluates them after it; the losses of all.
fn epoch(engine: &mut dyn Engine, examples: &[Sequence], number: u64) -> Vec<f64> {
    let mut losses = Vec::new();
    let mut step = number * examples.len().div_ceil(BATCH) as u64;
    for batch in permutation(5, "examples", number, examples.len()).chunks(BATCH) {
        step += 1;
        let batch: Vec<&Sequence> = batch.iter().map(|index| &examples[*index]).collect();
        let total = batch.iter().map(|sequence| sequence.targets()).sum();
        let sums = engine.accumulate(&batch, MicroBatch::whole(step, total)).expect("computes");
        losses.extend(sums.iter().map(|sums| sums.loss));
        engine.step(&rates(step)).expect("moves");
    }
    let all: Vec<&Sequence> = examples.iter().collect();
    losses.push(LossSums::total(&engine.evaluate(&all).expect("computes")).loss);
    losses
}

/// Three epochs: all losses, what has trained, and the tokens that were spared after each epoch.
fn train(engine: &mut dyn Engine) -> (Vec<f64>, NamedTensors, Vec<u64>) {
    let examples = examples();
    let (mut losses, mut spared) = (Vec::new(), Vec::new());
    for number in 0..3 {
        losses.extend(epoch(engine, &examples, number));
        spared.push(engine.frozen_cache().hit_tokens);
    }
    (losses, engine.trainable_tensors().expect("reads"), spared)
}

/// Fails where losses or tensors are further apart than `most`, relative to their size.
fn compare(
    found: &(Vec<f64>, NamedTensors, Vec<u64>),
    wanted: &(Vec<f64>, NamedTensors, Vec<u64>),
    most: f64,
    what: &str,
) {
    assert_eq!(found.0.len(), wanted.0.len());
    for (found, wanted) in found.0.iter().zip(&wanted.0) {
        assert!((found - wanted).abs() <= most * wanted, "{what}: a loss {found} {wanted}");
    }
    for (key, (_shape, wanted)) in &wanted.1 {
        let (mut apart, mut whole) = (0.0, 0.0);
        for (found, wanted) in found.1[key].1.iter().zip(wanted) {
            apart += f64::from(found - wanted).powi(2);
            whole += f64::from(*wanted).powi(2);
        }
        let apart = (apart / whole).sqrt();
        assert!(apart <= most, "{what}: {key} is {apart:.1e} apart");
    }
}

/// How far what is kept may move a result.
fn tolerance(kind: BackendKind) -> f64 {
    match kind {
        // It computes a row a little differently beside other rows.
        BackendKind::Candle => 1e-5,
        _ => 0.0,
    }
}

#[test]
fn three_epochs_over_kept_rows_are_those_over_computed_ones_whatever_fits() {
    for (family, dropout) in [("llama", 0.0), ("llama", 0.3), ("gemma3_text", 0.0), ("gpt2", 0.0)] {
        for kind in [BackendKind::CpuF32, BackendKind::Cpu, BackendKind::Candle] {
            let run =
                |bytes| train(engine(family, |config| lora(config, dropout), kind, bytes).as_mut());
            let wanted = run(0);
            assert_eq!(wanted.2, [0, 0, 0]);
            // Some of the texts; all of them.
            for bytes in [30_000, PLENTY] {
                let what = format!("{family} {kind:?} dropout {dropout}, {bytes} bytes");
                let found = run(bytes);
                compare(&found, &wanted, tolerance(kind), &what);
                assert!(found.2[2] > 0, "{what}: nothing was kept");
            }
        }
    }
}

#[test]
fn the_second_epoch_runs_over_no_token_below_what_trains() {
    let examples = examples();
    let tokens = tokens(&examples);
    for kind in [BackendKind::CpuF32, BackendKind::Candle] {
        let mut whole = engine("llama", |config| lora(config, 0.0), kind, PLENTY);
        epoch(whole.as_mut(), &examples, 0);
        // The look at its end has seen all of it.
        assert_eq!(whole.frozen_cache().hit_tokens, tokens);
        let all: Vec<&Sequence> = examples.iter().collect();
        for step in 2..4 {
            let before = whole.frozen_cache().hit_tokens;
            whole.accumulate(&all, MicroBatch::whole(step, 100)).expect("computes");
            assert_eq!(whole.frozen_cache().hit_tokens - before, tokens);
        }
        // What has no room runs again.
        let mut part = engine("llama", |config| lora(config, 0.0), kind, 30_000);
        let room = part.frozen_cache().capacity;
        assert!(room > 0 && room < tokens, "{room}");
        for step in 2..4 {
            let before = part.frozen_cache().hit_tokens;
            part.accumulate(&all, MicroBatch::whole(step, 100)).expect("computes");
            assert!(part.frozen_cache().hit_tokens - before < tokens);
        }
    }
}

#[test]
fn nothing_is_kept_where_all_blocks_or_what_stands_before_them_train() {
    let examples = examples();
    let all: Vec<&Sequence> = examples.iter().collect();
    let whole_adapter = |_: &serde_json::Value| Trainable::Lora(LoraSettings::new(4, 8.0));
    let with_embedding = |config: &serde_json::Value| match lora(config, 0.0) {
        Trainable::Lora(lora) => {
            Trainable::Lora(LoraSettings { saved_modules: vec!["embed_tokens".to_owned()], ..lora })
        }
        other => other,
    };
    let mut engines = [
        engine("llama", whole_adapter, BackendKind::CpuF32, PLENTY),
        engine("phi3", with_embedding, BackendKind::Candle, PLENTY),
        engine("llama", |_| Trainable::Full, BackendKind::Candle, PLENTY),
    ];
    for engine in &mut engines {
        assert_eq!(engine.frozen_cache().capacity, 0);
        for step in 1..3 {
            engine.accumulate(&all, MicroBatch::whole(step, 100)).expect("computes");
        }
        assert_eq!(engine.frozen_cache().hit_tokens, 0);
    }
}

#[test]
fn the_arithmetic_of_frozen_blocks_is_what_a_second_epoch_lacks() {
    let sequence = Sequence { input_ids: vec![1; 30], loss_mask: vec![false; 30] };
    let cost = |tuning| engine("llama", |_| tuning, BackendKind::Candle, 0).cost();
    // Nothing is learnt, so there is no head; this model's two blocks are alike.
    let last = cost(Trainable::LastLayers(1));
    let (all, frozen) = (last.of_evaluation(sequence.length()), last.of_frozen(sequence.length()));
    assert!((all - 2.0 * frozen).abs() < 1e-9 * all, "{all} {frozen}");
    assert_eq!(cost(Trainable::Full).of_frozen(sequence.length()), 0.0);
}

#[test]
fn the_last_blocks_own_weights_train_over_kept_rows_as_well() {
    let run = |bytes| {
        let tuning = |_: &serde_json::Value| Trainable::LastLayers(1);
        train(engine("llama", tuning, BackendKind::Candle, bytes).as_mut())
    };
    let (found, wanted) = (run(PLENTY), run(0));
    compare(&found, &wanted, 1e-5, "last layers");
    assert_eq!(found.2, [1, 3, 5].map(|passes| passes * tokens(&examples())));
}

#[test]
fn preferences_and_their_reference_share_what_is_kept() {
    let mut examples = examples();
    examples.truncate(6);
    for kind in [BackendKind::CpuF32, BackendKind::Candle] {
        let run = |bytes| {
            let mut engine = engine("llama", |config| lora(config, 0.0), kind, bytes);
            let all: Vec<&Sequence> = examples.iter().collect();
            let reference = engine.log_probabilities(&all, false).expect("computes");
            let mut pairs = Vec::new();
            for (pair, reference) in
                examples.as_chunks::<2>().0.iter().zip(reference.as_chunks::<2>().0)
            {
                let [chosen, rejected] = pair;
                pairs.push(PreferencePair { chosen, rejected, reference: *reference });
            }
            let mut losses = Vec::new();
            for step in 1..4 {
                let part = MicroBatch::whole(step, pairs.len() as u64);
                let made = engine.accumulate_preferences(&pairs, 0.1, part).expect("computes");
                losses.extend(made.iter().map(|outcome| outcome.loss()));
                engine.step(&rates(step)).expect("moves");
            }
            // What a checkpoint brings back changes nothing below.
            let trained = engine.trainable_tensors().expect("reads");
            engine.set_trainable_tensors(&trained).expect("fits");
            losses
                .extend(engine.log_probabilities(&all, true).expect("computes").iter().map(|x| -x));
            (losses, trained, vec![engine.frozen_cache().hit_tokens])
        };
        let (found, wanted) = (run(PLENTY), run(0));
        compare(&found, &wanted, tolerance(kind), &format!("{kind:?}"));
        // Of five passes, the first one alone computed: the reference's.
        assert_eq!((found.2[0], wanted.2[0]), (4 * tokens(&examples), 0));
    }
}

#[test]
fn rows_of_the_real_model_are_the_same_to_the_bit_whatever_pass_they_were_kept_from() {
    let Some(models_dir) = models_dir() else { return };
    let base = BaseModel::open(&gguf(&models_dir)).expect("opens");
    let of = |own: u32, shared: u32, length: u32| Sequence {
        input_ids: (0..shared + length)
            .map(|at| 50 * at + if at < shared { 0 } else { own })
            .collect(),
        loss_mask: (0..shared + length).map(|at| at > shared + 2).collect(),
    };
    let texts = [of(1, 61, 30), of(2, 61, 9), of(3, 40, 51), of(4, 0, 23)];
    let run = |bytes, passes: &[&[usize]]| {
        let lora = lora(&base.config, 0.0);
        let kind = BackendKind::Cpu;
        let mut engine =
            load_for_training(&base.config, base.weights.as_ref(), &lora, 3, kind).expect("loads");
        engine.set_frozen_cache_budget(bytes);
        let mut losses = Vec::new();
        for pass in passes {
            let pass: Vec<&Sequence> = pass.iter().map(|index| &texts[*index]).collect();
            losses = engine.evaluate(&pass).expect("computes");
        }
        (losses, engine.frozen_cache().hit_tokens)
    };
    let last: &[usize] = &[0, 2, 1, 3];
    let (wanted, _) = run(0, &[last]);
    let (found, spared) = run(PLENTY, &[&[3, 1], &[2], &[0], last]);
    assert_eq!((found, spared), (wanted, tokens(&texts)));
}
