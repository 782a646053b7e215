//! Whatever a trainer does, it ends at most its own job. The trainers here misbehave on purpose,
//! in ways that the real one cannot be made to.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hone::domain::error_code::ErrorCode;
use hone::domain::job::{EventLevel, Hyperparameters, Job, JobStatus};
use hone::executor::Timeouts;

use crate::support::executor::{Workshop, waits};

/// A workshop whose base models are named after faults, with the script that has them.
async fn workshop() -> (Workshop, tempfile::TempDir) {
    let models = tempfile::tempdir().expect("a folder");
    for fault in ["garbles", "endless-line", "killed", "deaf", "lingers", "empty-handed", "hangs"] {
        std::fs::write(models.path().join(format!("{fault}.gguf")), b"GGUF").expect("writes");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/faulty_trainer.sh");
    let mut workshop = Workshop::new(models.path(), &script).await;
    let short = Duration::from_secs(1);
    workshop.timeouts = Timeouts {
        cancel: short,
        stop: short,
        pause: short,
        exit: short,
        stuck: short,
        ..Timeouts::default()
    };
    (workshop, models)
}

async fn create(workshop: &Workshop, fault: &str) -> String {
    let training_file = workshop.upload("{}\n").await;
    workshop.create(fault, &training_file, Hyperparameters::default()).await
}

fn message(job: &Job, code: ErrorCode) -> &str {
    assert_eq!(job.status, JobStatus::Failed);
    let error = job.error.as_ref().expect("a failed job says why");
    assert_eq!(error.code, code, "{}", error.message);
    &error.message
}

#[tokio::test]
async fn a_trainer_that_keeps_being_killed_fails_its_job_alone() {
    let (workshop, _models) = workshop().await;
    let killed = create(&workshop, "killed").await;
    let next = create(&workshop, "lingers").await;
    let running = workshop.start().await;

    let job = workshop.ended(&killed).await;
    let text = message(&job, ErrorCode::WorkerCrashed);
    assert!(text.contains("signal 9") && text.contains("ran out of memory"), "{text}");
    assert!(text.contains("the last words"), "{text}");
    assert_eq!(job.attempt, 3);
    let events = workshop.events(&killed).await;
    let warned = events.iter().filter(|event| event.event.level == EventLevel::Warn).count();
    assert_eq!(warned, 2, "a warning for each new attempt: {events:#?}");
    let last = &events[events.len() - 1].event;
    assert_eq!((last.level, last.message.as_str()), (EventLevel::Error, text));

    workshop.ended(&next).await;
    assert!(!workshop.work_dir().join(&killed).exists(), "the work folder is gone");
    running.shut_down().await;
}

#[tokio::test]
async fn what_is_no_message_ends_the_trainer_and_is_quoted() {
    let (workshop, _models) = workshop().await;
    let garbles = create(&workshop, "garbles").await;
    let endless = create(&workshop, "endless-line").await;
    let running = workshop.start().await;
    let job = workshop.ended(&garbles).await;
    let text = message(&job, ErrorCode::WorkerCrashed);
    assert!(text.contains("Loading weights..."), "{text}");
    let job = workshop.ended(&endless).await;
    let text = message(&job, ErrorCode::WorkerCrashed);
    assert!(text.contains("a line of more than"), "{text}");
    running.shut_down().await;
}

#[tokio::test]
async fn a_trainer_that_ignores_a_cancel_is_killed_and_the_job_is_cancelled() {
    let (workshop, _models) = workshop().await;
    let deaf = create(&workshop, "deaf").await;
    let next = create(&workshop, "empty-handed").await;
    let running = workshop.start().await;
    workshop.until(&deaf, |job| job.status == JobStatus::Running).await;
    let start = Instant::now();
    workshop.store.request_cancel(&deaf).await.expect("asks");
    workshop.queue.announce_control_request();
    let job = workshop.ended(&deaf).await;
    assert_eq!((job.status, job.error), (JobStatus::Cancelled, None));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    workshop.ended(&next).await;
    running.shut_down().await;
}

#[tokio::test]
async fn a_trainer_that_ignores_a_pause_is_killed_and_the_job_is_paused() {
    let (workshop, _models) = workshop().await;
    let deaf = create(&workshop, "deaf").await;
    let next = create(&workshop, "empty-handed").await;
    let running = workshop.start().await;
    workshop.until(&deaf, |job| job.status == JobStatus::Running).await;
    workshop.store.request_pause(&deaf, &[]).await.expect("asks");
    workshop.queue.announce_control_request();
    let job = workshop.until(&deaf, |job| job.status == JobStatus::Paused).await;
    assert_eq!(job.attempt, 0, "a pause is no attempt");
    workshop.ended(&next).await;
    running.shut_down().await;
}

#[tokio::test]
async fn a_trainer_that_ignores_a_stop_does_not_keep_the_server_from_ending() {
    let (workshop, _models) = workshop().await;
    let deaf = create(&workshop, "deaf").await;
    let running = workshop.start().await;
    workshop.until(&deaf, |job| job.status == JobStatus::Running).await;
    let took = running.shut_down().await;
    assert!(took < Duration::from_secs(10), "{took:?}");
    let job = workshop.until(&deaf, waits).await;
    assert_eq!(job.attempt, 0, "a shutdown is no attempt");
}

#[tokio::test]
async fn a_failure_counts_though_the_process_lingers() {
    let (workshop, _models) = workshop().await;
    let lingers = create(&workshop, "lingers").await;
    let running = workshop.start().await;
    let job = workshop.ended(&lingers).await;
    assert_eq!(message(&job, ErrorCode::NanLoss), "the loss is NaN");
    assert_eq!(job.attempt, 1, "another try would not help");
    running.shut_down().await;
}

#[tokio::test]
async fn a_run_that_does_not_move_is_ended_again_and_again_and_fails_its_job_alone() {
    let (workshop, _models) = workshop().await;
    let hangs = create(&workshop, "hangs").await;
    let next = create(&workshop, "lingers").await;
    let running = workshop.start().await;
    let job = workshop.ended(&hangs).await;
    let text = message(&job, ErrorCode::StepStalled);
    assert!(text.contains("the run did not move for") && text.contains("after step 1"), "{text}");
    assert_eq!(job.attempt, 3);
    workshop.ended(&next).await;
    running.shut_down().await;
}

#[tokio::test]
async fn results_that_are_not_there_are_not_published() {
    let (workshop, _models) = workshop().await;
    let empty_handed = create(&workshop, "empty-handed").await;
    let running = workshop.start().await;
    let job = workshop.ended(&empty_handed).await;
    let text = message(&job, ErrorCode::InternalError);
    assert!(text.contains("metrics.csv") && !text.contains("/nonexistent"), "{text}");
    assert_eq!((job.fine_tuned_model, job.result_files), (None, Vec::new()));
    running.shut_down().await;
}

#[tokio::test]
async fn a_job_without_its_base_model_or_its_file_fails_with_the_reason() {
    let (workshop, _models) = workshop().await;
    let no_model = create(&workshop, "gone").await;
    let training_file = workshop.upload("{}\n").await;
    let record = workshop.store.file(&training_file).await.expect("reads").expect("is there");
    let no_bytes = workshop.create("killed", &training_file, Hyperparameters::default()).await;
    workshop.blobs.delete(&record.blob_key).await.expect("deletes");
    let running = workshop.start().await;
    let job = workshop.ended(&no_model).await;
    assert!(message(&job, ErrorCode::ModelNotFound).contains("\"gone\""));
    let job = workshop.ended(&no_bytes).await;
    assert!(message(&job, ErrorCode::InvalidTrainingFile).contains(&training_file));
    running.shut_down().await;
}

#[tokio::test]
async fn a_trainer_that_cannot_be_started_is_named() {
    let (mut broken, _models) = workshop().await;
    broken.trainer = PathBuf::from("/nonexistent/hone");
    let id = create(&broken, "killed").await;
    let running = broken.start().await;
    let job = broken.ended(&id).await;
    let text = message(&job, ErrorCode::WorkerCrashed);
    assert!(text.contains("the trainer cannot be started"), "{text}");
    assert!(!text.contains("/nonexistent"), "no path of the machine: {text}");
    running.shut_down().await;
}

#[tokio::test]
async fn a_start_sweeps_what_no_row_names_and_keeps_the_rest() {
    let (workshop, _models) = workshop().await;
    let kept = workshop.upload("kept\n").await;
    let kept_key = workshop.store.file(&kept).await.expect("reads").expect("there").blob_key;
    let stray = workshop.folder.path().join("stray");
    std::fs::write(&stray, "stray").expect("writes");
    for key in ["files/file-never-committed", "jobs/ftjob-1/1/final/adapter_config.json"] {
        workshop.blobs.put_file(key, &stray).await.expect("stores");
    }
    workshop.blobs.put_file("elsewhere/theirs", &stray).await.expect("stores");
    let waiting = create(&workshop, "killed").await;
    let waiting_file =
        workshop.store.job(&waiting).await.expect("reads").expect("there").training_file.clone();
    for folder in [waiting.as_str(), "ftjob-ended-long-ago"] {
        std::fs::create_dir_all(workshop.work_dir().join(folder).join("run")).expect("makes");
    }

    // An executor that is prepared and never run leaves the waiting job alone.
    let prepared = workshop.prepare().await;
    let mut keys = workshop.blobs.list().await.expect("lists");
    keys.sort();
    let waiting_key = format!("files/{waiting_file}");
    let mut expected = ["elsewhere/theirs".to_owned(), kept_key, waiting_key];
    expected.sort();
    assert_eq!(keys, expected);
    assert!(workshop.work_dir().join(&waiting).exists());
    assert!(!workshop.work_dir().join("ftjob-ended-long-ago").exists());
    drop(prepared);
}
