//! Jobs from the queue to the model, with the real trainer: what a job leaves, how it is cancelled,
//! and that neither a crash nor a restart changes what comes out.

use std::path::Path;
use std::time::{Duration, Instant};

use hone::domain::ids;
use hone::domain::job::{Auto, EventKind, EventLevel, Hyperparameters, Job, JobStatus};
use hone::domain::model::{checkpoint_name, tuned_model_name};
use hone::domain::project::Project;
use hone::executor::MAX_ATTEMPTS;
use sha2::{Digest, Sha256};

use crate::support::executor::{Workshop, waits};
use crate::support::server::signal;
use crate::support::store::first;

const MODEL: &str = "tiny-llama";

/// A workshop with the tiny base model. Its trainer has a name of its own, so that a test can find
/// the process.
async fn workshop() -> Workshop {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let mut workshop = Workshop::new(&models, Path::new(env!("CARGO_BIN_EXE_hone"))).await;
    let own_name = workshop.folder.path().join("trainer-under-test");
    std::os::unix::fs::symlink(&workshop.trainer, &own_name).expect("links");
    workshop.trainer = own_name;
    workshop
}

fn training_lines() -> String {
    let mut lines = String::new();
    for number in 0..12 {
        let line = serde_json::json!({"messages": [
            {"role": "user", "content": format!("What comes after {number}?")},
            {"role": "assistant", "content": format!("{}, of course.", number + 1)},
        ]});
        lines.push_str(&format!("{line}\n"));
    }
    lines
}

/// A job of `n_epochs` times twelve steps.
async fn create(workshop: &Workshop, n_epochs: u32) -> String {
    let training_file = workshop.upload(&training_lines()).await;
    let hyperparameters = Hyperparameters {
        n_epochs: Auto::Value(n_epochs),
        batch_size: Auto::Value(1),
        ..Default::default()
    };
    workshop.create(MODEL, &training_file, hyperparameters).await
}

/// The process that trains in this workshop.
fn trainer_process(workshop: &Workshop) -> u32 {
    let own_name = workshop.trainer.to_str().expect("a UTF-8 path");
    let processes = std::fs::read_dir("/proc").expect("/proc");
    for process in processes.flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let id = process.file_name().to_str().and_then(|name| name.parse().ok());
        if let (true, Some(id)) = (String::from_utf8_lossy(&command).contains(own_name), id) {
            return id;
        }
    }
    panic!("no trainer runs");
}

fn kill_trainer(workshop: &Workshop) {
    let id = trainer_process(workshop).to_string();
    let status = std::process::Command::new("kill").args(["-9", &id]).status().expect("kill");
    assert!(status.success());
}

fn is_under_way(job: &Job) -> bool {
    job.trained_steps >= 2
}

/// SHA-256 of the adapter that a job made.
async fn adapter_digest(workshop: &Workshop, job: &Job) -> String {
    assert_eq!(job.status, JobStatus::Succeeded, "{:?}", job.error);
    let name = job.fine_tuned_model.as_ref().expect("a succeeded job names its model");
    let model = workshop.store.model(name).await.expect("reads").expect("the model is there");
    let file = workshop.store.file(&model.weights_file).await.expect("reads");
    file.expect("the adapter is there").sha256
}

#[tokio::test]
async fn a_job_becomes_a_model_with_its_files_and_tells_how() {
    let workshop = workshop().await;
    let id = create(&workshop, 2).await;
    let running = workshop.start().await;
    let job = workshop.ended(&id).await;
    assert_eq!((job.status, &job.error), (JobStatus::Succeeded, &None));
    assert_eq!((job.trained_steps, job.total_steps), (24, Some(24)));
    assert!(job.trained_tokens.is_some_and(|tokens| tokens > 0));
    assert!(job.finished_at.is_some() && job.estimated_finish.is_none());
    assert_eq!(job.resolved.as_ref().map(|resolved| resolved.n_epochs), Some(2));

    let name = tuned_model_name(MODEL, Some("mine"), &ids::model_suffix(&id));
    assert_eq!(job.fine_tuned_model.as_ref(), Some(&name));
    let model = workshop.store.model(&name).await.expect("reads").expect("is there");
    assert_eq!((model.base_model.as_str(), model.is_checkpoint), (MODEL, false));

    let mut names = Vec::new();
    for file_id in &job.result_files {
        let file = workshop.store.file(file_id).await.expect("reads").expect("is there");
        let bytes = workshop.blobs.bytes(&file.blob_key).await.expect("downloads");
        assert_eq!(file.bytes, bytes.len() as i64);
        let digest: String =
            Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(file.sha256, digest);
        if file.filename == "step_metrics.csv" {
            let csv = String::from_utf8(bytes.to_vec()).expect("text");
            assert!(csv.starts_with("step,train_loss"), "{csv}");
            assert_eq!(csv.lines().count(), 1 + 24);
        }
        names.push(file.filename);
    }
    let wanted = [
        "step_metrics.csv",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "report.json",
        "certificate.json",
    ];
    assert_eq!(names, wanted);

    let checkpoints = workshop.store.list_checkpoints(&id, &first(10)).await.expect("lists").items;
    let steps: Vec<u64> = checkpoints.iter().map(|checkpoint| checkpoint.step).collect();
    assert_eq!(steps, [24, 12], "one for each epoch, newest first");
    for checkpoint in &checkpoints {
        assert_eq!(checkpoint.model_name, checkpoint_name(&name, checkpoint.step));
        assert!(workshop.store.model(&checkpoint.model_name).await.expect("reads").is_some());
        assert_eq!(checkpoint.result_files.len(), 3);
    }

    let messages = workshop.messages(&id).await;
    assert_eq!(messages.first().map(String::as_str), Some("Fine-tuning job started"));
    let expected_last = [
        format!("New fine-tuned model created: {name}"),
        "The job has successfully completed".to_owned(),
    ];
    assert_eq!(messages[messages.len() - 2..], expected_last);
    let events = workshop.events(&id).await;
    let metrics: Vec<_> =
        events.iter().filter(|event| event.event.kind == EventKind::Metrics).collect();
    assert_eq!(metrics.len(), 24, "a short run shows every step");
    assert!(metrics[0].event.message.starts_with("Step 1/24: training loss="));
    let sequences: Vec<i64> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, (1..=events.len() as i64).collect::<Vec<_>>(), "no gaps");
    // The job has ended a moment before its folder is removed.
    running.shut_down().await;
    assert!(!workshop.work_dir().join(&id).exists(), "the work folder is gone");
}

#[tokio::test]
async fn a_cancelled_job_ends_within_a_step_and_the_next_one_runs() {
    let workshop = workshop().await;
    let cancelled = create(&workshop, 50).await;
    let next = create(&workshop, 1).await;
    let running = workshop.start().await;
    workshop.until(&cancelled, is_under_way).await;
    let start = Instant::now();
    workshop.store.request_cancel(&cancelled).await.expect("asks");
    workshop.queue.announce_control_request();
    let job = workshop.ended(&cancelled).await;
    assert_eq!((job.status, job.fine_tuned_model), (JobStatus::Cancelled, None));
    assert!(job.trained_steps < 600);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(workshop.ended(&next).await.status, JobStatus::Succeeded);
    running.shut_down().await;
}

#[tokio::test]
async fn a_job_whose_trainer_is_killed_makes_the_same_model_as_one_left_alone() {
    let workshop = workshop().await;
    let disturbed = create(&workshop, 20).await;
    let undisturbed = create(&workshop, 20).await;
    let running = workshop.start().await;
    workshop.until(&disturbed, is_under_way).await;
    kill_trainer(&workshop);
    let job = workshop.ended(&disturbed).await;
    let events = workshop.events(&disturbed).await;
    let warning = events.iter().find(|event| event.event.level == EventLevel::Warn);
    let warning = &warning.expect("a crash is said").event.message;
    assert!(warning.contains("signal 9"), "{warning}");

    let other = workshop.ended(&undisturbed).await;
    assert_eq!(other.attempt, 1);
    let expected = adapter_digest(&workshop, &other).await;
    assert_eq!(adapter_digest(&workshop, &job).await, expected);
    running.shut_down().await;
}

#[tokio::test]
async fn a_trainer_that_is_stopped_is_ended_and_its_job_makes_the_same_model() {
    let mut workshop = workshop().await;
    // It says every second that it lives.
    workshop.timeouts.silence = Duration::from_secs(5);
    let disturbed = create(&workshop, 6).await;
    let undisturbed = create(&workshop, 6).await;
    let running = workshop.start().await;
    workshop.until(&disturbed, is_under_way).await;
    let stopped = Instant::now();
    signal(trainer_process(&workshop), "STOP");
    let job = workshop.ended(&disturbed).await;
    let events = workshop.events(&disturbed).await;
    let warning = events.iter().find(|event| event.event.level == EventLevel::Warn);
    let warning = &warning.expect("a stall is said").event.message;
    assert!(
        warning.contains("said nothing for 5 s") && warning.contains("step_stalled"),
        "{warning}"
    );
    assert!(stopped.elapsed() < Duration::from_secs(60), "{:?}", stopped.elapsed());
    let other = workshop.ended(&undisturbed).await;
    let expected = adapter_digest(&workshop, &other).await;
    assert_eq!(adapter_digest(&workshop, &job).await, expected);
    running.shut_down().await;
}

#[tokio::test]
async fn crashes_at_different_places_do_not_use_up_a_jobs_attempts() {
    let workshop = workshop().await;
    let disturbed = create(&workshop, 50).await;
    let undisturbed = create(&workshop, 50).await;
    let running = workshop.start().await;
    let mut killed_at = 0;
    // More often than a job may break at one place.
    for kills in 1..=MAX_ATTEMPTS as usize + 2 {
        let start = Instant::now();
        loop {
            let job = workshop.store.job(&disturbed).await.expect("reads").expect("is there");
            assert!(!job.status.is_terminal(), "{:?} {:?}", job.status, job.error);
            // Two epochs on: the trainer has written a checkpoint that is newer than its first.
            if job.trained_steps > killed_at + 24 {
                kill_trainer(&workshop);
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // It may have said more steps before it died than were known when it was killed.
        let deaths = async || {
            let messages = workshop.messages(&disturbed).await;
            messages.iter().filter(|message| message.contains("signal 9")).count()
        };
        while deaths().await < kills {
            assert!(start.elapsed() < Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let job = workshop.store.job(&disturbed).await.expect("reads").expect("is there");
        killed_at = job.trained_steps;
    }
    let job = workshop.ended(&disturbed).await;
    assert_eq!(job.attempt, 1);
    let other = workshop.ended(&undisturbed).await;
    let expected = adapter_digest(&workshop, &other).await;
    assert_eq!(adapter_digest(&workshop, &job).await, expected);
    running.shut_down().await;
}

#[tokio::test]
async fn a_job_goes_on_after_a_shutdown_and_after_the_servers_death() {
    let workshop = workshop().await;
    let disturbed = create(&workshop, 20).await;
    let undisturbed = create(&workshop, 20).await;

    let running = workshop.start().await;
    workshop.until(&disturbed, is_under_way).await;
    let took = running.shut_down().await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    let job = workshop.until(&disturbed, waits).await;
    assert_eq!(job.attempt, 0);

    let running = workshop.start().await;
    workshop.until(&disturbed, |job| job.status == JobStatus::Running).await;
    running.kill().await;
    let job = workshop.store.job(&disturbed).await.expect("reads").expect("is there");
    assert_eq!(job.status, JobStatus::Running, "nobody wrote anything");

    let running = workshop.start().await;
    let job = workshop.ended(&disturbed).await;
    assert_eq!(job.attempt, 1, "neither counts as an attempt");
    let messages = workshop.messages(&disturbed).await;
    let said = |text: &str| messages.iter().any(|message| message.contains(text));
    assert!(said("The server is shutting down; the job will continue from step"), "{messages:#?}");
    assert!(said("The server was restarted"), "{messages:#?}");
    assert!(said("Training continues from the checkpoint at step"), "{messages:#?}");

    let other = workshop.ended(&undisturbed).await;
    let expected = adapter_digest(&workshop, &other).await;
    assert_eq!(adapter_digest(&workshop, &job).await, expected);
    running.shut_down().await;
}

#[tokio::test]
async fn leftovers_of_a_dead_epoch_are_swept_and_results_are_published_once() {
    let workshop = workshop().await;
    let id = create(&workshop, 20).await;
    let running = workshop.start().await;
    workshop.until(&id, is_under_way).await;
    running.kill().await;
    let running = workshop.start().await;
    let job = workshop.ended(&id).await;
    assert_eq!(job.status, JobStatus::Succeeded, "{:?}", job.error);
    running.shut_down().await;

    let prepared = workshop.prepare().await;
    let mut on_disk = workshop.blobs.list().await.expect("lists");
    let mut named = workshop.store.blob_keys().await.expect("lists");
    on_disk.sort();
    named.sort();
    assert_eq!(on_disk, named, "every blob has a row and every row its blob");
    let models = workshop.store.list_models(&Project::default()).await.expect("lists");
    assert_eq!(models.len(), 1);
    drop(prepared);
}
