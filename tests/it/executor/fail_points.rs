//! Every fail point with every action, stepped one at a time: the server or the trainer dies, stalls or
//! fails there, and the job ends as if nothing had happened. What comes out is byte for byte what an
//! undisturbed run makes, and nothing is published twice or lost.
//!
//! The one exception is a checkpoint that cannot be written: it fails its job.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hone::blobs::RESULTS;
use hone::util::fail_point::{FailPoint, VARIABLE};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::support::server::{Server, chat_lines};

/// Longest wait for a point.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Steps of the checkpoints that the job publishes, newest first.
const CHECKPOINTS: [u64; 3] = [9, 6, 3];

/// Three files of each checkpoint, and the six of the result.
const RESULT_FILES: usize = 3 * CHECKPOINTS.len() + 6;

/// What an undisturbed run makes.
struct Reference {
    adapter: Vec<u8>,
    metrics_csv: Vec<u8>,
    trained_tokens: Value,
}

static REFERENCE: OnceCell<Reference> = OnceCell::const_new();

/// One undisturbed run, shared by all tests.
async fn reference() -> &'static Reference {
    let run = async || {
        let server = Server::start();
        let job = create(&server).await;
        let ended = server.ended(&job, "succeeded").await;
        assert_published_once(&server, &job).await;
        Reference {
            adapter: server.result_file(&ended, "adapter_model.safetensors").await,
            metrics_csv: server.result_file(&ended, "step_metrics.csv").await,
            trained_tokens: ended["trained_tokens"].clone(),
        }
    };
    REFERENCE.get_or_init(run).await
}

/// A job of nine steps with a checkpoint after every third.
async fn create(server: &Server) -> String {
    let hyperparameters = json!({"n_epochs": 3, "batch_size": 4, "lora_r": 4});
    server.create_job(&chat_lines(12), hyperparameters).await
}

/// A server that does `action` at the first visit of `point`, and the job that meets it.
struct Case {
    server: Server,
    job: String,
    point: FailPoint,
    folder: tempfile::TempDir,
}

impl Case {
    async fn new(point: FailPoint, action: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let rules = format!("{};{}={action}", folder.path().display(), point.as_str());
        let server = Server::start_with(&[(VARIABLE, &rules)]);
        let job = create(&server).await;
        Self { server, job, point, folder }
    }

    fn file(&self, extension: &str) -> PathBuf {
        self.folder.path().join(format!("{}.{extension}", self.point.as_str()))
    }

    /// How often the point was visited.
    fn visits(&self) -> u64 {
        std::fs::metadata(self.file("visits")).map_or(0, |file| file.len())
    }

    /// Waits until the point is visited.
    async fn visited(&self) {
        let start = Instant::now();
        while self.visits() == 0 {
            assert!(start.elapsed() < TIMEOUT, "{:?} is not visited", self.point);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Messages of the job's warnings, oldest first, but for that of the loss: the model's weights are
    /// random.
    async fn warnings(&self) -> Vec<String> {
        let events = self.server.events(&self.job).await;
        let warnings = events.iter().rev().filter(|event| event["level"] == "warn");
        let messages = warnings.map(|event| event["message"].as_str().expect("a text").to_owned());
        messages.filter(|message| !message.starts_with("divergence:")).collect()
    }

    /// The job succeeds, and everything is as after an undisturbed run.
    async fn succeeds(self) {
        let Self { server, job, point, .. } = &self;
        let ended = server.ended(job, "succeeded").await;
        let wanted = reference().await;
        assert!(
            server.result_file(&ended, "adapter_model.safetensors").await == wanted.adapter,
            "{point:?}: another adapter"
        );
        assert!(
            server.result_file(&ended, "step_metrics.csv").await == wanted.metrics_csv,
            "{point:?}: other metrics"
        );
        assert_eq!(ended["trained_tokens"], wanted.trained_tokens, "{point:?}");
        assert!(self.visits() >= 1, "{point:?}");
        assert_published_once(server, job).await;
        self.leaves_nothing(RESULT_FILES).await;
    }

    /// After the next start there is no blob without a row and no work folder.
    async fn leaves_nothing(self, result_files: usize) {
        let server = self.server.kill_and_restart();
        let blobs = files_below(&server.data_dir().join("blobs/objects").join(RESULTS));
        assert_eq!(blobs.len(), result_files, "{:?}: {blobs:?}", self.point);
        let work = files_below(&server.data_dir().join("work"));
        assert!(work.is_empty(), "{:?}: {work:?}", self.point);
    }
}

/// Each checkpoint, the model and each of their files is there once, and the events tell so once.
async fn assert_published_once(server: &Server, job: &str) {
    let page = server.get(&format!("/v1/fine_tuning/jobs/{job}/checkpoints")).await.ok();
    let checkpoints = page["data"].as_array().expect("a list");
    let steps: Vec<u64> =
        checkpoints.iter().filter_map(|one| one["step_number"].as_u64()).collect();
    assert_eq!(steps, CHECKPOINTS);
    let page = server.get("/v1/files?purpose=fine-tune-results&limit=1000").await.ok();
    assert_eq!(page["data"].as_array().map(Vec::len), Some(RESULT_FILES));
    let models = server.get("/v1/models").await.ok();
    let models = models["data"].as_array().expect("a list").iter();
    let tuned = models.filter(|model| model["id"].as_str().is_some_and(|id| id.starts_with("ft:")));
    assert_eq!(tuned.count(), 1);

    let events = server.events(job).await;
    let said = |wanted: &str| {
        let messages = events.iter().filter_map(|event| event["message"].as_str());
        messages.filter(|message| message.starts_with(wanted)).count()
    };
    assert!(said("Fine-tuning job started") >= 1, "{events:#?}");
    for step in CHECKPOINTS {
        assert_eq!(said(&format!("Checkpoint created at step {step}:")), 1, "{events:#?}");
    }
    assert_eq!(said("New fine-tuned model created"), 1, "{events:#?}");
    assert_eq!(said("The job has successfully completed"), 1, "{events:#?}");
    assert_eq!(events[0]["message"], "The job has successfully completed", "it is the last");
}

/// Each step has an event. A trainer whose server has died may do a step that nobody hears of before it
/// stops.
async fn assert_every_step_is_told(case: &Case) {
    let events = case.server.events(&case.job).await;
    for step in 1..=CHECKPOINTS[0] {
        let wanted = format!("Step {step}/");
        let is_told =
            |event: &Value| event["message"].as_str().is_some_and(|m| m.starts_with(&wanted));
        assert!(events.iter().any(is_told), "step {step}: {events:#?}");
    }
}

/// Every file below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

#[tokio::test]
async fn a_process_that_dies_at_any_point_loses_nothing() {
    for point in FailPoint::ALL {
        let mut case = Case::new(*point, "die").await;
        let warning = match point {
            // The trainer dies; its server notices.
            FailPoint::CheckpointRenamed => Some("signal 6"),
            // The job has ended before the server dies.
            FailPoint::JobEnded => None,
            _ => Some("The server was restarted"),
        };
        if *point != FailPoint::CheckpointRenamed {
            case.server = case.server.dies_and_restarts();
        }
        case.server.ended(&case.job, "succeeded").await;
        let warnings = case.warnings().await;
        assert_eq!(warnings.len(), usize::from(warning.is_some()), "{point:?}: {warnings:?}");
        if let Some(wanted) = warning {
            assert!(warnings[0].contains(wanted), "{point:?}: {warnings:?}");
        }
        case.succeeds().await;
    }
}

#[tokio::test]
async fn a_process_that_stalls_at_any_point_goes_on() {
    for point in FailPoint::ALL {
        let case = Case::new(*point, "stall").await;
        case.visited().await;
        // The server answers meanwhile, and shows what is done and nothing more.
        let job = case.server.job(&case.job).await;
        let status = if *point == FailPoint::JobEnded { "succeeded" } else { "running" };
        assert_eq!(job["status"], status, "{point:?}");
        let path = format!("/v1/fine_tuning/jobs/{}/checkpoints", case.job);
        let published = case.server.get(&path).await.ok()["data"].as_array().map(Vec::len);
        let expected = match point {
            FailPoint::Claimed
            | FailPoint::Staged
            | FailPoint::TrainerStarted
            | FailPoint::CheckpointRenamed => 0,
            FailPoint::CheckpointPublished => 1,
            FailPoint::ResultStored | FailPoint::JobEnded => CHECKPOINTS.len(),
        };
        assert_eq!(published, Some(expected), "{point:?}");
        std::fs::write(case.file("go"), "").expect("writes");
        case.server.ended(&case.job, "succeeded").await;
        assert_eq!(case.warnings().await, Vec::<String>::new(), "{point:?}");
        assert_every_step_is_told(&case).await;
        case.succeeds().await;
    }
}

#[tokio::test]
async fn an_operation_that_fails_at_any_point_is_tried_again_or_said() {
    for point in FailPoint::ALL {
        let case = Case::new(*point, "fail").await;
        let name = point.as_str();
        let status = match point {
            FailPoint::CheckpointRenamed => "failed",
            _ => "succeeded",
        };
        let job = case.server.ended(&case.job, status).await;
        let warnings = case.warnings().await;
        let wanted = match point {
            FailPoint::Claimed
            | FailPoint::Staged
            | FailPoint::TrainerStarted
            | FailPoint::ResultStored => Some("the job starts again from its last checkpoint"),
            // The checkpoint is there all the same.
            FailPoint::CheckpointPublished => Some("could not be published"),
            // The end is stored; the executor finds that out when it writes the end again.
            FailPoint::JobEnded => None,
            FailPoint::CheckpointRenamed => None,
        };
        assert_eq!(warnings.len(), usize::from(wanted.is_some()), "{point:?}: {warnings:?}");
        if let Some(wanted) = wanted {
            assert!(warnings[0].contains(wanted), "{point:?}: {warnings:?}");
            assert!(warnings[0].contains(&format!("fail point {name}")), "{warnings:?}");
        }
        if *point != FailPoint::CheckpointRenamed {
            assert_every_step_is_told(&case).await;
            case.succeeds().await;
            continue;
        }
        assert_eq!(job["error"]["code"], "internal_error", "{job:#}");
        let message = job["error"]["message"].as_str().expect("a text");
        assert!(message.contains("a checkpoint cannot be written"), "{message}");
        assert!(message.contains("fail point checkpoint_renamed"), "{message}");
        assert_eq!((&job["fine_tuned_model"], &job["result_files"]), (&Value::Null, &json!([])));
        case.leaves_nothing(0).await;
    }
}

#[tokio::test]
async fn a_checkpoint_that_was_superseded_while_its_server_died_is_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    // The second checkpoint is published, and the first one is not removed yet.
    let rules = format!("{};checkpoint_published@2=die", folder.path().display());
    let server = Server::start_with(&[(VARIABLE, &rules)]);
    let hyperparameters =
        json!({"n_epochs": 3, "batch_size": 4, "lora_r": 4, "save_total_limit": 1});
    let job = server.create_job(&chat_lines(12), hyperparameters).await;
    let server = server.dies_and_restarts();
    server.ended(&job, "succeeded").await;
    let page = server.get(&format!("/v1/fine_tuning/jobs/{job}/checkpoints")).await.ok();
    let steps: Vec<u64> = page["data"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["step_number"].as_u64())
        .collect();
    assert_eq!(steps, [9]);
}
