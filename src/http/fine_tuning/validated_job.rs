//! A request for a job that was checked as far as possible at once: its files, its model and the job itself.

use serde_json::{Map, Value};

use crate::dataset::ValidationReport;
use crate::domain::error_code::ErrorCode;
use crate::domain::file::{FilePurpose, FileRecord};
use crate::domain::job::{
    DataFile, EventLevel, FineTuneMode, Job, JobError, Method, NewEvent, NewJob,
};
use crate::http::error::{ApiError, ApiResult};
use crate::http::middleware::authenticate::Caller;
use crate::http::models::{find_usable, no_such_model};
use crate::http::state::AppState;
use crate::train::model::template_sources::{TemplateSources, is_jinja};
use crate::util::excerpt::excerpt;
use crate::validate::data_file::job_error_for;
use crate::validate::job_request::{self, JobRequest};

/// Most unused fields that an event names: a client may send any number.
const MOST_NAMED: usize = 50;

/// A job that can be created.
pub(super) struct ValidatedJob {
    /// The job: queued, or failed already.
    pub(super) job: Job,
    /// Its first events.
    pub(super) events: Vec<NewEvent>,
    /// Its files.
    pub(super) files: JobFiles,
}

/// The data of a job.
pub(super) struct JobFiles {
    /// Training file.
    pub(super) training: FileRecord,
    /// Validation file.
    pub(super) validation: Option<FileRecord>,
}

/// The model that a job starts from.
struct StartingModel {
    /// Id of the base model.
    base_model: String,
    /// Name of the fine-tuned model to continue from.
    continue_from: Option<String>,
}

impl ValidatedJob {
    /// Checks a request and what it names. Writes nothing.
    pub(super) async fn new(
        state: &AppState,
        caller: Caller,
        body: &Map<String, Value>,
    ) -> ApiResult<Self> {
        let request = job_request::read(body)?;
        let mode = request.hyperparameters.tuning.unwrap_or_default();
        let model = StartingModel::find(state, &caller, &request.model, mode).await?;
        model.check_template(state, request.chat_template.chat_template.as_deref()).await?;
        let files = JobFiles::find(state, &caller, &request).await?;
        let error = files.error(request.hyperparameters.method);
        let unused = unused_fields(&request.unknown_fields);
        let mut job = Job::queued(
            NewJob {
                project: caller.project,
                model: model.base_model,
                continue_from: model.continue_from,
                training_file: request.training_file,
                validation_file: request.validation_file,
                hyperparameters: request.hyperparameters,
                seed: request.seed.unwrap_or_else(random_seed),
                suffix: request.suffix,
                metadata: request.metadata,
                chat_template: request.chat_template,
            },
            state.clock.now(),
        );
        let events = first_events(&job.id, unused, &files, error.as_ref());
        if let Some(error) = error {
            job = job.failed_at_creation(error);
        }
        Ok(Self { job, events, files })
    }
}

impl JobFiles {
    async fn find(state: &AppState, caller: &Caller, request: &JobRequest) -> ApiResult<Self> {
        let training = data_file(state, caller, &request.training_file, DataFile::Training).await?;
        let validation = match &request.validation_file {
            Some(id) => Some(data_file(state, caller, id, DataFile::Validation).await?),
            None => None,
        };
        Ok(Self { training, validation })
    }

    /// The files that are there.
    fn all(&self) -> impl Iterator<Item = (DataFile, &FileRecord)> {
        let validation = self.validation.as_ref().map(|file| (DataFile::Validation, file));
        std::iter::once((DataFile::Training, &self.training)).chain(validation)
    }

    /// The error of a job over these files, from the reports of their uploads.
    fn error(&self, method: Method) -> Option<JobError> {
        self.all().find_map(|(which, file)| {
            file.report.as_ref().and_then(|report| job_error_for(report, which, method))
        })
    }
}

impl StartingModel {
    /// The model of this name: a base model, or a fine-tuned model or checkpoint. The base model of an
    /// adapter must be there.
    async fn find(
        state: &AppState,
        caller: &Caller,
        model: &str,
        mode: FineTuneMode,
    ) -> ApiResult<Self> {
        let tuned = find_usable(state, caller, model).await?;
        let refused = |message: String| {
            let error = ApiError::new(ErrorCode::InvalidHyperparameter, message);
            Err(error.with_param("hyperparameters.tuning"))
        };
        if let Some(tuned) = &tuned {
            match (tuned.is_whole, mode) {
                (true, FineTuneMode::Lora) => {
                    return refused(format!(
                        "{model:?} is a whole model and no adapter: continue from it with tuning \"full\" \
                         or \"last_layers\""
                    ));
                }
                (false, FineTuneMode::Full | FineTuneMode::LastLayers) => {
                    return refused(format!(
                        "{model:?} is an adapter beside {:?}: continue from it with tuning \"lora\", or \
                         train the base model itself",
                        tuned.base_model
                    ));
                }
                (true, _) => {
                    let (base_model, id) = (tuned.base_model.clone(), tuned.id.clone());
                    return Ok(Self { base_model, continue_from: Some(id) });
                }
                (false, FineTuneMode::Lora) => {}
            }
        }
        let base_model = tuned.as_ref().map_or(model, |tuned| &tuned.base_model);
        let Some(entry) = state.base_models.find(base_model).await.map_err(ApiError::internal)?
        else {
            return Err(no_such_model(state, caller, base_model).await?);
        };
        // It may have been named by its repository on the Hub.
        let base_model = entry.id;
        Ok(Self { base_model, continue_from: tuned.map(|tuned| tuned.id) })
    }
}

impl StartingModel {
    /// Refuses a chat template that is no Jinja and no name of one of the base model's. A fine-tuned model
    /// has its own templates, which its job looks into.
    async fn check_template(&self, state: &AppState, chat_template: Option<&str>) -> ApiResult<()> {
        let (Some(text), None) = (chat_template, &self.continue_from) else { return Ok(()) };
        let base = state.base_models.find(&self.base_model).await.map_err(ApiError::internal)?;
        let Some(base) = base.filter(|_| !is_jinja(text)) else { return Ok(()) };
        // The folder may be on a slow disk.
        let text = text.to_owned();
        let refused = tokio::task::spawn_blocking(move || {
            // A file has one template; a folder that cannot be read is the job's to say.
            let templates = TemplateSources::of_folder(&base.path).ok();
            let templates = templates.filter(|_| base.path.is_dir())?;
            templates.choose(&text).err().map(|error| error.to_string())
        });
        match refused.await.map_err(ApiError::internal)? {
            None => Ok(()),
            Some(message) => Err(ApiError::field("chat_template", message)),
        }
    }
}

/// A file of the caller's project with the purpose of training data.
async fn data_file(
    state: &AppState,
    caller: &Caller,
    id: &str,
    which: DataFile,
) -> ApiResult<FileRecord> {
    let file = state.store.file(id).await?.filter(|file| file.project == caller.project);
    let Some(mut file) = file else {
        let id = excerpt(id);
        let message = format!("there is no file {id:?}: upload it with purpose \"fine-tune\"");
        return Err(ApiError::new(ErrorCode::InvalidFile, message).with_param(which.param()));
    };
    if file.purpose != FilePurpose::FineTune {
        let message = format!(
            "the file {id:?} has the purpose {:?}: upload it with purpose \"fine-tune\"",
            file.purpose.as_str()
        );
        return Err(ApiError::new(ErrorCode::InvalidFile, message).with_param(which.param()));
    }
    file.report = file.report.map(ValidationReport::shortened);
    Ok(file)
}

/// The first events of a job.
fn first_events(
    id: &str,
    unused_fields: Option<NewEvent>,
    files: &JobFiles,
    error: Option<&JobError>,
) -> Vec<NewEvent> {
    let mut events =
        vec![NewEvent::message(EventLevel::Info, format!("Created fine-tuning job: {id}"))];
    events.extend(unused_fields);
    for (which, file) in files.all() {
        let Some(warnings) = file.report.as_ref().map(|report| &report.warnings) else {
            continue;
        };
        if let Some(first) = warnings.listed.first() {
            let name = match which {
                DataFile::Training => "training",
                DataFile::Validation => "validation",
            };
            let message = format!(
                "{} warnings about the {name} file, none of which stops the job; the first: {first}",
                warnings.total
            );
            let data = serde_json::to_value(warnings).ok();
            events.push(NewEvent { data, ..NewEvent::message(EventLevel::Warn, message) });
        }
    }
    events.push(match error {
        Some(error) => NewEvent::message(EventLevel::Error, error.message.clone()),
        None => {
            let message = "Files validated, moving job to queued state";
            NewEvent::message(EventLevel::Info, message)
        }
    });
    events
}

/// The event that names the fields of a request that hone does not use.
fn unused_fields(fields: &[String]) -> Option<NewEvent> {
    let names: Vec<String> =
        fields.iter().take(MOST_NAMED).map(|field| format!("{:?}", excerpt(field))).collect();
    let message = match (fields.len(), fields.len().saturating_sub(MOST_NAMED)) {
        (0, _) => return None,
        (1, _) => {
            format!("The request's field {} is not used by hone and was ignored", names.join(", "))
        }
        (_, 0) => {
            format!(
                "The request's fields {} are not used by hone and were ignored",
                names.join(", ")
            )
        }
        (_, more) => format!(
            "The request's fields {} and {more} more are not used by hone and were ignored",
            names.join(", ")
        ),
    };
    Some(NewEvent::message(EventLevel::Warn, message))
}

/// A seed in OpenAI's range, for a request without one.
fn random_seed() -> u32 {
    (uuid::Uuid::new_v4().as_u128() & 0x7fff_ffff) as u32
}
