//! The model's own weights train: of every architecture of the golden cases, with gradients that are
//! those of the loss, and nothing else moves.

use hone::train::backend::AdamWStep;
use hone::train::data::sequence::Sequence;
use hone::train::engine::{BackendKind, Engine, LossSums, MicroBatch, load_for_training};
use hone::train::model::lora::LoraSettings;
use hone::train::model::tensors::NamedTensors;
use hone::train::model::trainable::Trainable;
use hone::train::model::weights::{WeightSource, safetensors};

use crate::train::golden::{Case, cases, read_json};
use crate::train::gradients::shaken;

/// A gradient along a direction, of finite differences of 32-bit losses, relative to the gradient's
/// norm.
const SLOPE: f64 = 1e-3;

/// How far the loss is moved to see its slope: far enough to stand out of its rounding, near enough
/// to be straight.
const RISES: [f64; 3] = [1e-2, 3e-3, 1e-3];

fn supervised() -> Vec<Case> {
    let cases: Vec<Case> =
        cases().into_iter().filter(|case| !case.name.starts_with("dpo")).collect();
    assert!(cases.len() >= 10, "every architecture");
    cases
}

fn weights(case: &Case) -> Box<dyn WeightSource> {
    safetensors::open(&case.folder).expect("opens")
}

fn engine(case: &Case, tuning: &Trainable) -> Box<dyn Engine> {
    let config = read_json(&case.folder.join("config.json"));
    load_for_training(&config, weights(case).as_ref(), tuning, 3, BackendKind::Candle)
        .expect("loads")
}

fn blocks(case: &Case) -> usize {
    let config = read_json(&case.folder.join("config.json"));
    let blocks = config["num_hidden_layers"].as_u64().or_else(|| config["n_layer"].as_u64());
    blocks.expect("a number of blocks") as usize
}

fn is_tied(case: &Case) -> bool {
    read_json(&case.folder.join("config.json"))["tie_word_embeddings"] == true
}

fn loss(engine: &mut dyn Engine, batch: &[&Sequence]) -> f64 {
    let sums = LossSums::total(&engine.evaluate(batch).expect("computes"));
    sums.loss / sums.tokens as f64
}

/// One pass over `batch`; the mean loss.
fn accumulate(engine: &mut dyn Engine, batch: &[&Sequence], step: u64) -> f64 {
    let seen = LossSums::total(&engine.evaluate(batch).expect("computes"));
    let part = MicroBatch::whole(step, seen.tokens);
    let sums = LossSums::total(&engine.accumulate(batch, part).expect("computes"));
    sums.loss / sums.tokens as f64
}

fn step(number: u64) -> AdamWStep {
    AdamWStep {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.01,
        clip: 1.0,
        step: number,
    }
}

/// Ten steps over `batch`; the losses.
fn ten_steps(engine: &mut dyn Engine, batch: &[&Sequence], first: u64) -> Vec<f64> {
    let mut losses = Vec::new();
    for number in first..first + 10 {
        losses.push(accumulate(engine, batch, number));
        engine.step(&step(number)).expect("moves");
    }
    losses
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

/// Half along `gradient`, half anywhere: of length 1.
fn direction(gradient: &[f32], seed: usize) -> Vec<f64> {
    let mut state = seed as u64 + 1;
    let mut random: Vec<f64> = Vec::with_capacity(gradient.len());
    for _ in gradient {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random.push((state >> 11) as f64 / (1u64 << 53) as f64 - 0.5);
    }
    let length = random.iter().map(|value| value * value).sum::<f64>().sqrt();
    let slope = norm(gradient).max(f64::MIN_POSITIVE);
    let both = gradient.iter().zip(&random);
    let mixed: Vec<f64> = both.map(|(g, r)| f64::from(*g) / slope + r / length).collect();
    let length = mixed.iter().map(|value| value * value).sum::<f64>().sqrt();
    mixed.iter().map(|value| value / length).collect()
}

/// Compares each tensor's gradient with finite differences of the loss along one direction.
fn check_slopes(case: &Case, tuning: &Trainable) {
    check_slopes_from(case, engine(case, tuning).as_mut());
}

/// The same from where the engine stands.
fn check_slopes_from(case: &Case, engine: &mut dyn Engine) {
    let sequences = case.sequences("");
    let batch: Vec<&Sequence> = sequences.iter().collect();
    accumulate(engine, &batch, 1);
    let gradients = engine.gradients().expect("reads");
    let start = engine.trainable_tensors().expect("reads");
    let largest = gradients.values().map(|(_, values)| norm(values)).fold(0.0, f64::max);
    for (number, (key, (_, gradient))) in gradients.iter().enumerate() {
        let length = norm(gradient);
        // A gradient that the others drown is nothing that a finite difference can see.
        assert!(length > 1e-6 * largest, "{} {key}: a gradient of {length:.1e}", case.name);
        let direction = direction(gradient, number);
        let slope: f64 =
            gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * d).sum::<f64>();
        let mut nearest = f64::INFINITY;
        for rise in RISES {
            let distance = rise / length;
            let mut moved = [0.0, 0.0];
            for (moved, sign) in moved.iter_mut().zip([1.0, -1.0]) {
                let mut tensors = start.clone();
                let (_, values) = tensors.get_mut(key).expect("it is there");
                for (value, along) in values.iter_mut().zip(&direction) {
                    *value += (sign * distance * along) as f32;
                }
                engine.set_trainable_tensors(&tensors).expect("fits");
                *moved = loss(engine, &batch);
            }
            let found = (moved[0] - moved[1]) / (2.0 * distance);
            nearest = nearest.min((found - slope).abs() / length);
        }
        assert!(nearest <= SLOPE, "{} {key}: off by {nearest:.1e}", case.name);
    }
}

#[test]
fn every_weights_gradient_is_the_slope_of_the_loss() {
    for case in supervised() {
        check_slopes(&case, &Trainable::Full);
    }
}

/// Every tensor of the model by name, without a second name of a tied head.
fn all_names(case: &Case) -> Vec<String> {
    let no_weights = [".attn.bias", "masked_bias", "inv_freq", "attention.bias"];
    let is_weight = |name: &String| {
        let is_second_name = is_tied(case) && name == "lm_head.weight";
        !is_second_name && !no_weights.iter().any(|end| name.ends_with(end))
    };
    let mut names: Vec<String> =
        weights(case).shapes().into_iter().map(|(name, _)| name).filter(is_weight).collect();
    names.sort();
    names
}

#[test]
fn the_last_layers_train_alone_and_their_gradients_are_those_of_the_whole() {
    for case in supervised() {
        let sequences = case.sequences("");
        let batch: Vec<&Sequence> = sequences.iter().collect();
        let mut whole = engine(&case, &Trainable::Full);
        let mut last = engine(&case, &Trainable::LastLayers(1));
        accumulate(whole.as_mut(), &batch, 1);
        accumulate(last.as_mut(), &batch, 1);
        let (whole, found) = (whole.gradients().expect("reads"), last.gradients().expect("reads"));
        assert_eq!(whole.keys().cloned().collect::<Vec<_>>(), all_names(&case), "{}", case.name);

        let block = format!(".{}.", blocks(&case) - 1);
        let outer =
            ["model.norm", "transformer.ln_f", "gpt_neox.final_layer_norm", "lm_head", "embed_out"];
        let trains = |name: &String| {
            name.contains(&block) || outer.iter().any(|start| name.starts_with(start))
        };
        let wanted: Vec<String> = all_names(&case).into_iter().filter(trains).collect();
        assert_eq!(found.keys().cloned().collect::<Vec<_>>(), wanted, "{}", case.name);
        let has_head =
            wanted.iter().any(|name| name == "lm_head.weight" || name == "embed_out.weight");
        assert_eq!(has_head, !is_tied(&case), "{}: a tied head stays", case.name);
        for (key, (shape, values)) in &found {
            assert_eq!((shape, values), (&whole[key].0, &whole[key].1), "{} {key}", case.name);
        }
        let (first, second) = last.moments().expect("reads");
        assert_eq!(first.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
        assert_eq!(second.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    }
}

#[test]
fn ten_steps_lower_the_loss_and_leave_frozen_tensors_as_they_were_to_the_bit() {
    for case in supervised() {
        let sequences = case.sequences("");
        let batch: Vec<&Sequence> = sequences.iter().collect();
        for tuning in [Trainable::Full, Trainable::LastLayers(1)] {
            let mut engine = engine(&case, &tuning);
            let before = engine.trainable_tensors().expect("reads");
            let losses = ten_steps(engine.as_mut(), &batch, 1);
            assert!(losses[9] < 0.97 * losses[0], "{} {tuning:?}: {losses:?}", case.name);
            let after = engine.trainable_tensors().expect("reads");
            for (key, (_, values)) in &after {
                assert!(*values != before[key].1, "{} {key} moves", case.name);
            }
            // The base's tensors with those that trained in their place make the very same model.
            let mut again = self::engine(&case, &Trainable::Full);
            let mut tensors = again.trainable_tensors().expect("reads");
            tensors.extend(after);
            again.set_trainable_tensors(&tensors).expect("fits");
            for sequence in &batch {
                let wanted = engine.logits(&sequence.input_ids).expect("computes");
                let found = again.logits(&sequence.input_ids).expect("computes");
                assert!(found == wanted, "{} {tuning:?}", case.name);
            }
        }
    }
}

#[test]
fn training_goes_on_from_its_tensors_and_moments_bit_for_bit() {
    let case = supervised().into_iter().find(|case| case.name == "gpt2").expect("it is there");
    let sequences = case.sequences("");
    let batch: Vec<&Sequence> = sequences.iter().collect();
    let mut undisturbed = engine(&case, &Trainable::Full);
    ten_steps(undisturbed.as_mut(), &batch, 1);
    let (first, second) = undisturbed.moments().expect("reads");
    let mut again = engine(&case, &Trainable::Full);
    again.set_trainable_tensors(&undisturbed.trainable_tensors().expect("reads")).expect("fits");
    again.set_moments(&first, &second).expect("fits");
    let wanted = ten_steps(undisturbed.as_mut(), &batch, 11);
    assert_eq!(ten_steps(again.as_mut(), &batch, 11), wanted);
    assert!(
        again.trainable_tensors().expect("reads")
            == undisturbed.trainable_tensors().expect("reads")
    );
}

#[test]
fn the_change_of_a_block_is_the_mean_distance_from_the_base() {
    let case = supervised().into_iter().find(|case| case.name == "gpt2").expect("it is there");
    let base = weights(&case);
    let sequences = case.sequences("");
    let batch: Vec<&Sequence> = sequences.iter().collect();
    let mut engine = engine(&case, &Trainable::LastLayers(1));
    let change = |engine: &dyn Engine| engine.mean_change_by_layer(base.as_ref()).expect("reads");
    assert_eq!(change(engine.as_ref()), [(1, 0.0)]);
    let before = engine.trainable_tensors().expect("reads");
    ten_steps(engine.as_mut(), &batch, 1);
    let (mut sum, mut count) = (0.0, 0.0);
    for (key, (_, values)) in engine.trainable_tensors().expect("reads") {
        if key.contains(".h.1.") {
            let both = values.iter().zip(&before[&key].1);
            sum += both.map(|(now, before)| f64::from((now - before).abs())).sum::<f64>();
            count += values.len() as f64;
        }
    }
    let found = change(engine.as_ref());
    assert!((found[0].1 - sum / count).abs() < 1e-9, "{found:?} {}", sum / count);
    assert!(found.len() == 1 && found[0].0 == 1 && sum > 0.0);
}

#[test]
fn the_base_alone_is_there_until_its_own_weights_move() {
    let case = supervised().into_iter().find(|case| case.name == "llama").expect("it is there");
    let sequences = case.sequences("");
    let batch: Vec<&Sequence> = sequences.iter().collect();
    let mut engine = engine(&case, &Trainable::Full);
    let base = engine.log_probabilities(&batch, false).expect("nothing has moved");
    assert_eq!(base, engine.log_probabilities(&batch, true).expect("computes"));
    accumulate(engine.as_mut(), &batch, 1);
    engine.step(&step(1)).expect("moves");
    let error = engine.log_probabilities(&batch, false).expect_err("it is gone").to_string();
    assert!(error.contains("the base is not there any more"), "{error}");
    assert!(engine.log_probabilities(&batch, true).expect("computes") != base);
}

#[test]
fn what_cannot_train_is_refused() {
    let case = supervised().into_iter().find(|case| case.name == "llama").expect("it is there");
    let config = read_json(&case.folder.join("config.json"));
    let refusal = |tuning: Trainable, kind: BackendKind| match load_for_training(
        &config,
        weights(&case).as_ref(),
        &tuning,
        3,
        kind,
    ) {
        Ok(_) => panic!("it loads"),
        Err(error) => error.to_string(),
    };
    let message = refusal(Trainable::Full, BackendKind::CpuF32);
    assert!(message.starts_with("the cpu") && message.contains("trains LoRA alone"), "{message}");
    for count in [0, 3] {
        let message = refusal(Trainable::LastLayers(count), BackendKind::Candle);
        assert!(message.contains("the model has 2 blocks"), "{message}");
    }

    let mut engine = engine(&case, &Trainable::LastLayers(1));
    let mut tensors: NamedTensors = engine.trainable_tensors().expect("reads");
    let held = tensors.remove("model.norm.weight").expect("it trains");
    let error = engine.set_trainable_tensors(&tensors).expect_err("one is missing").to_string();
    assert!(error.contains("\"model.norm.weight\" is missing"), "{error}");
    tensors.insert("model.norm.weight".to_owned(), (vec![8, 8], held.1.clone()));
    let error = engine.set_trainable_tensors(&tensors).expect_err("another shape").to_string();
    assert!(error.contains("instead of [64]"), "{error}");
    tensors.insert("model.norm.weight".to_owned(), held.clone());
    tensors.insert("model.nrom.weight".to_owned(), held);
    let error = engine.set_trainable_tensors(&tensors).expect_err("a stranger").to_string();
    assert!(error.contains("\"model.nrom.weight\" names no"), "{error}");
}

#[test]
fn modules_beside_lora_have_the_gradients_of_the_loss_and_others_stay_frozen() {
    let mut checked = 0;
    for case in supervised().into_iter().filter(|case| !is_tied(case)) {
        let names: &[&str] = match case.name.as_str() {
            "gpt_neox" => &["embed_in", "embed_out"],
            _ => &["embed_tokens", "lm_head"],
        };
        for chosen in [&names[..1], &names[1..], names] {
            let saved_modules = chosen.iter().map(|name| (*name).to_owned()).collect();
            let lora = LoraSettings { saved_modules, ..LoraSettings::new(2, 4.0) };
            let tuning = Trainable::Lora(lora);
            let mut engine = engine(&case, &tuning);
            let start = shaken(engine.trainable_tensors().expect("reads"));
            let saved: Vec<&String> = start.keys().filter(|key| !key.contains(".lora_")).collect();
            assert_eq!(saved.len(), chosen.len(), "{} {saved:?}", case.name);
            for name in chosen {
                let is_named = |key: &&&String| {
                    let end = format!("{name}.weight");
                    key.starts_with("base_model.model.") && key.ends_with(&end)
                };
                assert!(saved.iter().any(|key| is_named(&key)), "{name} {saved:?}");
            }
            engine.set_trainable_tensors(&start).expect("fits");
            check_slopes_from(&case, engine.as_mut());
            checked += 1;

            // The base alone does not know of what trains beside it.
            let sequences = case.sequences("");
            let batch: Vec<&Sequence> = sequences.iter().collect();
            let base = engine.log_probabilities(&batch, false).expect("computes");
            ten_steps(engine.as_mut(), &batch, 2);
            assert_eq!(engine.log_probabilities(&batch, false).expect("computes"), base);
        }
    }
    assert!(checked >= 12, "four architectures or more keep the head apart");
}
