//! The whole product on SmolLM2-135M: the demo, the `openai` SDK, and PEFT as the judge of what came
//! out. `tests/run` brings the model and the Python packages; without them these tests say that they
//! did not run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hone::artifacts::peft;
use hone::dataset::{Message, Role};
use hone::domain::chat_template::ChatTemplateSettings;
use hone::domain::job::{Auto, FineTuneMode, Hyperparameters, LoraLayers};
use hone::train::data::tokenize::encode_file;
use hone::train::engine::{BackendKind, DecodeStep, InferenceEngine, SequenceCache};
use hone::train::model::base_model::BaseModel;
use hone::train::model::lora::LoraSettings;
use hone::train::protocol::{Progress, RunSpec};
use hone::train::run::run;

use crate::support::server::{Server, chat_lines, make_key};
use crate::train::golden::argmax;
use crate::train::training::Trainer;
use crate::train::whole_models::untied;

const MODEL: &str = "smollm2-135m-instruct";

/// The folder of base models that `tests/run` fills.
pub fn models_dir() -> Option<PathBuf> {
    given("HONE_TEST_MODELS")
}

/// The file of SmolLM2.
pub fn gguf(models_dir: &Path) -> PathBuf {
    models_dir.join(MODEL).join("SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// A path that `tests/run` names; without it the test says that it did not run.
pub fn given(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        eprintln!("not run: {variable} is not set; tests/run sets it");
    }
    path
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gsm8k").join(name)
}

/// Standard output of a command that must succeed.
pub fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("it starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}\n{stdout}\n{stderr}");
    println!("{stdout}");
    stdout.into_owned()
}

/// A script of `tests/python`.
pub fn script(python: &Path, name: &str) -> Command {
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(name));
    command
}

#[test]
fn the_demo_teaches_a_real_model_and_shows_it() {
    let Some(models_dir) = models_dir() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let output = succeed(
        Command::new(env!("CARGO_BIN_EXE_hone"))
            .args(["demo", "--data-dir"])
            .arg(folder.path())
            .arg("--models-dir")
            .arg(&models_dir),
    );
    let line = |start: &str| {
        let line = output.lines().find_map(|line| line.trim().strip_prefix(start));
        line.unwrap_or_else(|| panic!("no line {start:?}")).trim().to_owned()
    };
    assert!(!line("before:").contains("Ahoy!"));
    let after = line("after:");
    assert!(after.starts_with("Ahoy!") && after.contains("Fair winds!"), "{after}");
    assert!(output.contains("step 48/48"), "progress in plain lines");
    for file in ["adapter_config.json", "adapter_model.safetensors", "step_metrics.csv"] {
        assert!(folder.path().join("demo-adapter").join(file).is_file(), "{file}");
    }
}

#[test]
fn the_demo_leaves_a_folder_that_has_keys_alone_and_says_why() {
    let Some(models_dir) = models_dir() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    make_key(folder.path(), "team-a");
    let mut demo = Command::new(env!("CARGO_BIN_EXE_hone"));
    demo.args(["demo", "--data-dir"]).arg(folder.path()).arg("--models-dir").arg(&models_dir);
    let output = demo.output().expect("it runs");
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("API keys") && message.contains("--data-dir"), "{message}");
}

/// Logits of the first examples of a file, as a safetensors file for PEFT to be compared with.
fn write_logits(base: &Path, adapter: &Path, examples: &Path, target: &Path) {
    write_logits_of(base, Some(adapter), examples, target);
}

/// The same with an adapter or without.
fn write_logits_of(base: &Path, adapter: Option<&Path>, examples: &Path, target: &Path) {
    let base = BaseModel::open(base).expect("opens");
    let responder = InferenceEngine::load(&base.config, base.weights.as_ref(), BackendKind::CpuF32);
    let responder = responder.expect("loads");
    let attached = adapter.map(|adapter| {
        let bytes = |name| std::fs::read(adapter.join(name)).expect("it was downloaded");
        let (config, tensors) =
            peft::read(&bytes(peft::CONFIG_FILE), &bytes(peft::WEIGHTS_FILE)).expect("an adapter");
        let lora = LoraSettings::of_peft(&config);
        responder.attach(&lora, &tensors).expect("attaches")
    });
    let examples = encode_file(examples, &base, 2048).expect("encodes");
    let logits = examples.all().take(4).map(|sequence| {
        let ids = &sequence.input_ids[..];
        (ids, responder.logits(attached.as_ref(), ids).expect("computes"))
    });
    save_logits(logits, target);
}

/// Texts and their logits, as the file with which `peft_compare.py` compares.
pub fn save_logits<'a>(texts: impl Iterator<Item = (&'a [u32], Vec<f32>)>, target: &Path) {
    let mut tensors = peft::AdapterTensors::new();
    for (number, (ids, logits)) in texts.enumerate() {
        let shape = vec![ids.len(), logits.len() / ids.len()];
        tensors.insert(format!("logits.{number}"), (shape, logits));
        let ids = ids.iter().map(|id| *id as f32).collect::<Vec<f32>>();
        tensors.insert(format!("ids.{number}"), (vec![ids.len()], ids));
    }
    std::fs::write(target, peft::serialise(&tensors).expect("serialises")).expect("writes");
}

#[test]
fn the_openai_sdk_drives_a_whole_job_and_peft_computes_the_same_logits() {
    let (Some(models_dir), Some(python)) = (models_dir(), given("HONE_TEST_PYTHON")) else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let server = Server::start_over(&folder.path().join("data"), &models_dir);
    let out = folder.path().join("out");
    std::fs::create_dir(&out).expect("makes");
    let (train, valid) = (data("train-64.jsonl"), data("valid-100.jsonl"));
    let mut job = script(&python, "sdk_job.py");
    succeed(job.args([&server.base, MODEL]).args([&train, &valid, &out]));

    let (gguf, logits) = (gguf(&models_dir), out.join("logits.safetensors"));
    write_logits(&gguf, &out, &valid, &logits);
    let mut compare = script(&python, "peft_compare.py");
    succeed(compare.args([&gguf, &out, &logits]));
}

/// Greedy answers to prompts, written all together: `count` tokens each, or up to one of `ends`.
fn write_greedily(
    responder: &InferenceEngine,
    prompts: &[Vec<u32>],
    count: usize,
    ends: &[u32],
) -> Vec<Vec<u32>> {
    let mut caches: Vec<SequenceCache> =
        prompts.iter().map(|_| responder.new_cache().expect("a cache")).collect();
    let mut answers = vec![Vec::new(); prompts.len()];
    let mut next = prompts.to_vec();
    for _ in 0..count {
        let mut parts = Vec::new();
        let mut which = Vec::new();
        for (index, (cache, input_ids)) in caches.iter_mut().zip(&next).enumerate() {
            if !input_ids.is_empty() {
                which.push(index);
                parts.push(DecodeStep { adapter: None, cache, input_ids, wanted: 1 });
            }
        }
        if parts.is_empty() {
            break;
        }
        let made = responder.advance(&mut parts).expect("computes");
        for (index, logits) in which.into_iter().zip(made) {
            let token = argmax(&logits);
            answers[index].push(token);
            next[index] = if ends.contains(&token) { Vec::new() } else { vec![token] };
        }
    }
    answers
}

#[test]
#[ignore = "long: tests/long runs it"]
fn greedy_answers_to_twenty_questions_of_gsm8k_are_those_of_transformers_token_for_token() {
    let (Some(models_dir), Some(python)) = (models_dir(), given("HONE_TEST_PYTHON")) else {
        return;
    };
    let path = gguf(&models_dir);
    let base = BaseModel::open(&path).expect("opens");
    let responder = InferenceEngine::load(&base.config, base.weights.as_ref(), BackendKind::CpuF32);
    let responder = responder.expect("loads");
    let template = base.template.as_ref().expect("a chat template");
    let questions = std::fs::read_to_string(data("valid-100.jsonl")).expect("reads");
    let prompts: Vec<Vec<u32>> = questions
        .lines()
        .take(20)
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let question = line["messages"][0]["content"].as_str().expect("a question");
            let asked = Message::text(Role::User, question);
            let text = template.render_prompt(&[asked], &[]).expect("renders");
            let tokens = base.tokenizer.encode(&text).expect("encodes");
            tokens.into_iter().map(|(id, _)| id).collect()
        })
        .collect();
    let answers = write_greedily(&responder, &prompts, 48, base.tokenizer.stop_ids());
    let mut tensors = peft::AdapterTensors::new();
    for (number, (prompt, answer)) in prompts.iter().zip(&answers).enumerate() {
        for (part, ids) in [("prompt", prompt), ("answer", answer)] {
            let ids: Vec<f32> = ids.iter().map(|id| *id as f32).collect();
            tensors.insert(format!("{part}.{number}"), (vec![ids.len()], ids));
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let target = folder.path().join("tokens.safetensors");
    std::fs::write(&target, peft::serialise(&tensors).expect("serialises")).expect("writes");
    let said = succeed(script(&python, "greedy_compare.py").args([&path, &target]));
    assert!(said.contains("20 answers"), "{said}");
}

/// A run of the tiny model; where its result lies.
fn tiny_run(folder: &Path, base_model: &Path, hyperparameters: Hyperparameters) -> PathBuf {
    let examples = folder.join("train.jsonl");
    std::fs::write(&examples, chat_lines(12)).expect("writes");
    let spec = RunSpec {
        base_model: base_model.to_owned(),
        base_model_id: "tiny-llama".to_owned(),
        continue_from: None,
        training_file: examples,
        validation_file: None,
        work_dir: folder.join("run"),
        seed: 1,
        hyperparameters,
        chat_template: ChatTemplateSettings::default(),
        training_date: None,
    };
    let mut last = None;
    run(&spec, BackendKind::CpuF32, &mut |progress| last = Some(progress), &mut || None);
    match last {
        Some(Progress::Finished { directory, .. }) => directory,
        other => panic!("it did not finish: {other:?}"),
    }
}

/// Lets PEFT load the adapter onto the base and compute the same as hone, on the run's examples.
fn compare_with_peft(python: &Path, folder: &Path, base_model: &Path, adapter: &Path) {
    let logits = folder.join("logits.safetensors");
    write_logits(base_model, adapter, &folder.join("train.jsonl"), &logits);
    let mut compare = script(python, "peft_compare.py");
    succeed(compare.args([base_model, adapter, &logits]));
}

#[test]
fn peft_computes_the_same_with_chosen_layers_and_a_rank_stabilised_scale() {
    let Some(python) = given("HONE_TEST_PYTHON") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let base_model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    let hyperparameters = Hyperparameters {
        n_epochs: Auto::Value(20),
        learning_rate: Some(1e-2),
        lora_target_modules: Some(vec!["q_proj".to_owned(), "down_proj".to_owned()]),
        lora_layers: Some(LoraLayers::Last(1)),
        use_rslora: Some(true),
        ..Hyperparameters::default()
    };
    let adapter = tiny_run(folder.path(), &base_model, hyperparameters);
    compare_with_peft(&python, folder.path(), &base_model, &adapter);
}

#[test]
fn peft_computes_the_same_with_an_embedding_and_a_head_beside_lora() {
    let Some(python) = given("HONE_TEST_PYTHON") else { return };
    let mut trainer = Trainer::new();
    let base_model = untied(&mut trainer);
    let folder = trainer.folder.path();
    let hyperparameters = Hyperparameters {
        n_epochs: Auto::Value(10),
        learning_rate: Some(1e-2),
        modules_to_save: Some(vec!["embed_tokens".to_owned(), "lm_head".to_owned()]),
        ..Hyperparameters::default()
    };
    let adapter = tiny_run(folder, &base_model, hyperparameters);
    compare_with_peft(&python, folder, &base_model, &adapter);
}

#[test]
fn transformers_computes_the_same_with_a_whole_model() {
    let Some(python) = given("HONE_TEST_PYTHON") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let base_model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama");
    let hyperparameters = Hyperparameters {
        n_epochs: Auto::Value(5),
        learning_rate: Some(3e-3),
        tuning: Some(FineTuneMode::Full),
        ..Hyperparameters::default()
    };
    let model = tiny_run(folder.path(), &base_model, hyperparameters).join("model");
    let (examples, logits) =
        (folder.path().join("train.jsonl"), folder.path().join("logits.safetensors"));
    write_logits_of(&model, None, &examples, &logits);
    let mut compare = script(&python, "peft_compare.py");
    succeed(compare.args([&base_model, &model, &logits]));
}
