//! A run is exact: the same seed gives the same bytes, whatever happens to its process; and what it
//! cannot train on, it says.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hone::domain::chat_template::ChatTemplateSettings;
use hone::domain::error_code::ErrorCode;
use hone::domain::job::{Auto, EventLevel, Hyperparameters, JobError, LoraLayers, StepMetrics};
use hone::train::protocol::{Control, Progress, RunSpec};
use safetensors::SafeTensors;

use crate::support::server::chat_lines;

/// A trainer process with a folder for one run.
pub struct Trainer {
    pub folder: tempfile::TempDir,
    pub spec: RunSpec,
}

impl Trainer {
    /// A run of 36 steps over twelve examples.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let training_file = folder.path().join("train.jsonl");
        std::fs::write(&training_file, chat_lines(12)).expect("writes");
        let spec = RunSpec {
            base_model: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama"),
            base_model_id: "tiny-llama".to_owned(),
            continue_from: None,
            training_file,
            validation_file: None,
            work_dir: folder.path().join("run"),
            seed: 5,
            chat_template: ChatTemplateSettings::default(),
            training_date: None,
            hyperparameters: Hyperparameters {
                n_epochs: Auto::Value(6),
                batch_size: Auto::Value(2),
                learning_rate: Some(1e-2),
                ..Hyperparameters::default()
            },
        };
        Self { folder, spec }
    }

    /// A run of 36 steps over all twelve examples each: long enough steps for an order to stop to come
    /// through within a few.
    pub fn slow() -> Self {
        let mut trainer = Self::new();
        trainer.spec.hyperparameters.n_epochs = Auto::Value(36);
        trainer.spec.hyperparameters.batch_size = Auto::Value(12);
        trainer
    }

    fn train_on(&self, content: &str) {
        std::fs::write(&self.spec.training_file, content).expect("writes");
    }

    /// Runs to the end.
    pub fn run(&self) -> Vec<Progress> {
        self.run_on(2, None)
    }

    /// Runs with so many threads; asks for a stop after the given step.
    pub fn run_on(&self, threads: usize, stop_after: Option<u64>) -> Vec<Progress> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hone"))
            .arg("trainer")
            .env("RAYON_NUM_THREADS", threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut input = child.stdin.take().expect("a pipe");
        writeln!(input, "{}", serde_json::to_string(&self.spec).expect("JSON")).expect("writes");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut said = Vec::new();
        for line in output.lines() {
            let progress: Progress = serde_json::from_str(&line.expect("a line")).expect("JSON");
            if let Progress::Step { metrics, .. } = &progress
                && Some(metrics.step) == stop_after
            {
                let order = serde_json::to_string(&Control::Stop).expect("JSON");
                writeln!(input, "{order}").expect("writes");
            }
            said.push(progress);
        }
        assert!(child.wait().expect("ends").success());
        said
    }

    fn checkpoint(&self, step: u64) -> PathBuf {
        self.spec.work_dir.join(format!("step-{step}"))
    }
}

/// The numbers of every step.
pub fn steps(said: &[Progress]) -> Vec<&StepMetrics> {
    let mut steps = Vec::new();
    for progress in said {
        if let Progress::Step { metrics, .. } = progress {
            steps.push(metrics);
        }
    }
    steps
}

/// What was said at a level.
pub fn notes(said: &[Progress], wanted: EventLevel) -> Vec<&str> {
    let mut notes = Vec::new();
    for progress in said {
        if let Progress::Note { level, message, .. } = progress
            && *level == wanted
        {
            notes.push(message.as_str());
        }
    }
    notes
}

/// The finished adapter's bytes.
fn adapter(said: &[Progress]) -> Vec<u8> {
    match said.last() {
        Some(Progress::Finished { directory, .. }) => {
            std::fs::read(directory.join("adapter_model.safetensors")).expect("reads")
        }
        other => panic!("it did not finish: {other:?}"),
    }
}

/// Why it failed.
pub fn failure(said: &[Progress]) -> &JobError {
    match said.last() {
        Some(Progress::Failed { error }) => error,
        other => panic!("it did not fail: {other:?}"),
    }
}

#[test]
fn the_loss_falls_on_the_training_file_and_on_one_of_its_kind() {
    let mut trainer = Trainer::new();
    let validation = trainer.folder.path().join("valid.jsonl");
    std::fs::write(&validation, chat_lines(3)).expect("writes");
    trainer.spec.validation_file = Some(validation);
    let said = trainer.run();
    let steps = steps(&said);
    assert_eq!(steps.len(), 36);
    let (first, last) = (&steps[0], &steps[35]);
    assert!(last.train_loss < 0.6 * first.train_loss, "{} {}", first.train_loss, last.train_loss);
    assert!(last.train_mean_token_accuracy > first.train_mean_token_accuracy);
    let whole: Vec<f64> = steps.iter().filter_map(|step| step.full_valid_loss).collect();
    assert_eq!(whole.len(), 6, "the whole validation file at the end of each epoch");
    assert!(whole[5] < 0.8 * whole[0], "{whole:?}");
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_one_thread_and_on_two() {
    let mut trainer = Trainer::new();
    let two = adapter(&trainer.run_on(2, None));
    for threads in [1, 2] {
        let again = Trainer::new();
        assert!(adapter(&again.run_on(threads, None)) == two, "{threads} threads");
    }
    trainer.spec.seed = 6;
    trainer.spec.work_dir = trainer.folder.path().join("other");
    assert!(adapter(&trainer.run()) != two, "the seed has an effect");
}

#[test]
fn a_run_goes_on_after_a_stop_and_past_a_torn_checkpoint_bit_for_bit() {
    let undisturbed = adapter(&Trainer::slow().run());
    let trainer = Trainer::slow();
    let said = trainer.run_on(2, Some(9));
    let Some(Progress::Stopped { step }) = said.last() else {
        panic!("it did not stop: {:?}", said.last());
    };
    assert!((9..12).contains(step), "{step}");

    // The newest checkpoint loses its end, as in a crash of a machine that lies about its disk.
    let weights = trainer.checkpoint(*step).join("adapter_model.safetensors");
    let bytes = std::fs::read(&weights).expect("reads");
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).expect("writes");
    let said = trainer.run();
    let warnings = notes(&said, EventLevel::Warn);
    let name = format!("step-{step}");
    assert!(warnings.iter().any(|warning| warning.contains(&name)), "{warnings:?}");
    let resumed = said.iter().find_map(|progress| match progress {
        Progress::Resumed { step } => Some(*step),
        _ => None,
    });
    assert!(resumed.is_some_and(|resumed| resumed < *step && resumed > 0), "{resumed:?}");
    assert!(adapter(&said) == undisturbed, "not the same bytes");
}

#[test]
fn frozen_blocks_run_over_a_text_once_and_a_run_that_goes_on_comes_to_the_same_bytes() {
    let adapting_the_last_block = || {
        let mut trainer = Trainer::slow();
        trainer.spec.hyperparameters.lora_layers = Some(LoraLayers::Last(1));
        trainer
    };
    let are_kept = |said: &[Progress]| {
        let notes = notes(said, EventLevel::Info);
        notes.iter().any(|note| note.contains("later epochs do not compute them again"))
    };
    let undisturbed = adapting_the_last_block();
    let wanted = undisturbed.run();
    assert!(are_kept(&wanted));
    let trainer = adapting_the_last_block();
    let said = trainer.run_on(2, Some(9));
    assert!(matches!(said.last(), Some(Progress::Stopped { .. })), "{:?}", said.last());
    assert!(adapter(&trainer.run()) == adapter(&wanted), "not the same bytes");
    assert!(!are_kept(&Trainer::new().run_on(2, Some(1))), "all blocks are adapted");
}

#[test]
fn a_checkpoint_of_another_run_is_not_gone_on_from() {
    let mut trainer = Trainer::new();
    trainer.run();
    trainer.spec.hyperparameters.lora_r = Some(4);
    let said = trainer.run();
    assert!(!said.iter().any(|progress| matches!(progress, Progress::Resumed { .. })));
    assert_eq!(steps(&said).len(), 36);
}

#[test]
fn too_long_examples_are_left_out_whole_and_said_by_line() {
    let mut trainer = Trainer::new();
    let mut lines = chat_lines(11);
    let long = "and on ".repeat(60);
    lines.push_str(&format!(
        "{}\n",
        serde_json::json!({"messages": [{"role": "user", "content": long},
            {"role": "assistant", "content": "x"}]})
    ));
    trainer.train_on(&lines);
    trainer.spec.hyperparameters.context_length = Some(100);
    let said = trainer.run();
    let warnings = notes(&said, EventLevel::Warn);
    assert!(warnings[0].contains("1 of 12 training examples are longer than 100 tokens"));
    assert!(warnings[0].contains("lines 12 ("), "{warnings:?}");
    adapter(&said);

    trainer.spec.hyperparameters.context_length = Some(8);
    let said = trainer.run();
    let error = failure(&said);
    assert_eq!(error.code, ErrorCode::InvalidNExamples);
    assert!(error.message.contains("12 more are longer than 8 tokens"), "{}", error.message);
}

/// A copy of the tiny model, to be damaged.
fn copy_of_the_model(trainer: &mut Trainer) -> PathBuf {
    let copy = trainer.folder.path().join("model");
    std::fs::create_dir_all(&copy).expect("makes");
    for entry in std::fs::read_dir(&trainer.spec.base_model).expect("reads") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), copy.join(entry.file_name())).expect("copies");
    }
    trainer.spec.base_model = copy.clone();
    copy
}

#[test]
fn a_loss_that_is_no_number_fails_with_the_lines_of_its_batch() {
    let mut trainer = Trainer::new();
    let path = copy_of_the_model(&mut trainer).join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("reads");
    let (header, metadata) = SafeTensors::read_metadata(&bytes).expect("a header");
    let tensor = metadata.info("model.norm.weight").expect("a norm");
    let (first, last) = tensor.data_offsets;
    // All bits set is a NaN in every format of floating-point numbers.
    bytes[8 + header + first..8 + header + last].fill(0xff);
    std::fs::write(&path, bytes).expect("writes");
    let said = trainer.run();
    let error = failure(&said);
    assert_eq!(error.code, ErrorCode::NanLoss);
    assert!(
        error.message.contains("step 1") && error.message.contains("lines "),
        "{}",
        error.message
    );
}

#[test]
fn layers_that_the_model_does_not_have_are_refused_by_name() {
    let mut trainer = Trainer::new();
    trainer.spec.hyperparameters.lora_target_modules = Some(vec!["query".to_owned()]);
    let said = trainer.run();
    let error = failure(&said);
    assert_eq!(error.code, ErrorCode::InvalidHyperparameter);
    assert!(error.message.contains("\"query\""), "{}", error.message);
    assert!(error.message.contains("q_proj") && error.message.contains("down_proj"));

    let mut trainer = Trainer::new();
    trainer.spec.hyperparameters.lora_layers = Some(LoraLayers::Last(99));
    let said = trainer.run();
    let error = failure(&said);
    assert_eq!(error.code, ErrorCode::InvalidHyperparameter);
    assert!(error.message.contains("2 blocks"), "{}", error.message);
}

#[test]
fn an_unknown_architecture_is_named_with_those_that_are_known() {
    let mut trainer = Trainer::new();
    let path = copy_of_the_model(&mut trainer).join("config.json");
    let text = std::fs::read_to_string(&path).expect("reads");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["model_type"] = "mamba".into();
    config["architectures"] = serde_json::json!(["MambaForCausalLM"]);
    std::fs::write(&path, config.to_string()).expect("writes");
    let said = trainer.run();
    let error = failure(&said);
    assert_eq!(error.code, ErrorCode::InvalidModel);
    for word in ["mamba", "llama", "gpt2", "gemma3"] {
        assert!(error.message.contains(word), "{word}: {}", error.message);
    }
}
