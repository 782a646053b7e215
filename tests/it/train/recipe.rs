//! The recipe around the steps: looks at a validation file, the best checkpoint, early stopping,
//! preferences, dropout, going on from a fine-tuned model, and the report of it all.

use std::path::{Path, PathBuf};

use hone::domain::chat_template::ChatTemplateSettings;
use hone::domain::error_code::ErrorCode;
use hone::domain::job::{Auto, EventLevel, Hyperparameters, Method, StepMetrics};
use hone::train::engine::BackendKind;
use hone::train::protocol::{Control, Progress, RunSpec};
use hone::train::run::run;
use serde_json::{Value, json};

use crate::support::server::{Server, TINY, chat_lines};

/// A run in this process.
struct Recipe {
    folder: tempfile::TempDir,
    spec: RunSpec,
}

impl Recipe {
    /// Twelve examples, two a step.
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let training_file = folder.path().join("train.jsonl");
        std::fs::write(&training_file, chat_lines(12)).expect("writes");
        let spec = RunSpec {
            base_model: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(TINY),
            base_model_id: TINY.to_owned(),
            continue_from: None,
            training_file,
            validation_file: None,
            work_dir: folder.path().join("run"),
            seed: 5,
            chat_template: ChatTemplateSettings::default(),
            training_date: None,
            hyperparameters: Hyperparameters {
                n_epochs: Auto::Value(4),
                batch_size: Auto::Value(2),
                learning_rate: Some(1e-2),
                lora_r: Some(4),
                ..Hyperparameters::default()
            },
        };
        Self { folder, spec }
    }

    /// Measures on other answers to the questions, which training makes less likely in the end.
    fn measure_on_other_answers(&mut self) {
        let lines: String = (0..12)
            .map(|number| {
                let line = json!({"messages": [
                    {"role": "user", "content": format!("What comes after {number}?")},
                    {"role": "assistant", "content": "I would rather not say it."},
                ]});
                format!("{line}\n")
            })
            .collect();
        let path = self.folder.path().join("valid.jsonl");
        std::fs::write(&path, lines).expect("writes");
        self.spec.validation_file = Some(path);
    }

    /// Measured every second step; ends after three looks that bring nothing.
    fn of_little_patience() -> Self {
        let mut recipe = Self::new();
        recipe.measure_on_other_answers();
        let values = &mut recipe.spec.hyperparameters;
        values.n_epochs = Auto::Value(50);
        values.eval_steps = Auto::Value(2);
        values.early_stopping_patience = Some(3);
        recipe
    }

    fn run(&self) -> Vec<Progress> {
        self.run_with(&mut || None)
    }

    fn run_with(&self, orders: &mut dyn FnMut() -> Option<Control>) -> Vec<Progress> {
        let mut said = Vec::new();
        run(&self.spec, BackendKind::Cpu, &mut |progress| said.push(progress), orders);
        said
    }
}

/// What a run that has finished leaves.
struct Left {
    adapter: PathBuf,
    report: Value,
    steps: Vec<StepMetrics>,
    /// Steps announced for the user, each with those that it supersedes.
    announced: Vec<(u64, Vec<u64>)>,
    warnings: Vec<String>,
    sentences: Vec<String>,
}

fn left(said: &[Progress]) -> Left {
    let Some(Progress::Finished { directory, report, trained_steps, .. }) = said.last() else {
        panic!("it did not finish: {:?}", said.last());
    };
    let report = std::fs::read(report).expect("reads");
    let mut left = Left {
        adapter: directory.clone(),
        report: serde_json::from_slice(&report).expect("JSON"),
        steps: Vec::new(),
        announced: Vec::new(),
        warnings: Vec::new(),
        sentences: Vec::new(),
    };
    for progress in said {
        match progress {
            Progress::Step { metrics, .. } => left.steps.push(metrics.clone()),
            Progress::Checkpoint { metrics, retained, .. } => {
                left.announced.push((metrics.step, retained.clone()));
            }
            Progress::Note { level: EventLevel::Warn, message, .. } => {
                left.warnings.push(message.clone());
            }
            Progress::Note { message, .. } => left.sentences.push(message.clone()),
            _ => {}
        }
    }
    assert_eq!(left.steps.last().map(|step| step.step), Some(*trained_steps));
    left
}

#[test]
fn training_stops_early_and_the_best_look_becomes_the_model() {
    let recipe = Recipe::of_little_patience();
    let left = left(&recipe.run());

    let looks: Vec<(u64, f64)> = left
        .steps
        .iter()
        .filter_map(|step| step.full_valid_loss.map(|loss| (step.step, loss)))
        .collect();
    assert!(
        looks.windows(2).all(|pair| pair[1].0 == pair[0].0 + 2),
        "every second step: {looks:?}"
    );
    assert!(
        left.steps.iter().all(|step| step.valid_loss.is_some() == step.full_valid_loss.is_some())
    );
    let (mut best, mut since) = (looks[0], 0);
    for look in &looks[1..] {
        since += 1;
        if look.1 <= best.1 - 0.001 {
            (best, since) = (*look, 0);
        }
    }
    assert_eq!(since, 3, "it ends after three looks without improvement: {looks:?}");
    assert!(best.0 > 2 && left.steps.len() < 300, "{looks:?}");
    assert!(left.adapter.ends_with(format!("step-{}", best.0)), "{:?}", left.adapter);
    assert_eq!(left.report["steps"]["model_is_of"], best.0);
    assert_eq!(left.report["steps"]["done"], left.steps.len());
    assert_eq!(left.report["losses"]["best"]["step"], best.0);
    let said = |part: &str| left.sentences.iter().any(|text| text.contains(part));
    assert!(said(&format!("Training stops early at step {}", left.steps.len())));
    assert!(said(&format!("The model is that of step {}", best.0)), "{:?}", left.sentences);
    // Above the best by more than chance, while the training loss falls.
    let overfits = left.warnings.iter().find(|text| text.starts_with("overfitting"));
    let overfits = overfits.unwrap_or_else(|| panic!("{:?} {looks:?}", left.warnings));
    assert!(overfits.contains(&format!("at step {}", best.0)), "{overfits}");
}

#[test]
fn a_run_that_stopped_early_comes_out_the_same_after_it_was_interrupted() {
    let made = |stop_at: Option<u64>| {
        let mut recipe = Recipe::of_little_patience();
        recipe.spec.hyperparameters.lora_dropout = Some(0.2);
        if let Some(step) = stop_at {
            let mut asked = 0;
            let said = recipe.run_with(&mut || {
                asked += 1;
                (asked > step).then_some(Control::Stop)
            });
            assert!(matches!(said.last(), Some(Progress::Stopped { .. })), "{:?}", said.last());
        }
        let left = left(&recipe.run());
        let file = |name: &str| std::fs::read(left.adapter.join(name)).expect("reads");
        (file("adapter_model.safetensors"), left.report)
    };
    let undisturbed = made(None);
    for step in [1, 5, 9] {
        assert!(made(Some(step)) == undisturbed, "stopped after {step}");
    }
}

#[test]
fn a_run_that_gives_way_to_answers_comes_out_the_same_and_says_how_long_it_waited() {
    let made = |gives_way: bool| {
        let recipe = Recipe::new();
        let mut asked = 0;
        let said = recipe.run_with(&mut || {
            asked += 1;
            let order = match asked % 60 {
                10 => Control::PauseMicroBatches,
                50 => Control::ResumeMicroBatches,
                _ => return None,
            };
            gives_way.then_some(order)
        });
        let waited = said.iter().rev().find_map(|progress| match progress {
            Progress::Step { yielded_seconds, .. } => Some(*yielded_seconds),
            _ => None,
        });
        let left = left(&said);
        let adapter = std::fs::read(left.adapter.join("adapter_model.safetensors"));
        (adapter.expect("reads"), left.report, waited.expect("a step"))
    };
    let (undisturbed, report, waited) = made(false);
    assert_eq!(waited, 0.0);
    let (adapter, of_the_other, waited) = made(true);
    assert!(waited > 0.05, "{waited}");
    assert!(adapter == undisturbed && of_the_other == report, "not the same run");
}

#[test]
fn a_stop_between_micro_batches_drops_the_step_and_ends_the_run() {
    let mut recipe = Recipe::new();
    let long = "and on and on ".repeat(24);
    let lines: String = (0..12)
        .map(|number| {
            let line = json!({"messages": [{"role": "user", "content": format!("{number} {long}")},
                {"role": "assistant", "content": "x"}]});
            format!("{line}\n")
        })
        .collect();
    std::fs::write(&recipe.spec.training_file, lines).expect("writes");
    recipe.spec.hyperparameters.batch_size = Auto::Value(12);
    let mut asked = 0;
    let said = recipe.run_with(&mut || {
        asked += 1;
        (asked == 2).then_some(Control::Stop)
    });
    assert!(matches!(said.last(), Some(Progress::Stopped { step: 0 })), "{:?}", said.last());
    let steps = said.iter().filter(|progress| matches!(progress, Progress::Step { .. })).count();
    assert_eq!((steps, asked), (0, 2), "nothing is computed after the order");
}

#[test]
fn checkpoints_are_kept_at_intervals_the_last_few_and_the_best() {
    let mut recipe = Recipe::new();
    recipe.measure_on_other_answers();
    let values = &mut recipe.spec.hyperparameters;
    values.n_epochs = Auto::Value(8);
    values.eval_steps = Auto::Value(100);
    values.early_stopping_patience = Some(0);
    values.save_steps = Some(4);
    values.save_total_limit = Some(2);
    let orders = std::cell::RefCell::new(std::collections::VecDeque::new());
    let mut said = Vec::new();
    run(
        &recipe.spec,
        BackendKind::Cpu,
        &mut |progress| {
            if let Progress::Checkpoint { metrics, directory, .. } = &progress {
                assert!(directory.join("adapter_config.json").exists());
                orders.borrow_mut().push_back(Control::Published { step: metrics.step });
            }
            said.push(progress);
        },
        &mut || orders.borrow_mut().pop_front(),
    );
    let left = left(&said);
    let announced: Vec<u64> = left.announced.iter().map(|(step, _)| *step).collect();
    let wanted: Vec<u64> = (1..=48).filter(|step| step % 4 == 0 || step % 6 == 0).collect();
    assert_eq!(announced, wanted);
    let mut kept: Vec<u64> = Vec::new();
    for (step, retained) in &left.announced {
        kept.push(*step);
        kept.retain(|step| retained.contains(step));
    }
    let best = left.report["losses"]["best"]["step"].as_u64().expect("a look");
    assert!(best < 44, "{best}");
    assert_eq!(kept, [best, 44, 48], "the best, and the last two");
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(&recipe.spec.work_dir).expect("reads") {
        let name = entry.expect("an entry").file_name().into_string().expect("UTF-8");
        folders.extend(name.strip_prefix("step-").map(|step| step.parse::<u64>().expect("a step")));
    }
    folders.sort_unstable();
    let newest = [45, 48];
    assert_eq!(folders, [best, newest[0], newest[1]], "a run goes on from the newest two alone");
}

#[test]
fn as_many_checkpoints_as_are_asked_for_stay_beside_the_best() {
    let mut recipe = Recipe::new();
    recipe.measure_on_other_answers();
    let values = &mut recipe.spec.hyperparameters;
    values.n_epochs = Auto::Value(8);
    values.learning_rate = Some(1e-3);
    // Each look that is better than the one before makes a checkpoint as well.
    values.eval_steps = Auto::Value(1);
    values.early_stopping_patience = Some(0);
    values.early_stopping_threshold = Some(0.0);
    values.n_checkpoints = Some(12);
    let left = left(&recipe.run());
    let mut kept: Vec<u64> = Vec::new();
    for (step, retained) in &left.announced {
        kept.push(*step);
        kept.retain(|step| retained.contains(step));
    }
    assert!(left.announced.len() > 14, "{:?}", left.announced);
    let best = left.report["losses"]["best"]["step"].as_u64().expect("a look");
    let mut wanted: Vec<u64> = (1..=12).map(|place| 4 * place).collect();
    if !wanted.contains(&best) {
        wanted.push(best);
        wanted.sort_unstable();
    }
    assert_eq!(kept, wanted);
}

#[test]
fn a_run_that_is_told_to_stop_at_any_moment_loses_no_step_and_comes_to_the_same_bytes() {
    // Steps and evaluations of several micro-batches each.
    let long = || {
        let mut recipe = Recipe::new();
        let lines = |answer: &str| -> String {
            let line = |number| {
                let question = format!("What comes after {number}? {}", "Think well. ".repeat(8));
                json!({"messages": [{"role": "user", "content": question},
                    {"role": "assistant", "content": answer}]})
            };
            (0..12).map(|number| format!("{}\n", line(number))).collect()
        };
        std::fs::write(&recipe.spec.training_file, lines("The next one.")).expect("writes");
        let path = recipe.folder.path().join("valid.jsonl");
        std::fs::write(&path, lines("I would rather not say it.")).expect("writes");
        recipe.spec.validation_file = Some(path);
        let values = &mut recipe.spec.hyperparameters;
        values.n_epochs = Auto::Value(2);
        values.batch_size = Auto::Value(12);
        values.eval_steps = Auto::Value(1);
        recipe
    };
    let said_of = |said: &[Progress]| {
        let left = left(said);
        let bytes = std::fs::read(left.adapter.join("adapter_model.safetensors")).expect("reads");
        (bytes, left.report)
    };
    let mut asked = 0;
    let undisturbed = long();
    let wanted = said_of(&undisturbed.run_with(&mut || {
        asked += 1;
        None
    }));
    assert!(asked >= 10, "it asks {asked} times: more micro-batches are needed");
    let mut within_steps = 0;
    for moment in 1..=asked {
        let recipe = long();
        let mut asked = 0;
        let said = recipe.run_with(&mut || {
            asked += 1;
            (asked == moment).then_some(Control::Stop)
        });
        let steps = |said: &[Progress]| -> Vec<StepMetrics> {
            let of = |one: &Progress| match one {
                Progress::Step { metrics, .. } => Some(metrics.clone()),
                _ => None,
            };
            said.iter().filter_map(of).collect()
        };
        match said.last() {
            Some(Progress::Stopped { step }) => {
                // At most one more micro-batch is asked for, and none of a step that was done is lost.
                assert!(asked <= moment + 1, "{moment}: it asked {asked} times");
                let done = steps(&said).last().map_or(0, |metrics| metrics.step);
                assert!(*step == done || *step == done + 1, "{moment}: {step} of {done}");
                within_steps += u32::from(*step == done + 1);
            }
            Some(Progress::Finished { .. }) => continue,
            other => panic!("{moment}: {other:?}"),
        }
        let resumed = recipe.run();
        let all = [steps(&said), steps(&resumed)].concat();
        let numbers: Vec<u64> = all.iter().map(|metrics| metrics.step).collect();
        assert_eq!(numbers, (1..=2).collect::<Vec<_>>(), "{moment}: each step is done once");
        assert!(said_of(&resumed) == wanted, "{moment}: other bytes");
    }
    assert!(within_steps > 3, "it was told in an evaluation {within_steps} times");
}

#[test]
fn the_report_holds_what_was_found_and_no_text_of_the_data() {
    let mut recipe = Recipe::new();
    recipe.spec.hyperparameters.learning_rate = Some(2e-2);
    recipe.spec.hyperparameters.n_epochs = Auto::Value(20);
    let left = left(&recipe.run());
    let report = &left.report;
    assert_eq!(report["hyperparameters"]["lora_r"], 4);
    assert_eq!(report["base_model"]["id"], TINY);
    for digest in [&report["base_model"]["sha256"], &report["data"]["training"]["sha256"]] {
        assert_eq!(digest.as_str().map(str::len), Some(64), "{report:#}");
    }
    assert_eq!(report["data"]["training"]["examples"], 12);
    let change = report["change_by_layer"].as_array().expect("a table");
    assert_eq!(change.len(), 2, "a row for each block");
    for row in change {
        assert!(row["mean_absolute_change"].as_f64().is_some_and(|mean| mean > 0.0), "{row}");
    }
    let worst = report["highest_losses"].as_array().expect("a list");
    assert_eq!(worst.len(), 10);
    let losses: Vec<f64> = worst.iter().filter_map(|row| row["loss"].as_f64()).collect();
    assert!(losses.is_sorted_by(|a, b| a >= b), "{losses:?}");
    assert!(worst.iter().all(|row| (1..=12).contains(&row["line"].as_u64().unwrap_or(0))));
    assert!(!report.to_string().contains("What comes after"));
    // So large a rate ruins the model for everything else, however the CPU rounds: by 1.4 nats. Larger
    // ones throw it about, and where it lands is chance.
    let ordinary = &report["ordinary_text_loss"];
    let [before, after] = ["before", "after"].map(|key| ordinary[key].as_f64().expect("a loss"));
    assert!(after > before + 0.5, "{before} {after}");
    assert!(left.warnings.iter().any(|text| text.starts_with("forgetting")), "{:?}", left.warnings);
    assert!(report["health"].as_array().is_some_and(|found| !found.is_empty()));
    // Twice the same run, twice the same bytes.
    recipe.spec.work_dir = recipe.folder.path().join("again");
    assert!(self::left(&recipe.run()).report == *report);
}

#[test]
fn dropout_gives_the_same_bytes_for_the_same_seed_and_others_than_without() {
    let made = |dropout: Option<f64>| {
        let mut recipe = Recipe::new();
        recipe.spec.hyperparameters.lora_dropout = dropout;
        let left = left(&recipe.run());
        std::fs::read(left.adapter.join("adapter_model.safetensors")).expect("reads")
    };
    let dropping = made(Some(0.3));
    assert!(made(Some(0.3)) == dropping);
    assert!(made(None) != dropping && made(Some(0.1)) != dropping);
}

/// Ten preferences for answers in words.
fn preferences() -> String {
    let mut lines = String::new();
    for number in 0..10 {
        let answer = |text: String| json!([{"role": "assistant", "content": text}]);
        let line = json!({
            "input": {"messages": [{"role": "user", "content": format!("Say {number}.")}]},
            "preferred_output": answer(format!("It is {number}, with pleasure.")),
            "non_preferred_output": answer(format!("{number}!")),
        });
        lines.push_str(&format!("{line}\n"));
    }
    lines
}

#[tokio::test]
async fn a_dpo_job_learns_to_prefer_and_says_by_what_margin() {
    let server = Server::start();
    let file = server.upload(&preferences()).await;
    let validation = server.upload(&preferences()).await;
    let body = json!({"model": TINY, "training_file": file, "validation_file": validation, "seed": 1,
        "method": {"type": "dpo", "dpo": {"hyperparameters":
            {"beta": 0.2, "n_epochs": 4, "learning_rate": 5e-3}}}});
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    let id = job["id"].as_str().expect("an id");
    let job = server.ended(id, "succeeded").await;
    assert_eq!(job["method"]["type"], "dpo");
    assert_eq!(job["method"]["dpo"]["hyperparameters"]["beta"], 0.2);
    let events = server.events(id).await;
    let metrics: Vec<&Value> =
        events.iter().rev().filter(|event| event["type"] == "metrics").collect();
    let loss = |event: &Value| event["data"]["train_loss"].as_f64().expect("a loss");
    let first = metrics[0];
    assert!((loss(first) - std::f64::consts::LN_2).abs() < 1e-3, "no margin yet: {first}");
    assert!(first["data"]["reward_margin"].as_f64().is_some_and(|margin| margin.abs() < 1e-2));
    let last = metrics[metrics.len() - 1];
    assert!(loss(last) < 0.5 * std::f64::consts::LN_2, "{last}");
    assert!(last["data"]["reward_margin"].as_f64().is_some_and(|margin| margin > 0.5), "{last}");
    assert_eq!(last["data"]["full_valid_mean_token_accuracy"], 1.0, "{last}");
    let body = json!({"model": job["fine_tuned_model"], "max_tokens": 3,
        "messages": [{"role": "user", "content": "Say 3."}]});
    server.post("/v1/chat/completions", body).await.ok();
}

#[tokio::test]
async fn a_file_of_the_other_methods_format_fails_the_job_with_both_formats() {
    let server = Server::start();
    for (content, method) in [(preferences(), "supervised"), (chat_lines(12), "dpo")] {
        let file = server.upload(&content).await;
        let body = json!({"model": TINY, "training_file": file, "method": {"type": method}});
        let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
        assert_eq!(job["status"], "failed");
        assert_eq!(job["error"]["code"], "invalid_training_file");
        assert_eq!(job["error"]["param"], "training_file");
        let message = job["error"]["message"].as_str().expect("a message");
        assert!(message.contains(&format!("the method {method:?} takes")), "{message}");
    }
}

/// Creates a job that goes on from `model` and returns its id.
async fn go_on(server: &Server, model: &Value, hyperparameters: Value) -> String {
    let file = server.upload(&chat_lines(12)).await;
    let body = json!({"model": model, "training_file": file, "seed": 1,
        "hyperparameters": hyperparameters});
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    assert_eq!(job["model"], *model);
    job["id"].as_str().expect("an id").to_owned()
}

#[tokio::test]
async fn a_job_goes_on_from_a_fine_tuned_model_or_a_checkpoint_of_it() {
    let server = Server::start();
    let values = json!({"n_epochs": 4, "batch_size": 4, "lora_r": 2, "lora_layers": 1,
        "learning_rate": 2e-2});
    let first = server.create_job(&chat_lines(12), values).await;
    let first = server.ended(&first, "succeeded").await;
    let id = first["id"].as_str().expect("an id");
    let losses = async |id: &str| {
        let events = server.events(id).await;
        let metrics = events.iter().rev().filter(|event| event["type"] == "metrics");
        let losses: Vec<f64> =
            metrics.filter_map(|event| event["data"]["train_loss"].as_f64()).collect();
        losses
    };
    let of_first = losses(id).await;
    let checkpoints = server.get(&format!("/v1/fine_tuning/jobs/{id}/checkpoints")).await.ok();
    let checkpoint = &checkpoints["data"][3]["fine_tuned_model_checkpoint"];
    assert!(checkpoint.as_str().is_some_and(|name| name.ends_with(":ckpt-step-3")), "{checkpoint}");

    let short = json!({"n_epochs": 1, "batch_size": 4});
    let mut begin = Vec::new();
    for model in [&first["fine_tuned_model"], checkpoint] {
        let next = go_on(&server, model, short.clone()).await;
        let job = server.ended(&next, "succeeded").await;
        assert_eq!(job["method"]["supervised"]["hyperparameters"]["lora_r"], 2, "as it was");
        let name = job["fine_tuned_model"].as_str().expect("a model");
        assert!(name.starts_with("ft:tiny-llama:local::"), "{name}");
        assert_eq!(server.get(&format!("/v1/models/{name}")).await.ok()["parent"], TINY);
        begin.push(losses(&next).await[0]);
    }
    let [from_model, from_checkpoint] = begin[..] else { panic!("two jobs") };
    assert!(
        from_model < from_checkpoint && from_checkpoint < of_first[0],
        "{begin:?} {of_first:?}"
    );

    let next = go_on(&server, &first["fine_tuned_model"], json!({"lora_r": 16})).await;
    let failed = server.ended(&next, "failed").await;
    assert_eq!(failed["error"]["code"], ErrorCode::InvalidHyperparameter.as_str());
    let message = failed["error"]["message"].as_str().expect("a message");
    assert!(message.contains("lora_r is 16") && message.contains("has 2"), "{message}");
}

#[tokio::test]
async fn a_model_that_a_job_goes_on_from_cannot_be_deleted_meanwhile() {
    let server = Server::start();
    let first = server.create_job(&chat_lines(12), json!({"n_epochs": 1, "lora_r": 2})).await;
    let first = server.ended(&first, "succeeded").await;
    let model = &first["fine_tuned_model"];
    let next = go_on(&server, model, json!({"n_epochs": 50, "batch_size": 1})).await;
    let path = format!("/v1/models/{}", model.as_str().expect("a name"));
    let error = server.delete(&path).await.error(400);
    assert!(error["message"].as_str().is_some_and(|text| text.contains(&next)), "{error}");
    server.post(&format!("/v1/fine_tuning/jobs/{next}/cancel"), json!({})).await.ok();
    server.ended(&next, "cancelled").await;
    assert_eq!(server.delete(&path).await.ok()["deleted"], true);
}

#[tokio::test]
async fn preferences_go_on_from_a_supervised_model_and_are_measured_against_it() {
    let server = Server::start();
    let first = server.create_job(&chat_lines(12), json!({"n_epochs": 2, "lora_r": 2})).await;
    let first = server.ended(&first, "succeeded").await;
    let file = server.upload(&preferences()).await;
    let body = json!({"model": first["fine_tuned_model"], "training_file": file, "seed": 1,
        "method": {"type": "dpo"}});
    let job = server.post("/v1/fine_tuning/jobs", body).await.ok();
    let id = job["id"].as_str().expect("an id");
    server.ended(id, "succeeded").await;
    let events = server.events(id).await;
    let first = events.iter().rev().find(|event| event["type"] == "metrics").expect("a step");
    let loss = first["data"]["train_loss"].as_f64().expect("a loss");
    assert!((loss - std::f64::consts::LN_2).abs() < 1e-3, "it begins without a margin: {first}");
}

#[tokio::test]
async fn the_report_is_among_the_result_files() {
    let server = Server::start();
    let job = server.create_job(&chat_lines(12), json!({"n_epochs": 1})).await;
    let job = server.ended(&job, "succeeded").await;
    let report = server.result_file(&job, "report.json").await;
    let report: Value = serde_json::from_slice(&report).expect("JSON");
    assert_eq!(report["steps"]["done"], job["trained_steps"]);
    assert_eq!(report["hyperparameters"]["method"], Method::Supervised.as_str());
}
