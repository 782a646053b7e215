//! Jobs that train the model's own weights: exact runs, models that stand by themselves, and what can
//! be done with them.

use std::path::{Path, PathBuf};

use hone::artifacts::peft;
use hone::dataset::{Message, Role};
use hone::domain::error_code::ErrorCode;
use hone::domain::job::{Auto, EventLevel, FineTuneMode};
use hone::train::engine::{BackendKind, InferenceEngine};
use hone::train::model::base_model::BaseModel;
use hone::train::model::lora::LoraSettings;
use hone::train::protocol::Progress;
use serde_json::{Value, json};

use crate::http::models_chat::ask;
use crate::support::server::{Server, TINY, chat_lines};
use crate::train::real_model::{gguf, models_dir};
use crate::train::training::{Trainer, failure, notes, steps};

fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama")
}

/// A run whose steps each change something.
fn trainer(tuning: FineTuneMode) -> Trainer {
    let mut trainer = Trainer::new();
    let values = &mut trainer.spec.hyperparameters;
    values.tuning = Some(tuning);
    values.learning_rate = Some(3e-3);
    trainer
}

/// The folder of the model that a run has made.
fn made(said: &[Progress]) -> PathBuf {
    match said.last() {
        Some(Progress::Finished { directory, .. }) => directory.join("model"),
        other => panic!("it did not finish: {other:?}"),
    }
}

fn weights(said: &[Progress]) -> Vec<u8> {
    std::fs::read(made(said).join("model.safetensors")).expect("reads")
}

#[test]
fn a_run_is_the_same_to_the_bit_on_one_thread_on_two_and_after_a_stop() {
    for tuning in [FineTuneMode::Full, FineTuneMode::LastLayers] {
        let undisturbed = trainer(tuning);
        let said = undisturbed.run_on(2, None);
        let wanted = weights(&said);
        let steps = steps(&said);
        assert!(steps[35].train_loss < 0.8 * steps[0].train_loss, "{tuning:?}");

        let disturbed = trainer(tuning);
        let said = disturbed.run_on(1, Some(9));
        assert!(matches!(said.last(), Some(Progress::Stopped { .. })), "{:?}", said.last());
        let said = disturbed.run_on(2, None);
        assert!(said.iter().any(|one| matches!(one, Progress::Resumed { step } if *step >= 9)));
        assert!(weights(&said) == wanted, "{tuning:?}: not the same bytes");
    }
}

#[test]
fn the_model_of_a_run_stands_by_itself_and_frozen_tensors_are_the_bases() {
    let base = peft::deserialise(&std::fs::read(tiny().join("model.safetensors")).expect("reads"));
    let base = base.expect("32-bit floats");
    for tuning in [FineTuneMode::Full, FineTuneMode::LastLayers] {
        let run = trainer(tuning);
        let said = run.run();
        let folder = made(&said);
        let model = BaseModel::open(&folder).expect("it is whole");
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            let bytes = |folder: &Path| std::fs::read(folder.join(name)).expect("reads");
            assert!(bytes(&folder) == bytes(&tiny()), "{name}");
        }
        assert_eq!(model.config["dtype"], "float32");
        let found = peft::deserialise(&weights(&said)).expect("32-bit floats");
        assert_eq!(found.keys().collect::<Vec<_>>(), base.keys().collect::<Vec<_>>());
        for (name, tensor) in &found {
            // A quarter of two blocks is one.
            let trains = tuning == FineTuneMode::Full
                || name.starts_with("model.layers.1.")
                || name == "model.norm.weight";
            assert_eq!(*tensor != base[name], trains, "{tuning:?} {name}");
        }
        let responder =
            InferenceEngine::load(&model.config, model.weights.as_ref(), BackendKind::Cpu);
        let logits = responder.expect("it loads").logits(None, &[3, 4, 5]).expect("it computes");
        assert!(logits.iter().all(|logit| logit.is_finite()));
    }
}

#[test]
fn a_run_says_what_trains_on_what_and_how_far_it_went() {
    let mut run = trainer(FineTuneMode::LastLayers);
    run.spec.hyperparameters.learning_rate = None;
    let said = run.run();
    let infos = notes(&said, EventLevel::Info).join("\n");
    assert!(infos.contains("computes with candle in 32-bit floats"), "{infos}");
    assert!(infos.contains("The model's head is its embedding, which stays"), "{infos}");
    let Some(Progress::Resolved { hyperparameters, explanations, .. }) =
        said.iter().find(|one| matches!(one, Progress::Resolved { .. }))
    else {
        panic!("it resolves");
    };
    assert_eq!((hyperparameters.learning_rate, hyperparameters.tuning_layers), (2e-5, Some(1)));
    let explanations = explanations.join("\n");
    for part in ["2e-5", "a quarter of the model's 2 blocks", "every checkpoint is a whole model"] {
        assert!(explanations.contains(part), "{part}: {explanations}");
    }
    let Some(Progress::Finished { report, .. }) = said.last() else { panic!("it finishes") };
    let report: Value =
        serde_json::from_slice(&std::fs::read(report).expect("reads")).expect("JSON");
    let (trained, total) = (&report["parameters"]["trained"], &report["parameters"]["total"]);
    assert!(trained.as_u64() < total.as_u64() && trained.as_u64() > Some(0), "{report:#}");
    let changes = report["change_by_layer"].as_array().expect("a list");
    assert_eq!(changes.len(), 1, "{report:#}");
    assert_eq!(changes[0]["layer"], 1);
    assert!(changes[0]["mean_absolute_change"].as_f64() > Some(1e-6), "{report:#}");
    assert!(report["hyperparameters"].get("lora_r").is_none(), "{report:#}");
}

#[test]
fn what_the_model_does_not_have_is_refused() {
    let mut run = trainer(FineTuneMode::LastLayers);
    run.spec.hyperparameters.tuning_layers = Some(3);
    let said = run.run();
    let error = failure(&said);
    assert_eq!(error.code, ErrorCode::InvalidHyperparameter);
    assert!(error.message.contains("tuning_layers is 3"), "{}", error.message);

    let mut run = trainer(FineTuneMode::Lora);
    run.spec.hyperparameters.modules_to_save = Some(vec!["lm_head".to_owned()]);
    let said = run.run();
    let message = &failure(&said).message;
    assert!(message.contains("the model's embedding is its head"), "{message}");
    untied(&mut run);
    run.spec.hyperparameters.modules_to_save = Some(vec!["embed_out".to_owned()]);
    let said = run.run();
    let message = &failure(&said).message;
    assert!(message.contains("\"embed_out\"; of this model embed_tokens and lm_head"), "{message}");
}

/// Gives the run a copy of the tiny model whose head is a matrix of its own.
pub fn untied(trainer: &mut Trainer) -> PathBuf {
    let folder = trainer.folder.path().join("untied");
    std::fs::create_dir_all(&folder).expect("makes");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tiny().join(name), folder.join(name)).expect("copies");
    }
    let config = std::fs::read(tiny().join("config.json")).expect("reads");
    let mut config: Value = serde_json::from_slice(&config).expect("JSON");
    config["tie_word_embeddings"] = false.into();
    std::fs::write(folder.join("config.json"), config.to_string()).expect("writes");
    let weights = std::fs::read(tiny().join("model.safetensors")).expect("reads");
    let mut weights = peft::deserialise(&weights).expect("32-bit floats");
    let mut head = weights["model.embed_tokens.weight"].clone();
    head.1.reverse();
    weights.insert("lm_head.weight".to_owned(), head);
    let weights = peft::serialise(&weights).expect("serialises");
    std::fs::write(folder.join("model.safetensors"), weights).expect("writes");
    trainer.spec.base_model = folder.clone();
    folder
}

#[test]
fn saved_modules_train_beside_lora_and_what_is_not_named_is_not_stored() {
    let mut run = trainer(FineTuneMode::Lora);
    let base = untied(&mut run);
    run.spec.hyperparameters.modules_to_save = Some(vec!["lm_head".to_owned()]);
    let said = run.run();
    let infos = notes(&said, EventLevel::Info).join("\n");
    assert!(infos.contains("computes with candle in 32-bit floats"), "{infos}");
    let Some(Progress::Finished { directory, .. }) = said.last() else { panic!("it finishes") };
    let bytes = |name: &str| std::fs::read(directory.join(name)).expect("reads");
    let (config, tensors) =
        peft::read(&bytes(peft::CONFIG_FILE), &bytes(peft::WEIGHTS_FILE)).expect("an adapter");
    assert_eq!(config.modules_to_save, Some(vec!["lm_head".to_owned()]));
    let whole: Vec<&String> = tensors.keys().filter(|key| !key.contains(".lora_")).collect();
    assert_eq!(whole, ["base_model.model.lm_head.weight"]);
    let weights = std::fs::read(base.join("model.safetensors")).expect("reads");
    let weights = peft::deserialise(&weights).expect("32-bit floats");
    assert_ne!(tensors[whole[0]].1, weights["lm_head.weight"].1, "it has trained");

    // Answering with the adapter takes the head with it.
    let model = BaseModel::open(&base).expect("opens");
    let responder =
        InferenceEngine::load(&model.config, model.weights.as_ref(), BackendKind::CpuF32)
            .expect("loads");
    let lora = LoraSettings::of_peft(&config);
    let logits = |tensors| {
        let attached = responder.attach(&lora, tensors).expect("attaches");
        responder.logits(Some(&attached), &[3, 4, 5]).expect("computes")
    };
    let with = logits(&tensors);
    let mut pairs = tensors.clone();
    pairs.remove("base_model.model.lm_head.weight");
    assert_ne!(with, logits(&pairs));
    // The same in whole: the pairs on a base with that head.
    let mut moved = weights.clone();
    moved.insert("lm_head.weight".to_owned(), tensors["base_model.model.lm_head.weight"].clone());
    let folder = run.folder.path().join("moved");
    std::fs::create_dir(&folder).expect("makes");
    let bytes = peft::serialise(&moved).expect("serialises");
    std::fs::write(folder.join("model.safetensors"), bytes).expect("writes");
    let moved = hone::train::model::weights::safetensors::open(&folder).expect("opens");
    let other =
        InferenceEngine::load(&model.config, moved.as_ref(), BackendKind::CpuF32).expect("loads");
    let attached = other.attach(&lora, &pairs).expect("attaches");
    assert_eq!(with, other.logits(Some(&attached), &[3, 4, 5]).expect("computes"));

    // And training goes on from it.
    run.spec.continue_from = Some(directory.clone());
    run.spec.work_dir = run.folder.path().join("next");
    run.spec.hyperparameters.modules_to_save = None;
    let next = run.run();
    let (first, last) = (steps(&next)[0].train_loss, steps(&said)[35].train_loss);
    assert!(first < 2.0 * last + 0.1, "{first} {last}");
    run.spec.hyperparameters.modules_to_save = Some(vec!["embed_tokens".to_owned()]);
    let message = failure(&run.run()).message.clone();
    assert!(message.contains("modules_to_save is [\"embed_tokens\"]"), "{message}");
}

/// Names of a list of files.
async fn names(server: &Server, files: &Value) -> Vec<String> {
    let mut names = Vec::new();
    for id in files.as_array().expect("a list") {
        let file = server.get(&format!("/v1/files/{}", id.as_str().expect("an id"))).await.ok();
        names.push(file["filename"].as_str().expect("a name").to_owned());
    }
    names
}

async fn first_loss(server: &Server, id: &str) -> f64 {
    let events = server.events(id).await;
    let first = events.iter().rev().find(|event| event["type"] == "metrics").expect("a step");
    first["data"]["train_loss"].as_f64().expect("a loss")
}

#[tokio::test]
async fn a_whole_model_is_published_answers_and_is_gone_on_from() {
    let server = Server::start();
    let values = json!({"n_epochs": 4, "batch_size": 4, "learning_rate": 3e-3, "tuning": "full"});
    let id = server.create_job(&chat_lines(12), values).await;
    let job = server.ended(&id, "succeeded").await;
    let shown = &job["method"]["supervised"]["hyperparameters"];
    assert_eq!((&shown["tuning"], shown.get("lora_r")), (&json!("full"), None));
    let files = [
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let all = names(&server, &job["result_files"]).await;
    assert_eq!(
        all,
        [&["step_metrics.csv"], &files[..], &["report.json", "certificate.json"]].concat()
    );

    let model = job["fine_tuned_model"].as_str().expect("a model");
    assert_eq!(server.get(&format!("/v1/models/{model}")).await.ok()["parent"], TINY);
    let answer = async |server: &Server, model: &str| {
        let reply = server.post("/v1/chat/completions", ask(model, json!({}))).await.ok();
        reply["choices"][0]["message"]["content"].as_str().expect("a text").to_owned()
    };
    let tuned = answer(&server, model).await;
    assert_ne!(tuned, answer(&server, TINY).await);
    let checkpoints = server.get(&format!("/v1/fine_tuning/jobs/{id}/checkpoints")).await.ok();
    let checkpoints = checkpoints["data"].as_array().expect("a list");
    assert_eq!(checkpoints.len(), 2, "whole models are few by default");
    assert_eq!(names(&server, &checkpoints[0]["result_files"]).await, files);
    let last = checkpoints[0]["fine_tuned_model_checkpoint"].as_str().expect("a name");
    assert_eq!(answer(&server, last).await, tuned);
    let server = server.kill_and_restart();
    assert_eq!(answer(&server, model).await, tuned);

    for id in job["result_files"].as_array().expect("a list")[1..6].iter() {
        let path = format!("/v1/files/{}", id.as_str().expect("an id"));
        let error = server.delete(&path).await.error(400);
        assert!(error["message"].as_str().is_some_and(|text| text.contains(model)), "{error}");
    }

    // Going on from it, as the model that it is.
    let file = server.upload(&chat_lines(12)).await;
    let go_on = |from: &str, hyperparameters: Value| json!({"model": from, "training_file": file, "seed": 1, "hyperparameters": hyperparameters});
    let body = go_on(model, json!({"tuning": "last_layers", "n_epochs": 1, "batch_size": 4}));
    let next = server.post("/v1/fine_tuning/jobs", body).await.ok();
    assert_eq!(next["model"], model);
    let next = next["id"].as_str().expect("an id");
    let done = server.ended(next, "succeeded").await;
    assert!(first_loss(&server, next).await < 0.5 * first_loss(&server, &id).await);
    let name = done["fine_tuned_model"].as_str().expect("a model");
    assert!(name.starts_with("ft:tiny-llama:local::"), "{name}");
    answer(&server, name).await;

    let error = server.post("/v1/fine_tuning/jobs", go_on(model, json!({}))).await.error(400);
    assert_eq!(error["param"], "hyperparameters.tuning");
    assert!(error["message"].as_str().is_some_and(|text| text.contains("whole model")), "{error}");
    let adapter = server.create_job(&chat_lines(12), json!({"n_epochs": 1, "lora_r": 2})).await;
    let adapter = server.ended(&adapter, "succeeded").await;
    let adapter = adapter["fine_tuned_model"].as_str().expect("a model");
    let body = go_on(adapter, json!({"tuning": "full"}));
    let error = server.post("/v1/fine_tuning/jobs", body).await.error(400);
    assert!(error["message"].as_str().is_some_and(|text| text.contains("an adapter")), "{error}");

    assert_eq!(server.delete(&format!("/v1/models/{model}")).await.ok()["deleted"], true);
    server.post("/v1/chat/completions", ask(model, json!({}))).await.error(404);
}

#[tokio::test]
async fn preferences_train_all_weights_and_begin_without_a_margin() {
    let server = Server::start();
    let mut lines = String::new();
    for number in 0..12 {
        let say = |text: String| json!([{"role": "assistant", "content": text}]);
        let line = json!({
            "input": {"messages": [
                {"role": "user", "content": format!("What comes after {number}?")}]},
            "preferred_output": say(format!("{}, of course.", number + 1)),
            "non_preferred_output": say("I will not say.".to_owned()),
        });
        lines.push_str(&format!("{line}\n"));
    }
    let file = server.upload(&lines).await;
    let values = json!({"tuning": "full", "n_epochs": 3, "learning_rate": 1e-3});
    let body = json!({"model": TINY, "training_file": file, "seed": 1,
        "method": {"type": "dpo", "dpo": {"hyperparameters": values}}});
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    let id = job["id"].as_str().expect("an id");
    server.ended(id, "succeeded").await;
    let first = first_loss(&server, id).await;
    assert!((first - std::f64::consts::LN_2).abs() < 1e-3, "{first}");
    let events = server.events(id).await;
    let last = events.iter().find(|event| event["type"] == "metrics").expect("a step");
    assert!(last["data"]["train_loss"].as_f64() < Some(0.5), "{last}");
}

#[test]
fn a_gguf_file_becomes_a_folder_that_reads_texts_alike() {
    let Some(models_dir) = models_dir() else { return };
    let base = BaseModel::open(&gguf(&models_dir)).expect("opens");
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in base.companions().expect("reads") {
        std::fs::write(folder.path().join(name), bytes).expect("writes");
    }
    std::fs::write(folder.path().join("config.json"), base.config.to_string()).expect("writes");
    let norm = base.weights.tensor("model.norm.weight").expect("reads");
    let weights = [("model.norm.weight".to_owned(), (norm.shape.clone(), norm.into_f32()))];
    let weights = peft::serialise(&weights.into()).expect("serialises");
    std::fs::write(folder.path().join("model.safetensors"), weights).expect("writes");
    let made = BaseModel::open(folder.path()).expect("it is a model's folder");

    for text in ["Ahoy! 1234 äöü\n\n\tfn main() {}", "<|im_start|>user\nhi<|im_end|>\n"] {
        let ids = |base: &BaseModel| base.tokenizer.encode(text).expect("encodes");
        assert_eq!(ids(&made), ids(&base), "{text}");
    }
    assert_eq!(made.tokenizer.special().ends, base.tokenizer.special().ends);
    assert_eq!(made.tokenizer.special().beginning, base.tokenizer.special().beginning);
    let chat = |base: &BaseModel| {
        let message = Message::text(Role::User, "hi");
        let template = base.template.as_ref().expect("a template");
        template.render_prompt(&[message], &[]).expect("renders")
    };
    assert_eq!(chat(&made), chat(&base));
}

#[test]
fn values_that_are_left_open_stay_loras() {
    let mut run = trainer(FineTuneMode::Lora);
    run.spec.hyperparameters.n_epochs = Auto::Value(1);
    run.spec.hyperparameters.tuning = None;
    let said = run.run();
    let Some(Progress::Finished { directory, .. }) = said.last() else { panic!("it finishes") };
    assert!(directory.join(peft::WEIGHTS_FILE).is_file() && !directory.join("model").exists());
}
