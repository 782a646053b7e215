//! What the store's tests have in common: a store over a fresh folder, and rows to put into it.

use std::sync::Arc;

use hone::domain::api_key::{ApiKey, ApiKeySecret, KeyDigest};
use hone::domain::chat_template::ChatTemplateSettings;
use hone::domain::file::{FilePurpose, FileRecord};
use hone::domain::ids;
use hone::domain::job::{
    Auto, FineTuneMode, Hyperparameters, Job, JobCheckpoint, Method, NewJob,
    ResolvedHyperparameters, Schedule, StepMetrics,
};
use hone::domain::model::{TunedModel, checkpoint_name};
use hone::domain::project::Project;
use hone::domain::webhook::{EventType, SigningSecret, WebhookEndpoint};
use hone::store::{Claim, NewCheckpoint, PageRequest, Store, Success, sqlite};
use hone::util::clock::ManualClock;

/// For jobs whose number is not what a test is about.
pub const ANY_NUMBER: u32 = u32::MAX;

/// When the tests' clock starts.
pub const START: i64 = 1_790_000_000;

/// A store with a clock that tests move.
pub struct Fixture {
    pub store: Arc<dyn Store>,
    pub clock: ManualClock,
    _folder: tempfile::TempDir,
}

impl Fixture {
    /// A fresh store on SQLite.
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let clock = ManualClock::at(START);
        let store = sqlite::open(folder.path(), Arc::new(clock.clone())).await.expect("opens");
        Self { store: Arc::new(store), clock, _folder: folder }
    }

    /// Adds a file and returns its id.
    pub async fn add_file(&self) -> String {
        let file = file(FilePurpose::FineTune);
        self.store.insert_file(&file).await.expect("a file is added");
        file.id
    }

    /// Adds a job that waits, with a file of its own, and returns its id.
    pub async fn add_job(&self) -> String {
        let job = job(&self.add_file().await);
        self.store.insert_job(&job, &[], ANY_NUMBER).await.expect("a job is added");
        job.id
    }

    /// Claims the oldest job.
    pub async fn claim(&self) -> (Claim, Job) {
        self.store.claim("tests", 60).await.expect("claims").expect("a job waits")
    }

    /// The job's row.
    pub async fn job(&self, id: &str) -> Job {
        let job = self.store.job(id).await.expect("reads").expect("the job is there");
        (*job).clone()
    }

    /// Numbers of the job's events, oldest first, read in small pages.
    pub async fn event_sequences(&self, job_id: &str) -> Vec<i64> {
        let mut sequences = Vec::new();
        let mut after = None;
        loop {
            let request = PageRequest { after, limit: 3 };
            let page = self.store.list_events(job_id, &request).await.expect("lists");
            sequences.extend(page.items.iter().map(|event| event.sequence));
            after = page.items.last().map(|event| event.id.clone());
            if !page.has_more {
                sequences.reverse();
                return sequences;
            }
        }
    }
}

/// A first page of `limit` items.
pub fn first(limit: u32) -> PageRequest {
    PageRequest { after: None, limit }
}

/// A file with an id and a blob key of its own.
pub fn file(purpose: FilePurpose) -> FileRecord {
    let id = ids::new_file_id();
    FileRecord {
        project: Project::default(),
        bytes: 17,
        created_at: START,
        expires_at: None,
        filename: "train.jsonl".to_owned(),
        purpose,
        sha256: "00".repeat(32),
        blob_key: format!("files/{id}"),
        report: None,
        id,
    }
}

/// A job that waits.
pub fn job(training_file: &str) -> Job {
    let asked = NewJob {
        project: Project::default(),
        model: "tiny".to_owned(),
        continue_from: None,
        training_file: training_file.to_owned(),
        validation_file: None,
        hyperparameters: Hyperparameters { n_epochs: Auto::Value(2), ..Default::default() },
        seed: 7,
        suffix: Some("mine".to_owned()),
        metadata: None,
        chat_template: ChatTemplateSettings::default(),
    };
    Job::queued(asked, START)
}

/// An endpoint that asks for everything.
pub fn webhook_endpoint() -> WebhookEndpoint {
    WebhookEndpoint {
        id: ids::new_webhook_endpoint_id(),
        project: Project::default(),
        created_at: START,
        updated_at: START,
        name: "tests".to_owned(),
        url: "https://example.com/hook".to_owned(),
        event_types: EventType::ALL.iter().map(|one| one.as_str().to_owned()).collect(),
        secret: SigningSecret::random().expect("random bytes"),
        previous_secret: None,
    }
}

/// A key of this project, and its digest.
pub fn api_key(project: &str) -> (ApiKey, KeyDigest) {
    let secret = ApiKeySecret::random().expect("random bytes");
    let key = ApiKey {
        id: ids::new_api_key_id(),
        project: Project::stored(project.to_owned()),
        name: Some("tests".to_owned()),
        last_four: secret.last_four().to_owned(),
        created_at: START,
        revoked_at: None,
    };
    (key, secret.digest())
}

/// What an engine might resolve.
pub fn resolved() -> ResolvedHyperparameters {
    ResolvedHyperparameters {
        method: Method::Supervised,
        beta: None,
        n_epochs: 2,
        batch_size: 1,
        learning_rate_multiplier: 1.0,
        learning_rate: 2e-4,
        tuning: FineTuneMode::Lora,
        tuning_layers: None,
        modules_to_save: None,
        lora_r: Some(8),
        lora_alpha: Some(16.0),
        lora_dropout: Some(0.0),
        lora_target_modules: None,
        lora_layers: None,
        use_rslora: Some(false),
        warmup_ratio: 0.03,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        lr_scheduler_type: Schedule::Linear,
        min_lr_ratio: None,
        context_length: 512,
        eval_steps: Some(10),
        n_evals: None,
        early_stopping_patience: 5,
        early_stopping_threshold: 0.001,
        save_steps: None,
        n_checkpoints: None,
        save_total_limit: 10,
    }
}

/// Numbers of a step.
pub fn metrics(step: u64) -> StepMetrics {
    StepMetrics { step, train_loss: 1.25, valid_loss: Some(1.5), ..Default::default() }
}

/// A checkpoint after `step` with its model and its two files.
pub fn checkpoint(job_id: &str, step: u64) -> (JobCheckpoint, TunedModel, Vec<FileRecord>) {
    let (model, files) = model(job_id, &checkpoint_name(&format!("ft:{job_id}"), step), true);
    let checkpoint = JobCheckpoint {
        id: ids::new_checkpoint_id(),
        created_at: START,
        job_id: job_id.to_owned(),
        model_name: model.id.clone(),
        step,
        metrics: metrics(step),
        result_files: files.iter().map(|file| file.id.clone()).collect(),
    };
    (checkpoint, model, files)
}

/// What is added of a checkpoint, without events.
pub fn without_events(
    (checkpoint, model, files): &(JobCheckpoint, TunedModel, Vec<FileRecord>),
) -> NewCheckpoint<'_> {
    NewCheckpoint { checkpoint, model, files, events: &[] }
}

/// What the success of a job brings.
pub fn success(job_id: &str) -> Success {
    let (model, files) = model(job_id, &format!("ft:{job_id}"), false);
    Success {
        result_files: files.iter().map(|file| file.id.clone()).collect(),
        model,
        files,
        trained_tokens: 1234,
        trained_steps: 20,
        events: Vec::new(),
    }
}

fn model(job_id: &str, name: &str, is_checkpoint: bool) -> (TunedModel, Vec<FileRecord>) {
    let files = vec![file(FilePurpose::FineTuneResults), file(FilePurpose::FineTuneResults)];
    let model = TunedModel {
        project: Project::default(),
        id: name.to_owned(),
        created_at: START,
        base_model: "tiny".to_owned(),
        job_id: job_id.to_owned(),
        is_whole: false,
        config_file: files[0].id.clone(),
        weights_file: files[1].id.clone(),
        other_files: Vec::new(),
        is_checkpoint,
    };
    (model, files)
}
